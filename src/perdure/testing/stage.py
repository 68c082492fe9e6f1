"""What a play happens on: machines whose ids are the same in every play, facts that all may wait for, waits that are told of.

It knows nothing of what is played.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Generator
from contextlib import suppress
from typing import Any, Final, cast

from perdure.api.scope import Place, running_loop, scope
from perdure.engine.execution import Execution
from perdure.engine.loop import FlowLoop
from perdure.testing.cluster import Cluster, ClusterSystem, Process
from perdure.testing.loops import VirtualLoop

ID: Final = "crashed"
"""The id of the instance that is played."""
WAITS: Final = 5
"""So many waits of one attempt of a step are told of."""


class Fact:
    """Something that comes true once, for whoever waits for it in any loop."""

    def __init__(self) -> None:
        self.true = False
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    def come_true(self) -> None:
        """It is true from now on."""
        self.true = True
        while self._waiting:
            loop, event = self._waiting.pop()
            loop.call_soon_threadsafe(event.set)

    async def wait(self) -> None:
        """It is true."""
        if not self.true:
            event = asyncio.Event()
            self._waiting.append((asyncio.get_running_loop(), event))
            await event.wait()


class SteadySystem(ClusterSystem):
    """A process's machine in a play: what has the same place in the flow has the same id in every life and play."""

    def __init__(self, cluster: Cluster, process: Process, first: bytes | None) -> None:
        super().__init__(cluster, process)
        self._first = first

    def new_uid(self) -> bytes:
        """See System: of the instance that is played, and of children; both are in idempotency keys and `new_uuid()`."""
        first, self._first = self._first, None
        if first is not None:
            return first
        loop = running_loop()
        if isinstance(loop, FlowLoop) and type(scope.get()) is not Place:  # not asked for by the flow: given to it
            run = cast("Execution", loop.owner)
            return _uid(f"{run.uid.hex()}.{run.number}.{run.seq}")
        return super().new_uid()

    def random(self) -> float:
        """See System: pauses between attempts are the same in every play."""
        return 0.5


def _uid(place: str) -> bytes:
    return hashlib.blake2b(place.encode(), digest_size=16).digest()


ROOT: Final = _uid(ID)
"""The uid of the instance that is played."""


class Waiting:
    """Awaits something, and tells of each of the first times that it waits."""

    def __init__(self, work: Awaitable[Any], waits: Callable[[Any], None]) -> None:
        self._work = work
        self._waits = waits

    def __await__(self) -> Generator[Any, Any, Any]:
        work = self._work.__await__()
        left = WAITS
        step, given = work.send, cast("Any", None)
        while True:
            try:
                waits_for = step(given)
            except StopIteration as end:
                return end.value
            if left > 0:
                left -= 1
                self._waits(self._work)
            try:
                step, given = work.send, (yield waits_for)
            except BaseException as error:
                step, given = cast("Any", work.throw), error


def hang_up(loop: VirtualLoop) -> None:
    """What a killed process had open is shut down, as the system does it: whoever talks to it knows."""
    insides: Any = loop
    own: int = insides._ssock.fileno()  # noqa: SLF001  by which other threads wake it
    for fd in list(insides._selector.get_map()):  # noqa: SLF001
        if fd != own and stat.S_ISSOCK(os.fstat(fd).st_mode):
            with socket.socket(fileno=os.dup(fd)) as connection, suppress(OSError):  # not connected
                connection.shutdown(socket.SHUT_RDWR)
    for transport in list(insides._transports.values()):  # noqa: SLF001
        transport.abort()
