"""Where recordings and checks read: the parts of an engine that is not entered, and a database opened to be read alone.

It writes nothing and knows nothing of what is read.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from perdure import codec
from perdure.api.flow import FlowFunction
from perdure.engine.engine import Engine
from perdure.engine.payloads import Payloads
from perdure.engine.sync_engine import SyncEngine
from perdure.errors import NotOurs, NotSupported, StoreUnavailable
from perdure.stores.contract import Store
from perdure.stores.memory import MemoryStore
from perdure.stores.open import open_store
from perdure.stores.sqlite import SqliteStore, forks, schema
from perdure.stores.sqlite.connection import Database
from perdure.stores.sqlite.writer import mapped

_NO_CKPT_ON_CLOSE: Final = 1006
"""SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE of sqlite3.h."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What an engine was given."""

    store: Store
    flows: Mapping[str, FlowFunction[..., Any]]
    payloads: Payloads
    hook: codec.Codec | None
    """Its `codec=`."""
    version: str


def parts_of(engine: Engine | SyncEngine) -> Parts:
    """What the engine was given; nothing of it is entered or changed."""
    # The one place that looks into an engine: it tells these to nobody, since all its own verbs need it entered.
    if isinstance(engine, SyncEngine):
        engine = engine._make()  # pyright: ignore[reportPrivateUsage]
    payloads = engine._payloads  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    return Parts(
        engine._store,  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        engine._flows,  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        payloads,
        payloads._hook,  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        engine._settings.version,  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    )


@asynccontextmanager
async def opened_to_read(store: Store | str) -> AsyncGenerator[Store]:
    """The store, open for as long as the block runs; a SQLite file is only read, beside whoever writes to it.

    A store of the user's own is opened as an engine would.

    Raises:
        ValueError: no store is known for the URL.
        NotSupported: it is in the memory of one process; ask the engine that has it.
        StoreUnavailable, NotOurs, StoreCorrupt: there is no such database, or it cannot be read.
    """
    if isinstance(store, str):
        store = open_store(store)
    if isinstance(store, MemoryStore):
        raise NotSupported("a memory store lives in its own process alone; name a database that can be opened here")
    if isinstance(store, SqliteStore):
        store = _ReadOnly(store.path, store.system)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


class _ReadOnly(SqliteStore):
    """A SQLite file that is there, with the reading half of the contract: no thread, no replica, no write."""

    _alone: bool = False
    """Nobody had left a log beside the file: SQLite may remove the one that reading makes."""

    async def open(self) -> None:
        """The file is there, is ours, and is open for queries.

        Raises:
            StoreUnavailable: it is not there, or cannot be opened.
            NotOurs: it holds something else, nothing, or a newer version.
        """
        self._here()
        forks.refuse_inherited(self.path)
        self._alone = not _has_log(self.path)
        with mapped(self.path):
            self._db = _queried(self.path)
        self._opened = forks.opened(self.path)

    async def close(self) -> None:
        """See Store. A log that somebody else has left is left as it is, for the next engine to find."""
        db, self._db = self._db, None
        if db is not None:
            if self._alone:
                db.config(_NO_CKPT_ON_CLOSE, 0)
            db.close()
            forks.closed(self._opened)


def _has_log(path: str) -> bool:
    """Whether somebody's log lies beside the file; refuses a file that is not there, which SQLite would make."""
    if not os.path.isfile(path):
        raise StoreUnavailable(f"there is no database file {path}, and none is made: check the path")
    return os.path.exists(path + "-wal")


def _queried(path: str) -> Database:
    """A connection for queries alone."""
    db = schema.connect(path)
    try:
        db.pragma("query_only", 1)
        schema.settle(db)
        application, version = db.pragma("application_id"), db.pragma("user_version")
        if application != schema.APPLICATION_ID:
            raise NotOurs(f"{path} holds no Perdure store: check the path")
        if version > schema.VERSION:
            raise NotOurs(f"{path} was written by a newer Perdure (store version {version}): upgrade this one")
    except BaseException:
        db.close()
        raise
    return db
