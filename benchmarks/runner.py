"""Runs one workload in a process of its own, with a time limit, and leaves no process behind."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.metrics import Plan

ROOT = Path(__file__).resolve().parent.parent
Figures = dict[str, float]
PERDURE = (sys.executable, "-m", "benchmarks.perdure_work")
LIMITS = (sys.executable, "-m", "benchmarks.limits")


class WorkFailed(Exception):
    """A workload gave no figures; the text says why."""


@dataclass(slots=True)
class Company:
    """How much of the machine's processor time went to others while we measured."""

    busy_s: float = 0.0
    ours_s: float = 0.0
    begin: tuple[float, float] = field(default_factory=lambda: (machine_cpu_s(), children_cpu_s()))

    def close(self) -> bool:
        """Whether others took more than a fifth and more than 0.4 s: then the figure has suffered."""
        self.busy_s = machine_cpu_s() - self.begin[0]
        self.ours_s = children_cpu_s() - self.begin[1]
        others = self.busy_s - self.ours_s
        return others > 0.4 and others > 0.2 * self.busy_s


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


@contextmanager
def scratch(parent: Path) -> Generator[Path, None, None]:
    """A fresh directory, gone afterwards."""
    path = Path(tempfile.mkdtemp(prefix="run-", dir=parent))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def run_process(command: Sequence[str], limit_s: float, *, killed: bool = False) -> tuple[dict[str, Any], float]:
    """The figures that the command printed, and when it was spawned; with `killed` it must end by its own SIGKILL."""
    spawned_at = time.monotonic()
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        out, err = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGABRT)  # faulthandler in the child then says where each thread stands
        _, err = process.communicate(timeout=10)
        print(err, file=sys.stderr, flush=True)
        part = " ".join(command[command.index("--dir") - 1 : command.index("--dir")]) if "--dir" in command else ""
        raise WorkFailed(f"{part} not done after {limit_s:g} s; its stacks are on standard error") from None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    if killed and process.returncode == -signal.SIGKILL:
        return {}, spawned_at
    if killed or process.returncode != 0:
        last = (err.strip() or out.strip() or "no output").splitlines()[-1]
        raise WorkFailed(f"exit code {process.returncode}: {last}")
    return json.loads(out.strip().splitlines()[-1]), spawned_at


def measure_limits(parent: Path, seconds: float) -> dict[str, Any]:
    """The raw limits of this machine, now."""
    with scratch(parent) as directory:
        return run_process([*LIMITS, "--dir", str(directory), "--seconds", str(seconds)], seconds * 10 + 20)[0]


def measure(command: Sequence[str], plan: Plan, count: int, limit_s: float, parent: Path) -> Figures:
    """All figures of one repetition of a workload, each part in a fresh process and on a fresh file."""

    def run(work: str, directory: Path, *more: str, killed: bool = False) -> tuple[dict[str, Any], float]:
        arguments = [work, "--dir", str(directory), "--count", str(count), *more]
        return run_process([*command, *arguments], limit_s, killed=killed)

    figures: Figures = {}
    work = plan.work.removesuffix("x")
    if not plan.restarts:
        with scratch(parent) as directory:
            if plan.fill:
                run(f"{work}_fill", directory)
            figures |= run(work, directory)[0]
    for at in plan.kill_at:
        with scratch(parent) as directory:
            run(f"{work}_kill", directory, "--kill-at", str(at), killed=True)
            again, spawned_at = run(f"{work}_restart", directory)
        if again.get("steps_again", count - at) != count - at:
            raise WorkFailed(f"{again['steps_again']} steps ran after the restart, not {count - at}")
        figures[f"restart_{at}_s"] = again["next_step_at"] - again["launch_at"]
        figures[f"spawn_{at}_s"] = again["next_step_at"] - spawned_at
    if plan.restarts:
        with scratch(parent) as directory:
            run(f"{work}_kill", directory, killed=True)
            again, spawned_at = run(f"{work}_restart", directory)
        if (again["first_again"], again["second_again"]) != (0, count):
            raise WorkFailed(f"ran again: {again['first_again']} recorded steps, {again['second_again']} others")
        figures |= {"restart_s": again["done_at"] - again["launch_at"], "spawn_s": again["done_at"] - spawned_at}
    return figures


def attempt(work: Callable[[], Figures], problems: list[str], what: str) -> tuple[Figures | None, bool]:
    """The figures, or None with the reason added to `problems`; and whether others used the machine meanwhile."""
    company = Company()
    try:
        figures = work()
    except WorkFailed as problem:
        problems.append(f"{what}: {problem}")
        return None, False
    return figures, company.close()
