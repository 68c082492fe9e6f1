"""The machine's threads: for sync steps, and for what is done again and again beside the loop. Reached by
`store.system`. They are daemons: one that never ends does not hold up the end of the process.

`concurrent.futures.ThreadPoolExecutor` would: the interpreter waits for its threads, whatever they do.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any

Job = tuple[asyncio.AbstractEventLoop, "asyncio.Future[Any]", Callable[[], Any]]


class Threads:
    """Up to `limit` threads, made when they are needed and kept; more work waits for one to be free."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._count = 0
        self._closed = False

    def run(self, loop: asyncio.AbstractEventLoop, work: Callable[[], Any]) -> asyncio.Future[Any]:
        """The result of `work` in a thread. Cancelling the future does not stop work that has begun."""
        future: asyncio.Future[Any] = loop.create_future()
        self._jobs.put((loop, future, work))
        if not self._idle.acquire(blocking=False) and self._count < self._limit:
            self._count += 1
            threading.Thread(target=self._work, name=f"perdure-step-{self._count}", daemon=True).start()
        return future

    def close(self) -> None:
        """Threads end when they are free; nobody waits for them, and what has not begun never does."""
        self._closed = True
        for _ in range(self._limit):
            self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            loop, future, work = job
            result: Any = None
            error: BaseException | None = None
            if not self._closed:
                try:
                    result = work()
                except BaseException as raised:
                    error = raised
            try:
                loop.call_soon_threadsafe(settle, future, result, error)
            except RuntimeError:
                return  # the loop has ended, and with it whoever waited
            del job, loop, future, work, result, error
            self._idle.release()


class Repeating:
    """A function that is called every so many seconds, or sooner when `hurry` asks, in a thread of its own."""

    def __init__(self, work: Callable[[], bool], pause: float, name: str) -> None:
        self._work = work
        self._pause = pause
        self._asked = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._repeat, name=name, daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether it may be called again, or has not returned yet."""
        return self._thread.is_alive()

    def hurry(self) -> None:
        """It is called now; from any thread."""
        self._asked.set()

    def stop(self) -> None:
        """It is not called again; a call that runs is not waited for."""
        self._stopping = True
        self._asked.set()

    def _repeat(self) -> None:
        while True:
            self._asked.wait(self._pause)
            self._asked.clear()
            if self._stopping or not self._work():
                return


def settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    """The future has this outcome, unless it was cancelled meanwhile; called in its loop."""
    if future.cancelled():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
