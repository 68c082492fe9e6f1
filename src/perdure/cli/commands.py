"""The commands, by click."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from perdure.cli import check as checking
from perdure.cli import copy as copying
from perdure.cli import migrate as migrating
from perdure.lint import command
from perdure.lint.output import FORMATS, Format
from perdure.stores.moving import Moved


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="perdure")
def perdure() -> None:
    """Durable execution for Python."""


@perdure.command()
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@click.option("--format", "form", type=click.Choice(FORMATS), default="text", help=command.FORMAT_HELP)
@click.option("--select", multiple=True, metavar="CODES", help=command.SELECT_HELP)
@click.option("--ignore", multiple=True, metavar="CODES", help=command.IGNORE_HELP)
def lint(paths: tuple[str, ...], form: Format, select: tuple[str, ...], ignore: tuple[str, ...]) -> None:
    """What is wrong inside a flow, found in the source of PATH (files or folders; by default the current folder)."""
    say = _coloured if form == "text" else print
    sys.exit(command.run(paths, form, select, ignore, say))


@perdure.command()
@click.argument("engine", metavar="MODULE:ENGINE")
@click.option("--database", metavar="URL", help=checking.DATABASE_HELP)
@click.option("--flow", metavar="NAME", help=checking.FLOW_HELP)
@click.option("--format", "form", type=click.Choice(checking.FORMATS), default="text", help=checking.FORMAT_HELP)
def check(engine: str, database: str | None, flow: str | None, form: checking.Format) -> None:
    """Which unfinished instances today's code would block.

    Imports ENGINE of MODULE (an Engine, or a function that gives one) and replays what its database holds. The database
    is only read; engines may run on it meanwhile.
    """
    say = functools.partial(print, file=sys.stdout)
    sys.exit(checking.run(engine, database, flow, form, say))


@perdure.command(context_settings={"ignore_unknown_options": True})
@click.argument("store", metavar="DATABASE_URL")
@click.argument("pytest_args", nargs=-1, metavar="[PYTEST_OPTION]...", type=click.UNPROCESSED)
def conformance(store: str, pytest_args: tuple[str, ...]) -> None:
    """Whether the database keeps what the engine needs: the store contract, as tests.

    {tmp} in the URL is a folder of each test's own: sqlite:///{tmp}/x.db. MODULE:FACTORY instead is a store of your own.
    """
    try:
        from perdure.testing.conformance import run
    except ModuleNotFoundError as error:
        if error.name != "pytest":
            raise
        sys.exit("perdure conformance: it needs pytest, which is not installed: pip install 'perdure[testing]'")
    sys.exit(run(store, *pytest_args))


@perdure.command()
@click.argument("store", metavar="DATABASE_URL")
@click.option("--check", is_flag=True, help="Write nothing; exit with 1 if something is missing.")
def migrate(store: str, check: bool) -> None:
    """The tables of the store, made or brought to what this version of Perdure needs.

    Replicas of an older version write nothing any more from then on; newer tables are refused.
    """
    sys.exit(migrating.run(store, check, functools.partial(print, file=sys.stdout)))


@perdure.command()
@click.argument("source", metavar="SOURCE_URL")
@click.argument("target", metavar="TARGET_URL")
def copy(source: str, target: str) -> None:
    """Everything that a stopped store holds, taken to an empty one, and compared.

    No engine can use the target before all is the same on both sides. The source is only read, and stays as it is.
    """
    with Console(stderr=True).status("looking") as status:
        code = copying.run(source, target, lambda table, rows: status.update(f"{table}: {rows:,} rows"), _compared)
    sys.exit(code)


def _compared(moved: Sequence[Moved]) -> None:
    """What was compared is printed, a line for each table."""
    table = Table("table", "rows", "there", "digest", "digest there", "same")
    for each in moved:
        rows, there = f"{each.rows:,}", f"{each.rows_there:,}"
        table.add_row(each.table, rows, there, each.digest, each.digest_there, "yes" if each.same else "NO")
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def _coloured(line: str) -> None:
    """The line is printed; in colours if a terminal gets it."""
    text = Text(line)
    text.highlight_regex(r"^.*?:\d+:\d+:", "cyan")
    text.highlight_regex(r"(?<=: )PD\d{3}(?= )", "bold red")
    Console(soft_wrap=True, highlight=False).print(text)
