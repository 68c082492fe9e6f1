"""A SQLite file opened to be read alone, beside whoever writes to it; and which version it has."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from perdure.errors import NotOurs, StoreUnavailable
from perdure.stores.sqlite import forks, schema
from perdure.stores.sqlite.store import SqliteStore
from perdure.stores.sqlite.writer import mapped
from perdure.stores.versions import Versions, refused

if TYPE_CHECKING:
    from perdure.stores.sqlite.connection import Database

_NO_CKPT_ON_CLOSE: Final = 1006
"""SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE of sqlite3.h."""


class ReadOnlySqliteStore(SqliteStore):
    """A SQLite file that is there, with the reading half of the contract: no thread, no replica, no write."""

    _alone: bool = False
    """Nobody had left a log beside the file: SQLite may remove the one that reading makes."""

    async def open(self) -> None:
        """The file is there, is ours, and is open for queries.

        Raises:
            StoreUnavailable: it is not there, or cannot be opened.
            NotOurs: it holds something else, nothing, or another version.
        """
        self._here()
        forks.refuse_inherited(self.path)
        self._alone = not _has_log(self.path)
        with mapped(self.path):
            self._db = queried(self.path)
        self._opened = forks.opened(self.path)

    async def close(self) -> None:
        """See Store. A log that somebody else has left is left as it is, for the next engine to find."""
        db, self._db = self._db, None
        if db is not None:
            if self._alone:
                db.config(_NO_CKPT_ON_CLOSE, 0)
            db.close()
            forks.closed(self._opened)


def versions(path: str) -> Versions:
    """See `Migrating`."""
    if not os.path.isfile(path):
        return Versions(0, schema.VERSION)
    with mapped(path):
        db = schema.connect(path)
        try:
            return Versions(schema.found_in(db, path), schema.VERSION)
        finally:
            db.close()


def _has_log(path: str) -> bool:
    """Whether somebody's log lies beside the file; refuses a file that is not there, which SQLite would make."""
    if not os.path.isfile(path):
        raise StoreUnavailable(f"there is no database file {path}, and none is made: check the path")
    return os.path.exists(path + "-wal")


def queried(path: str) -> Database:
    """A connection for queries alone."""
    db = schema.connect(path)
    try:
        db.pragma("query_only", 1)
        schema.settle(db)
        found = schema.found_in(db, path)
        if not found:
            raise NotOurs(f"{path} holds no Perdure store: check the path")
        if found < schema.VERSION:
            raise refused(path, Versions(found, schema.VERSION))
    except BaseException:
        db.close()
        raise
    return db
