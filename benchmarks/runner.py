"""Runs one workload in a process of its own, with a time limit, and leaves no process behind."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measuring import Figures
from benchmarks.metrics import Plan
from benchmarks.stores import Stores

ROOT = Path(__file__).resolve().parent.parent
PERDURE = (sys.executable, "-m", "benchmarks.perdure_work")
LIMITS = (sys.executable, "-m", "benchmarks.limits")


class WorkFailed(Exception):
    """A workload gave no figures; the text says why."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Where the stores of this run are, and where its processes keep what Python compiles."""

    stores: Stores
    caches: Path

    def environment(self) -> dict[str, str]:
        """What a program has around it: as its users have it, and compiled once a run, not once a process."""
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        return kept | {"PYTHONPYCACHEPREFIX": str(self.caches)}


class Company:
    """How much of the machine's processor time went to others while we measured."""

    def __init__(self, stores: Stores) -> None:
        self._stores = stores
        self._busy_s, self._ours_s = machine_cpu_s(), self._ours()

    def _ours(self) -> float:
        return children_cpu_s() + self._stores.cpu_s()

    def close(self) -> bool:
        """Whether others took more than a fifth and more than 0.4 s: then the figure has suffered."""
        busy = machine_cpu_s() - self._busy_s
        others = busy - (self._ours() - self._ours_s)
        return others > 0.4 and others > 0.2 * busy


def machine_cpu_s() -> float:
    """Processor seconds that the whole machine has spent working since its start."""
    user, nice, system, _idle, _iowait, irq, softirq = map(
        int, Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:8]
    )
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def children_cpu_s() -> float:
    """Processor seconds of the processes that we ran and that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def run_process(
    command: Sequence[str], limit_s: float, around: Surroundings, *, killed: bool = False, shown: bool = False
) -> tuple[dict[str, Any], float]:
    """The figures that the command printed, and when it was spawned; with `killed` it must end by its own SIGKILL, and
    with `shown` it says on standard error how far it is.
    """
    spawned_at = time.monotonic()
    process = subprocess.Popen(
        command, cwd=ROOT, env=around.environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=None if shown else subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        out, err = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGABRT)  # faulthandler in the child then says where each thread stands
        _, err = process.communicate(timeout=10)
        print(err or "", file=sys.stderr, flush=True)
        raise WorkFailed(
            f"{command[command.index('--store') - 1]} not done after {limit_s:g} s; its stacks are on standard error"
        ) from None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    if killed and process.returncode == -signal.SIGKILL:
        return {}, spawned_at
    if killed or process.returncode != 0:
        last = ((err or "").strip() or out.strip() or ("what it said is above" if shown else "no output")).splitlines()[
            -1
        ]
        raise WorkFailed(f"exit code {process.returncode}: {last}")
    return json.loads(out.strip().splitlines()[-1]), spawned_at


def measure_limits(around: Surroundings, seconds: float) -> dict[str, Any]:
    """The raw limits of this machine, now."""
    with around.stores.fresh() as store:
        return run_process([*LIMITS, "--store", store, "--seconds", str(seconds)], seconds * 10 + 20, around)[0]


def warm_up(command: Sequence[str], around: Surroundings) -> None:
    """What the program imports is compiled."""
    with around.stores.fresh() as store:
        run_process([*command, "w2", "--store", store, "--count", "1"], 60.0, around)


def measure(command: Sequence[str], plan: Plan, around: Surroundings) -> Figures:
    """All figures of one repetition of a workload, each part in a fresh process and on a fresh store."""
    count = plan.count

    def run(work: str, store: str, *more: str, killed: bool = False) -> tuple[dict[str, Any], float]:
        arguments = [work, "--store", store, "--count", str(count), *more]
        return run_process([*command, *arguments], plan.limit_s, around, killed=killed, shown=plan.shown)

    figures: Figures = {}
    for part in plan.programs:
        with around.stores.fresh() as store:
            if plan.fill:
                run(f"{part}_fill", store)
            figures |= run(part, store)[0]
    for at in plan.kill_at:
        with around.stores.fresh() as store:
            run(f"{plan.work}_kill", store, "--kill-at", str(at), killed=True)
            again, spawned_at = run(f"{plan.work}_restart", store)
        if again.get("steps_again", count - at) != count - at:
            raise WorkFailed(f"{again['steps_again']} steps ran after the restart, not {count - at}")
        figures[f"restart_{at}_s"] = again["next_step_at"] - again["launch_at"]
        figures[f"spawn_{at}_s"] = again["next_step_at"] - spawned_at
    if plan.restarts:
        with around.stores.fresh() as store:
            run(f"{plan.work}_kill", store, killed=True)
            killed_at = time.monotonic()
            again, spawned_at = run(f"{plan.work}_restart", store)
        if (again["first_again"], again["second_again"]) != (0, count):
            raise WorkFailed(f"ran again: {again['first_again']} recorded steps, {again['second_again']} others")
        done_at = again["done_at"]
        figures |= {"restart_s": done_at - again["launch_at"], "spawn_s": done_at - spawned_at}
        figures["done_s"] = done_at - killed_at
    return figures


def attempt(
    work: Callable[[], Figures], around: Surroundings, problems: list[str], what: str
) -> tuple[Figures | None, bool]:
    """The figures, or None with the reason added to `problems`; and whether others used the machine meanwhile."""
    company = Company(around.stores)
    try:
        figures = work()
    except WorkFailed as problem:
        problems.append(f"{what}: {problem}")
        return None, False
    return figures, company.close()
