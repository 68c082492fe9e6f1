"""The command, whoever calls it: what to read, what to print, how to exit. The standard library is enough for it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from perdure.lint.check import check
from perdure.lint.files import NoSuchPath, read
from perdure.lint.output import FORMATS, Format, lines
from perdure.lint.settings import NotALintSetting, settings_for

PATHS_HELP = "files and folders; without any, the current folder"
FORMAT_HELP = "how findings are printed"
SELECT_HELP = "only these rules: codes or their beginnings, with commas between them"
IGNORE_HELP = "not these rules, nor those that pyproject.toml ignores"


def _note(text: str) -> None:
    print(text, file=sys.stderr)


def run(
    paths: Sequence[str],
    form: Format,
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
    say: Callable[[str], object] = print,
) -> int:
    """The findings are said, line by line, and a summary is on the standard error.

    Returns:
        0: nothing was found; 1: something was; 2: a path or setting is wrong, or a file is not Python.
    """
    folder = Path.cwd()
    places = [Path(path) for path in paths] or [Path()]
    try:
        settings = settings_for(places, select, ignore)
        texts, failed = read(places, folder)
    except (NoSuchPath, NotALintSetting) as error:
        _note(f"perdure lint: {error}")
        return 2
    report = check(texts, folder)
    findings = [f for f in sorted([*failed, *report.findings], key=lambda f: (f.path, f.line)) if settings.wants(f)]
    for line in lines(findings, form):
        say(line)
    files = report.files + len(failed)
    _note(
        f"perdure lint: {_count(report.flows, 'flow')} in {_count(files, 'file')}, {_count(len(findings), 'finding')}"
    )
    return 2 if any(f.code == "PD001" for f in findings) else 1 if findings else 0


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def main(argv: Sequence[str] | None = None) -> int:
    """The command with the standard library's own reading of arguments."""
    parser = argparse.ArgumentParser(prog="python -m perdure.lint", description="What is wrong inside a flow.")
    parser.add_argument("paths", nargs="*", metavar="PATH", help=PATHS_HELP)
    parser.add_argument("--format", choices=FORMATS, default="text", help=FORMAT_HELP)
    parser.add_argument("--select", action="append", default=[], metavar="CODES", help=SELECT_HELP)
    parser.add_argument("--ignore", action="append", default=[], metavar="CODES", help=IGNORE_HELP)
    given = parser.parse_args(argv)
    return run(given.paths, given.format, given.select, given.ignore)
