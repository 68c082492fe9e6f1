"""`python -m benchmarks`: every workload on Perdure and on DBOS, beside the raw limits, as one table.

`python -m benchmarks profile w1` shows where the time of one step goes.
"""

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from benchmarks import peers, profiling, report
from benchmarks.metrics import PLANS, Plan
from benchmarks.runner import PERDURE, Figures, attempt, measure, measure_limits


def stop(*_: object) -> NoReturn:
    """SIGTERM ends the running workload too, as Ctrl-C does."""
    raise KeyboardInterrupt


@contextmanager
def place(given: Path | None) -> Generator[Path, None, None]:
    """A directory for all files of this run: the one given, or a new one here (the system's may be in memory)."""
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=given or Path.cwd()) as path:
        yield Path(path)


def say(text: str) -> None:
    """One line of progress, apart from the table."""
    print(text, file=sys.stderr, flush=True)


def short(figures: Figures | None) -> str:
    """The figures of one repetition on a line."""
    hidden = ("imported_at", "launch_at", "ready_at", "metered_s", "loop_cpu_s", "other_cpu_s")
    if figures is None:
        return "failed"
    return " ".join(f"{key}={report.number(value)}" for key, value in figures.items() if key not in hidden)


def add_limits(results: report.Results, parent: Path) -> Figures:
    """The raw limits have been measured once more, for one workload: the disk's pace changes within minutes."""
    found, company = attempt(lambda: measure_limits(parent, 0.5), results.problems, "raw limits")
    if found is None:
        return {}
    results.limits.append(found)
    if company:
        results.company.add("limits")
    return {"bare_commits_per_s": found["commits_per_s"], "bare_rows_per_s": found["rows_per_s"]}


def one_repetition(
    number: int, plans: Sequence[Plan], peer: Path | None, results: report.Results, parent: Path
) -> None:
    """Every workload has run once more, the peer's right after ours; what failed once is not tried again."""
    for plan in plans:
        if plan.once and number > 1:
            continue
        bare = add_limits(results, parent)
        name = f"{plan.work} on Perdure"
        if not any(problem.startswith(f"{name}:") for problem in results.problems):

            def ours(plan: Plan = plan) -> Figures:
                return measure(PERDURE, plan, plan.count, plan.limit_s, parent)

            figures, company = attempt(ours, results.problems, name)
            say(f"{number} {name:16} {short(figures)}{' *' if company else ''}")
            results.perdure.setdefault(plan.work, []).extend([figures | bare] if figures else [])
            if company:
                results.company.add(plan.work)
        name = f"{plan.work} on DBOS"
        if peer and plan.peer_count and not any(problem.startswith(f"{name}:") for problem in results.problems):
            command = [str(peer), str(peers.WORK)]
            shorter = replace(plan, kill_at=plan.kill_at[-1:])

            def theirs(plan: Plan = shorter, command: list[str] = command) -> Figures:
                return measure(command, plan, plan.peer_count, plan.peer_limit_s, parent)

            figures, company = attempt(theirs, results.problems, name)
            say(f"{number} {name:16} {short(figures)}{' *' if company else ''}")
            results.peer.setdefault(plan.work, []).extend([figures] if figures else [])
            if company:
                results.company.add(f"{plan.work}/peer")


def compare(options: argparse.Namespace) -> int:
    """The table is on standard output; the exit code is 1 if a workload failed (a missed target is no failure)."""
    wanted = options.only.split(",") if options.only else [plan.work for plan in PLANS]
    unknown = set(wanted) - {plan.work for plan in PLANS}
    if unknown:
        say(f"unknown workload: {', '.join(sorted(unknown))}; there are {', '.join(p.work for p in PLANS)}")
        return 2
    plans = [plan for plan in PLANS if plan.work in wanted]
    results = report.Results(peer_name=peers.pinned().replace("==", " "))
    peer: Path | None = None
    if options.peers:
        try:
            peer = options.dbos_python or peers.python()
        except peers.PeerMissing as problem:
            results.peer_missing = str(problem)
    with place(options.dir) as parent:
        for number in range(1, options.repetitions + 1):
            one_repetition(number, plans, peer, results, parent)
        print(report.heading(results, options.repetitions, parent))
        if results.peer_missing:
            print(f"DBOS is missing from this table, it could not be installed: {results.peer_missing}")
        print()
        print(report.table(results, options.repetitions))
        print()
        print(report.legend())
        for problem in results.problems:
            print(f"FAILED {problem}")
        if options.json:
            text = json.dumps(report.as_json(results, options.repetitions, parent), indent=1)
            options.json.write_text(text + "\n", encoding="utf-8")
    return 1 if results.problems else 0


def profile(options: argparse.Namespace) -> int:
    """The profile is on standard output."""
    plan = report.plan_of(options.work)
    with place(options.dir) as parent:
        profiling.profile(plan, options.count or plan.count, options.top, parent)
    return 0


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", help="workloads, for example w1,w6; otherwise all")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--no-peers", dest="peers", action="store_false", help="leave DBOS out")
    parser.add_argument("--dbos-python", type=Path, help="an interpreter that has dbos, instead of .venv-bench")
    parser.add_argument("--dir", type=Path, help="where the database files go; otherwise the current directory")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there too")
    parser.set_defaults(run=compare)
    commands = parser.add_subparsers(title="instead of the table")
    one = commands.add_parser("profile", help="where the time of one step goes")
    one.add_argument("work", choices=sorted(profiling.OPERATIONS))
    one.add_argument("--count", type=int, help="as many flows (or steps of the one flow)")
    one.add_argument("--top", type=int, default=40, help="as many functions")
    one.add_argument("--dir", type=Path)
    one.set_defaults(run=profile)
    return parser


def main() -> int:
    signal.signal(signal.SIGTERM, stop)
    options = arguments().parse_args()
    try:
        return int(options.run(options))
    except KeyboardInterrupt:
        say("interrupted")
        return 130


if __name__ == "__main__":
    sys.exit(main())
