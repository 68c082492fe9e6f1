"""`python -m benchmarks`: every workload on Perdure and on DBOS, beside the raw limits, as one table.

On SQLite files, or with `--url` on a server. `python -m benchmarks profile w1` shows where the time of one step goes,
`python -m benchmarks bloat --url ...` how the tables of a server grow under a steady load.
"""

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from benchmarks import bloat, peers, profiling, report
from benchmarks.measuring import Figures
from benchmarks.metrics import FILE, MYSQL, SERVER, Plan, Suite
from benchmarks.runner import PERDURE, Surroundings, WorkFailed, attempt, measure, measure_limits, warm_up
from benchmarks.stores import Files, Server, is_mysql


def stop(*_: object) -> NoReturn:
    """SIGTERM ends the running workload too, as Ctrl-C does."""
    raise KeyboardInterrupt


@contextmanager
def place(options: argparse.Namespace) -> Generator[tuple[Surroundings, Path | Server], None, None]:
    """Where this run keeps all it makes, which is gone afterwards: files in a directory, or stores on a server too.

    The directory is in the one given, or here (the system's may be in memory).
    """
    given: Path | None = options.dir
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=given or Path.cwd()) as path:
        caches = Path(path).resolve() / "compiled"
        if options.url:
            with Server(options.url) as server:
                yield Surroundings(server, caches), server
        else:
            parent = Path(path).resolve()
            yield Surroundings(Files(parent), caches), parent


def say(text: str) -> None:
    """One line of progress, apart from the table."""
    print(text, file=sys.stderr, flush=True)


def short(figures: Figures | None) -> str:
    """The figures of one repetition on a line."""
    hidden = ("imported_at", "launch_at", "ready_at", "metered_s", "loop_cpu_s", "other_cpu_s")
    if figures is None:
        return "failed"
    return " ".join(f"{key}={report.number(value)}" for key, value in figures.items() if key not in hidden)


def add_limits(results: report.Results, around: Surroundings) -> Figures:
    """The raw limits have been measured once more, for one workload: the disk's pace changes within minutes."""
    found, company = attempt(lambda: measure_limits(around, 0.5), around, results.problems, "raw limits")
    if found is None:
        return {}
    results.limits.append(found)
    if company:
        results.company.add("limits")
    return {"bare_commits_per_s": found["commits_per_s"], "bare_rows_per_s": found["rows_per_s"]}


def one_repetition(
    number: int, plans: Sequence[Plan], peer: Path | None, results: report.Results, around: Surroundings
) -> None:
    """Every workload has run once more, the peer's right after ours; what failed once is not tried again."""

    def run(name: str, work: Callable[[], Figures], company_as: str) -> Figures | None:
        if any(problem.startswith(f"{name}:") for problem in results.problems):
            return None
        figures, company = attempt(work, around, results.problems, name)
        say(f"{number} {name:16} {short(figures)}{' *' if company else ''}")
        if company:
            results.company.add(company_as)
        return figures

    for plan in plans:
        if plan.once and number > 1:
            continue
        bare = add_limits(results, around)
        figures = run(f"{plan.work} on Perdure", lambda plan=plan: measure(PERDURE, plan, around), plan.work)
        results.perdure.setdefault(plan.work, []).extend([figures | bare] if figures else [])
        if peer and plan.peer_count:
            command, theirs = [str(peer), str(peers.WORK)], plan.as_peer()
            figures = run(
                f"{plan.work} on DBOS",
                lambda plan=theirs, command=command: measure(command, plan, around),
                f"{plan.work}/peer",
            )
            results.peer.setdefault(plan.work, []).extend([figures] if figures else [])


def suite_of(options: argparse.Namespace) -> Suite:
    """What is measured on the store that the options name."""
    if not options.url:
        return FILE
    return MYSQL if is_mysql(options.url) else SERVER


