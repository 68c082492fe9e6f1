"""The lint's only I/O: which files there are, and their texts."""

from __future__ import annotations

import io
import os
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from perdure.lint.findings import Finding
from perdure.lint.modules import display, unreadable

_SKIPPED: Final = {"__pycache__", "node_modules", "site-packages", "build", "dist"}


class NoSuchPath(Exception):
    """A path to be linted is not there."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"there is no {path}")


def read(paths: Iterable[Path], folder: Path) -> tuple[dict[str, str], list[Finding]]:
    """The texts of all Python files under the paths, as findings shall name them; and what could not be read.

    Raises:
        NoSuchPath: one of the paths is not there.
    """
    texts: dict[str, str] = {}
    failed: list[Finding] = []
    for path in paths:
        if not path.exists():
            raise NoSuchPath(path)
        for file in _python_files(Path(os.path.normpath(path.absolute()))):
            name = display(file, folder)
            try:
                texts[name] = _decoded(file.read_bytes())
            except (OSError, SyntaxError, ValueError, LookupError) as error:
                failed.append(unreadable(name, f"this file cannot be read: {error}"))
    return texts, failed


def _python_files(path: Path) -> Iterator[Path]:
    """The file itself, or those of the folder; not what is hidden, installed or built in it."""
    if not path.is_dir():
        yield path
        return
    for folder, folders, files in os.walk(path):
        inside = Path(folder)
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and name not in _SKIPPED and not (inside / name / "pyvenv.cfg").exists()
        )
        yield from (inside / name for name in sorted(files) if name.endswith((".py", ".pyw")))


def _decoded(content: bytes) -> str:
    encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
    return content.decode(encoding)
