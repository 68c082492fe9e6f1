"""Who waits for results: told by the finishing commit if the instance is resident here, else by one batched query
per process.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

from perdure.errors import InstanceNotFound, PerdureError
from perdure.model.records import Instance, State
from perdure.stores.contract import Store

logger = logging.getLogger("perdure")

POLL_SECONDS: Final = 0.02
"""The query for instances elsewhere runs at first after this, and at last in half of the store's own interval."""

Ended = tuple[State, bytes | None]


class Waiters:
    """See the module."""

    def __init__(self, store: Store, is_resident: Callable[[bytes], bool]) -> None:
        self._store = store
        self._is_resident = is_resident
        self._waiting: dict[bytes, list[asyncio.Future[Ended]]] = {}
        self._names: dict[bytes, tuple[str, str]] = {}
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._warned: set[bytes] = set()
        self._closed: PerdureError | None = None

    async def ended(self, uid: bytes, flow: str, id: str) -> Ended:
        """How the instance ended, when it has.

        Raises:
            InstanceNotFound: it is not there (any more).
        """
        if self._closed is not None:
            raise self._closed
        future: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(uid, []).append(future)
        self._names[uid] = (flow, id)
        if not self._is_resident(uid):
            self.look()
        try:
            return await future
        finally:
            self._leave(uid, future)

    def _leave(self, uid: bytes, future: asyncio.Future[Ended]) -> None:
        futures = self._waiting.get(uid)
        if futures is not None:
            if future in futures:
                futures.remove(future)
            if not futures:
                del self._waiting[uid]
                self._names.pop(uid, None)

    def tell(self, uid: bytes, state: State, outcome: bytes | None) -> None:
        """The instance has ended, durably."""
        for future in self._waiting.get(uid, ()):
            if not future.done():
                future.set_result((state, outcome))

    def look(self) -> None:
        """Something may have changed elsewhere."""
        self._changed.set()
        if self._task is None and self._waiting and self._closed is None:
            self._task = asyncio.get_running_loop().create_task(self._poll())

    def close(self, error: PerdureError) -> None:
        """Nobody waits any more."""
        self._closed = error
        if self._task is not None:
            self._task.cancel()
        for futures in self._waiting.values():
            for future in futures:
                if not future.done():
                    future.set_exception(error)

    async def _poll(self) -> None:
        pause = POLL_SECONDS
        while self._waiting:
            self._changed.clear()
            elsewhere = [uid for uid in self._waiting if not self._is_resident(uid)]
            if elsewhere:
                try:
                    self._look_at(await self._store.results(elsewhere))
                except Exception as error:
                    logger.warning("results cannot be looked up now, tried again: %s", error)
            elif not self._waiting:
                break
            try:
                async with asyncio.timeout(pause):
                    await self._changed.wait()
                pause = POLL_SECONDS
            except TimeoutError:
                pause = min(pause * 1.5, self._store.poll / 2 * self._store.system.clock.calm)
        self._task = None

    def _look_at(self, found: dict[bytes, Instance | None]) -> None:
        for uid, row in found.items():
            if row is None:
                error = InstanceNotFound(*self._names.get(uid, ("?", "?")))
                for future in self._waiting.get(uid, ()):
                    if not future.done():
                        future.set_exception(error)
            elif row.state.ended:
                self.tell(uid, row.state, row.outcome)
            elif uid not in self._warned:
                self._warned.add(uid)
                logger.warning("%s %r is blocked, and its result is waited for: %s", row.flow, row.id, row.reason)


_Any = Any
