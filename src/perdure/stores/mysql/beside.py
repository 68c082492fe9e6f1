"""The lease's own thread, loop and connection: it is renewed whatever the engine's loop does.

The connection also holds a lock of its session for each replica: where that comes free, others suspect that the process
has died. It knows the row of the lease, the name of the lock, and nothing else of the store.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from concurrent.futures import TimeoutError as TooLate
from typing import TYPE_CHECKING, Final

from perdure.errors import EngineClosed, LeaseLost, StoreUnavailable
from perdure.stores.mysql.connection import connect, is_lost, meant
from perdure.stores.mysql.literals import literals
from perdure.stores.mysql.owning import RENEW
from perdure.stores.mysql.pool import closed
from perdure.stores.mysql.schema import lock_name

if TYPE_CHECKING:
    from perdure.stores.mysql.connection import Address, Connection, Row
    from perdure.stores.mysql.literals import Texts

logger = logging.getLogger("perdure")

PART: Final = 0.4
"""So much of a lease may one renewal take."""
CLOSE_SECONDS: Final = 5.0
IDLE_SECONDS: Final = 3600
"""The lock must not come free between two renewals, however long the lease."""
HOLD_TRIES: Final = 5
HOLD_SECONDS: Final = 0.01
AGAIN_SECONDS: Final = (0.01, 0.05, 0.1, 0.2, 0.3, 0.5)
WATCH_SECONDS: Final = 0.1
"""Between two looks whether the connection is still there."""

_LIFE: Final = "concat(n, ' ', @@server_id, ' ', @@hostname, ' ', @@port) from perdure_bell where name = 'server'"
LIFE: Final = f"select {_LIFE}"
"""In which life of the server this is asked."""
# The first who asks after a start of the server gives that life of it a number: the table is empty then.
HOLD: Final = (
    "insert into perdure_bell(name, n) values ('server', %s) on duplicate key update n = n;"
    f"select get_lock(%s, 0), {_LIFE}"
)
LET_GO: Final = "do release_lock(%s)"


class Beside:
    """See the module. `renew` may be called from any thread."""

    def __init__(self, address: Address, texts: Texts, number: int) -> None:
        self._address = address
        self._texts = texts
        self._number = number
        """By which this process would call a life of the server."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._stopped = False
        self._connection: Connection | None = None
        self._replicas: set[str] = set()
        self._servers: dict[str, str | None] = {}
        """In which life of the server the connection holds the lock of each replica; None: it cannot, the lease is all."""
        self._watching: asyncio.Task[None] | None = None
        self.outages = 0
        """How often the connection was lost or could not be made."""

    def renew(self, replica: str, lease: float, now: float | None) -> float:
        """The lease holds for `lease` seconds from the time returned; blocks for less than half of it.

        Raises:
            LeaseLost: the replica was taken over, or never joined.
            StoreUnavailable: it could not be renewed now.
        """
        timeout = lease * PART
        asked = asyncio.run_coroutine_threadsafe(self._renew(replica, lease, now, timeout), self._started())
        try:
            return asked.result(timeout + 1.0)
        except TooLate as error:
            asked.cancel()
            self.outages += 1
            raise StoreUnavailable(
                f"the database {self._address.shown} did not renew the lease within {timeout:g} s"
            ) from error

    async def ready(self, replica: str, timeout: float) -> None:
        """The connection is there and holds the replica's lock: the first `renew` blocks its caller, often the engine's
        loop, for one way to the server and back.
        """
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._ready(replica, timeout), self._started()))

    async def forget(self, replica: str) -> None:
        """The replica has left: its lock is nobody's."""
        loop = self._loop
        if loop is not None and not self._stopped:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._forget(replica), loop))

    async def stop(self) -> None:
        """The connection is closed and the thread gone."""
        with self._starting:
            self._stopped = True
            loop, thread = self._loop, self._thread
        if loop is None or thread is None or loop.is_closed():
            return
        ended = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._end(), loop))
        await asyncio.wait([ended], timeout=CLOSE_SECONDS)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(CLOSE_SECONDS)

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._starting:
            if self._stopped:
                raise EngineClosed(f"the store {self._address.shown} is not open")
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=_run, args=(self._loop,), name="perdure-mysql-lease", daemon=True
                )
                self._thread.start()
            return self._loop

    # -- on the thread

    async def _renew(self, replica: str, lease: float, now: float | None, timeout: float) -> float:
        try:
            async with asyncio.timeout(timeout):
                return await self._renewed(replica, lease, now, timeout)
        except TimeoutError as error:
            self._drop()
            raise StoreUnavailable(
                f"the database {self._address.shown} did not renew the lease within {timeout:g} s"
            ) from error

    async def _ready(self, replica: str, timeout: float) -> None:
        try:
            async with asyncio.timeout(timeout):
                await self._hold(await self._connected(timeout), replica)
        except Exception as error:
            self._drop()
            raise meant(error, self._address) from error

    async def _renewed(self, replica: str, lease: float, now: float | None, timeout: float) -> float:
        for last in (self._connection is None, True):
            try:
                connection = await self._connected(timeout)
                await self._hold(connection, replica)
                server = self._servers.get(replica)
                _, (_, renewed), (((at,),), _) = await connection.ask(
                    self._texts.filled(RENEW, literals((now, lease, server, replica)))
                )
                break
            except Exception as error:
                if is_lost(error) or self._connection is None or self._connection.closed:
                    self._drop()
                    if not last:
                        continue  # it was idle, and the server was restarted meanwhile
                raise meant(error, self._address) from error
        else:
            raise AssertionError
        if not renewed:
            self._replicas.discard(replica)
            raise LeaseLost(f"replica {replica} was taken over, or never joined")
        return float(at)

    async def _forget(self, replica: str) -> None:
        self._replicas.discard(replica)
        if self._servers.pop(replica, None) is not None and self._connection is not None:
            try:
                await self._asked(self._connection, LET_GO, lock_name(self._address, replica))
            except Exception:
                self._drop()

    async def _asked(self, connection: Connection, sql: str, *args: object) -> list[Row]:
        return (await connection.ask(self._texts.filled(sql, literals(args))))[-1][0]

    async def _connected(self, timeout: float) -> Connection:
        if self._connection is not None and self._connection.closed:
            self._drop()
        if self._connection is None:
            self._connection = await connect(self._address, timeout, idle=IDLE_SECONDS)
            if self._watching is None:
                self._watching = asyncio.get_running_loop().create_task(self._watch())
        return self._connection

    async def _hold(self, connection: Connection, replica: str) -> None:
        """The session has the replica's lock, unless another has it: one of this process that the server keeps still."""
        if replica in self._servers:
            return
        self._replicas.add(replica)
        try:
            for _ in range(HOLD_TRIES):
                ((held, server),) = await self._asked(connection, HOLD, self._number, lock_name(self._address, replica))
                if held:
                    self._servers[replica] = server.decode() if isinstance(server, bytes) else server
                    return
                await asyncio.sleep(HOLD_SECONDS)
        except Exception as error:
            if is_lost(error) or connection.closed:
                raise
            logger.info("replica %s holds no lock of the server: its death is seen by its lease (%s)", replica, error)
            self._servers[replica] = None

    async def _watch(self) -> None:
        """Others suspect that this process has died, until it has its locks again: at once, not at the next renewal."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            if self._connection is not None and self._connection.closed:
                self._drop()
                await self._hold_again()

    async def _hold_again(self) -> None:
        for pause in AGAIN_SECONDS:
            try:
                async with asyncio.timeout(1.0):
                    connection = await self._connected(1.0)
                    for replica in list(self._replicas):
                        await self._hold(connection, replica)
                return
            except Exception:
                await asyncio.sleep(pause)  # whether it can be reached at all is told by the next renewal

    def _drop(self) -> None:
        self.outages += 1
        self._servers.clear()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()

    async def _end(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
        if self._connection is not None:
            await closed(self._connection)


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        asyncio.set_event_loop(None)
        loop.close()
