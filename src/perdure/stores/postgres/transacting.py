"""The user's work in a transaction of the store, on a connection of its own."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from perdure.errors import LeaseLost, NotDurable, StoreRefused, StoreUnavailable
from perdure.stores.postgres.connection import Again, Session, meant, state_of
from perdure.stores.postgres.writing import fenced, record

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from perdure.model.records import Entry
    from perdure.model.tx import Tx
    from perdure.stores.postgres.connection import Connection, Texts
    from perdure.stores.postgres.pool import Pool

RUNS: Final = "select 1 from perdure.instance where uid = $1 and run = $2 and owner = $3 for share"

_OVER: Final = "the transaction is over; use it only in the function that it was given to"


class PostgresTx:
    """See `Tx`. Parameters are `$1`, `$2`, ..."""

    def __init__(self, connection: Connection) -> None:
        self._connection: Connection | None = connection
        self.failed: Exception | None = None
        """The first error that a statement ended with: nothing can be written after it."""

    async def execute(self, sql: str, /, *args: Any) -> None:
        """See Tx."""
        await self._rows(sql, args)

    async def fetch(self, sql: str, /, *args: Any) -> list[dict[str, Any]]:
        """See Tx."""
        return [dict(row.items()) for row in await self._rows(sql, args)]

    async def _rows(self, sql: str, args: tuple[Any, ...]) -> list[Any]:
        if self._connection is None:
            raise NotDurable(_OVER)
        try:
            return await self._connection.fetch(sql, *args)
        except Exception as error:
            self.failed = self.failed or error
            raise

    def over(self) -> None:
        """It cannot be used any more."""
        self._connection = None


async def transact(
    pool: Pool, texts: Texts, fence: tuple[str, int], work: Callable[[Tx], Coroutine[Any, Any, Entry]], limit: float
) -> Entry:
    """See Store; `fence` is replica and epoch. What met another transaction is rolled back, and the work done again."""
    end = asyncio.get_running_loop().time() + limit
    failure: Exception
    try:
        return await pool.repeated(lambda: _once(pool, texts, fence, work, end))
    except _Theirs as theirs:
        failure = theirs.error
    except _TooLate as error:
        raise TimeoutError(f"the transaction took longer than {limit:g} s; nothing was written") from error
    try:
        raise failure  # out here, so that it has no context but its own
    finally:
        del failure


async def _once(
    pool: Pool, texts: Texts, fence: tuple[str, int], work: Callable[[Tx], Coroutine[Any, Any, Entry]], end: float
) -> Entry:
    async with pool.connection() as connection:
        patience = asyncio.timeout_at(end)
        try:
            async with patience:
                await pool.begin(connection)
                session = Session(connection, texts)
                await fenced(session, *fence)
                entry = await _worked(pool, connection, work)
                await _recorded(session, fence[0], entry)
        except _Theirs as theirs:
            await pool.rolled_back(connection, theirs.error)
            raise
        except Exception as error:
            if patience.expired():
                connection.terminate()
                raise _TooLate from error
            told = await pool.rolled_back(connection, error)
            if told is error:
                raise
            raise told from error
        await pool.commit(connection)
        return entry


class _TooLate(Exception):
    """The time of the transaction is over, and it was not committed."""


class _Theirs(Exception):
    """What the user's work raised, on its way to the user."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


async def _worked(pool: Pool, connection: Connection, work: Callable[[Tx], Coroutine[Any, Any, Entry]]) -> Entry:
    tx = PostgresTx(connection)
    try:
        entry = await work(tx)
    except Exception as error:
        if tx.failed is not None and _is_stores(pool, tx.failed):
            raise tx.failed from None
        raise _Theirs(error) from error
    finally:
        tx.over()
    if tx.failed is not None:  # the server writes nothing more in this transaction, whatever the work makes of it
        raise tx.failed if _is_stores(pool, tx.failed) else _Theirs(tx.failed)
    if not connection.is_in_transaction():
        raise _Theirs(PermissionError("a transaction's SQL may not begin or end a transaction"))
    return entry


def _is_stores(pool: Pool, error: Exception) -> bool:
    """Whether the database was in the way, so that the transaction may succeed when it is made again."""
    what_they_asked = state_of(error).startswith(("42", "3F", "57014"))
    return not what_they_asked and isinstance(meant(error, pool.address), StoreUnavailable | Again)


async def _recorded(session: Session, replica: str, entry: Entry) -> None:
    if await session.row(RUNS, entry.uid, entry.run, replica) is None:
        raise LeaseLost(f"replica {replica} does not run this instance any more; nothing was written")
    if await record(session, [entry]) == 0:
        raise StoreRefused(f"entry {entry.seq} is in the journal already; the transaction was not done again")
