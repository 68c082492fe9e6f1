"""Runs attempts of steps: as plain tasks of the real loop, or in threads. It tells the execution how each ended.

It knows nothing of order or journals. An attempt ends in exactly one call of its operation: `returned`, `raised`,
`gone`, `interrupted`, `unknown`; or in none, if it was cut off (drain, eviction, lost lease), so that it is begun
again elsewhere.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import traceback
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextvars import Context
from typing import TYPE_CHECKING, Any, Final, Protocol

from perdure import codec
from perdure.api.current import Current, FlowMiddleware
from perdure.api.scope import running_loop, scope
from perdure.engine.operations import ASKED, DROPPED, ReadOp
from perdure.engine.stepping import StepOp
from perdure.engine.transacting import TransactionOp
from perdure.errors import DoesNotFit, LeaseLost, StepFailed, StoreUnavailable
from perdure.model.records import Entry
from perdure.threads import Threads

if TYPE_CHECKING:
    from perdure.engine.execution import Execution
    from perdure.engine.payloads import Payloads

logger = logging.getLogger("perdure")

THREADS: Final = 64
"""So many sync steps run at a time."""

_NOT_GIVEN_TYPE = "_NotGiven"
READ_AGAIN_SECONDS = 0.2


class StepHost(Protocol):
    """What the runner asks of the engine."""

    real: asyncio.AbstractEventLoop
    payloads: Payloads
    stall_limit: float

    def now(self) -> float: ...
    def call_at(self, when: float, callback: Callable[[], None]) -> Callable[[], None]: ...
    async def read_for(self, op: ReadOp) -> Any: ...
    async def transact_for(self, op: TransactionOp) -> Entry: ...


class Attempt(Current):
    """One attempt of a step: what `current()` shows inside it, and what the runner holds of it."""

    __slots__ = ("asked_to_end", "cut", "disarm", "host", "op", "task", "timed_out")

    def __init__(self, host: StepHost, op: StepOp) -> None:
        self._facts = op.run
        self.host = host
        self.op = op
        self.asked_to_end = False
        self.task: asyncio.Task[None] | None = None
        self.cut = False
        self.timed_out = False
        self.disarm: Callable[[], None] | None = None

    # -- what `current()` shows

    @property
    def replaying(self) -> bool:
        return False

    @property
    def cancelled(self) -> bool:
        return self.asked_to_end

    @property
    def step(self) -> str | None:
        return self.op.name

    @property
    def attempt(self) -> int:
        return self.op.failures + 1

    @property
    def key(self) -> str:
        return self.op.spec.key or self.op.idempotency_key

    def heartbeat(self, progress: object = None, /) -> None:
        if progress is None:
            return
        op = self.op
        data = op.run.payloads.encode(progress, f"progress of {op.name}")
        if running_loop() is self.host.real:
            self._keep_progress(data)  # at once: the attempt may fail in this very turn
        else:
            self.host.real.call_soon_threadsafe(self._keep_progress, data)

    def _keep_progress(self, data: bytes) -> None:
        op = self.op
        if op.state == ASKED and op.running is self and not op.run.stopped:
            op.progress = data
            op.put_row(intent=op.spec.at_most_once)

    def progress(self, returns: Any, /) -> Any:
        data = self.op.progress
        if data is None:
            return None
        value = self.op.run.payloads.decode(data)
        if not codec.fits(value, returns):
            raise DoesNotFit(f"progress of {self.op.name}: a {type(value).__qualname__} is not a {returns}")
        return value


class StepRunner:
    """See the module. One per engine."""

    def __init__(self, host: StepHost, threads: Threads, middleware: Sequence[FlowMiddleware]) -> None:
        self._host = host
        self._threads = threads
        self._middleware = tuple(middleware)
        self.running: dict[Attempt, None] = {}
        """The oldest first."""
        self._reads: set[asyncio.Task[None]] = set()

    def start(self, op: StepOp | ReadOp | TransactionOp) -> None:
        """An attempt begins in the next turn of the real loop; called in a plain callback of that."""
        real = self._host.real
        if not isinstance(op, StepOp):
            if isinstance(op, ReadOp):
                task = asyncio.Task(self._read(op), loop=real)
            else:
                task = asyncio.Task(self._transact(op), loop=real, context=op.context)
            self._reads.add(task)
            task.add_done_callback(self._reads.discard)
            return
        attempt = Attempt(self._host, op)
        op.running = attempt
        op.started_at = self._host.now()
        assert op.context is not None  # noqa: S101  only a recorded step has none
        context = op.context.copy()  # the flow's, as it was when it asked: no attempt sees what another has set
        context.run(scope.set, attempt)
        self.running[attempt] = None
        # A plain task, not through the loop's factory: an eager one would run the step under the flow's loop.
        attempt.task = asyncio.Task(self._run(attempt, op, context), loop=real, context=context, name=op.name)

    def cancel(self, op: StepOp) -> None:
        """The attempt is asked to end."""
        attempt: Attempt | None = op.running
        if attempt is not None and attempt.task is not None:
            attempt.asked_to_end = True
            attempt.task.cancel()

    def cut_off(self, run: Execution | None = None) -> list[asyncio.Task[None]]:
        """The attempts (of one execution, or all) are cancelled and leave no trace: they will be begun again. Gives
        their tasks.
        """
        tasks: list[asyncio.Task[None]] = []
        for attempt in list(self.running):
            if run is None or attempt.op.run is run:
                attempt.cut = True
                attempt.asked_to_end = True
                if attempt.task is not None:
                    attempt.task.cancel()
                    tasks.append(attempt.task)
        return tasks

    def close(self) -> None:
        """No thread is waited for."""
        self._threads.close()
        for read in self._reads:
            read.cancel()

    async def _run(self, attempt: Attempt, op: StepOp, context: Context) -> None:
        spec = op.spec
        run = op.run
        try:
            if spec.copy:
                args, kwargs = run.payloads.copies(op.arguments or b"", op.args, op.kwargs, op.opaque)
            else:
                args, kwargs = op.args, op.kwargs
            if spec.timeout is not None:
                self._arm(attempt, spec.timeout)
            if self._middleware:
                value = await self._around(attempt, context, args, kwargs)
            elif spec.is_async:
                value = await spec.fn(*args, **kwargs)
            else:
                value = await self._in_thread(attempt, context, spec.fn, args, kwargs)
            returns = spec.returns
            if returns is None or returns is type(None):
                value = None
            elif type(returns).__name__ != _NOT_GIVEN_TYPE and not codec.fits(value, returns):
                raise DoesNotFit(f"{op.name} returned a {type(value).__qualname__}, which is not a {returns}")
            data, copy = run.payloads.round_trip(value, op.name)
        except (SystemExit, KeyboardInterrupt):  # a signal's, and no outcome of the step that it hit
            self.running.pop(attempt, None)
            op.interrupted()
            raise
        except BaseException as error:
            self.running.pop(attempt, None)
            if attempt.disarm is not None:
                attempt.disarm()
            try:
                self._failed(attempt, op, error)
            except Exception as unfit:
                run.block(unfit)  # not even the error can be written
        else:
            self.running.pop(attempt, None)
            if attempt.disarm is not None:
                attempt.disarm()
            op.returned(data, copy)
        attempt.task = None

    def _failed(self, attempt: Attempt, op: StepOp, error: BaseException) -> None:
        run = op.run
        if attempt.cut:
            run.running.pop(op, None)
            return
        if op.state == DROPPED:
            op.gone()
            return
        at_most_once = op.spec.at_most_once
        if attempt.timed_out and (at_most_once or isinstance(error, asyncio.CancelledError)):
            error = TimeoutError(f"{op.name} has not ended within {op.spec.timeout:g} s")
            if at_most_once:  # whatever it raised: it was cut off in the middle
                op.unknown(str(error))
                return
        op.raised(error)

    def _arm(self, attempt: Attempt, timeout: float) -> None:
        def expire() -> None:
            if attempt.task is not None:
                attempt.timed_out = True
                attempt.asked_to_end = True
                attempt.task.cancel()

        attempt.disarm = self._host.call_at(self._host.now() + timeout, expire)

    async def _in_thread(
        self, attempt: Attempt, context: Context, fn: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]
    ) -> Any:
        """The result of `fn` in a thread. A cancelled thread is waited for up to `stall_limit`: it cannot be stopped."""
        work = self._threads.run(self._host.real, lambda: _call(attempt, context, fn, args, kwargs))
        try:
            value = await asyncio.shield(work)
        except asyncio.CancelledError:
            _, running = await asyncio.wait([work], timeout=self._host.stall_limit)
            if running:
                logger.warning(
                    "step %s was cancelled and its thread goes on; look at current().cancelled in it", attempt.step
                )
                work.add_done_callback(_retrieve)
            else:
                _retrieve(work)
            raise
        return await value if inspect.isawaitable(value) else value  # `lambda: client.get(url)` gives an awaitable

    async def _around(self, attempt: Attempt, context: Context, args: Any, kwargs: Mapping[str, Any]) -> Any:
        """What the outermost middleware makes of the step."""
        spec = attempt.op.spec

        async def work(*args: Any) -> Any:
            if spec.is_async:
                return await spec.fn(*args, **kwargs)
            return await self._in_thread(attempt, context, spec.fn, args, kwargs)

        call: Callable[..., Coroutine[Any, Any, Any]] = work
        for middleware in reversed(self._middleware):
            call = _inside(middleware, attempt, call)
        return await call(*args)

    async def _read(self, op: ReadOp) -> None:
        run = op.run
        try:
            value = await self._read_at_last(op)
            op.outcome = run.payloads.encode(value, op.name)
        except asyncio.CancelledError:
            run.running.pop(op, None)
            raise
        except Exception as error:
            op.failed, op.outcome = True, run.payloads.encode_error(error, op.name)
        run.running.pop(op, None)
        if op.state == ASKED:
            run.complete(op)
        elif not run.stopped:
            run.loop.wake()  # something may wait for the end of what was cancelled

    async def _transact(self, op: TransactionOp) -> None:
        try:
            entry = await self._host.transact_for(op)
        except asyncio.CancelledError:
            op.run.running.pop(op, None)
            raise
        except Exception as error:
            if isinstance(error, LeaseLost) and error is not op.own_error:
                op.run.running.pop(op, None)  # everything here is dropped
                return
            try:
                op.raised(error)
            except Exception as unfit:
                op.run.block(unfit)
        else:
            op.committed(entry)

    async def _read_at_last(self, op: ReadOp) -> Any:
        """A store that is away is no answer: it is asked again, as long as anybody wants to know."""
        while True:
            try:
                return await self._host.read_for(op)
            except StoreUnavailable:
                if op.state != ASKED or op.run.stopped:
                    raise
                await asyncio.sleep(READ_AGAIN_SECONDS)


def _inside(
    middleware: FlowMiddleware, attempt: Attempt, inner: Callable[..., Coroutine[Any, Any, Any]]
) -> Callable[..., Coroutine[Any, Any, Any]]:
    return lambda *args: middleware(attempt, args, inner)


def _call(attempt: Attempt, context: Context, fn: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]) -> Any:
    """`fn` in a thread, unless the attempt was asked to end while it waited for one.

    No signal arrives in a thread: what asks the interpreter to end is a failure of `fn`, as any other is.
    """
    if attempt.asked_to_end:
        return None  # nobody looks at it: the attempt's task was cancelled
    try:
        return context.copy().run(fn, *args, **kwargs)
    except (StopIteration, SystemExit, KeyboardInterrupt) as error:  # none of which a future can carry
        raise StepFailed(type(error).__name__, str(error), traceback.format_exc()) from error


def _retrieve(work: asyncio.Future[Any]) -> None:
    if not work.cancelled():
        work.exception()
