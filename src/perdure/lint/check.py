"""From texts to findings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Final

from perdure.lint.findings import Finding
from perdure.lint.modules import Tree
from perdure.lint.reach import Reach
from perdure.lint.reader import Reader
from perdure.lint.rules import ALL, Kit
from perdure.lint.state import State

_ROOT: Final = PurePath("/")


@dataclass(frozen=True, slots=True)
class Report:
    """What was found, by place; and how much was looked at."""

    findings: list[Finding]
    files: int
    flows: int


def check(files: Mapping[str, str], folder: PurePath = _ROOT) -> Report:
    """Everything wrong in the flows of these files.

    Args:
        files: the texts by path; what one imports from another is followed.
        folder: where relative paths begin.
    """
    tree = Tree(files, folder)
    reader = Reader(tree)
    reach, state = Reach(reader), State(reader)
    found = found_in(reader, reach, state)
    findings = sorted([*tree.unreadable, *found], key=lambda f: (f.path, f.line, f.column, f.code))
    return Report(findings, len(files), reach.flows)


def found_in(reader: Reader, reach: Reach, state: State) -> list[Finding]:
    """What every rule finds in the code that flows reach, each once, and not what is silenced there."""
    found: dict[tuple[str, int, int, str], Finding] = {}
    for code in reach.codes.values():
        kit = Kit(code, reader, reach, state)
        for rule in ALL:
            for flaw in rule(kit):
                if not code.module.silenced(flaw.node, flaw.code):
                    finding = code.module.finding(flaw.node, flaw.code, flaw.message, flaw.instead, code.calls)
                    found.setdefault((finding.path, finding.line, finding.column, finding.code), finding)
    return list(found.values())
