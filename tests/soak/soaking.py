"""`make soak`: random programs on replicas in processes of their own, while these and the database are stopped and killed."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from perdure import Engine, FlowFailed
from tests.soak import programs
from tests.soak.faults import MODES
from tests.soak.round import Playing, Report, Setting, planned, played
from tests.soak.server import Server, found

PER_ROUND: Final = 500
PLANNED_S: Final = 60.0
"""So much of a plan is printed beforehand."""
CYCLE: Final = ("everything", "database", "everything", "processes", "everything")
"""The modes of the rounds, over and over."""


@dataclass(frozen=True)
class Options:
    """What is asked for."""

    programs: int = 5000
    seed: int = 1
    url: str | None = None
    """None: a server of the soak's own."""
    faults: str | None = None
    """The mode of all rounds; None: as in `CYCLE`."""
    per_round: int = PER_ROUND
    at_once: int = 250
    replicas: int = 3
    lease: float = 2.5
    fsync: bool = False
    keep: bool = False
    plan: bool = False
    round: int | None = None


async def soak(options: Options, say: Callable[[str], None], *, line: bool = False) -> Report:
    """All rounds are over, or one was wrong; servers, processes and folders are gone.

    `line`: progress is told on one line of a terminal.
    """
    server = await asyncio.to_thread(lambda: Server(fsync=options.fsync)) if options.url is None else None
    folder = Path(tempfile.mkdtemp(prefix="perdure-soak-"))
    total = Report()
    log = logging.FileHandler(folder / "client.log")
    logging.getLogger("perdure").addHandler(log)
    try:
        if server is not None:
            server.begin()
            await server.answers()
        url = options.url or (server.url if server is not None else "")
        transactions = await prepared(url)
        run = f"{time.time_ns():x}" if options.url else ""  # there may be others' programs
        for number, size in enumerate(_sizes(options)):
            if options.round not in (None, number):
                continue
            setting = Setting(
                seed=f"{options.seed}/{number}", prefix=f"{run}r{number}.", programs=size,
                mode=options.faults or CYCLE[number % len(CYCLE)], at_once=options.at_once, url=url, server=server,
                folder=folder / f"round{number}", replicas=options.replicas, lease=options.lease,
                transactions=transactions,
            )  # fmt: skip
            if options.plan:
                say("\n".join(map(str, planned(setting, PLANNED_S))))
            report = await played(setting, (lambda p, n=number: _progress(total, p, options, n)) if line else None)
            total.add(report)
            say(f"{chr(13) if line else ''}{_told(setting, report)}")
            if report.wrong:
                say(_wrong(options, setting, report, folder, server))
                break
    finally:
        if server is not None:
            server.remove()
        logging.getLogger("perdure").removeHandler(log)
        log.close()
        if not (options.keep or total.wrong):
            shutil.rmtree(folder, ignore_errors=True)
    return total


