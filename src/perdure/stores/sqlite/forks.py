"""Which database files this process has open, so that a fork of it does not open them again.

SQLite keeps its locks in the process's memory too: a forked child believes to hold those of its parent, and what it
writes can be lost (https://www.sqlite.org/howtocorrupt.html, section 2.6).
"""

from __future__ import annotations

import os
from collections import Counter
from typing import Final

from perdure.errors import ForkedEngine

FileId = tuple[int, int]
"""Device and inode."""
NOTHING: Final[FileId] = (0, 0)

_open: Counter[FileId] = Counter()
_inherited: set[FileId] = set()
"""Those that a process had open of which this one is a fork."""


def _after_fork() -> None:
    _inherited.update(+_open)
    _open.clear()


os.register_at_fork(after_in_child=_after_fork)


def _id_of(path: str) -> FileId:
    try:
        found = os.stat(path)
    except OSError:
        return NOTHING
    return found.st_dev, found.st_ino


def refuse_inherited(path: str) -> None:
    """The file was not open in a process of which this one is a fork.

    Raises:
        ForkedEngine: it was.
    """
    if _id_of(path) in _inherited:
        raise ForkedEngine(
            f"this process is a fork of one that had {path} open, and SQLite would lose writes of such a child; "
            "fork before the engine is opened, or start the process anew (spawn)"
        )


def opened(path: str) -> FileId:
    """The file is open here; give what this gives to `closed`."""
    found = _id_of(path)
    _open[found] += 1
    return found


def closed(file: FileId) -> None:
    """The file is not open here any more, as far as one who opened it is concerned."""
    _open[file] -= 1
