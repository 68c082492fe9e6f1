"""The user's work in a transaction of the store, on a connection of its own.

The server ends a transaction by itself at many statements (`create table`, `truncate`, ...), without asking. Those that
are known are refused before they are sent; a savepoint, which goes with its transaction, tells of all others.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any, Final

from perdure.errors import LeaseLost, NotDurable, StoreRefused, StoreUnavailable
from perdure.stores.mysql.connection import SQL_MODE, Again, code_of, meant, settings
from perdure.stores.mysql.pool import BEGIN
from perdure.stores.mysql.schema import TABLES
from perdure.stores.mysql.writing import fenced, recorded

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from perdure.model.records import Entry
    from perdure.model.tx import Tx
    from perdure.stores.mysql.connection import Connection
    from perdure.stores.mysql.pool import Pool

RUNS: Final = "select 1 from perdure_instance where uid = %s and run = %s and owner = %s lock in share mode"
SAVEPOINT: Final = b"savepoint perdure_transaction"
WHOLE: Final = b"release savepoint perdure_transaction"

_OVER: Final = "the transaction is over; use it only in the function that it was given to"
_NO_SAVEPOINT: Final = 1305

_COMMENT: Final = re.compile(r"\A(?:\s+|/\*(?![!M]).*?\*/|--\s[^\n]*(?:\n|\Z)|#[^\n]*(?:\n|\Z))", re.DOTALL)
_WORD: Final = re.compile(r"[A-Za-z]+")
_ENDS: Final = frozenset({
    "alter", "analyze", "begin", "cache", "change", "check", "checksum", "commit", "create", "drop", "flush", "grant",
    "import", "install", "kill", "load", "lock", "optimize", "purge", "rename", "repair", "reset", "revoke", "rollback",
    "savepoint", "release", "shutdown", "start", "stop", "truncate", "uninstall", "unlock", "use", "xa",
})  # fmt: skip
"""What a statement begins with that ends a transaction, or is not for one."""


def refusal(sql: str, prefix: str) -> str | None:
    """What the statement would do and may not, as far as can be seen."""
    while (comment := _COMMENT.match(sql)) is not None:
        sql = sql[comment.end() :]
    if sql.startswith("/*"):
        return "hide a statement in a comment"
    word = _WORD.match(sql)
    first = word[0].lower() if word is not None else ""
    if first in _ENDS:
        return f"{first}: the server ends the transaction by it, or it is not for one"
    own = re.search(rf"\b{prefix}(?:{'|'.join(TABLES)}|migration)\b", sql, re.IGNORECASE)
    return f"touch {own[0]}, which is Perdure's own" if own is not None else None


class MysqlTx:
    """See `Tx`. Parameters are `%s`."""

    def __init__(self, pool: Pool, connection: Connection) -> None:
        self._pool = pool
        self._connection: Connection | None = connection
        self.failed: Exception | None = None
        """Why nothing can be written any more, even if the work went on."""

    async def execute(self, sql: str, /, *args: Any) -> None:
        """See Tx."""
        await self._rows(sql, args)

    async def fetch(self, sql: str, /, *args: Any) -> list[dict[str, Any]]:
        """See Tx."""
        return await self._rows(sql, args)

    async def _rows(self, sql: str, args: tuple[Any, ...]) -> list[dict[str, Any]]:
        if self._connection is None:
            raise NotDurable(_OVER)
        if self.failed is not None:
            raise self.failed
        why = refusal(sql, self._pool.address.prefix)
        if why is not None:
            raise PermissionError(f"a transaction's SQL may not {why}; it is for rows of your own tables")
        try:
            return await self._connection.select(sql, args)
        except BaseException as error:
            if not isinstance(error, Exception) or is_stores(self._pool, error):
                # The server may have rolled back; what comes now would be a transaction each.
                self.failed = error if isinstance(error, Exception) else NotDurable("a statement was interrupted")
            raise

    def over(self) -> None:
        """It cannot be used any more."""
        self._connection = None


async def transact(
    pool: Pool, fence: tuple[str, int], work: Callable[[Tx], Coroutine[Any, Any, Entry]], limit: float
) -> Entry:
    """See Store; `fence` is replica and epoch. What met another transaction is rolled back, and the work done again."""
    end = asyncio.get_running_loop().time() + limit
    failure: Exception
    try:
        return await pool.repeated(lambda: _once(pool, fence, work, end, limit))
    except _Theirs as theirs:
        failure = theirs.error
    except _TooLate as error:
        raise TimeoutError(f"the transaction took longer than {limit:g} s; nothing was written") from error
    try:
        raise failure  # out here, so that it has no context but its own
    finally:
        del failure


async def _once(
    pool: Pool, fence: tuple[str, int], work: Callable[[Tx], Coroutine[Any, Any, Entry]], end: float, limit: float
) -> Entry:
    async with pool.connection() as connection:
        patience = asyncio.timeout_at(end)
        try:
            async with patience:
                # A transaction before this one may have changed what the session does.
                wanted = settings(pool.timeout, mariadb=connection.mariadb, statement=limit, idle=connection.idle)
                await fenced(pool.session(connection, wanted + b";" + BEGIN), *fence)
                await pool.ask(connection, SAVEPOINT)
                entry = await _worked(pool, connection, work)
                await _recorded(pool, connection, fence[0], entry)
        except _Theirs as theirs:
            await pool.rolled_back(connection, theirs.error)
            raise
        except Exception as error:
            if patience.expired():
                await pool.kill(connection)
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
    tx = MysqlTx(pool, connection)
    await connection.one_at_a_time()
    try:
        entry = await _then_several(connection, work(tx))
    except Exception as error:
        if tx.failed is not None:
            raise tx.failed from None
        raise _Theirs(error) from error
    finally:
        tx.over()
    if tx.failed is not None:
        raise tx.failed
    return entry


async def _then_several(connection: Connection, work: Coroutine[Any, Any, Entry]) -> Entry:
    """What the work gives; if it was not interrupted, the connection takes several statements at a time again."""
    try:
        entry = await work
    except Exception:
        if not connection.closed:
            await connection.several_at_a_time()
        raise
    await connection.several_at_a_time()
    return entry


def is_stores(pool: Pool, error: Exception) -> bool:
    """Whether the database was in the way, so that the transaction may succeed when it is made again."""
    what_they_asked = code_of(error) in _ASKED
    return not what_they_asked and isinstance(meant(error, pool.address), StoreUnavailable | Again)


_ASKED: Final = frozenset({1044, 1049, 1142, 1143, 1146, 1227, 1305, 1317, 1370})
"""No such table, no right, and the like: what is wrong with the SQL and will be."""


async def _recorded(pool: Pool, connection: Connection, replica: str, entry: Entry) -> None:
    try:
        await pool.ask(connection, SQL_MODE.encode() + b";" + WHOLE)
    except Exception as error:
        if code_of(error) != _NO_SAVEPOINT:
            raise
        what = "a transaction's SQL may not begin or end a transaction; what it wrote before that may be there"
        raise _Theirs(PermissionError(what)) from error
    session = pool.session(connection)
    if await session.row(RUNS, entry.uid, entry.run, replica) is None:
        raise LeaseLost(f"replica {replica} does not run this instance any more; nothing was written")
    if not await recorded(session, entry):
        raise StoreRefused(f"entry {entry.seq} is in the journal already; the transaction was not done again")
    await session.done()
