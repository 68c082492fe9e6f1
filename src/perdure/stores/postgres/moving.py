"""All rows of a PostgreSQL schema, out of it and into it; see `perdure.stores.moving`."""

from __future__ import annotations

from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Final, cast

from perdure.errors import CommitUnknown, NotOurs, StoreUnavailable
from perdure.stores.moving import TABLES, Row, Table, next_size
from perdure.stores.postgres import schema
from perdure.stores.postgres.connection import connect, is_lost, meant, settled
from perdure.stores.postgres.pool import closed
from perdure.stores.versions import UNFINISHED, Versions, refused

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Generator, Sequence

    from perdure.stores.postgres.connection import Address, Connection, Texts

_MARK: Final = UNFINISHED + schema.VERSION
_CONNECT_SECONDS: Final = 10.0
_LONG: Final = 24 * 3600.0
"""So many seconds one statement may take: sorting a large table is one."""
_FIRST_PAGE: Final = 64

_BEGIN: Final = (
    "begin isolation level {}; set local lock_timeout = '10s'; set local idle_in_transaction_session_timeout = 0;"
    " set local statement_timeout = 0"
)
# Nobody joins, or writes without a fence, while the first lock is held; nobody writes with one while the second is.
_LOCK: Final = f"{schema.ALONE}; lock table perdure.fence in exclusive mode"
# Others may see the mark meanwhile, and a second copy waits.
_LOCK_MARKED: Final = "lock table perdure.migration in share row exclusive mode"
_SET_MARK: Final = f"insert into perdure.migration values ({_MARK}, now())"
_CLEAR_MARK: Final = f"delete from perdure.migration where version = {_MARK}"
_LIVES: Final = (
    "select f.replica, l.until - extract(epoch from clock_timestamp())::double precision as left from perdure.fence f"
    " join perdure.lease l on l.replica = f.replica where f.alive order by 2 desc limit 1"
)

# What is known of a life that is gone stands in its place.
_FROM: Final = {
    "gone": "(select flow, id, gone_at as at, gone as uid, state, digest, edit from perdure.place where gone is not null) t"
}
_PUT_GONE: Final = (
    "insert into perdure.place(flow, id, gone_at, gone, state, digest, edit) select * from"
    " unnest($1::text[], $2::text[], $3::double precision[], $4::bytea[], $5::text[], $6::bytea[], $7::bytea[])"
    " on conflict (flow, id) do update set gone_at = excluded.gone_at, gone = excluded.gone, state = excluded.state,"
    " digest = excluded.digest, edit = excluded.edit"
)
_KNOCKED: Final = (
    "insert into perdure.place(flow, id, early) select distinct flow, id, true from perdure.early"
    " on conflict (flow, id) do update set early = true"
)
_DERIVED: Final = (
    _KNOCKED,
    "update perdure.instance set watched = true where uid in (select target from perdure.watch)",
    "analyze perdure.instance",
)


@asynccontextmanager
async def dump(address: Address, texts: Texts) -> AsyncGenerator[Rows]:
    """See Moving: locks on two tables are held meanwhile."""
    async with _connected(address) as (db, address):
        found = await schema.look(db, texts, address)
        if not found.found:
            raise NotOurs(f"{schema.where(address)} holds no Perdure store: check the URL, and ?schema= in it")
        if found.found < found.known:
            raise refused(schema.where(address), found)
        with _meant(address):
            await db.execute(_BEGIN.format("repeatable read"))
            await db.execute(texts[_LOCK], timeout=_LONG)
            version = await schema.version_of(db, texts, address)
            if version != schema.VERSION:
                raise refused(schema.where(address), Versions(version, schema.VERSION))  # was migrated just now
            for replica, left in await db.fetch(texts[_LIVES]):
                if left > 0:
                    raise StoreUnavailable(
                        f"replica {replica} works on {schema.where(address)}: stop it first; if it was killed, its lease is"
                        f" over in {left:.0f} s"
                    )
        yield Rows(db, texts, address)


