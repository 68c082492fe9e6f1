"""How findings are told: as lines, as JSON, as GitHub's annotations."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final, Literal

from perdure.lint.findings import Finding

Format = Literal["text", "json", "github"]
FORMATS: Final[tuple[Format, ...]] = ("text", "json", "github")


def lines(findings: list[Finding], form: Format) -> Iterator[str]:
    """What goes to the standard output, line by line."""
    if form == "json":
        yield json.dumps([_as_json(finding) for finding in findings], indent=2)
    else:
        yield from (_as_text(f) if form == "text" else _as_github(f) for f in findings)


def _as_text(finding: Finding) -> str:
    return f"{finding.path}:{finding.line}:{finding.column}: {finding.code} {finding.text}"


def _as_json(finding: Finding) -> dict[str, object]:
    """The fields of ruff's, and ours."""
    return {
        "filename": finding.path,
        "location": {"row": finding.line, "column": finding.column},
        "end_location": {"row": finding.end_line, "column": finding.end_column},
        "code": finding.code,
        "message": finding.message,
        "instead": finding.instead,
        "calls": list(finding.calls),
    }


def _as_github(finding: Finding) -> str:
    place = {
        "file": finding.path,
        "line": finding.line,
        "endLine": finding.end_line,
        "col": finding.column,
        "endColumn": finding.end_column,
        "title": f"perdure {finding.code}",
    }
    said = ",".join(f"{name}={_escaped(str(value), of_property=True)}" for name, value in place.items())
    return f"::error {said}::{_escaped(f'{finding.code} {finding.text}')}"


def _escaped(text: str, *, of_property: bool = False) -> str:
    text = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return text.replace(":", "%3A").replace(",", "%2C") if of_property else text