def _sizes(options: Options) -> list[int]:
    rounds = max(1, -(-options.programs // options.per_round))
    return [options.programs * (i + 1) // rounds - options.programs * i // rounds for i in range(rounds)]


async def prepared(url: str) -> bool:
    """Whether programs can use transactions: the store has them, and the table for them is there.

    Where a transaction may make no table (MySQL), one that somebody has made before is used.
    """
    async with Engine(url, flows=[programs.prepare, programs.rows], version="soak") as engine:
        for flow, args in ((programs.prepare, ()), (programs.rows, ("none",))):
            with contextlib.suppress(FlowFailed):
                await engine.run(flow.name, *args, id=f"{time.time_ns()}", timeout=60)
                return True
    return False


# ---------------------------------------------------------------- what is told


def _progress(total: Report, playing: Playing, options: Options, number: int) -> None:
    done = playing.cluster.done
    faults = ", ".join(f"{done[kind]} {kind}" for kind in sorted(done))
    print(
        f"\r{total.programs + playing.ended:,} of {options.programs:,} programs, round {number} ({playing.setting.mode}): "
        f"{playing.ledger.lines:,} steps; {faults}   ",
        end="",
        flush=True,
    )


def _told(setting: Setting, report: Report) -> str:
    faults = ", ".join(f"{count} {kind}" for kind, count in sorted(report.faults.items())) or "no faults"
    sizes = f"{report.programs} programs, {report.instances} instances, {report.steps} steps in {report.seconds:.0f} s"
    silent = f"silent for {report.silence:.0f} s at most"
    wrong = "; WRONG" if report.wrong else ""
    return f"seed {setting.seed}, {setting.mode}: {sizes}; {faults}; {report.takeovers} takeovers; {silent}{wrong}"


def _wrong(options: Options, setting: Setting, report: Report, folder: Path, server: Server | None) -> str:
    plan = "\n".join(map(str, planned(setting, report.seconds)))
    told = "\n\n".join(report.wrong[:20])
    again = f"--round {setting.seed.rpartition('/')[2]} --seed {options.seed} --programs {options.programs} --per-round {options.per_round}"
    again += f" --faults {options.faults}" if options.faults else ""
    return (
        f"\n{len(report.wrong)} things are wrong in the round of seed {setting.seed}, ids {setting.prefix}*:\n\n{told}\n\n"
        f"The faults, as planned:\n{plan}\n\nLogs and ledger are in {folder}.\n"
        f"Programs and plan come again with: make soak ARGS='{again}' (what meets what does not: processes are real)\n"
        + (f"\nThe server's log ends:\n{server.said(15)}\n" if server is not None else "")
    )


def table(report: Report) -> str:
    """The figures of all rounds."""
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in sorted(report.kinds.items()))
    faults = ", ".join(f"{kind} {count:,}" for kind, count in sorted(report.faults.items()))
    lines = [
        ("programs", f"{report.programs:,} ({report.instances:,} instances)"),
        ("commands", f"{sum(report.kinds.values()):,} of {len(report.kinds)} kinds: {kinds}"),
        ("steps run", f"{report.steps:,}"),
        ("messages", f"{report.messages:,}"),
        ("faults", faults or "none"),
        ("silence", f"at most {report.silence:.0f} s without any progress"),
        ("takeovers", f"{report.takeovers:,}, leases lost {report.leases_lost:,}"),
        ("client", f"{report.repeated:,} calls repeated"),
        ("seconds", f"{report.seconds:,.0f}, {report.programs / max(report.seconds, 0.001):,.1f} programs a second"),
    ]
    return "\n".join(f"{name:10} {value}" for name, value in lines)


# ---------------------------------------------------------------- the command


def read(args: list[str] | None = None) -> Options:
    """The command's arguments."""
    default = Options()
    reading = argparse.ArgumentParser(prog="make soak ARGS=...", description=__doc__)
    reading.add_argument("--programs", type=int, default=default.programs, help="how many in all")
    reading.add_argument("--seed", type=int, default=default.seed, help="of programs and faults")
    reading.add_argument("--url", help="a store that is there; by default a PostgreSQL server of its own is made")
    reading.add_argument("--faults", choices=MODES, help="of all rounds; by default they take turns")
    reading.add_argument("--per-round", type=int, default=default.per_round, help="programs of one round")
    reading.add_argument("--at-once", type=int, default=default.at_once, help="programs under way")
    reading.add_argument("--replicas", type=int, default=default.replicas)
    reading.add_argument("--lease", type=float, default=default.lease, help="of the replicas, in seconds")
    reading.add_argument("--round", type=int, help="only this one, from 0")
    reading.add_argument("--fsync", action="store_true", help="the server of its own waits for the disk")
    reading.add_argument("--plan", action="store_true", help="print the faults of each round as they are planned")
    reading.add_argument("--keep", action="store_true", help="logs and ledger stay, where they are is said")
    return Options(**vars(reading.parse_args(args)))


async def _until_told(options: Options) -> Report:
    """As `soak`; SIGTERM ends it in order."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await soak(options, partial(print, flush=True), line=sys.stdout.isatty())


def main() -> int:
    """The exit code: 0 if nothing was wrong."""
    options = read()
    if options.url is None and not found():
        print(
            "no PostgreSQL programs found; name their folder by PERDURE_TEST_POSTGRES_BIN, or a store by --url",
            file=sys.stderr,
        )
        return 2
    try:
        report = asyncio.run(_until_told(options))
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 130
    print(table(report))
    return 1 if report.wrong else 0
