"""The engine: the public object. It puts store, committer, replica and scheduler together and offers the verbs from
outside.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

from msgspec.structs import replace

from perdure import codec
from perdure.api.current import FlowMiddleware
from perdure.api.flow import AnyFlow, FlowFunction, name_of
from perdure.api.handle import Handle, raise_outcome
from perdure.api.info import Health, Info, shown
from perdure.api.initial import InitialState
from perdure.api.outgoing import Outgoing
from perdure.api.queued import step_flows
from perdure.api.schedule import SCHEDULE, Cron, remove_schedule, schedule_flow, set_schedule
from perdure.api.scope import outside_flow
from perdure.api.step import Step
from perdure.clock import Duration, seconds, to_datetime, to_epoch
from perdure.engine import collector
from perdure.engine.identity import code_identity
from perdure.engine.membership import Membership
from perdure.engine.names import check_name
from perdure.engine.panel import Panel
from perdure.engine.payloads import Payloads
from perdure.engine.requests import Requests
from perdure.engine.serving import registered, served, until_stopped
from perdure.engine.settings import Settings
from perdure.errors import EngineClosed, ForkedEngine, InstanceNotFound
from perdure.model.records import Instance, State
from perdure.model.retry import Retry
from perdure.model.writes import Answer, Create
from perdure.stores.contract import Store
from perdure.stores.open import open_store

if TYPE_CHECKING:
    from typing import TypeVarTuple, Unpack

    Ts = TypeVarTuple("Ts")

R = TypeVar("R")

logger = logging.getLogger("perdure")

PAYLOAD_LIMIT = 16 * 1024 * 1024
MAX_RESIDENT = 20_000


class Engine(AbstractAsyncContextManager["Engine"]):
    """Runs flows on a store, and reaches those that others run: use it as `async with Engine(...) as engine`.

    Args:
        store: a URL (`sqlite:///orders.db`, `memory://`) or a `Store`.
        flows: the flows that this engine runs: flow functions, or modules of which all are taken.
        steps: what this engine runs of flows elsewhere: steps with a `queue` that is served here, or modules of such.
        execute: False makes a client: it starts, sends, waits and finds, and runs nothing.
        queues: only what was started on these queues runs here, and "" stands for what names none: `["", "gpu"]` is
            both. By default only what names none.
        max_resident: beyond so many instances in memory the longest-waiting are unloaded; 0: whatever waits is.
        unload_after: instances that have waited so long are unloaded in any case.
        max_running: this replica claims no more while so many are under way in it; those that only wait do not count.
        retention: instances that ended so long ago are removed, and only remembered: none of their ids starts again.
        drain: how long running steps may go on when the engine ends, or when an instance is given up to be edited.
        retry: for steps that say nothing (never for at-most-once steps).
        step_middleware: what is put around every attempt of a step, the first outermost: see `FlowMiddleware`.
        codec: compresses or encrypts all payloads.
        payload_limit: bytes of one argument list, result, message, exposed value or progress.
        version: identity of the code, by which instances stay with the code that ran them, and a blocked one knows code
            that has not tried it yet; by default a hash over the sources of all loaded modules of the program and the
            versions of Python and of installed packages.
        lease: after so long without renewal others take this replica's instances over.
        stall_limit: how long user code may block the loop before the lease is not renewed any more, which names it.
        kill_hung: a process that hangs in the middle of a write holds a SQLite file; kill it when its lease is over.
    """

    def __init__(  # noqa: PLR0913  the options of the public face
        self,
        store: str | Store,
        /,
        *,
        flows: Iterable[AnyFlow | ModuleType] = (),
        steps: Iterable[Step[..., Any] | ModuleType] = (),
        execute: bool = True,
        queues: Sequence[str] = (),
        max_resident: int = MAX_RESIDENT,
        unload_after: Duration | None = None,
        max_running: int = 20_000,
        retention: Duration | None = None,
        drain: Duration = 30.0,
        retry: Retry | None = None,
        step_middleware: Sequence[FlowMiddleware] = (),
        codec: codec.Codec | None = None,
        payload_limit: int = PAYLOAD_LIMIT,
        version: str | None = None,
        lease: Duration = 10,
        stall_limit: Duration = 5,
        kill_hung: bool = False,
    ) -> None:
        self._store: Store = open_store(store) if isinstance(store, str) else store
        self._flows = registered(flows)
        if execute:
            self._flows |= {SCHEDULE: schedule_flow, **step_flows(steps)}
        self._execute = execute
        self._drain = seconds(drain)
        self._settings = Settings(
            max_resident=max_resident,
            max_running=max_running,
            unload_after=None if unload_after is None else seconds(unload_after),
            lease=seconds(lease),
            stall_limit=seconds(stall_limit),
            kill_hung=kill_hung,
            drain=seconds(drain),
            retention=None if retention is None else seconds(retention),
            version=version or "",
            default_retry=retry,
            step_middleware=tuple(step_middleware),
            queues=served(queues) if self._store.system.queues else None,
        )
        self._payloads = Payloads(codec, payload_limit)
        self._pid = os.getpid()
        self._entered = False
        self._member: Membership | None = None

    # ------------------------------------------------------------ life

    async def __aenter__(self) -> Self:
        outside_flow("Engine", "start(), send() and so on")
        if self._entered:
            raise EngineClosed("an engine is entered once; make a new one")
        self._entered = True
        self._real = asyncio.get_running_loop()
        try:
            _, version = await asyncio.gather(self._store.open(), self._identity())  # the one waits for the disk
        except BaseException:
            await self._store.close()
            raise
        collector.engine_started()
        self._settings = replace(self._settings, version=version)
        self._requests = Requests(self._payloads, self._flows, self._store.system, execute=self._execute)
        self._member = Membership(self._store, self._payloads, self._flows, self._settings)
        try:
            if self._execute:
                await self._member.execute()
            self._store.on_change(self._member.changed_elsewhere)
        except BaseException:
            await self._stop(0.0)
            raise
        return self

    async def _identity(self) -> str:
        return code_identity(self._settings.version or None) if self._execute else self._settings.version

    async def __aexit__(
        self, t: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None, /
    ) -> None:
        await self._stop(self._drain)

    async def _stop(self, drain: float) -> None:
        member = self._member
        if member is None:
            return
        closed = EngineClosed("the engine was closed")
        try:
            await member.close(drain, closed)
        except asyncio.CancelledError:  # the drain was cut short: nothing waits any more, and no lease is kept
            await member.close(0.0, closed)
            raise
        finally:
            if self._member is member:
                self._member = None
                collector.engine_stopped()
            await self._store.close()

    async def serve(self) -> None:
        """Flows are run until the process gets SIGTERM or SIGINT; then the engine drains and is closed. A second
        signal stops hard.

        Enters the engine if that was not done.
        """
        if not self._entered:
            async with self:
                await self.serve()
            return
        self._check()
        await until_stopped(self._stop, self._drain)

    async def health(self, *, timeout: Duration = 5.0) -> Health:
        """How this engine is; the store was read and written for it.

        Raises:
            StoreUnavailable, StoreCorrupt: the store cannot be used now.
            LeaseLost: another replica took over, and joining again has not succeeded yet.
        """
        member = self._check()
        return await member.health(seconds(timeout))

    def _check(self) -> Membership:
        if self._pid != os.getpid():
            raise ForkedEngine(
                "this process was forked after the engine started; fork first, and open the engine in the child"
            )
        if self._member is None:
            raise EngineClosed("the engine is not running; use it inside `async with engine:`")
        outside_flow("an engine's method", "perdure.start(), run(), send(), handle() or cancel()")
        return self._member

    # ------------------------------------------------------------ starting

    @overload
    async def start(
        self,
        flow: str,
        /,
        *args: object,
        id: str,
        at: datetime | None = None,
        after: Duration | None = None,
        initial: InitialState | None = None,
        queue: str | None = None,
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
        initial: InitialState | None = None,
        queue: str | None = None,
    ) -> Handle[R]: ...
    async def start(
        self,
        flow: Any,
        /,
        *args: Any,
        id: str,
        at: datetime | None = None,
        after: Duration | None = None,
        initial: InitialState | None = None,
        queue: str | None = None,
    ) -> Handle[Any]:
        """The instance is on disk, started now or earlier: starting again with the same arguments changes nothing.

        Of one that retention has removed it starts nothing either, and the handle's `result` raises InstanceNotFound.

        Args:
            id: 1 to 255 bytes; (flow, id) is one instance.
            at, after: when it begins, at the earliest.
            initial: outcomes of steps and messages that it has from the start; of no account if it exists.
            queue: it runs, for life, where this queue is served; None: where what names none is. Of no account if it
                exists.

        Raises:
            AlreadyStarted: it exists, or did until retention removed it, and was started with other arguments.
            NotRegistered: a flow given by name is not registered with this (executing) engine.
            NotEncodable, PayloadTooLarge, TypeError: the arguments cannot be kept, or do not fit the flow.
        """
        member = self._check()
        write = self._requests.create(member, flow, args, id, at, after, queue)
        if initial is not None:
            write = self._requests.with_initial(member, write, initial)
        return self._started(write, await member.committer.ask(write))

    def _started(self, write: Create, answer: Answer) -> Handle[Any]:
        return Handle(write.flow, write.id, uid=self._requests.started(write, answer), outside=self)

    @overload
    async def run(
        self,
        flow: str,
        /,
        *args: object,
        id: str,
        initial: InitialState | None = None,
        queue: str | None = None,
        timeout: Duration | None = None,
    ) -> Any: ...
    @overload
    async def run(
        self,
        flow: Callable[[Unpack[Ts]], Coroutine[Any, Any, R]],
        /,
        *args: Unpack[Ts],
        id: str,
        initial: InitialState | None = None,
        queue: str | None = None,
        timeout: Duration | None = None,
    ) -> R: ...
    async def run(
        self,
        flow: Any,
        /,
        *args: Any,
        id: str,
        initial: InitialState | None = None,
        queue: str | None = None,
        timeout: Duration | None = None,
    ) -> Any:
        """The result of the instance, started now or earlier. Raises as `start` and as `Handle.result`."""
        handle = await self.start(flow, *args, id=id, initial=initial, queue=queue)
        return await handle.result(timeout=timeout)

    async def start_many(
        self,
        flow: Callable[[Unpack[Ts]], Coroutine[Any, Any, R]],
        items: Iterable[tuple[str, Unpack[Ts]]],
        /,
        *,
        queue: str | None = None,
    ) -> Sequence[Handle[R]]:
        """All instances are on disk, each (id, *arguments); handles in the order given. Not one transaction: repeat
        it after an error.

        Raises:
            AlreadyStarted: of one of them, when all others are started.
        """
        member = self._check()
        writes = [self._requests.create(member, flow, item[1:], item[0], queue=queue) for item in items]
        answers = await member.committer.ask_all(writes)
        return [self._started(write, answer) for write, answer in zip(writes, answers, strict=True)]

    # ------------------------------------------------------------ sending

    async def send(
        self, flow: AnyFlow | str, id: str, message: object, /, *, key: str | None = None, name: str | None = None
    ) -> None:
        """The message is in the inbox of (flow, id), on disk; one sent before the instance exists waits for it.

        Args:
            key: 1 to 255 bytes; the same key is delivered once in the instance's life, however often it is sent.
            name: makes it a named event, for `receive(..., name=)`.

        Nobody is told that the instance has ended (it is kept with it), or that retention has removed it (it is dropped).

        Raises:
            NotEncodable, PayloadTooLarge.
        """
        await self.send_one(name_of(flow), id, message, key, name)

    async def send_one(self, flow: str, id: str, message: object, key: str | None, name: str | None) -> None:
        """See `send`."""
        member = self._check()
        await member.committer.ask(self._requests.send(member, flow, id, message, key, name))

    async def send_many(self, flow: AnyFlow | str, items: Iterable[Outgoing], /) -> None:
        """All messages are on disk. Not one transaction: give keys and repeat it after an error."""
        member = self._check()
        name = name_of(flow)
        send = self._requests.send
        await member.committer.ask_all([send(member, name, i.id, i.message, i.key, i.name) for i in items])

    async def cancel(self, flow: AnyFlow | str, id: str, reason: str | None = None, /) -> None:
        """The request to end is on disk. Nothing happens to an instance that has ended.

        Raises:
            InstanceNotFound.
        """
        await self.cancel_one(name_of(flow), id, reason)

    async def cancel_one(self, flow: str, id: str, reason: str | None) -> None:
        """See `cancel`."""
        member = self._check()
        answer: Any = await member.committer.ask(self._requests.cancel(member, flow, id, reason))
        if answer.uid is None:
            raise InstanceNotFound(flow, id)

    # ------------------------------------------------------------ looking

    @overload
    def handle(self, flow: FlowFunction[..., R], id: str, /) -> Handle[R]: ...
    @overload
    def handle(self, flow: str, id: str, /) -> Handle[Any]: ...
    def handle(self, flow: Any, id: str, /) -> Handle[Any]:
        """A handle of (flow, id), whether or not it exists: each of its calls is about the life that is there then."""
        check_name(id, "id")
        return Handle(name_of(flow), id, outside=self)

    # ------------------------------------------------------------ mending

    @overload
    async def panel(self, flow: FlowFunction[..., R], id: str, /) -> Panel[R]: ...
    @overload
    async def panel(self, flow: str, id: str, /) -> Panel[Any]: ...
    async def panel(self, flow: Any, id: str, /) -> Panel[Any]:
        """The control panel of the instance, as it is now; its flow need not be known here.

        Raises:
            InstanceNotFound.
        """
        member = self._check()
        check_name(id, "id")
        loaded = await member.editor.read(name_of(flow), id)
        row = loaded.instance
        handle = Handle[Any](row.flow, id, uid=row.uid, outside=self)
        return Panel(loaded, member.editor, self._payloads, self._store.system, member.now, handle)

    @overload
    async def restart(self, flow: FlowFunction[..., R], id: str, /) -> Handle[R]: ...
    @overload
    async def restart(self, flow: str, id: str, /) -> Handle[Any]: ...
    async def restart(self, flow: Any, id: str, /) -> Handle[Any]:
        """The instance goes on, whether it had ended, waits or is blocked: see `Panel.restart`, and what that raises."""
        return await (await self.panel(flow, id)).restart()

    async def delete(self, flow: AnyFlow | str, id: str, /) -> None:
        """The instance is gone: see `Panel.delete`, and what that raises. Or what retention has left of it, so that the
        id may be started again.
        """
        try:
            await (await self.panel(name_of(flow), id)).delete()
        except InstanceNotFound:
            if not await self._store.forget(name_of(flow), id):
                raise

    # ------------------------------------------------------------ schedules

    async def schedule(
        self,
        flow: Callable[[Unpack[Ts]], Coroutine[Any, Any, Any]] | str,
        when: Cron | Duration,
        /,
        *args: Unpack[Ts],
        id: str,
        queue: str | None = None,
    ) -> None:
        """The flow is started at each due time from now on, by whichever replica lives: one instance each. On disk.

        The same schedule again changes nothing, so that a program may say it at every start; another one under the same
        id replaces it: times are counted anew if `when` is another. Of times that passed while nobody ran, the last one
        is made up for.

        Args:
            when: a `Cron`, or an interval of at least a second: then the first start is one interval from now.
            id: of the schedule, at most 234 bytes; each instance that it starts is `<id>@<due time in UTC>`.
            queue: of the schedule and of each instance that it starts; set with another queue, it is removed and set anew.

        Raises:
            ValueError, TypeError: the interval, id or arguments do not fit.
            NotEncodable, PayloadTooLarge: the arguments cannot be kept.
        """
        member = self._check()
        self._requests.fitting(flow, args)
        await set_schedule(self, flow, when, args, id, queue, to_datetime(member.now()))

    async def unschedule(self, id: str, /) -> None:
        """There is no schedule of this id (any more), and nothing is started by it; what was started goes on."""
        self._check()
        await remove_schedule(self, id)

    async def _row(self, flow: str, id: str, uid: bytes | None) -> Instance:
        self._check()
        if uid is None:
            row = await self._store.instance(flow, id)
        else:
            row = next(iter(await self._store.instances([uid])), None)
        if row is None:
            raise InstanceNotFound(flow, id)
        return row

    async def life_of(self, flow: str, id: str) -> bytes:
        """The uid of the life that (flow, id) has now. Raises InstanceNotFound."""
        return (await self._row(flow, id, None)).uid

    async def goes_on(self, flow: str, id: str, queue: str) -> bool:
        """Whether the instance has not ended, and is on this queue. Raises InstanceNotFound."""
        row = await self._row(flow, id, None)
        return not row.state.ended and row.lane == self._settings.lane(flow, queue)

    async def result(self, flow: str, id: str, uid: bytes, timeout: float | None) -> Any:
        """See `Handle.result`."""
        member = self._check()
        if timeout is None:
            state, outcome = await member.waiters.ended(uid, flow, id)
        else:
            try:
                async with asyncio.timeout(timeout):
                    state, outcome = await member.waiters.ended(uid, flow, id)
            except TimeoutError:
                raise TimeoutError(f"{flow} {id!r} has not ended within {timeout:g} s; it goes on") from None
        if state is State.FAILED:
            return raise_outcome(flow, id, state, None, self._payloads.decode_error(outcome or b""))
        value = None if outcome is None else self._payloads.decode(outcome)
        return raise_outcome(flow, id, state, value, None)

    async def state_of(self, flow: str, id: str, uid: bytes) -> State:
        """See `Handle.state`."""
        return shown(await self._row(flow, id, uid))

    async def exposed_by(self, flow: str, id: str, uid: bytes) -> dict[str, Any]:
        """See `Handle.exposed`."""
        row = await self._row(flow, id, uid)
        values: Mapping[str, bytes] = await self._store.exposed(row.uid)
        return {key: self._payloads.decode(value) for key, value in values.items()}

    async def find(
        self,
        flow: AnyFlow | str | None = None,
        /,
        *,
        state: State | Sequence[State] | None = None,
        since: datetime | None = None,
    ) -> AsyncIterator[Info]:
        """The instances of a flow (or of all, schedules included), in the order of their creation, in these states,
        created `since` or later.

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
                if states is None or shown(row) in states:
                    yield Info(row)
            if len(rows) < 500:
                return
            after = rows[-1].uid
