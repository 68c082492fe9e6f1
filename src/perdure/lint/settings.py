"""Which rules apply: the command line, and `[tool.perdure.lint]` in pyproject.toml."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from perdure.errors import PerdureError
from perdure.lint.findings import RULES, Finding


class NotALintSetting(PerdureError):
    """What the command line or pyproject.toml says makes no sense."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Codes, or beginnings of codes. Nothing selected means everything."""

    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for code in (*self.select, *self.ignore):
            if not code or not any(rule.startswith(code) for rule in RULES):
                raise NotALintSetting(f"{code!r} is no rule of perdure lint; the rules are {', '.join(RULES)}")

    def wants(self, finding: Finding) -> bool:
        """Whether the finding is to be told; that a file cannot be read is, whatever was selected."""
        selected = not self.select or finding.code.startswith(("PD001", *self.select))
        return selected and not finding.code.startswith(self.ignore)


def codes(given: Iterable[str]) -> tuple[str, ...]:
    """`["PD1,PD301", "PD5"]` are three."""
    return tuple(code.strip() for text in given for code in text.split(",") if code.strip())


def settings_for(paths: Iterable[Path], select: Iterable[str], ignore: Iterable[str]) -> Settings:
    """What the command line says, and what the nearest pyproject.toml above the first path adds to it.

    A `select` on the command line replaces that of the file; an `ignore` is added to it.

    Raises:
        NotALintSetting: a code is none, or the file cannot be read.
    """
    file = _project(next(iter(paths), Path()))
    table = {} if file is None else _table(file)
    selected, ignored = codes(select), codes(ignore)
    return Settings(selected or _strings(table, "select", file), (*_strings(table, "ignore", file), *ignored))


def _project(path: Path) -> Path | None:
    path = path.absolute()
    return next((f for folder in (path, *path.parents) if (f := folder / "pyproject.toml").is_file()), None)


def _table(file: Path) -> dict[str, Any]:
    try:
        table: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NotALintSetting(f"{file} cannot be read: {error}") from error
    for name in ("tool", "perdure", "lint"):
        inner: Any = table.get(name, {})
        if not isinstance(inner, dict):
            raise NotALintSetting(f"{file}: {name} is not a table")
        table = cast("dict[str, Any]", inner)
    unknown = [name for name in table if name not in ("select", "ignore")]
    if unknown:
        raise NotALintSetting(f"{file}: [tool.perdure.lint] knows select and ignore, not {unknown[0]}")
    return table


def _strings(table: dict[str, Any], name: str, file: Path | None) -> tuple[str, ...]:
    values: Any = table.get(name, [])
    if not isinstance(values, list) or not all(isinstance(value, str) for value in cast("list[Any]", values)):
        raise NotALintSetting(f'{file}: [tool.perdure.lint] {name} is a list of codes, such as ["PD602"]')
    return tuple(cast("list[str]", values))
