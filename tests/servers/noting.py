"""A MariaDB or MySQL store that keeps an example of each statement that it sends."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from perdure.stores.mysql import MysqlStore, schema
from perdure.stores.mysql.literals import Texts
from perdure.system import System
from tests.servers.conftest import mysql_done

URL: list[str] = []
SEEN: dict[str, bytes] = {}
"""Each statement as it was last sent."""


class Noting(Texts):
    """See the module."""

    def filled(self, sql: str, args: Sequence[bytes] = ()) -> bytes:
        text = super().filled(sql, args)
        if len(text) < 20_000:
            SEEN[sql] = text
        return text


@asynccontextmanager
async def store(system: System) -> AsyncIterator[MysqlStore]:
    """A store with nothing in it."""
    store = MysqlStore(URL[0], system)
    store._texts = Noting(store.address.prefix)
    await store.open()
    note = "delete from conformance_note"
    tables = (f"delete from {store.address.prefix}{table}" for table in schema.TABLES)
    await mysql_done(URL[0], "begin", note, *tables, "commit")
    yield store
