"""Membership: joining, renewing the lease beside the loop, and noticing that the lease or the loop is gone.

It knows the store's leases and the loop's turns, nothing of flows.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from perdure.engine.timers import EngineTime
from perdure.errors import LeaseLost, StoreUnavailable
from perdure.stores.contract import Store
from perdure.threads import Repeating

logger = logging.getLogger("perdure")

MARGIN: Final = 0.1
"""This part of a lease is not used: right before its end nothing starts any more."""


class ReplicaHost(Protocol):
    """What the replica tells the engine; called in the real loop."""

    def lost(self, error: LeaseLost) -> None: ...
    def renewed(self) -> None: ...


class Replica:
    """One membership: from `join` to `leave`, or until the lease is lost."""

    def __init__(
        self,
        store: Store,
        host: ReplicaHost,
        time: EngineTime,
        *,
        lease: float,
        stall_limit: float,
        flows: Mapping[str, str],
        running: Callable[[], str],
    ) -> None:
        self.id = store.system.new_replica_id()
        self.epoch = 0
        self.lease = lease
        self.stalled: str | None = None
        self._store = store
        self._host = host
        self._time = time
        self._clock = store.system.clock
        self._stall_limit = stall_limit
        self._flows = flows
        self._running = running
        self._real = asyncio.get_running_loop()
        self._safe_until = 0.0
        self._last_turn = self._clock.monotonic()
        self._renewing: Repeating | None = None
        self._loop_thread = threading.get_ident()
        self._turn: asyncio.TimerHandle | None = None
        self._unwatch: Callable[[], None] = lambda: None
        self.gone = False
        """Whether the lease was lost."""

    async def join(self) -> None:
        """The replica is a member, and its lease is renewed until `leave`."""
        boot = self._clock.boot()
        self.epoch = await self._store.join(self.id, self.lease, self._flows)
        self._renewed(self._store.renew(self.id, self.lease), boot)
        self._turned()
        self._renewing = self._store.system.repeat(self._renew, self.lease / 4, "perdure-lease")
        self._unwatch = self._clock.on_move(self._renewing.hurry)

    def safe_to_start(self) -> bool:
        """Whether the lease surely holds, by the boot-time clock: a process that was stopped sees it at once."""
        return not self.gone and self._clock.boot() < self._safe_until

    def left(self) -> float:
        """Seconds for which the lease surely holds."""
        return max(0.0, self._safe_until - self._clock.boot())

    async def stop(self) -> None:
        """Nothing is renewed any more."""
        self._unwatch()
        self._unwatch = lambda: None
        if self._turn is not None:
            self._turn.cancel()
        if self._renewing is None:
            return
        self._renewing.stop()
        until = self._clock.monotonic() + 5.0
        # Not by `to_thread`: at the end of the process no thread can be had any more.
        while self._renewing.running and self._clock.monotonic() < until:  # noqa: ASYNC110
            await asyncio.sleep(0.001)

    # ------------------------------------------------------------ the loop turns

    def _turned(self) -> None:
        self._last_turn = self._clock.monotonic()
        self._turn = self._real.call_later(min(0.5, self._stall_limit / 4) * self._clock.calm, self._turned)

    # ------------------------------------------------------------ the thread

    def _renewed(self, store_time: float, boot: float) -> None:
        self._time.measured(store_time, boot)
        self._safe_until = boot + self.lease * (1 - MARGIN)

    def _renew(self) -> bool:
        """Whether the lease is to be renewed again."""
        if self._is_stalled():
            return True
        boot = self._clock.boot()
        try:
            store_time = self._store.renew(self.id, self.lease)
        except LeaseLost as error:
            self.gone = True
            self._tell(self._host.lost, error)
            return False
        except StoreUnavailable as error:
            logger.warning("the lease could not be renewed, tried again: %s", error)
            return True
        except Exception:
            logger.exception("the lease could not be renewed, tried again")
            return True
        self._renewed(store_time, boot)
        return self._tell(self._host.renewed)

    def _tell(self, callback: Callable[..., None], *args: Any) -> bool:
        """Whether the loop is there to be told."""
        try:
            self._real.call_soon_threadsafe(callback, *args)
        except RuntimeError:  # it is closed
            return False
        return True

    def _is_stalled(self) -> bool:
        """Whether the loop has not turned for the stall limit; names what blocks it, once."""
        still = self._clock.monotonic() - self._last_turn
        if still <= self._stall_limit:
            if self.stalled is not None:
                logger.warning("the event loop turns again; it was blocked by %s", self.stalled)
                self.stalled = None
            return False
        if self.stalled is None:
            task = asyncio.current_task(self._real)
            frame = sys._current_frames().get(self._loop_thread)  # pyright: ignore[reportPrivateUsage]
            where = "".join(traceback.format_stack(frame, limit=6)) if frame is not None else ""
            self.stalled = self._running() or (task.get_name() if task is not None else "a callback")
            logger.error(
                "the event loop has been blocked for %.1f s by %s; the lease is not renewed until it turns, and other replicas will take "
                "over when it is over. Use an async driver, or a sync step (which runs in a thread):\n%s",
                still, self.stalled, where,
            )  # fmt: skip
        return True
