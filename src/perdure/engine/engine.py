"""The engine: the public object. It puts store, committer, replica and scheduler together and offers the verbs from outside."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast, final, overload

from perdure import codec
from perdure.api.flow import AnyFlow, FlowFunction, name_of, unwrap
from perdure.api.handle import Handle, raise_outcome
from perdure.api.outgoing import Outgoing
from perdure.api.scope import outside_flow
from perdure.clock import Duration, seconds, to_datetime, to_epoch
from perdure.engine import collector
from perdure.engine.committer import Committer, Told
from perdure.engine.execution import check_name
from perdure.engine.operations import cancel_message, new_message
from perdure.engine.payloads import Payloads
from perdure.engine.replica import Replica
from perdure.engine.scheduler import Scheduler, Settings
from perdure.engine.timers import EngineTime, Timers
from perdure.engine.waiters import Waiters
from perdure.errors import (
    AlreadyStarted,
    EngineClosed,
    ForkedEngine,
    InstanceNotFound,
    LeaseLost,
    NotRegistered,
    StoreRefused,
    StoreUnavailable,
)
from perdure.model.records import Instance, Message, State
from perdure.model.retry import Retry
from perdure.model.writes import Answer, Create, Existing, Send, Write
from perdure.stores.contract import Store
from perdure.stores.open import open_store

if TYPE_CHECKING:
    from typing import TypeVarTuple, Unpack

    Ts = TypeVarTuple("Ts")

R = TypeVar("R")

logger = logging.getLogger("perdure")

PAYLOAD_LIMIT = 16 * 1024 * 1024
MAX_RESIDENT = 20_000
REAP_SECONDS = 0.25
"""So often the other replicas are looked at."""


@final
class Info:
    """One instance as `find` lists it."""

    __slots__ = ("created_at", "due_at", "flow", "id", "reason", "state")

    def __init__(self, row: Instance) -> None:
        self.flow = row.flow
        self.id = row.id
        self.state = _shown(row)
        self.due_at = None if row.due_at is None else to_datetime(row.due_at)
        self.created_at = to_datetime(row.created_at)
        self.reason = row.reason

    def __repr__(self) -> str:
        return f"<{self.flow} {self.id!r} {self.state.value}{': ' + self.reason if self.reason else ''}>"


@final
class Health:
    """What `health()` saw; it raises `StoreUnavailable` or `LeaseLost` when flows cannot go on."""

    __slots__ = ("blocked", "hung", "lease_left", "loop_lag", "parked", "paused", "replica", "running")

    def __init__(
        self,
        *,
        replica: str,
        lease_left: timedelta,
        paused: str | None,
        loop_lag: timedelta,
        running: int,
        parked: int,
        blocked: int,
        hung: Sequence[int],
    ) -> None:
        self.replica = replica
        self.lease_left = lease_left
        self.paused = paused
        """Why nothing is claimed now: "disk full", "store away"; None: nothing is wrong."""
        self.loop_lag = loop_lag
        self.running = running
        self.parked = parked
        self.blocked = blocked
        """Instances that this engine has set aside since it started."""
        self.hung = hung
        """Processes that hold the database and do not go on; `kill_hung=True` would end them."""

    def __repr__(self) -> str:
        return "<health " + " ".join(f"{name}={getattr(self, name)}" for name in self.__slots__) + ">"


def _shown(row: Instance) -> State:
    return State.SUSPENDED if row.state is State.RUNNING and row.waiting else row.state


class Engine(AbstractAsyncContextManager["Engine"]):
    """Runs flows on a store, and reaches those that others run: use it as `async with Engine(...) as engine`.

    Args:
        store: a URL (`sqlite:///orders.db`, `memory://`) or a `Store`.
        flows: the flows that this engine runs: flow functions, or modules of which all are taken.
        execute: False makes a client: it starts, sends, waits and finds, and runs nothing.
        max_resident: beyond so many instances in memory the longest-waiting are unloaded.
        unload_after: instances that have waited so long are unloaded in any case.
        max_running: this replica claims no more when it has so many in memory.
        drain: how long the end waits for running steps.
        retry: for steps that say nothing (never for at-most-once steps).
        codec: compresses or encrypts all payloads.
        payload_limit: bytes of one argument list, result or message.
        version: identity of the code, kept with each instance.
        lease: after so long without renewal others take this replica's instances over.
        stall_limit: how long user code may block the loop before the lease is not renewed any more, which names it.
        kill_hung: a process that hangs in the middle of a write holds a SQLite file; kill it when its lease is over.
    """

    def __init__(
        self,
        store: str | Store,
        /,
        *,
        flows: Iterable[AnyFlow | ModuleType] = (),
        execute: bool = True,
        max_resident: int = MAX_RESIDENT,
        unload_after: Duration | None = None,
        max_running: int = 20_000,
        drain: Duration = 30.0,
        retry: Retry | None = None,
        codec: codec.Codec | None = None,
        payload_limit: int = PAYLOAD_LIMIT,
        version: str | None = None,
        lease: Duration = 10,
        stall_limit: Duration = 5,
        kill_hung: bool = False,
    ) -> None:
        self._store: Store = open_store(store) if isinstance(store, str) else store
        self._flows = _registered(flows)
        self._execute = execute
        self._drain = seconds(drain)
        self._lease = seconds(lease)
        self._kill_hung = kill_hung
        if self._lease <= 0 or seconds(stall_limit) <= 0:
            raise ValueError("lease and stall_limit must be positive")
        self._settings = Settings(
            max_resident=max_resident,
            max_running=max_running,
            unload_after=None if unload_after is None else seconds(unload_after),
            stall_limit=seconds(stall_limit),
            version=version or "",
            default_retry=retry,
        )
        self._payloads = Payloads(codec, payload_limit)
        self._time = EngineTime(self._store.system.clock)
        self._pid = os.getpid()
        self._entered = False
        self._open = False
        self._paused: str | None = None
        self._hung: tuple[int, ...] = ()
        self._lost_error: LeaseLost | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._committer: Committer | None = None
        self._replica: Replica | None = None
        self._scheduler: Scheduler | None = None
        self._waiters: Waiters | None = None
        self._timers: Timers | None = None

    # ------------------------------------------------------------ life

    async def __aenter__(self) -> Self:
        outside_flow("Engine", "start(), send() and so on")
        if self._entered:
            raise EngineClosed("an engine is entered once; make a new one")
        self._entered = True
        self._real = asyncio.get_running_loop()
        await self._store.open()
        collector.engine_started()
        try:
            clock = self._store.system.clock
            self._timers = Timers(self._time.now, self._real, clock)
            self._waiters = Waiters(self._store, self._is_resident)
            self._open = True
            if self._execute:
                await self._join()
                self._spawn(self._reap_always())
            else:
                self._committer = Committer(self._store, self, self._real)
            self._store.on_change(self._changed_elsewhere)
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, t: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None, /
    ) -> None:
        await self._stop(self._drain)

    async def _stop(self, drain: float) -> None:
        if not self._open:
            return
        if self._scheduler is not None and self._replica is not None and not self._replica.gone:
            await self._scheduler.drain(drain)
        if self._committer is not None and self._paused is None:
            await self._committer.drained()
        await self._close()

    async def _close(self) -> None:
        self._open = False
        collector.engine_stopped()
        closed = EngineClosed("the engine was closed")
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._committer is not None:
            self._committer.stop(closed)
        if self._waiters is not None:
            self._waiters.close(closed)
        if self._scheduler is not None:
            self._scheduler.close()
        if self._timers is not None:
            self._timers.close()
        if self._replica is not None:
            await self._replica.stop()
            if not self._replica.gone:
                try:
                    await self._store.leave(self._replica.id)
                except StoreUnavailable as error:
                    logger.warning("the store is away; others take over when the lease is over: %s", error)
        await self._store.close()

    async def _join(self) -> None:
        """A member of the store, with a scheduler of its own."""
        assert self._timers is not None and self._waiters is not None  # noqa: S101, PT018
        replica = Replica(
            self._store, self, self._time, lease=self._lease, stall_limit=self._settings.stall_limit, running=self._blocking
        )
        await replica.join()
        committer = Committer(self._store, self, self._real)
        committer.replica, committer.epoch = replica.id, replica.epoch
        self._replica, self._committer, self._lost_error = replica, committer, None
        await self._reap()
        self._scheduler = Scheduler(
            self._store, committer, replica, self._timers, self._waiters, self._payloads, self._flows, self._settings,
            self._time.now, self._read_for,
        )  # fmt: skip
        self._scheduler.start()

    def _blocking(self) -> str:
        return self._scheduler.blocking_step() if self._scheduler is not None else ""

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.Task(work, loop=self._real)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def serve(self) -> None:
        """Flows are run until the process gets SIGTERM or SIGINT; then the engine drains and is closed. A second signal stops hard.

        Enters the engine if that was not done.
        """
        if not self._entered:
            async with self:
                await self.serve()
            return
        self._check()
        asked = asyncio.Event()
        loop = asyncio.get_running_loop()
        stopping: asyncio.Task[None] | None = None

        def on_signal() -> None:
            if asked.is_set():
                logger.warning("second signal: stopping hard; running steps begin again elsewhere")
                if stopping is not None:
                    stopping.cancel()
            asked.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal)
        try:
            await asked.wait()
            stopping = loop.create_task(self._stop(self._drain))
            try:
                await asyncio.shield(stopping)
            except asyncio.CancelledError:
                if not stopping.cancelled():
                    raise
                await self._stop(0.0)
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    async def health(self, *, timeout: Duration = 5.0) -> Health:
        """How this engine is; the store was read and written for it.

        Raises:
            StoreUnavailable, StoreCorrupt: the store cannot be used now.
            LeaseLost: another replica took over, and joining again has not succeeded yet.
        """
        self._check()
        if self._lost_error is not None:
            raise self._lost_error
        begun = self._store.system.clock.monotonic()
        await asyncio.sleep(0)
        lag = self._store.system.clock.monotonic() - begun
        try:
            async with asyncio.timeout(seconds(timeout)):
                await self._store.check()
        except TimeoutError:
            raise StoreUnavailable(f"the store has not answered within {seconds(timeout):g} s") from None
        running, parked = self._scheduler.counts() if self._scheduler is not None else (0, 0)
        return Health(
            replica=self._replica.id if self._replica is not None else "client",
            lease_left=timedelta(seconds=self._replica.left() if self._replica is not None else 0.0),
            paused=self._paused,
            loop_lag=timedelta(seconds=lag),
            running=running,
            parked=parked,
            blocked=self._scheduler.blocked_count if self._scheduler is not None else 0,
            hung=self._hung,
        )

    def _check(self) -> Committer:
        if self._pid != os.getpid():
            raise ForkedEngine("this process was forked after the engine started; make an engine of its own in the child")
        if not self._open or self._committer is None:
            raise EngineClosed("the engine is not running; use it inside `async with engine:`")
        outside_flow("an engine's method", "perdure.start(), run(), send(), handle() or cancel()")
        return self._committer

    # ------------------------------------------------------------ what committer, replica and store tell

    def now(self) -> float:
        """Engine time."""
        return self._time.now()

    def large_bytes(self) -> int:
        """See `CommitterHost`."""
        large, self._payloads.large = self._payloads.large, 0
        return large

    def committed(self, writes: list[Write], answers: list[Answer]) -> None:
        """See `CommitterHost`."""
        if self._scheduler is not None:
            self._scheduler.committed(writes, answers)

    def holding_changed(self, reason: str | None) -> None:
        """See `CommitterHost`."""
        if reason != self._paused:
            if reason is None:
                logger.info("the store takes writes again")
            else:
                logger.warning("paused: %s", reason)
        self._paused = reason
        if self._scheduler is not None:
            self._scheduler.holding_changed(holding=reason is not None)

    def refused(self, writes: list[Write], error: StoreRefused) -> list[Write]:
        """See `CommitterHost`."""
        return self._scheduler.refused(writes, error) if self._scheduler is not None else []

    def renewed(self) -> None:
        """See `ReplicaHost`."""
        if self._scheduler is not None:
            self._scheduler.renewed()

    def lost(self, error: LeaseLost) -> None:
        """See `ReplicaHost` and `CommitterHost`: everything here is dropped, and the engine joins again under a new id."""
        if self._lost_error is not None or not self._open or self._replica is None or self._committer is None:
            return
        logger.error("the lease was lost, all flows of this replica are dropped here and it joins again: %s", error)
        self._lost_error = error
        self._replica.gone = True
        steps = self._scheduler.abandon() if self._scheduler is not None else []
        self._spawn(self._join_again(self._committer.take_outside(), steps, self._replica, self._scheduler))

    async def _join_again(
        self, outside: list[tuple[Write, Told]], steps: list[asyncio.Task[None]], old: Replica, scheduler: Scheduler | None
    ) -> None:
        if steps:
            await asyncio.wait(steps, timeout=self._settings.stall_limit)
        await old.stop()
        if scheduler is not None:
            scheduler.close()
        while True:
            try:
                await self._join()
                break
            except StoreUnavailable as error:
                logger.warning("joining again is tried until it succeeds: %s", error)
                await asyncio.sleep(0.5)
        committer = self._committer
        assert committer is not None  # noqa: S101
        for write, told in outside:  # what outsiders asked for needs no lease: it is made good under the new id
            committer.write_and_tell(write, told)

    def _changed_elsewhere(self) -> None:
        try:
            self._real.call_soon_threadsafe(self._look_elsewhere)
        except RuntimeError:  # the loop is closed
            return

    def _look_elsewhere(self) -> None:
        if self._open:
            if self._scheduler is not None:
                self._scheduler.notice()
            if self._waiters is not None:
                self._waiters.look()

    def _is_resident(self, uid: bytes) -> bool:
        return self._scheduler is not None and uid in self._scheduler.resident

    async def _reap_always(self) -> None:
        while True:
            await asyncio.sleep(REAP_SECONDS)
            if self._lost_error is None:
                await self._reap()

    async def _reap(self) -> None:
        assert self._replica is not None  # noqa: S101
        try:
            reaped = await self._store.reap(self._replica.id, kill_hung=self._kill_hung)
        except StoreUnavailable as error:
            logger.debug("other replicas cannot be looked at now: %s", error)
            return
        except Exception:
            logger.exception("looking at other replicas failed, tried again")
            return
        if reaped.taken:
            logger.warning("took over the instances of %s", ", ".join(reaped.taken))
            if self._scheduler is not None:
                self._scheduler.notice()
        hung = tuple(h.pid for h in reaped.hung)
        for h in reaped.hung:
            if h.pid not in self._hung:
                logger.error(
                    "process %d (replica %s) hangs and holds the database: nobody can write until it goes on or is killed "
                    "(kill_hung=True would do that)", h.pid, h.replica,
                )  # fmt: skip
        self._hung = hung

    # ------------------------------------------------------------ starting

    @overload
    async def start(
        self, flow: str, /, *args: object, id: str, at: datetime | None = None, after: Duration | None = None
    ) -> Handle[Any]: ...
    @overload
    async def start(
        self,
        flow: Callable[[Unpack[Ts]], Coroutine[Any, Any, R]],
        /,
        *args: Unpack[Ts],
        id: str,
        at: datetime | None = None,
        after: Duration | None = None,
    ) -> Handle[R]: ...
    async def start(
        self, flow: Any, /, *args: Any, id: str, at: datetime | None = None, after: Duration | None = None
    ) -> Handle[Any]:
        """The instance is on disk, started now or earlier: starting again with the same arguments changes nothing.

        Args:
            id: 1 to 255 bytes; (flow, id) is one instance.
            at, after: when it begins, at the earliest.

        Raises:
            AlreadyStarted: it exists and was started with other arguments.
            NotRegistered: a flow given by name is not registered with this (executing) engine.
            NotEncodable, PayloadTooLarge, TypeError: the arguments cannot be kept, or do not fit the flow.
        """
        committer = self._check()
        write = self._create(flow, args, id, at, after)
        return await self._started(write, await committer.ask(write))

    def _create(self, flow: Any, args: tuple[Any, ...], id: str, at: datetime | None, after: Duration | None) -> Create:
        check_name(id, "id")
        function, positional = unwrap(flow, args)
        name = self._known(function)
        if at is not None and after is not None:
            raise TypeError("start() takes at= or after=, not both")
        data, digest, opaque = self._payloads.arguments(positional, {}, f"arguments of {name}")
        if opaque:
            self._payloads.encode(list(positional), f"arguments of {name}")  # raises, and names the value
        uid, now = self._store.system.new_uid(), self._time.now()
        due = to_epoch(at) if at is not None else (now + seconds(after) if after is not None else None)
        if due is None and self._scheduler is not None:
            return self._scheduler.new_instance(uid, name, id, data, digest, None)
        version = self._settings.version
        return Create(uid, name, id, data, digest, None, False, now if due is None else due, version, now, None)

    def _known(self, flow: FlowFunction[..., Any] | str) -> str:
        if isinstance(flow, str):
            if self._execute and flow not in self._flows:
                known = ", ".join(sorted(self._flows)) or "none"
                raise NotRegistered(f"no flow {flow!r} is registered with this engine; registered are: {known}")
            return flow
        registered = self._flows.get(flow.name)
        if registered is not None and registered is not flow:
            raise NotRegistered(f"another flow is registered as {flow.name!r}; give one of them a name=")
        return flow.name

    async def _started(self, write: Create, answer: Answer) -> Handle[Any]:
        if isinstance(answer, Existing):
            if answer.digest != write.digest and not self._payloads.same_today(answer.arguments, write.digest):
                raise AlreadyStarted(write.flow, write.id)
            return Handle(write.flow, write.id, uid=answer.uid, outside=self)
        return Handle(write.flow, write.id, uid=write.uid, outside=self)

    @overload
    async def run(self, flow: str, /, *args: object, id: str, timeout: Duration | None = None) -> Any: ...
    @overload
    async def run(
        self, flow: Callable[[Unpack[Ts]], Coroutine[Any, Any, R]], /, *args: Unpack[Ts], id: str, timeout: Duration | None = None
    ) -> R: ...
    async def run(self, flow: Any, /, *args: Any, id: str, timeout: Duration | None = None) -> Any:
        """The result of the instance, started now or earlier. Raises as `start` and as `Handle.result`."""
        handle = await self.start(flow, *args, id=id)
        return await handle.result(timeout=timeout)

    async def start_many(
        self, flow: Callable[[Unpack[Ts]], Coroutine[Any, Any, R]], items: Iterable[tuple[str, Unpack[Ts]]], /
    ) -> Sequence[Handle[R]]:
        """All instances are on disk, each (id, *arguments); handles in the order given. Not one transaction: repeat it after an error.

        Raises:
            AlreadyStarted: of one of them, when all others are started.
        """
        committer = self._check()
        writes = [self._create(flow, item[1:], cast("str", item[0]), None, None) for item in items]
        answers = await self._ask_all(committer, writes)
        return [await self._started(write, answer) for write, answer in zip(writes, answers, strict=True)]

    async def _ask_all(self, committer: Committer, writes: Sequence[Write]) -> list[Answer]:
        answers: list[Answer] = [None] * len(writes)
        if not writes:
            return answers
        done: asyncio.Future[None] = self._real.create_future()
        left = len(writes)

        def teller(i: int) -> Told:
            def told(answer: Answer, error: BaseException | None) -> None:
                nonlocal left
                left -= 1
                answers[i] = answer
                if not done.done():
                    if error is not None:
                        done.set_exception(error)
                    elif left == 0:
                        done.set_result(None)

            return told

        for i, write in enumerate(writes):
            committer.write_and_tell(write, teller(i))
        await done
        return answers

    # ------------------------------------------------------------ sending

    async def send(
        self, flow: AnyFlow | str, id: str, message: object, /, *, key: str | None = None, name: str | None = None
    ) -> None:
        """The message is in the inbox of (flow, id), on disk; one sent before the instance exists waits for it.

        Args:
            key: 1 to 255 bytes; the same key is delivered once per run, however often it is sent.
            name: makes it a named event, for `receive(..., name=)`.

        Raises:
            NotEncodable, PayloadTooLarge.
        """
        await self.send_one(name_of(flow), id, message, key, name)

    async def send_one(self, flow: str, id: str, message: object, key: str | None, name: str | None) -> None:
        """See `send`."""
        committer = self._check()
        await committer.ask(self._outgoing(flow, id, message, key, name))

    def _outgoing(self, flow: str, id: str, message: object, key: str | None, name: str | None) -> Send:
        check_name(id, "id")
        if key is not None:
            check_name(key, "key")
        if name is not None:
            check_name(name, "name")
        body = self._payloads.encode(message, f"message to {flow} {id!r}")
        row = new_message(self._store.system.new_uid(), codec.tag_of(message), body, key, name, self._time.now())
        return Send(flow, id, row)

    async def send_many(self, flow: AnyFlow | str, items: Iterable[Outgoing], /) -> None:
        """All messages are on disk. Not one transaction: give keys and repeat it after an error."""
        committer = self._check()
        name = name_of(flow)
        await self._ask_all(committer, [self._outgoing(name, i.id, i.message, i.key, i.name) for i in items])

    async def cancel(self, flow: AnyFlow | str, id: str, reason: str | None = None, /) -> None:
        """The request to end is on disk. Nothing happens to an instance that has ended.

        Raises:
            InstanceNotFound.
        """
        await self.cancel_one(name_of(flow), id, reason)

    async def cancel_one(self, flow: str, id: str, reason: str | None) -> None:
        """See `cancel`."""
        committer = self._check()
        check_name(id, "id")
        body = None if reason is None else self._payloads.encode(reason, "reason")
        row: Message = cancel_message(self._store.system.new_uid(), body, self._time.now())
        answer: Any = await committer.ask(Send(flow, id, row))
        if answer.uid is None:
            raise InstanceNotFound(flow, id)

    # ------------------------------------------------------------ looking

    @overload
    def handle(self, flow: FlowFunction[..., R], id: str, /) -> Handle[R]: ...
    @overload
    def handle(self, flow: str, id: str, /) -> Handle[Any]: ...
    def handle(self, flow: Any, id: str, /) -> Handle[Any]:
        """A handle of (flow, id), whether or not it exists."""
        check_name(id, "id")
        return Handle(name_of(flow), id, outside=self)

    async def _row(self, flow: str, id: str, uid: bytes | None) -> Instance:
        self._check()
        if uid is None:
            row = await self._store.instance(flow, id)
        else:
            row = next(iter(await self._store.instances([uid])), None)
        if row is None:
            raise InstanceNotFound(flow, id)
        return row

    async def result(self, flow: str, id: str, uid: bytes | None, timeout: float | None) -> Any:
        """See `Handle.result`."""
        self._check()
        assert self._waiters is not None  # noqa: S101
        try:
            async with asyncio.timeout(timeout):
                if uid is None:
                    row = await self._row(flow, id, None)
                    uid = row.uid
                state, outcome = await self._waiters.ended(uid, flow, id)
        except TimeoutError:
            raise TimeoutError(f"{flow} {id!r} has not ended within {timeout:g} s; it goes on") from None
        if state is State.FAILED:
            return raise_outcome(flow, id, state, None, self._payloads.decode_error(outcome or b""))
        value = None if outcome is None else self._payloads.decode(outcome)
        return raise_outcome(flow, id, state, value, None)

    async def state_of(self, flow: str, id: str, uid: bytes | None) -> State:
        """See `Handle.state`."""
        return _shown(await self._row(flow, id, uid))

    async def exposed_by(self, flow: str, id: str, uid: bytes | None) -> dict[str, Any]:
        """See `Handle.exposed`."""
        row = await self._row(flow, id, uid)
        values: Mapping[str, bytes] = await self._store.exposed(row.uid)
        return {key: self._payloads.decode(value) for key, value in values.items()}

    async def _read_for(self, what: str, flow: str, id: str, key: str | None) -> Any:
        """For another flow: called by the engine itself, journaled by the asker."""
        row = await self._store.instance(flow, id)
        if row is None:
            raise InstanceNotFound(flow, id)
        if what == "state":
            return _shown(row)
        values = await self._store.exposed(row.uid)
        return {k: self._payloads.decode(v) for k, v in values.items() if key is None or k == key}

    async def find(
        self,
        flow: AnyFlow | str | None = None,
        /,
        *,
        state: State | Sequence[State] | None = None,
        since: datetime | None = None,
    ) -> AsyncIterator[Info]:
        """The instances of a flow (or of all), in the order of their creation, in these states, created `since` or later.

        Read in pages while it is iterated: what changes meanwhile may or may not be seen.
        """
        self._check()
        states = None if state is None else ([state] if isinstance(state, State) else list(state))
        wanted = None if states is None else [*states, *([State.RUNNING] if State.SUSPENDED in states else [])]
        after: bytes | None = None
        while True:
            rows = await self._store.find(
                flow=None if flow is None else name_of(flow), states=wanted, since=None if since is None else to_epoch(since),
                after=after, limit=500,
            )  # fmt: skip
            for row in rows:
                if states is None or _shown(row) in states:
                    yield Info(row)
            if len(rows) < 500:
                return
            after = rows[-1].uid


def _registered(flows: Iterable[AnyFlow | ModuleType]) -> dict[str, FlowFunction[..., Any]]:
    """The flows by name.

    Raises:
        TypeError: something is not a flow.
        ValueError: two flows have the same name.
    """
    found: dict[str, FlowFunction[..., Any]] = {}
    for item in flows:
        if isinstance(item, ModuleType):
            members = [value for _, value in inspect.getmembers(item) if isinstance(value, FlowFunction)]
            if not members:
                raise ValueError(f"module {item.__name__} has no flow in it")
        elif isinstance(item, FlowFunction):
            members = [item]
        else:
            raise TypeError(f"{item!r} is not a flow; decorate it with @flow")
        for function in cast("list[FlowFunction[..., Any]]", members):
            if found.setdefault(function.name, function) is not function:
                raise ValueError(f"two flows are named {function.name!r}; give one of them another name=")
    return found
