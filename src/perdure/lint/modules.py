"""The files that are looked at: read as text, parsed, and found again by import. Nothing of them is imported or run."""

from __future__ import annotations

import ast
import re
import sys
import warnings
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path, PurePath
from typing import Final

from perdure.lint.findings import Finding
from perdure.lint.scopes import Scopes

_IGNORE: Final = re.compile(r"#\s*perdure:\s*ignore(?:\[([^\]\n]*)\])?")
_PYTHON: Final = "Python {}.{}".format(*sys.version_info[:2])


class Module:
    """One file that could be parsed."""

    def __init__(self, path: str, place: PurePath, text: str, tree: ast.Module) -> None:
        self.path = path
        self.place = place
        self.text = text
        self.tree = tree

    def __repr__(self) -> str:
        return f"<module {self.path}>"

    @cached_property
    def scopes(self) -> Scopes:
        """Whose names are whose."""
        return Scopes(self.tree)

    @cached_property
    def lines(self) -> list[str]:
        """The text, as the parser counts its lines."""
        return self.text.split("\n")

    @cached_property
    def ignored(self) -> dict[int, tuple[str, ...]]:
        """The codes that a comment silences, by line; no codes means all of them."""
        if "perdure:" not in self.text:
            return {}
        found = ((number, _IGNORE.search(line)) for number, line in enumerate(self.lines, 1))
        return {number: _codes(comment[1]) for number, comment in found if comment is not None}

    def silenced(self, node: ast.AST, code: str) -> bool:
        """Whether a comment on one of the node's lines silences this code."""
        first, last = getattr(node, "lineno", 0), getattr(node, "end_lineno", 0) or 0
        return any(
            not codes or any(code.startswith(c) for c in codes)
            for line, codes in self.ignored.items()
            if first <= line <= last
        )

    def finding(self, node: ast.AST, code: str, message: str, instead: str, calls: tuple[str, ...] = ()) -> Finding:
        """A finding at the node."""
        line, end = getattr(node, "lineno", 1), getattr(node, "end_lineno", 1) or 1
        column, stop = getattr(node, "col_offset", 0), getattr(node, "end_col_offset", 0) or 0
        return Finding(
            self.path, line, self._column(line, column), end, self._column(end, stop), code, message, instead, calls
        )

    def _column(self, line: int, offset: int) -> int:
        """Characters from 1, where the parser counts bytes from 0."""
        text = self.lines[line - 1] if line <= len(self.lines) else ""
        return offset + 1 if text.isascii() else len(text.encode()[:offset].decode(errors="replace")) + 1


def _codes(listed: str | None) -> tuple[str, ...]:
    return tuple(code.strip() for code in (listed or "").split(",") if code.strip())


class Tree:
    """All files together.

    Args:
        files: text by path, as the findings shall show it.
        folder: where relative paths begin.
    """

    def __init__(self, files: Mapping[str, str], folder: PurePath) -> None:
        self.unreadable: list[Finding] = []
        self._at: dict[PurePath, Module] = {}
        self._found: dict[tuple[PurePath, str], Module | None] = {}
        for path, text in files.items():
            tree = self._parsed(path, text := text.replace("\r\n", "\n").replace("\r", "\n"))
            if tree is not None:
                place = folder / path
                self._at[place] = Module(path, place, text, tree)

    @property
    def modules(self) -> Iterable[Module]:
        """Those that could be parsed, in the order given."""
        return self._at.values()

    def _parsed(self, path: str, text: str) -> ast.Module | None:
        line, column, why = 1, 1, ""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of invalid escapes Python itself will tell
                return ast.parse(text, path)
        except SyntaxError as error:
            line, column, why = max(1, error.lineno or 1), max(1, error.offset or 1), error.msg
        except ValueError as error:  # a null byte, before 3.12
            why = str(error)
        except (RecursionError, MemoryError):
            why = "nested too deeply"
        self.unreadable.append(unreadable(path, f"{_PYTHON} cannot read this file: {why}", line, column))
        return None

    def relative(self, module: Module, level: int, name: str | None) -> Module | None:
        """What `from ..name import` means in the module."""
        folder = module.place.parent
        for _ in range(level - 1):
            folder = folder.parent
        return self._under(folder, name or "")

    def submodule(self, package: Module, name: str) -> Module | None:
        """The module of that name in the package."""
        return self._under(package.place.parent, name) if package.place.name == "__init__.py" else None

    def find(self, module: Module, name: str) -> Module | None:
        """What `import name` means in the module, if it is one of the files.

        Looked for where an entry of Python's path may be: in the folders around the file that are no packages, and
        in a `src` there.
        """
        if name.partition(".")[0] in sys.stdlib_module_names:
            return None
        key = module.place.parent, name
        if key not in self._found:
            self._found[key] = self._search(module, name)
        return self._found[key]

    def _search(self, module: Module, name: str) -> Module | None:
        for folder in module.place.parents:
            if folder / "__init__.py" not in self._at:
                found = self._under(folder, name) or self._under(folder / "src", name)
                if found is not None:
                    return found
        return None

    def _under(self, folder: PurePath, name: str) -> Module | None:
        base = folder.joinpath(*name.split(".")) if name else folder
        return self._at.get(base / "__init__.py") or (self._at.get(base.parent / f"{base.name}.py") if name else None)


def unreadable(path: str, why: str, line: int = 1, column: int = 1) -> Finding:
    """The finding that a file cannot be looked at."""
    instead = "mend it, or run the lint by a Python that reads it"
    return Finding(path, line, column, line, column, "PD001", why, instead)


def display(path: Path, folder: Path) -> str:
    """The path as findings show it: from the folder, if it lies under that."""
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)
