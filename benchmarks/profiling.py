"""Where the time of one step goes: `python -m benchmarks profile w1`."""

import pstats
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from benchmarks.measuring import Figures
from benchmarks.metrics import Plan
from benchmarks.runner import PERDURE, ROOT, Surroundings, run_process

OPERATIONS = {"w1": 10, "w1x": 10, "w2": 10, "w3": 1, "w4": 1, "w5": 1, "w6": 1}
UNITS = {"w3": "step", "w4": "message", "w5": "message", "w6": "step"}
Function = tuple[str, int, str]
Timing = tuple[int, int, float, float, Mapping[Function, object]]


def group(function: Function) -> str:
    """The room a function belongs to: a module of ours, asyncio, a package, or what is written in C."""
    path, _, name = function
    if path == "~":
        for package in ("msgspec", "apsw", "asyncpg", "_asyncio", "_blake2", "_contextvars", "_heapq"):
            if package in name:
                return f"C: {package}"
        return "C: other"
    parts = Path(path).parts
    if "perdure" in parts:
        return "perdure/" + "/".join(parts[parts.index("perdure") + 1 :])
    if str(ROOT / "benchmarks") in path:
        return "benchmarks"
    if "site-packages" in parts:
        return "site-packages/" + parts[parts.index("site-packages") + 1]
    return parts[-2] if len(parts) > 1 else path


def place(function: Function) -> str:
    """The function's name and where it stands."""
    path, line, name = function
    if path == "~":
        return name
    short = "/".join(Path(path).parts[-2:])
    return f"{name} ({short}:{line})"


def shares(timings: Mapping[Function, Timing], operations: int) -> list[str]:
    """Own time by room, in microseconds an operation."""
    own: defaultdict[str, float] = defaultdict(float)
    calls: defaultdict[str, int] = defaultdict(int)
    for function, (_, called, total, _, _) in timings.items():
        own[group(function)] += total
        calls[group(function)] += called
    whole = sum(own.values()) or 1.0
    lines = [f"{'own us':>9} {'share':>6} {'calls':>7}  room"]
    for room, seconds in sorted(own.items(), key=lambda item: -item[1])[:25]:
        each = seconds / operations * 1e6
        lines.append(f"{each:9.2f} {seconds / whole:6.1%} {calls[room] / operations:7.2f}  {room}")
    return lines


def top(timings: Mapping[Function, Timing], operations: int, count: int) -> list[str]:
    """The functions with the most time of their own, in microseconds an operation."""
    lines = [f"{'own us':>9} {'with all':>9} {'calls':>7}  function"]
    for function, (_, called, own, cumulative, _) in sorted(timings.items(), key=lambda item: -item[1][2])[:count]:
        each = 1e6 / operations
        lines.append(f"{own * each:9.2f} {cumulative * each:9.2f} {called / operations:7.2f}  {place(function)}")
    return lines


def profile(plan: Plan, count: int, functions: int, around: Surroundings) -> None:
    """Where the workload's time goes has been printed: by processor and, under cProfile, by room and by function."""
    work, operations = plan.programs[0], count * OPERATIONS[plan.work]
    unit = UNITS.get(plan.work, "step")

    def run(limit_s: float, *more: str) -> Figures:
        with around.stores.fresh() as store:
            command = [*PERDURE, work, "--store", store, "--count", str(count), *more]
            return run_process(command, limit_s, around)[0]

    plain = run(plan.limit_s)
    print(f"{plan.title}, {operations:,} {unit}s; without a profiler, in microseconds a {unit}:")
    for key, label in (
        ("metered_s", "wall"),
        ("loop_cpu_s", "processor, the loop's thread"),
        ("other_cpu_s", "processor, other threads (the SQLite writer)"),
    ):
        print(f"{plain[key] / operations * 1e6:9.2f}  {label}")
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "profile.out"
        profiled = run(plan.limit_s * 4, "--profile", str(out))
        timings: Mapping[Function, Timing] = vars(pstats.Stats(str(out)))["stats"]
    slower = profiled["metered_s"] / plain["metered_s"]
    print(f"\nThe loop's thread under cProfile ({slower:.1f} times slower, small functions suffer most);")
    print(f"a {unit}, by room:")
    print("\n".join(shares(timings, operations)))
    print("\nBy function:")
    print("\n".join(top(timings, operations, functions)))
    sys.stdout.flush()
