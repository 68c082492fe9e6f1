"""A few connections, opened when they are needed; transactions on them, and how those end. It knows no table."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, TypeVar

from perdure.errors import CommitUnknown, EngineClosed, NotOurs, StoreUnavailable
from perdure.stores.mysql.connection import Again, Lost, Session, code_of, connect, is_lost, meant

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from perdure.stores.mysql.connection import Address, After, Connection, Row
    from perdure.stores.mysql.literals import Texts

T = TypeVar("T")

logger = logging.getLogger("perdure")

CONNECTIONS: Final = 6
UNKNOWN: Final = 1242
AGAIN_SECONDS: Final = (0.0, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
"""Before each next try of a transaction that met another one."""
CLOSE_SECONDS: Final = 1.0
BEGIN: Final = b"begin;"
SNAPSHOT: Final = (
    b"set transaction isolation level repeatable read;start transaction with consistent snapshot, read only;"
)


class Pool:
    """See the module. All of it is used on one event loop."""

    def __init__(
        self, address: Address, texts: Texts, timeout: float, *, ours: bool = True, known: bytes = b""
    ) -> None:
        self.address = address
        self._known = known
        """What a transaction asks first that writes: it fails, with UNKNOWN, if the tables are not those known here."""
        self.texts = texts
        self.timeout = timeout
        self._ours = ours
        self._idle: list[Connection] = []
        self._room = asyncio.Semaphore(CONNECTIONS)
        self._closed = False
        self._generation = 0

    def limit(self, timeout: float) -> None:
        """From now on nothing waits for longer than `timeout` seconds; connections that would are not used again."""
        if timeout == self.timeout:
            return
        self.timeout = timeout
        self._generation += 1
        self._forget_idle()

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
            async with asyncio.timeout(self.timeout):
                await self._room.acquire()
        except TimeoutError as error:
            raise StoreUnavailable(f"all {CONNECTIONS} connections to {self.address.shown} are in use") from error
        try:
            connection = self._take() or await connect(self.address, self.timeout, ours=self._ours)
            generation = self._generation
            try:
                yield connection
            except asyncio.CancelledError:
                connection.terminate()  # nobody knows what it is about
                raise
            finally:
                if connection.closed or self._closed or generation != self._generation or connection.in_transaction:
                    connection.terminate()
                else:
                    connection.used = asyncio.get_running_loop().time()
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
        begin = BEGIN if fenced else BEGIN + self._known
        return await self.repeated(lambda: self._once_written(work, begin))

    async def repeated(self, once: Callable[[], Awaitable[T]]) -> T:
        """What this gives, asked again where another transaction or an old connection was in the way."""
        time = asyncio.get_running_loop().time
        lost, end = 0, time() + self.timeout
        for pause in (*AGAIN_SECONDS, None):
            try:
                return await once()
            except Again as error:
                if pause is None or time() > end:
                    raise StoreUnavailable(f"other transactions were in the way for too long: {error}") from error
                await asyncio.sleep(pause)
            except Lost:
                lost += 1  # it may have been idle for long, and the server was restarted meanwhile
                if lost > 1 or self._closed:
                    raise
                self._forget_idle()
        raise AssertionError

    def session(self, connection: Connection, before: bytes = b"") -> Session:
        """Statements on this connection; `before` is sent with the first of them."""
        return Session(connection, self.texts, self.timeout, before)

    def _forget_idle(self) -> None:
        for connection in self._idle:
            connection.terminate()
        self._idle.clear()

    async def _once_read(self, work: Callable[[Session], Awaitable[T]]) -> T:
        async with self.connection() as connection:
            try:
                return await work(self.session(connection))
            except Exception as error:
                told = self._ended(connection, error)
                if told is error:
                    raise
                raise told from error

    async def _once_snapshot(self, work: Callable[[Session], Awaitable[T]]) -> T:
        async with self.connection() as connection:
            try:
                found = await work(self.session(connection, SNAPSHOT))
                if connection.in_transaction:
                    await self.ask(connection, b"commit")
            except Exception as error:
                told = await self.rolled_back(connection, error)
                if told is error:
                    raise
                raise told from error
            return found

    async def _once_written(self, work: Callable[[Session], Awaitable[T]], begin: bytes) -> tuple[T, After]:
        async with self.connection() as connection:
            session = self.session(connection, begin)
            try:
                found = await work(session)
                await session.done()
            except Exception as error:
                told = await self.rolled_back(connection, error)
                if code_of(error) == UNKNOWN:
                    raise NotOurs(
                        f"the tables of {self.address.shown} have been changed by a newer Perdure, or are being copied to: "
                        "start this one anew, or upgrade it"
                    ) from error
                if told is error:
                    raise
                raise told from error
            await self.commit(connection)
            return found, session.after

    async def ask(self, connection: Connection, text: bytes) -> list[tuple[list[Row], int]]:
        """What the statements of the text give."""
        async with asyncio.timeout(self.timeout):
            return await connection.ask(text)

    async def kill(self, connection: Connection) -> None:
        """The server does no more for the connection, whatever it was doing, as far as it can be asked now."""
        number = connection.id
        connection.terminate()
        try:
            async with self.connection() as other:
                await self.ask(other, b"kill connection %d" % number)
        except Exception as error:
            logger.debug("connection %d ends when its statement does: %s", number, error)

    async def commit(self, connection: Connection) -> None:
        """The transaction of the connection is on disk.

        Raises:
            CommitUnknown: nobody can say.
        """
        if not connection.in_transaction:
            return
        try:
            await self.ask(connection, b"commit")
        except Exception as error:
            if is_lost(error) or connection.closed or isinstance(meant(error, self.address), Lost):
                raise self.unknown(connection, error) from error
            raise await self.rolled_back(connection, error) from error

    def unknown(self, connection: Connection, error: Exception) -> CommitUnknown:
        """What is said of a commit that was not answered; the connection is closed."""
        connection.terminate()
        what = str(error) or type(error).__name__
        return CommitUnknown(f"the connection to {self.address.shown} was lost while it committed: {what}")

    async def rolled_back(self, connection: Connection, error: Exception) -> Exception:
        """The transaction of the connection is over; gives our error for the one that it ended with."""
        told = self._ended(connection, error)
        if not connection.closed:
            try:  # also when none seems to be open: an error does not say
                await self.ask(connection, b"rollback")
            except Exception:
                connection.terminate()
        return told

    def _ended(self, connection: Connection, error: Exception) -> Exception:
        """Our error for this one; a connection that is lost is closed."""
        told = meant(error, self.address)
        if isinstance(told, Lost):
            connection.terminate()
        return told

    def _take(self) -> Connection | None:
        if self._closed:
            raise EngineClosed(f"the store {self.address.shown} is not open")
        now = asyncio.get_running_loop().time()
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed and now - connection.used < connection.idle / 2:
                return connection
            connection.terminate()
        return None


async def closed(connection: Connection) -> None:
    """The connection is closed, by force if need be."""
    try:
        async with asyncio.timeout(CLOSE_SECONDS):
            await connection.close()
    except Exception:
        connection.terminate()
