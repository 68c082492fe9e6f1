"""Which code is running: one short text for the whole program, so that a replica can tell its own from another's.

It reads what is loaded and imports nothing. A module that is odd is named or left out, and never an error.
"""

from __future__ import annotations

import os
import sys
from hashlib import blake2b
from typing import Any, Final

_INSTALLED: Final = frozenset({"site-packages", "dist-packages"})
_PACKAGE: Final = (".dist-info", ".egg-info")
_NO_SOURCE: Final = (".so", ".pyd", ".pyc")
_STDLIB: Final = os.path.dirname(getattr(os, "__file__", "\0/no file")) + os.sep  # none in a frozen program
_STDLIB_NAMES: Final = sys.stdlib_module_names | set(sys.builtin_module_names)
_NO_WAITING: Final = getattr(os, "O_NONBLOCK", 0)


def code_identity(version: str | None) -> str:
    """The version, if one is given; else a hash (16 hex digits), which is the same in processes that run the same code.

    Hashed are Python's version, the names and versions of installed packages, and the names and sources of all modules
    loaded by now that are neither installed nor of the standard library, `__main__` included. So a comment changes it,
    and so does an import that one process has made by now and another has not. Where the checkout lies, the order of
    imports and the hash seed change nothing. Of a module without a source file (built in, in C, in a zip archive) only
    the name counts: a program made of such should give a version.
    """
    if version is not None:
        return version
    state = blake2b(sys.version.partition(" ")[0].encode(), digest_size=8)
    for package in sorted(_packages()):
        state.update(os.fsencode(f"\n{package}"))
    for name, path in sorted(_modules().items()):
        source = None if path is None else _source(path)
        state.update(f"\n{name} {'-' if source is None else len(source)} ".encode(errors="surrogatepass"))
        state.update(source or b"")
    return state.hexdigest()


def _packages() -> set[str]:
    """Name and version of each installed package, as the folder beside it is called."""
    found: set[str] = set()
    entries: list[Any] = sys.path  # anybody may put anything into it
    for folder in entries:
        if isinstance(folder, str) and os.path.basename(folder.rstrip(os.sep)) in _INSTALLED:
            try:
                found.update(name for name in os.listdir(folder) if name.endswith(_PACKAGE))
            except OSError:
                continue
    return found


def _modules() -> dict[str, str | None]:
    """The loaded modules of the program itself, each with its source file; None: it has none."""
    loaded: dict[Any, Any] = sys.modules.copy()  # anybody may put anything into it
    found: dict[str, str | None] = {}
    for name, module in loaded.items():
        if not isinstance(name, str) or name == "__mp_main__":  # `__main__` once more, by multiprocessing
            continue
        path = _file(module)
        top = name.partition(".")[0]
        home = path or _file(loaded.get(top))  # one without a file belongs where its package does
        if home is None:
            if top not in _STDLIB_NAMES:
                found[name] = None
        elif not home.startswith(_STDLIB) and _INSTALLED.isdisjoint(home.split(os.sep)):
            found[name] = None if path is None or path.endswith(_NO_SOURCE) else path
    return found


def _file(module: Any) -> str | None:
    """What the module says of its file, without running a lazy module's `__getattr__`."""
    try:
        path = object.__getattribute__(module, "__dict__").get("__file__")
    except Exception:  # something put in place of a module
        return None
    return path if isinstance(path, str) else None


def _source(path: str) -> bytes | None:
    """The file's bytes, without a script's first line, which says where Python lies; None: there is no such file."""
    try:
        file = os.open(path, os.O_RDONLY | _NO_WAITING)  # `python <(...)` runs a pipe, which has no size
        try:
            source = os.read(file, os.fstat(file).st_size)
        finally:
            os.close(file)
    except (OSError, ValueError):  # gone, or in a zip archive; no path at all
        return None
    return source.partition(b"\n")[2] if source.startswith(b"#!") else source
