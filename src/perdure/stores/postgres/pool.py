"""A few connections, opened when they are needed; transactions on them, and how those end. It knows no table."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, TypeVar

from perdure.errors import CommitUnknown, EngineClosed, NotOurs, StoreUnavailable
from perdure.stores.postgres.connection import (
    Again,
    Lost,
    Session,
    Texts,
    beginning,
    connect,
    is_lost,
    meant,
    state_of,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

    from perdure.stores.postgres.connection import Address, After, Connection, Row

T = TypeVar("T")

CONNECTIONS: Final = 6
UNKNOWN: Final = "22012"
AGAIN_SECONDS: Final = (0.0, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
"""Before each next try of a transaction that met another one."""
CLOSE_SECONDS: Final = 1.0


class Pool:
    """See the module. All of it is used on one event loop."""

    def __init__(
        self,
        address: Address,
        texts: Texts,
        timeout: float,
        met: Callable[[Connection], Awaitable[None]],
        *,
        planned: bool = True,
        known: str = "",
    ) -> None:
        self.address = address
        self._known = texts[known]
        """What a transaction asks first that writes: it fails, with UNKNOWN, if the tables are not those known here."""
        self._texts = texts
        self._met = met
        """Is done with each new connection before it is used."""
        self._timeout = timeout
        self._planned = planned
        self._idle: list[Connection] = []
        self._room = asyncio.Semaphore(CONNECTIONS)
        self._closed = False
        self._generation = 0
        self._begin = beginning(address, timeout, planned=planned)

    def limit(self, timeout: float) -> None:
        """From now on nothing waits for longer than `timeout` seconds; connections that would are not used again."""
        if timeout == self._timeout:
            return
        self._timeout = timeout
        self._generation += 1
        self._begin = beginning(self.address, timeout, planned=self._planned)
        for connection in self._idle:
            connection.terminate()
        self._idle.clear()

    async def close(self) -> None:
        """No connection is open; those in use are closed when they are given back."""
        self._closed = True
        idle, self._idle = self._idle, []
        for connection in idle:
            await closed(connection)

    @asynccontextmanager
    async def connection(self) -> AsyncGenerator[Connection]:
        """A connection outside a transaction. It is not used again if it does not come back so."""
        try:
            async with asyncio.timeout(self._timeout):
                await self._room.acquire()
        except TimeoutError as error:
            raise StoreUnavailable(f"all {CONNECTIONS} connections to {self.address.shown} are in use") from error
        try:
            connection = self._take() or await self._made()
            generation = self._generation
            try:
                yield connection
            except asyncio.CancelledError:
                connection.terminate()  # nobody knows what it is about
                raise
            finally:
                if connection.is_closed():
                    pass
                elif self._closed or generation != self._generation or connection.is_in_transaction():
                    connection.terminate()
                else:
                    self._idle.append(connection)
        finally:
            self._room.release()

    async def read(self, work: Callable[[Session], Awaitable[T]]) -> T:
        """What the work reads, each statement of what stands when it is sent. It is done again if need be."""
        return await self.repeated(lambda: self._once_read(work))

    async def snapshot(self, work: Callable[[Session], Awaitable[T]]) -> T:
        """What the work reads, all of what stood at one instant."""
        return await self.repeated(lambda: self._once_snapshot(work))

    async def write(self, work: Callable[[Session], Awaitable[T]], *, fenced: bool = False) -> tuple[T, After]:
        """What the work gives is on disk, with all that it wrote; and what is to be done after.

        Args:
            work: is done in a transaction, and again where that met another one.
            fenced: whether it proves a fence. Who does need not ask whether the tables are known: no fence outlives them.

        Raises:
            NotOurs: the tables are not those known here any more; nothing was written.
            CommitUnknown: the connection was lost while it was committed.
            StoreUnavailable: surely nothing was written.
        """
        begin = self.begin if fenced else self._begin_known
        return await self.repeated(lambda: self._once_written(work, begin))

    async def write_at_once(self, sql: str, args: Sequence[object]) -> list[Row]:
        """The rows that the one statement gives, which is on disk: a transaction of its own.

        Raises:
            CommitUnknown: the connection was lost meanwhile.
            Again: it met another one.
        """
        async with self.connection() as connection:
            try:
                if self.address.pooler:
                    await connection.execute(self._begin)
                rows = await connection.fetch(self._texts[sql], *args)
            except Exception as error:
                if self.address.pooler or not (is_lost(error) or connection.is_closed()):
                    raise await self.rolled_back(connection, error) from error
                raise self._unknown(connection, error) from error
            if self.address.pooler:
                await self.commit(connection)
            return rows

    async def repeated(self, once: Callable[[], Awaitable[T]]) -> T:
        """What this gives, asked again where another transaction or an old connection was in the way."""
        lost = 0
        for pause in (*AGAIN_SECONDS, None):
            try:
                return await once()
            except Again as error:
                if pause is None:
                    raise StoreUnavailable(f"other transactions were in the way too often: {error}") from error
                await asyncio.sleep(pause)
            except Lost:
                lost += 1  # it may have been idle for long, and the server was restarted meanwhile
                if lost > 1 or self._closed:
                    raise
                self._forget_idle()
        raise AssertionError

    def _forget_idle(self) -> None:
        for connection in self._idle:
            connection.terminate()
        self._idle.clear()

    async def _once_read(self, work: Callable[[Session], Awaitable[T]]) -> T:
        if self.address.pooler:
            return await self._in_transaction(work, self._begin)
        async with self.connection() as connection:
            try:
                return await work(Session(connection, self._texts))
            except Exception as error:
                told = self._ended(connection, error)
                if told is error:
                    raise
                raise told from error

    async def _once_snapshot(self, work: Callable[[Session], Awaitable[T]]) -> T:
        return await self._in_transaction(
            work, self._begin.replace("begin", "begin isolation level repeatable read read only", 1)
        )

    async def _in_transaction(self, work: Callable[[Session], Awaitable[T]], begin: str) -> T:
        async with self.connection() as connection:
            try:
                await connection.execute(begin)
                found = await work(Session(connection, self._texts))
                await connection.execute("commit")
            except Exception as error:
                told = await self.rolled_back(connection, error)
                if told is error:
                    raise
                raise told from error
            return found

    async def _once_written(
        self, work: Callable[[Session], Awaitable[T]], begin: Callable[[Connection], Awaitable[None]]
    ) -> tuple[T, After]:
        async with self.connection() as connection:
            try:
                await begin(connection)
                session = Session(connection, self._texts)
                found = await work(session)
            except Exception as error:
                told = await self.rolled_back(connection, error)
                if told is error:
                    raise
                raise told from error
            await self.commit(connection)
            return found, session.after

    async def _begin_known(self, connection: Connection) -> None:
        try:
            await connection.execute(f"{self._begin};{self._known}" if self._known else self._begin)
        except Exception as error:
            if state_of(error) == UNKNOWN:
                raise NotOurs(
                    f"the tables of {self.address.shown} have been changed by a newer Perdure, or are being copied to: "
                    "start this one anew, or upgrade it"
                ) from error
            raise

    async def begin(self, connection: Connection) -> None:
        """A transaction has begun on the connection."""
        await connection.execute(self._begin)

    async def commit(self, connection: Connection) -> None:
        """The transaction of the connection is on disk.

        Raises:
            CommitUnknown: nobody can say.
        """
        try:
            await connection.execute("commit")
        except Exception as error:
            if state_of(error) == "40003" or is_lost(error) or connection.is_closed():
                raise self._unknown(connection, error) from error
            raise await self.rolled_back(connection, error) from error

    def _unknown(self, connection: Connection, error: Exception) -> CommitUnknown:
        connection.terminate()
        what = str(error) or type(error).__name__
        return CommitUnknown(f"the connection to {self.address.shown} was lost while it committed: {what}")

    async def rolled_back(self, connection: Connection, error: Exception) -> Exception:
        """The transaction of the connection is over; gives our error for the one that it ended with."""
        told = self._ended(connection, error)
        if not connection.is_closed() and connection.is_in_transaction():
            try:
                await connection.execute("rollback")
            except Exception:
                connection.terminate()
        return told

    def _ended(self, connection: Connection, error: Exception) -> Exception:
        """Our error for this one; a connection that is lost is closed."""
        if connection.is_closed() and not state_of(error) and type(error).__module__.startswith("asyncpg"):
            return Lost(f"the connection to {self.address.shown} was lost: {error}")
        if is_lost(error):
            connection.terminate()
        return meant(error, self.address)

    async def _made(self) -> Connection:
        connection = await connect(self.address, self._timeout, planned=self._planned)
        try:
            await self._met(connection)
        except BaseException as error:
            connection.terminate()
            if isinstance(error, Exception):
                raise meant(error, self.address) from error
            raise
        return connection

    def _take(self) -> Connection | None:
        if self._closed:
            raise EngineClosed(f"the store {self.address.shown} is not open")
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed():
                return connection
        return None


async def closed(connection: Connection) -> None:
    """The connection is closed, by force if need be."""
    if connection.is_closed():
        return
    try:
        await connection.close(timeout=CLOSE_SECONDS)
    except Exception:
        connection.terminate()
