"""All rows of a MariaDB or MySQL store, out of it and into it; see `perdure.stores.moving`."""

from __future__ import annotations

from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Final, cast

from perdure.errors import CommitUnknown, NotOurs, StoreUnavailable
from perdure.stores.moving import TABLES, Row, Table, next_size
from perdure.stores.mysql import schema
from perdure.stores.mysql.connection import Session, connect, is_lost, meant
from perdure.stores.mysql.pool import closed
from perdure.stores.mysql.rows import quoted
from perdure.stores.versions import UNFINISHED, Versions, refused

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Generator, Sequence

    from perdure.stores.mysql.connection import Address, Connection
    from perdure.stores.mysql.literals import Texts

_MARK: Final = UNFINISHED + schema.VERSION
_CONNECT_SECONDS: Final = 10.0
_LONG: Final = 24 * 3600
"""So many seconds one statement may take: sorting a large table is one."""
_FIRST_PAGE: Final = 64

_PATIENT: Final = f"set wait_timeout = {_LONG}, net_write_timeout = {_LONG}, lock_wait_timeout = 10"
_NO_LIMIT: Final = {
    True: "set max_statement_time = 0, idle_transaction_timeout = 0",
    False: "set max_execution_time = 0",
}
_LOCKED: Final = (*(name for name in schema.TABLES if name != "bell"), "migration")
_LIVES: Final = (
    "select perdure_fence.replica, perdure_lease.until - unix_timestamp(now(6)) from perdure_fence, perdure_lease"
    " where perdure_lease.replica = perdure_fence.replica and alive = 1 order by 2 desc limit 1"
)
_SET_MARK: Final = f"insert into perdure_migration values ({_MARK}, 0, 1)"
_CLEAR_MARK: Final = f"delete from perdure_migration where version = {_MARK}"

# What is known of a life that is gone stands in its place.
_GONE: Final = ("flow", "id", "gone_at", "gone", "state", "digest", "edit")
_PUT_GONE: Final = (
    f"insert into perdure_place({','.join(_GONE)}) values %s on duplicate key update"
    f" {', '.join(f'{name} = values({name})' for name in _GONE[2:])}"
)
_KNOCKED: Final = (
    "insert into perdure_place(flow, id, early) select distinct flow, id, 1 from perdure_early"
    " on duplicate key update early = 1"
)
_DERIVED: Final = (
    _KNOCKED,
    "update perdure_instance set watched = 1 where uid in (select target from perdure_watch)",
)
_LONG_TEXTS: Final = frozenset({"reason", "flows"})
"""Text that is kept as a blob."""


@asynccontextmanager
async def dump(address: Address, texts: Texts) -> AsyncGenerator[Rows]:
    """See Moving: all tables are locked against writing meanwhile."""
    async with _connected(address, texts) as db:
        with _meant(address):
            found = await schema.look(db, texts, address)
            if not found.found:
                raise NotOurs(f"{schema.where(address)} are not there: check the URL, and prefix= in it")
            await db.ask(_locks(texts, "read"))
            found = await schema.look(db, texts, address)  # it may have been migrated just now
            if found.found < found.known:
                raise refused(schema.where(address), found)
            for replica, left in (await db.ask(texts.filled(_LIVES)))[-1][0]:
                if left > 0:
                    raise StoreUnavailable(
                        f"replica {replica} works on {schema.where(address)}: stop it first; if it was killed, its lease is"
                        f" over in {float(left):.0f} s"
                    )
        yield Rows(db, texts, address)


@asynccontextmanager
async def restore(address: Address, texts: Texts) -> AsyncGenerator[Rows]:
    """See Moving: one transaction for everything, and before it one that sets the mark."""
    async with _connected(address, texts) as db:
        with _meant(address):
            if await schema.newest(db, texts, address) != _MARK:
                await schema.migrate(db, texts, address)
            await db.ask(_locks(texts, "write"))
            await _mark(db, texts, address)
            await db.ask(b"unlock tables;begin")
            await db.ask(texts.filled("select version from perdure_migration for update"))  # a second copy waits
            if await schema.newest(db, texts, address) != _MARK:
                raise NotOurs(f"{schema.where(address)} were copied to by somebody else meanwhile")
        yield Rows(db, texts, address)


