"""All rows of a SQLite file, out of it and into it; see `perdure.stores.moving`. It works where it is called, without a thread."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from itertools import islice
from typing import TYPE_CHECKING, Final

import apsw

from perdure.errors import CommitUnknown, NotOurs, StoreUnavailable
from perdure.stores.moving import BOOLEANS, TABLES, Row, Table, next_size
from perdure.stores.sqlite import forks, readonly, schema
from perdure.stores.sqlite.bulk import Bulk, insert
from perdure.stores.sqlite.replicas import ReplicaFile, replicas_in
from perdure.stores.sqlite.writer import mapped
from perdure.stores.versions import UNFINISHED, Versions, refused

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Sequence

    from perdure.stores.sqlite.connection import Database

_MARK: Final = UNFINISHED + schema.VERSION
_FIRST_PAGE: Final = 64


@asynccontextmanager
async def dump(path: str) -> AsyncGenerator[Rows]:
    """See Moving: the write lock is held meanwhile."""
    found = readonly.versions(path)
    if not found.found:
        raise NotOurs(f"{path} holds no Perdure store: check the path")
    if found.found < found.known:
        raise refused(path, found)
    with mapped(path):
        db = _connected(path)
    try:
        with mapped(path):
            schema.settle(db)
            _begin(db)
            if db.pragma("user_version") != schema.VERSION:
                raise refused(path, Versions(db.pragma("user_version"), schema.VERSION))  # was migrated just now
        _nobody_lives(path)
        yield Rows(db, path)
    finally:
        db.close()


@asynccontextmanager
async def restore(path: str) -> AsyncGenerator[Rows]:
    """See Moving: one transaction for everything, and before it one that sets the mark."""
    with mapped(path):
        db = _connected(path)
    try:
        with mapped(path):
            _mark(db, path)
            _begin(db)
        yield Rows(db, path)
    finally:
        if db.in_transaction:
            db.execute("rollback")
        db.close()


def _connected(path: str) -> Database:
    forks.refuse_inherited(path)
    return schema.connect(path)


def _begin(db: Database) -> None:
    db.pragma("temp_store", "file")  # sorting a large table must not take memory
    db.execute("begin immediate")


def _nobody_lives(path: str) -> None:
    folder = path + "-replicas"
    for replica in list(replicas_in(folder)) if os.path.isdir(folder) else ():
        file = ReplicaFile(folder, replica)
        held = file.hold()
        file.close()
        if not held:
            raise StoreUnavailable(f"process {file.read()[0]} (replica {replica}) works on {path}: stop it first")


def _mark(db: Database, path: str) -> None:
    """The file is a store without a row, and marked as unfinished."""
    if (db.pragma("application_id"), db.pragma("user_version")) == (schema.APPLICATION_ID, _MARK):
        schema.settle(db)
    else:
        schema.prepare(db, path)
    db.execute("begin immediate")
    try:
        if db.pragma("user_version") != _MARK:
            for table in TABLES:
                if db.execute(f"select 1 from {table.name} limit 1").get is not None:
                    raise NotOurs(
                        f"{path} is not empty (there are rows in {table.name}): name a file that is not there"
                    )
            db.pragma("user_version", _MARK)
        db.execute("commit")
    except BaseException:
        if db.in_transaction:
            db.execute("rollback")
        raise


class Rows:
    """All rows, in the transaction of the connection."""

    def __init__(self, db: Database, path: str) -> None:
        self._db = db
        self._path = path
        self._inserts: dict[str, Bulk] = {}

    async def pages(self, table: Table) -> AsyncIterator[Sequence[Row]]:
        """See Reading."""
        order = ",".join(table.order) or "rowid"
        bools = [number for number, column in enumerate(table.columns) if column in BOOLEANS]
        size = _FIRST_PAGE
        with mapped(self._path):
            rows = iter(self._db.execute(f"select {','.join(table.columns)} from {table.name} order by {order}"))
        while True:
            with mapped(self._path):
                page = [_row(row, bools) for row in islice(rows, size)]
            if not page:
                return
            yield page
            size = next_size(size, page)

    async def put(self, table: Table, rows: Sequence[Row]) -> None:
        """See Restore."""
        dead = table.name == "fence"
        if table.name not in self._inserts:
            self._inserts[table.name] = insert(table.name, ",".join(table.columns) + ",alive" * dead, "")
        with mapped(self._path):
            self._inserts[table.name].run(self._db, [(*row, 0) for row in rows] if dead else rows)

    async def settle(self) -> None:
        """See Restore: nothing is derived here."""

    async def finish(self) -> None:
        """See Restore."""
        with mapped(self._path):
            self._db.pragma("user_version", schema.VERSION)
            try:
                self._db.execute("commit")
            except apsw.IOError as error:
                raise CommitUnknown(f"the disk failed while {self._path} was committed: {error}") from error
            self._db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0)


def _row(row: Row, bools: Sequence[int]) -> Row:
    if not bools:
        return row
    values = list(row)
    for number in bools:
        values[number] = values[number] == 1
    return tuple(values)
