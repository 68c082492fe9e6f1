"""Replicas tell each other that there is something to do by numbers in a table that is nowhere but in the server's memory.

Whoever has something for others counts their number up; everybody looks at theirs, many times a second. A number that is
lost does no harm: everybody also looks for work from time to time.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from perdure.stores.mysql.connection import connect
from perdure.stores.mysql.literals import literal
from perdure.stores.mysql.pool import closed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from perdure.stores.mysql.connection import Address, Connection
    from perdure.stores.mysql.literals import Texts

logger = logging.getLogger("perdure")

EVERYBODY: Final = "*"
NOBODY: Final = ""
LOOK_SECONDS: Final = 0.05
"""Between two looks."""
PAUSE_SECONDS: Final = 0.005
"""Between two countings up: whoever is called looks for everything at once."""
RETRY_SECONDS: Final = (0.05, 0.1, 0.2, 0.5, 1.0)

# A statement of its own each time, never in a transaction: some servers refuse such tables there.
RING: Final = "insert into perdure_bell(name, n) values (%s, 1) on duplicate key update n = n + 1"
LOOK: Final = "select name, n from perdure_bell where name in %s"
SILENT: Final = "delete from perdure_bell where name in %s"


class Bell:
    """See the module. All of it is used on one event loop."""

    def __init__(
        self,
        address: Address,
        texts: Texts,
        timeout: float,
        mine: Callable[[], frozenset[str]],
        heard: Callable[[], None],
    ) -> None:
        self._address = address
        self._texts = texts
        self._timeout = timeout
        self._mine = mine
        self._heard = heard
        self.hears = False
        """Whether others can be heard now."""
        self._connection: Connection | None = None
        self._turn = asyncio.Lock()
        self._looking: asyncio.Task[None] | None = None
        self._ringing: asyncio.Task[None] | None = None
        self._for: set[str] = set()
        self._seen: dict[str, int] = {}

    def start(self) -> None:
        """From now on `heard` is called when another process rings for one of `mine` or for everybody; it is tried until
        it works.
        """
        self._looking = asyncio.get_running_loop().create_task(self._look())

    async def stop(self) -> None:
        """The connection is closed."""
        tasks = [task for task in (self._looking, self._ringing) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._connection is not None:
            await closed(self._connection)

    def ring(self, replicas: Iterable[str]) -> None:
        """These replicas are told soon; what is asked for meanwhile goes with the next one."""
        self._for.update(replicas)
        if self._for and self._ringing is None and self.hears:
            self._ringing = asyncio.get_running_loop().create_task(self._ring())

    async def forget(self, replica: str) -> None:
        """Nothing is kept for the replica, which is gone."""
        if self.hears:
            try:
                await self._asked(SILENT, [replica])
            except Exception as error:
                logger.debug("a number of replica %s stays: %s", replica, error)

    async def _look(self) -> None:
        tries = 0
        while True:
            try:
                self._connection = await connect(self._address, self._timeout)
                async with self._turn:
                    await self._sent(self._texts.filled(RING, [literal(NOBODY)]))  # whether it can be written
                self._seen = {}
                self.hears = True
                self._heard()  # what was said before
                tries = 0
                while True:
                    await self._looked()
                    await asyncio.sleep(LOOK_SECONDS)
            except Exception as error:
                logger.debug("nothing is heard of other replicas now, tried again: %s", error)
            self.hears = False
            if self._connection is not None:
                self._connection.terminate()
                self._connection = None
            await asyncio.sleep(RETRY_SECONDS[min(tries, len(RETRY_SECONDS) - 1)])
            tries += 1

    async def _looked(self, rung: frozenset[str] = frozenset()) -> None:
        """What has changed since the last look is known, and told unless it was only this process that rang."""
        names = {*self._mine(), EVERYBODY}
        text = self._texts.filled(LOOK, [literal(sorted(names))])
        if rung:  # in one go, so that nobody else's call is taken for one's own
            rings = b";".join(self._texts.filled(RING, [literal(name)]) for name in sorted(rung))
            text = rings + b";" + text
        async with self._turn:
            found: dict[str, int] = dict(await self._sent(text))
            others = any(n != self._seen.get(name, 0) + (name in rung) for name, n in found.items())
            first = not self._seen
            self._seen = {"": 0, **found}
        if others and not first:
            self._heard()

    async def _ring(self) -> None:
        try:
            while self._for and self.hears:
                told, self._for = frozenset(self._for), set()
                await self._looked(frozenset({EVERYBODY}) if EVERYBODY in told else told)
                await asyncio.sleep(PAUSE_SECONDS)
        except Exception as error:
            self.hears = False  # who cannot tell others must not count on being told
            logger.debug("other replicas could not be told: %s", error)
        finally:
            self._ringing = None

    async def _asked(self, sql: str, names: list[str]) -> None:
        async with self._turn:
            await self._sent(self._texts.filled(sql, [literal(names)]))

    async def _sent(self, text: bytes) -> list[tuple[str, int]]:
        connection = self._connection
        if connection is None:
            return []
        async with asyncio.timeout(self._timeout):
            return (await connection.ask(text))[-1][0]
