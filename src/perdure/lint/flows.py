"""From flows of the running program to what is wrong in them. Only the files that they reach are read.

Of the program it looks at the names of the loaded modules and their files; it imports and runs nothing. What cannot be
read or parsed, or is too much, is left out without a word: `perdure lint` tells of that.
"""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Collection, Iterator
from pathlib import Path, PurePath
from types import CodeType
from typing import Any, Final

from perdure.lint.check import found_in
from perdure.lint.files import read
from perdure.lint.findings import Finding
from perdure.lint.modules import Module, Tree
from perdure.lint.reach import Reach
from perdure.lint.reader import Reader
from perdure.lint.scopes import Scope
from perdure.lint.settings import settings_for
from perdure.lint.state import State
from perdure.lint.values import Inside

FILES: Final = 200
"""At most so many files are read for one look."""
BYTES: Final = 2_000_000
"""When so much was read, no more is."""

_ROOT: Final = PurePath("/")
_INSTALLED: Final = frozenset({"site-packages", "dist-packages"})
_STDLIB: Final = os.path.dirname(getattr(os, "__file__", "\0/no file")) + os.sep  # none in a frozen program


def loaded_files(package: str) -> dict[str, str]:
    """The source files of the program's own modules, those loaded by now, each with the module's name.

    Args:
        package: of the flow. What is installed, or belongs to Python, is no part of the program, but for this package.
    """
    modules: dict[Any, Any] = sys.modules.copy()  # anybody may put anything into it
    found: dict[str, str] = {}
    for name, module in modules.items():
        path = _file(module)
        if path.endswith((".py", ".pyw")) and isinstance(name, str):
            top = name.partition(".")[0]
            installed = path.startswith(_STDLIB) or not _INSTALLED.isdisjoint(path.split(os.sep))
            if top == package or not (installed or top == "perdure"):
                found.setdefault(os.path.abspath(path), name)
    return found


def _file(module: Any) -> str:
    """What the module says of its file, without running a lazy module's `__getattr__`; "" if it has none."""
    try:
        path = object.__getattribute__(module, "__dict__").get("__file__")
    except Exception:  # something put in place of a module
        return ""
    return path if isinstance(path, str) else ""


def findings_in(flows: Collection[CodeType], files: Collection[str]) -> list[Finding]:
    """What is wrong in these flows and in what they reach; their own file first.

    Args:
        flows: the code of their functions, all of one file.
        files: what may be read beside that file, by absolute paths.

    Raises:
        NotALintSetting: what pyproject.toml says of the lint makes no sense.
    """
    path = os.path.abspath(next(iter(flows)).co_filename)
    tree = _Files({path, *files})
    module = tree.read(PurePath(path))
    if module is None:
        return []
    settings = settings_for([Path(path)], (), ())
    reader = Reader(tree)
    reach = _From(reader, module, {(code.co_name, code.co_firstlineno) for code in flows})
    state = _State(reader, tree)
    found = found_in(reader, reach, state)
    del reader.work  # the two hold each other, and all that was read would be left to the collector
    wanted = (finding for finding in found if settings.wants(finding))
    return sorted(wanted, key=lambda f: (f.path != path, f.path, f.line, f.column, f.code))


class _Files(Tree):
    """Files that are read and parsed when they are first asked about."""

    def __init__(self, paths: Collection[str]) -> None:
        super().__init__({}, _ROOT)
        self._texts: dict[PurePath, str | None] = dict.fromkeys(map(PurePath, paths))
        self._looked_at: set[PurePath] = set()
        self._read = self._bytes = 0

    @property
    def modules(self) -> list[Module]:
        """Those that were parsed by now."""
        return list(self._at.values())

    @property
    def full(self) -> bool:
        """Whether no more files are read."""
        return self._read >= FILES or self._bytes >= BYTES

    def read(self, place: PurePath) -> Module | None:
        """The module of this path, if it is one of the files and could be parsed."""
        if place in self._texts and place not in self._looked_at:
            self._looked_at.add(place)
            for folder in place.parents:  # packages: what an import means depends on which folders are some
                if folder / "__init__.py" not in self._texts:
                    break
                self.read(folder / "__init__.py")
            text = self._text(place)
            tree = _parsed(text, str(place)) if text else None
            if tree is not None:
                self._at[place] = Module(str(place), place, text, tree)
        return self._at.get(place)

    def read_naming(self, name: str) -> None:
        """All files with this word in them are parsed, as long as there is room."""
        for place in self._texts:
            if name in self._text(place):
                self.read(place)

    def _text(self, place: PurePath) -> str:
        text = self._texts[place]
        if text is None:
            path = Path(place)
            texts, _ = read([path] if not self.full and path.is_file() else [], Path(_ROOT))
            text = self._texts[place] = "".join(texts.values()).replace("\r\n", "\n").replace("\r", "\n")
            self._read += 1
            self._bytes += len(text)
        return text

    def _under(self, folder: PurePath, name: str) -> Module | None:
        base = folder.joinpath(*name.split(".")) if name else folder
        self.read(base / "__init__.py")
        self.read(base.parent / f"{base.name}.py")
        return super()._under(folder, name)


class _From(Reach):
    """What certain functions of one module reach."""

    def __init__(self, reader: Reader, module: Module, wanted: Collection[tuple[str, int]]) -> None:
        self._module = module
        self._wanted = wanted
        super().__init__(reader)

    def _flows(self, module: Module) -> Iterator[tuple[Inside, str]]:
        if module is self._module:
            for node in module.scopes.inside:
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    first = min(n.lineno for n in (node, *node.decorator_list))  # as a code object has it
                    if (node.name, first) in self._wanted:
                        yield Inside(node, module), node.name


class _State(State):
    """That a function sets up the program is seen in files that no flow reaches, too: those that name it are read."""

    def __init__(self, reader: Reader, files: _Files) -> None:
        super().__init__(reader)
        self._files = files
        self._asked = {""}

    def _at_import(self, scope: Scope) -> bool:
        outer = scope
        while outer.parent is not None and outer.parent.kind not in ("module", "class"):
            outer = outer.parent
        name: str = getattr(outer.node, "name", "")
        if name not in self._asked:
            self._asked.add(name)
            self._files.read_naming(name)
            self._setting_up = None  # looked for in more files than before
        return self._files.full or super()._at_import(scope)  # where it is not known nothing shall be said


def _parsed(text: str, path: str) -> ast.Module | None:
    """The text; None: it is no Python."""
    try:
        return ast.parse(text, path)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # also a null byte, or nested too deeply
        return None