@asynccontextmanager
async def restore(address: Address, texts: Texts) -> AsyncGenerator[Rows]:
    """See Moving: one transaction for everything, and before it one that sets the mark."""
    async with _connected(address) as (db, address):
        with _meant(address):
            if await schema.version_of(db, texts, address) != _MARK:
                await schema.migrate(db, texts, address)
            await db.execute(_BEGIN.format("read committed"))
            await _mark(db, texts, address)
            await db.execute("commit")
            await db.execute(_BEGIN.format("read committed"))
            await db.execute(texts[_LOCK_MARKED], timeout=_LONG)
            version = await schema.version_of(db, texts, address)
            if version != _MARK:
                raise NotOurs(f"{schema.where(address)} was copied to by somebody else meanwhile")
        yield Rows(db, texts, address)


@asynccontextmanager
async def _connected(address: Address) -> AsyncGenerator[tuple[Connection, Address]]:
    """A connection of its own, closed at the end; a transaction that is open then is rolled back."""
    address = await settled(address, _CONNECT_SECONDS)
    db = await connect(address, _CONNECT_SECONDS, planned=False)
    try:
        yield db, address
    finally:
        if not db.is_closed() and db.is_in_transaction():
            db.terminate()
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


async def _mark(db: Connection, texts: Texts, address: Address) -> None:
    """The store has no rows, and is marked as unfinished."""
    await db.execute(texts[schema.ALONE], timeout=_LONG)
    found = await schema.version_of(db, texts, address)
    if found == _MARK:
        return
    if found != schema.VERSION:
        raise refused(schema.where(address), Versions(found, schema.VERSION))
    for table in TABLES:
        if await db.fetch(texts[f"select 1 from {_from(table)} limit 1"]):
            raise NotOurs(
                f"{schema.where(address)} is not empty (there are rows in {table.name}): name another schema with ?schema="
            )
    await db.execute(texts[_SET_MARK])


def _from(table: Table) -> str:
    return _FROM.get(table.name, f"perdure.{table.name}")


class Rows:
    """All rows, in the transaction of the connection."""

    def __init__(self, db: Connection, texts: Texts, address: Address) -> None:
        self._db = db
        self._texts = texts
        self._address = address
        self._copy: Any = cast("Any", db).copy_records_to_table

    async def pages(self, table: Table) -> AsyncIterator[Sequence[Row]]:
        """See Reading."""
        cursor, order = f"moving_{table.name}", ",".join(table.order) or "nr"
        query = self._texts[f"select {','.join(table.columns)} from {_from(table)} order by {order}"]
        with _meant(self._address):
            await self._db.execute(f"declare {cursor} no scroll cursor for {query}")
        size = _FIRST_PAGE
        while True:
            with _meant(self._address):
                page = [tuple(row) for row in await self._db.fetch(f"fetch {size} from {cursor}", timeout=_LONG)]
            if not page:
                break
            yield page
            size = next_size(size, page)
        await self._db.execute(f"close {cursor}")

    async def put(self, table: Table, rows: Sequence[Row]) -> None:
        """See Restore."""
        with _meant(self._address):
            if table.name == "gone":
                await self._db.fetch(self._texts[_PUT_GONE], *map(list, zip(*rows, strict=True)), timeout=_LONG)
            elif table.name == "fence":
                await self._copied("fence", (*table.columns, "alive"), [(*row, False) for row in rows])
            else:
                await self._copied(table.name, table.columns, rows)
            if table.name == "instance":
                at = [table.columns.index(name) for name in ("flow", "id", "uid")]
                await self._copied("place", ("flow", "id", "uid"), [tuple(row[n] for n in at) for row in rows])

    async def _copied(self, table: str, columns: Sequence[str], rows: Sequence[Row]) -> None:
        await self._copy(table, records=rows, columns=columns, schema_name=self._address.schema, timeout=_LONG)

    async def settle(self) -> None:
        """See Restore: what stands at a place is put together, and who is waited for is known."""
        with _meant(self._address):
            for statement in _DERIVED:
                await self._db.execute(self._texts[statement], timeout=_LONG)

    async def finish(self) -> None:
        """See Restore."""
        with _meant(self._address):
            await self._db.execute(self._texts[_CLEAR_MARK])
            try:
                await self._db.execute("commit", timeout=_LONG)
            except Exception as error:
                if is_lost(error) or self._db.is_closed():
                    raise CommitUnknown(
                        f"the connection to {self._address.shown} was lost while the copy was committed: call it again; it "
                        "says that the target is not empty if it was"
                    ) from error
                raise
