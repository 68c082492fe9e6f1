"""`python -m examples.orders`: the order business, with its order service killed at least five times on the way."""

import argparse
import asyncio
import itertools
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from examples.orders.make_orders import generate
from examples.orders.model import Case, load_cases
from examples.orders.reconcile import WHY, Report, reconcile
from examples.orders.supervisor import Business, Plan, Run, Show, gather_facts

PROBLEMS_SHOWN: Final = 5  # of each kind


class Bar:
    """Progress for people at a terminal."""

    def __init__(self, console: Console, total: int) -> None:
        columns = (TextColumn("orders ended"), BarColumn(None), MofNCompleteColumn(), TextColumn("{task.fields[more]}"))
        self.bar = Progress(*columns, TimeElapsedColumn(), console=console)
        self._task: TaskID = self.bar.add_task("orders", total=total, more="")

    def progress(self, ended: int, posted: int, kills: int) -> None:
        """See Show."""
        self.bar.update(self._task, completed=ended, more=f"{posted - ended:,} under way, {kills} kills")

    def note(self, text: str) -> None:
        """See Show."""
        self.bar.console.print(text)


class Lines:
    """Progress for a file: a line for every tenth."""

    def __init__(self, console: Console, total: int) -> None:
        self._console = console
        self._total = total
        self._tenth = 0

    def progress(self, ended: int, posted: int, kills: int) -> None:
        """See Show."""
        tenth = 10 * ended // self._total
        if tenth > self._tenth:
            self._tenth = tenth
            under_way = f"{posted - ended:,} under way, {kills} kills"
            self._console.print(f"{ended:,} of {self._total:,} orders ended, {under_way}")

    def note(self, text: str) -> None:
        """See Show."""
        self._console.print(text)


def print_report(console: Console, report: Report, run: Run, orders: int) -> None:
    """The tables and, if something does not add up, what."""
    table = Table(title="Do the ledgers and the orders agree?", title_justify="left")
    for column in ("what must be true", "found", ""):
        table.add_column(column)
    for check in report.checks:
        verdict = f"[red]{len(check.problems)} wrong" if check.problems else "[green]ok"
        table.add_row(check.statement, check.found, verdict)
    console.print(table)
    table = Table(title="Steps that ran again because of the kills, and why that is right", title_justify="left")
    table.add_column("step")
    for column in ("steps", "requests", "met a 503", "ran again"):
        table.add_column(column, justify="right")
    table.add_column("why no harm is done")
    for count in report.steps:
        numbers = (count.steps, count.requests, count.unavailable, count.ran_again)
        table.add_row(count.kind, *(f"{number:,}" for number in numbers), WHY[count.kind])
    console.print(table)
    console.print(
        "A step is recorded after its effect. A kill between the two leaves no record, so the step runs again (at "
        "least once), with the same idempotency key, and a service that knows the key does the thing once. Shipping "
        f"runs at most once: {report.in_doubt} times its outcome was unknown; {report.had_gone_out} of these parcels "
        f"had gone out, {report.in_doubt - report.had_gone_out} had not and were shipped then."
    )
    again = sum(run.restarts_s[1:]) / max(1, len(run.restarts_s) - 1)
    console.print(
        f"{orders:,} orders in {run.seconds:.1f} s = {orders / run.seconds:.0f} orders/s, {run.kills} kills (SIGKILL), "
        f"{again:.2f} s from each kill to the next order taken, {run.posts_repeated:,} posts repeated."
    )
    for check in report.checks:
        for problem in check.problems[:PROBLEMS_SHOWN]:
            console.print(f"WRONG: {check.statement}: {problem}", style="red", markup=False)
        if len(check.problems) > PROBLEMS_SHOWN:
            console.print(f"... and {len(check.problems) - PROBLEMS_SHOWN:,} more of this kind", style="red")


async def conduct(plan: Plan, console: Console) -> bool:
    """The business has run and been reconciled; true if all adds up."""
    loop, me = asyncio.get_running_loop(), asyncio.current_task()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        loop.add_signal_handler(number, lambda: me and me.cancel())
    show: Show
    if console.is_terminal:
        show = bar = Bar(console, len(plan.cases))
        with bar.bar:
            business = Business(plan, show)
            await business.go()
    else:
        show = Lines(console, len(plan.cases))
        business = Business(plan, show)
        await business.go()
    report = reconcile(await gather_facts(plan, business.run))
    print_report(console, report, business.run, len(plan.cases))
    return not report.problems


def cases(count: int) -> list[Case]:
    """The first cases of the file; more than it holds come from its generator."""
    kept = load_cases()
    return kept[:count] if count <= len(kept) else list(itertools.islice(generate(), count))


def main() -> int:
    """0 if all adds up, 1 if not, 130 if interrupted."""
    parser = argparse.ArgumentParser(prog="python -m examples.orders", description=__doc__)
    parser.add_argument("--orders", type=int, default=1_000, help="how many orders (default: %(default)s)")
    parser.add_argument("--kills", type=int, default=6, help="how often the order service is killed (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of delays, faults and instants of kills (%(default)s)")
    parser.add_argument("--keep", action="store_true", help="keep the directory with the database, ledgers and logs")
    options = parser.parse_args()
    if options.orders < 1 or options.kills < 0:
        parser.error("at least one order, and no negative kills")
    directory = Path(tempfile.mkdtemp(prefix="perdure-orders-"))
    plan = Plan(cases(options.orders), options.kills, options.seed, directory)
    console = Console(width=None if sys.stdout.isatty() else 150, highlight=False)
    keep = True
    try:
        right = asyncio.run(conduct(plan, console))
        keep = options.keep or not right
    except (asyncio.CancelledError, KeyboardInterrupt):
        console.print("interrupted")
        return 130
    finally:
        if keep:
            console.print(f"database, ledgers and logs are in {directory}")
        else:
            shutil.rmtree(directory, ignore_errors=True)
    console.print("All adds up." if right else "It does NOT add up.", style="green" if right else "red")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
