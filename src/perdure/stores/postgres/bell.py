"""LISTEN and NOTIFY on a connection of their own: others are told that there is something to do, and so are we.

A notification that is lost does no harm: everybody also looks from time to time. It knows no table.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from perdure.stores.postgres.connection import connect
from perdure.stores.postgres.pool import closed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from perdure.stores.postgres.connection import Address, Connection

logger = logging.getLogger("perdure")

EVERYBODY: Final = "*"
PAUSE_SECONDS: Final = 0.005
"""Between two notifications: whoever is called looks for everything at once."""
RETRY_SECONDS: Final = (0.05, 0.1, 0.2, 0.5, 1.0)
_LONGEST: Final = 7000
"""Bytes; the server takes 8,000."""


class Bell:
    """See the module. All of it is used on one event loop."""

    def __init__(self, address: Address, token: str, timeout: float, heard: Callable[[frozenset[str]], None]) -> None:
        self._address = address
        self._channel = f"perdure_{address.schema}"
        self._token = token
        self._timeout = timeout
        self._heard = heard
        self.hears = False
        """Whether others can be heard now."""
        self._connection: Connection | None = None
        self._listening: asyncio.Task[None] | None = None
        self._ringing: asyncio.Task[None] | None = None
        self._for: set[str] = set()

    def start(self) -> None:
        """From now on `heard` is called with the replicas that others name; it is tried until it works."""
        self._listening = asyncio.get_running_loop().create_task(self._listen())

    async def stop(self) -> None:
        """The connection is closed."""
        tasks = [task for task in (self._listening, self._ringing) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._connection is not None:
            await closed(self._connection)

    def ring(self, replicas: Iterable[str]) -> None:
        """These replicas are told soon; what is asked for meanwhile goes with the next one."""
        self._for.update(replicas)
        if self._for and self._ringing is None and self._listening is not None:
            self._ringing = asyncio.get_running_loop().create_task(self._ring())

    async def _listen(self) -> None:
        tries = 0
        while True:
            gone = asyncio.Event()
            try:
                self._connection = await connect(self._address, self._timeout)
                self._connection.add_termination_listener(lambda _, gone=gone: gone.set())
                await self._connection.execute("set synchronous_commit = off")
                await self._connection.add_listener(self._channel, self._called)
                self.hears = True
                self._heard(frozenset({EVERYBODY}))  # what was said before
                tries = 0
                await gone.wait()
            except Exception as error:
                logger.debug("nothing is heard of other replicas now, tried again: %s", error)
            self.hears = False
            if self._connection is not None:
                self._connection.terminate()
                self._connection = None
            await asyncio.sleep(RETRY_SECONDS[min(tries, len(RETRY_SECONDS) - 1)])
            tries += 1

    async def _ring(self) -> None:
        try:
            while self._for:
                connection = self._connection
                if connection is None or connection.is_closed():
                    return
                told, self._for = self._for, set()
                text = " ".join([self._token, *sorted(told)])
                if EVERYBODY in told or len(text) > _LONGEST:
                    text = f"{self._token} {EVERYBODY}"
                await connection.fetch("select pg_notify($1, $2)", self._channel, text)
                await asyncio.sleep(PAUSE_SECONDS)
        except Exception as error:
            logger.debug("other replicas could not be told: %s", error)
        finally:
            self._ringing = None

    def _called(self, _connection: object, _pid: int, _channel: str, text: str) -> None:
        token, *replicas = text.split(" ")
        if token != self._token:
            self._heard(frozenset(replicas))