@asynccontextmanager
async def _connected(address: Address, texts: Texts) -> AsyncGenerator[Connection]:
    """A connection of its own, closed at the end; a transaction that is open then is rolled back."""
    db = await connect(address, _CONNECT_SECONDS)
    texts.mark = db.mark
    try:
        with _meant(address):
            await db.ask(f"{_PATIENT};{_NO_LIMIT[db.mariadb]}".encode())
        yield db
    finally:
        await closed(db)


@contextmanager
def _meant(address: Address) -> Generator[None]:
    try:
        yield
    except Exception as error:
        told = meant(error, address)
        if told is error:
            raise
        raise told from error


def _locks(texts: Texts, how: str) -> bytes:
    return texts.filled("lock tables " + ", ".join(f"perdure_{name} {how}" for name in _LOCKED))


async def _mark(db: Connection, texts: Texts, address: Address) -> None:
    """The store has no rows, and is marked as unfinished."""
    found = await schema.newest(db, texts, address)
    if found == _MARK:
        return
    if found != schema.VERSION:
        raise refused(schema.where(address), Versions(found, schema.VERSION))
    for table in TABLES:
        if (await db.ask(texts.filled(f"select 1 {_from(table)} limit 1")))[-1][0]:
            raise NotOurs(
                f"{schema.where(address)} are not empty (there are rows in {table.name}): name others with prefix="
            )
    await db.ask(texts.filled(_SET_MARK))


def _from(table: Table) -> str:
    return "from perdure_place where gone is not null" if table.name == "gone" else f"from perdure_{table.name}"


class Rows:
    """All rows, on one connection."""

    def __init__(self, db: Connection, texts: Texts, address: Address) -> None:
        self._db = db
        self._texts = texts
        self._address = address
        self._session = Session(db, texts, float(_LONG))

    async def pages(self, table: Table) -> AsyncIterator[Sequence[Row]]:
        """See Reading."""
        columns = _GONE if table.name == "gone" else table.columns
        order = quoted(",".join(table.order) or "nr")
        text = self._texts.filled(f"select {quoted(','.join(columns))} {_from(table)} order by {order}")
        blobs = [number for number, column in enumerate(columns) if column in _LONG_TEXTS]
        with _meant(self._address):
            cursor: Any = self._db.streaming()
            await cursor.execute(text.decode())
        size = _FIRST_PAGE
        try:
            while True:
                with _meant(self._address):
                    page = [_row(row, blobs) for row in await cursor.fetchmany(size)]
                if not page:
                    return
                yield page
                size = next_size(size, page)
        finally:
            await cursor.close()

    async def put(self, table: Table, rows: Sequence[Row]) -> None:
        """See Restore."""
        with _meant(self._address):
            if table.name == "gone":
                await self._session.insert(_PUT_GONE, rows)
            elif table.name == "fence":
                await self._put("fence", (*table.columns, "alive"), [(*row, False) for row in rows])
            else:
                await self._put(table.name, table.columns, rows)
            if table.name == "instance":
                at = [table.columns.index(name) for name in ("flow", "id", "uid")]
                await self._put("place", ("flow", "id", "uid"), [tuple(row[n] for n in at) for row in rows])
            await self._session.done()

    async def _put(self, table: str, columns: Sequence[str], rows: Sequence[Row]) -> None:
        await self._session.insert(f"insert into perdure_{table}({quoted(','.join(columns))}) values %s", rows)

    async def settle(self) -> None:
        """See Restore: what stands at a place is put together, and who is waited for is known."""
        with _meant(self._address):
            for statement in _DERIVED:
                await self._db.ask(self._texts.filled(statement))

    async def finish(self) -> None:
        """See Restore."""
        with _meant(self._address):
            await self._db.ask(self._texts.filled(_CLEAR_MARK))
            try:
                await self._db.ask(b"commit")
            except Exception as error:
                if is_lost(error) or self._db.closed:
                    raise CommitUnknown(
                        f"the connection to {self._address.shown} was lost while the copy was committed: call it again; it "
                        "says that the target is not empty if it was"
                    ) from error
                raise


def _row(row: Row, blobs: Sequence[int]) -> Row:
    if not blobs:
        return row
    values = list(row)
    for number in blobs:
        values[number] = cast("bytes", values[number]).decode() if values[number] is not None else None
    return tuple(values)