def chosen(options: argparse.Namespace) -> list[Plan]:
    """The workloads that the options name, w10 at the scale that they give.

    Raises:
        ValueError: there is no such workload.
    """
    plans = suite_of(options).plans
    wanted = options.only.split(",") if options.only else [plan.work for plan in plans]
    if unknown := set(wanted) - {plan.work for plan in plans}:
        known = ", ".join(plan.work for plan in plans)
        raise ValueError(f"unknown workload: {', '.join(sorted(unknown))}; there are {known}")
    return [scaled(plan, options.scale) if plan.work == "w10" else plan for plan in plans if plan.work in wanted]


def scaled(plan: Plan, scale: float) -> Plan:
    """The plan with a part of its count, which its title says."""
    count = max(1, round(plan.count * scale))
    return plan if scale == 1 else replace(plan, count=count, title=f"{plan.title}, of these {scale:g}: {count:,}")


def peer_python(options: argparse.Namespace, results: report.Results, around: Surroundings) -> Path | None:
    """The interpreter that has the peer, which works; None if it is not wanted or not to be had."""
    if not options.peers:
        return None
    if options.url and is_mysql(options.url):
        results.peer_missing = "it has no store on MariaDB or MySQL"
        return None
    try:
        found = options.dbos_python or peers.python()
        warm_up([str(found), str(peers.WORK)], around)
    except (peers.PeerMissing, WorkFailed) as problem:
        results.peer_missing = str(problem)
        return None
    return found


def compare(options: argparse.Namespace) -> int:
    """The table is on standard output; the exit code is 1 if a workload failed (a missed target is no failure)."""
    try:
        plans = chosen(options)
    except ValueError as problem:
        say(str(problem))
        return 2
    suite = replace(suite_of(options), plans=tuple(plans))
    results = report.Results(suite=suite, peer_name=peers.pinned().replace("==", " "))
    with place(options) as (around, where):
        warm_up(PERDURE, around)
        peer = peer_python(options, results, around)
        for number in range(1, options.repetitions + 1):
            one_repetition(number, plans, peer, results, around)
        print(report.heading(results, options.repetitions, where))
        if results.peer_missing:
            print(f"DBOS is missing from this table: {results.peer_missing}")
        print()
        print(report.table(results, options.repetitions))
        print()
        print(report.legend(suite_of(options)))
        for problem in results.problems:
            print(f"FAILED {problem}")
        if options.json:
            text = json.dumps(report.as_json(results, options.repetitions, where), indent=1)
            options.json.write_text(text + "\n", encoding="utf-8")
    return 1 if results.problems else 0


def profile(options: argparse.Namespace) -> int:
    """The profile is on standard output."""
    plan = suite_of(options).plan(options.work)
    with place(options) as (around, _):
        profiling.profile(plan, options.count or plan.count, options.top, around)
    return 0


def grow(options: argparse.Namespace) -> int:
    """The sizes of the tables are on standard output, sample by sample."""
    if is_mysql(options.url):
        say("bloat asks PostgreSQL's statistics; give a postgresql:// URL")
        return 2
    with place(options) as (around, where):
        assert isinstance(where, Server)
        print(report.on_server(where)[0], flush=True)
        bloat.watch(around, where, options.minutes, options.every, options.rate)
    return 0


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--url", help="a server's database, postgresql://... or mysql://...; otherwise SQLite files")
    parser.add_argument("--only", help="workloads, for example w1,w6; otherwise all")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="of w10 on a server: 0.01 fills in a hundredth")
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
    one.add_argument("--url")
    one.set_defaults(run=profile)
    two = commands.add_parser("bloat", help="how the tables of a server grow under a steady load")
    two.add_argument("--url", required=True, help="postgresql://...")
    two.add_argument("--minutes", type=float, default=60.0)
    two.add_argument("--every", type=float, default=60.0, help="seconds between two samples")
    two.add_argument("--rate", type=int, default=50, help="flows started a second")
    two.set_defaults(run=grow, dir=None)
    return parser


def main() -> int:
    signal.signal(signal.SIGTERM, stop)
    options = arguments().parse_args()
    try:
        return int(options.run(options))
    except WorkFailed as problem:
        say(f"FAILED {problem}")
        return 1
    except KeyboardInterrupt:
        say("interrupted")
        return 130


if __name__ == "__main__":
    sys.exit(main())
