"""An engine on a thread of its own: started, asked from any other thread, and ended.

`SyncEngine` is its face. Nothing here knows what is asked.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import os
import threading
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final, TypeVar

from perdure.api.scope import outside_flow, running_loop
from perdure.errors import EngineClosed, ForkedEngine

if TYPE_CHECKING:
    from perdure.engine.engine import Engine

T = TypeVar("T")

logger = logging.getLogger("perdure")

LET_GO_S: Final = 10.0
"""A start-up that was cut short is waited for so long."""


def may_wait(what: str, instead: str) -> None:
    """Raises if waiting here would stop a flow, or an event loop."""
    outside_flow(what, instead)
    if running_loop() is not None:
        raise RuntimeError(
            f"{what} was called in async code, whose event loop it would block: use Engine there; in a step of this "
            "engine, make the step a plain function, which runs in a thread"
        )


class EngineThread:
    """One engine on one thread, from its start to its end. Any thread may ask."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._pid = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="perdure-engine", daemon=True)
        self._started: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._ended: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._lock = threading.Lock()
        self._answers: set[concurrent.futures.Future[Any]] = set()
        self._accepts = False
        self._task: asyncio.Task[Any] | None = None
        self._stop = asyncio.Event()
        self._left = False
        self._rests = True
        """Whether the thread's main task does what must not be cut short: nothing."""

    def is_of_this_process(self) -> bool:
        """Whether this process has the thread: a fork has not."""
        return self._pid == os.getpid()

    def check_pid(self) -> None:
        """Raises ForkedEngine where the thread is not."""
        if not self.is_of_this_process():
            raise ForkedEngine(
                "this process was forked after the engine was opened, and has not its thread; fork first, and open the "
                "engine in the child"
            )

    def is_this_thread(self) -> bool:
        """Whether the caller runs on the engine's thread."""
        return threading.current_thread() is self._thread

    # ------------------------------------------------------------ in any thread

    def begin(self) -> None:
        """The engine runs; what its start-up raised is raised here."""
        try:
            self._thread.start()
        except Exception:  # no thread is to be had
            self._loop.close()
            raise
        except BaseException:  # an interrupt, and the thread may have begun
            self._let_go()
            raise
        try:
            self._started.result()
        except BaseException:  # of the start-up, or an interrupt here
            self._let_go()
            raise

    def _let_go(self) -> None:
        """Start-up is cut short, and over, if that can be had in short time."""
        self._hurry()
        concurrent.futures.wait([self._ended], timeout=LET_GO_S)
        if self._ended.done():
            self._thread.join()

    def end(self) -> None:
        """The engine has drained and left; what that raised is raised here."""
        try:
            self._loop.call_soon_threadsafe(self._stop.set)
        except RuntimeError:  # it has ended
            pass
        try:
            concurrent.futures.wait([self._ended])  # not `join`, which takes an interrupt for the thread's end
        except BaseException:
            logger.warning("interrupted while draining: stopping hard; running steps begin again elsewhere")
            self._hurry()
            concurrent.futures.wait([self._ended])
            raise
        self._thread.join()
        self._ended.result()

    def ask(self, work: Callable[[Engine], Coroutine[Any, Any, T]]) -> T:
        """What the work gives on the engine's thread; only this thread waits for it."""
        with self._lock:
            if not self._accepts:
                raise EngineClosed("the engine was closed")
            answer = asyncio.run_coroutine_threadsafe(work(self._engine), self._loop)
            self._answers.add(answer)
        try:
            return answer.result()
        except concurrent.futures.CancelledError:
            raise EngineClosed("the engine was closed") from None
        finally:
            answer.cancel()  # if this thread was interrupted: nobody waits any more
            with self._lock:
                self._answers.discard(answer)

    def _hurry(self) -> None:
        """Start-up or drain is cut short."""
        try:
            self._loop.call_soon_threadsafe(self._cut_short)
        except RuntimeError:  # it has ended
            pass

    # ------------------------------------------------------------ on the engine's thread

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._main())
        except BaseException as raised:
            if self._left:  # what the loop's own end says: late in a process no thread can be made any more
                logger.warning("the engine has left, but its event loop did not close well: %s", raised)
            else:
                error = raised
        with self._lock:
            self._accepts = False
        for answer in self._answers.copy():
            _refuse(answer, EngineClosed("the engine was closed"))
        if error is not None:
            _refuse(self._started, error)
            _refuse(self._ended, error)
        else:
            self._ended.set_result(None)

    async def _main(self) -> None:
        self._task = asyncio.current_task()
        self._rests = False
        try:
            async with self._engine:
                with self._lock:
                    self._accepts = True
                self._rests = True
                self._started.set_result(None)
                await self._stop.wait()
                self._rests = False
        finally:
            with self._lock:
                self._accepts = False
            await asyncio.sleep(0)  # what was accepted has begun, so that the loop's end can cancel it
        self._left = True

    def _cut_short(self) -> None:
        self._stop.set()
        if self._rests:
            self._loop.call_soon(self._cut_short)
        elif self._task is not None:
            self._task.cancel()


def _refuse(future: concurrent.futures.Future[Any], error: BaseException) -> None:
    """The future has this error, unless it has something already."""
    try:
        future.set_exception(error)
    except concurrent.futures.InvalidStateError:
        pass
