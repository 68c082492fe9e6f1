"""The engine for code without an event loop: on a thread of its own, called from any other thread.

It decides nothing: every method is the engine's, run on its thread while the caller's thread waits.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, Self, TypeVar, overload

from perdure import codec
from perdure.api.current import FlowMiddleware
from perdure.api.flow import AnyFlow, FlowFunction
from perdure.api.handle import Handle
from perdure.api.info import Health, Info
from perdure.api.initial import InitialState
from perdure.api.outgoing import Outgoing
from perdure.api.schedule import Cron
from perdure.api.step import Step
from perdure.clock import Duration
from perdure.engine.engine import MAX_RESIDENT, PAYLOAD_LIMIT, Engine
from perdure.engine.engine_thread import EngineThread, may_wait
from perdure.engine.panel import Entries, Inbox, Panel
from perdure.errors import EngineClosed
from perdure.model.records import State
from perdure.model.retry import Retry
from perdure.stores.contract import Store

if TYPE_CHECKING:
    from typing import TypeVarTuple, Unpack

    from typing_extensions import TypeForm

    Ts = TypeVarTuple("Ts")

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
T = TypeVar("T")

PAGE: Final = 500
"""So many instances are fetched at a time for `find`, as the engine itself reads them."""

_IN_A_STEP: Final = "a step that is a plain function (it runs in a thread, where this may be called)"


class Ask(Protocol):
    """Runs work on the engine's thread: what is called, what a flow calls instead, and the work."""

    def __call__(self, what: str, instead: str, work: Callable[[Engine], Coroutine[Any, Any, T]], /) -> T: ...


class SyncHandle(Generic[R_co]):
    """One instance, as `Handle`; every method waits in the thread that calls it, and in no other."""

    __slots__ = ("_ask", "_handle")

    def __init__(self, handle: Handle[R_co], ask: Ask) -> None:
        self._handle = handle
        self._ask = ask

    @property
    def flow(self) -> str:
        """The registered name of its flow."""
        return self._handle.flow

    @property
    def id(self) -> str:
        """Its id."""
        return self._handle.id

    def __repr__(self) -> str:
        return repr(self._handle)

    def result(self, *, timeout: Duration | None = None) -> R_co:
        """See `Handle.result`. Being interrupted (Ctrl-C) ends the waiting and cancels nothing."""
        return self._do("result", lambda: self._handle.result(timeout=timeout))

    def send(self, message: object, /, *, key: str | None = None, name: str | None = None) -> None:
        """See `Handle.send`."""
        self._do("send", lambda: self._handle.send(message, key=key, name=name))

    def state(self) -> State:
        """See `Handle.state`."""
        return self._do("state", lambda: self._handle.state())

    @overload
    def exposed(self) -> Mapping[str, Any]: ...
    @overload
    def exposed(self, key: str, /, *, returns: TypeForm[T]) -> T | None: ...
    def exposed(self, key: Any = None, /, *, returns: Any = None) -> Any:  # pyright: ignore[reportInconsistentOverload]
        """See `Handle.exposed`."""
        if key is None:
            return self._do("exposed", lambda: self._handle.exposed())
        return self._do("exposed", lambda: self._handle.exposed(key, returns=returns))

    def cancel(self, reason: str | None = None, /) -> None:
        """See `Handle.cancel`."""
        self._do("cancel", lambda: self._handle.cancel(reason))

    def _do(self, what: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        return self._ask(f"SyncHandle.{what}()", f"perdure.handle(flow, id).{what}()", lambda _: work())


class SyncPanel(Generic[R_co]):
    """The control panel of one instance: what is looked at and staged is `Panel`'s; what writes waits."""

    __slots__ = ("_ask", "_panel")

    def __init__(self, panel: Panel[R_co], ask: Ask) -> None:
        self._panel = panel
        self._ask = ask

    def __repr__(self) -> str:
        return repr(self._panel)

    def __str__(self) -> str:
        return str(self._panel)

    @property
    def flow(self) -> str:
        return self._panel.flow

    @property
    def id(self) -> str:
        return self._panel.id

    @property
    def args(self) -> tuple[Any, ...]:
        """See `Panel.args`."""
        return self._panel.args

    @args.setter
    def args(self, args: tuple[Any, ...]) -> None:
        self._panel.args = args

    @property
    def state(self) -> State:
        return self._panel.state

    @property
    def queue(self) -> str:
        """See `Panel.queue`."""
        return self._panel.queue

    @property
    def due_at(self) -> datetime | None:
        """See `Panel.due_at`."""
        return self._panel.due_at

    @property
    def reason(self) -> str | None:
        """See `Panel.reason`."""
        return self._panel.reason

    @property
    def result(self) -> R_co | None:
        """See `Panel.result`."""
        return self._panel.result

    @property
    def error(self) -> BaseException | None:
        """See `Panel.error`."""
        return self._panel.error

    @property
    def pending(self) -> Sequence[Mapping[str, Any]]:
        """See `Panel.pending`."""
        return self._panel.pending

    @property
    def entries(self) -> Entries:
        return self._panel.entries

    @property
    def inbox(self) -> Inbox:
        return self._panel.inbox

    def save(self) -> None:
        """See `Panel.save`."""
        self._do("save", lambda: self._panel.save())

    def restart(self) -> SyncHandle[R_co]:
        """See `Panel.restart`."""
        return SyncHandle(self._do("restart", lambda: self._panel.restart()), self._ask)

    def succeed(self, result: Any = None, /) -> None:
        """See `Panel.succeed`."""
        self._do("succeed", lambda: self._panel.succeed(result))

    def fail(self, error: BaseException, /) -> None:
        """See `Panel.fail`."""
        self._do("fail", lambda: self._panel.fail(error))

    def postpone(self, duration: Duration | None = None, /, *, until: datetime | None = None) -> None:
        """See `Panel.postpone`."""
        self._do("postpone", lambda: self._panel.postpone(duration, until=until))

    def delete(self) -> None:
        """See `Panel.delete`."""
        self._do("delete", lambda: self._panel.delete())

    def refresh(self) -> None:
        """See `Panel.refresh`."""
        self._do("refresh", lambda: self._panel.refresh())

    def _do(self, what: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        return self._ask(f"SyncPanel.{what}()", _IN_A_STEP, lambda _: work())


class SyncEngine(AbstractContextManager["SyncEngine"]):
    """The engine for code without an event loop: `with SyncEngine(...) as engine`. Any thread may call any method.

    It runs on a daemon thread with a loop of its own, and takes what `Engine` takes. Where nothing encloses the whole
    program (a web application), `open` it in each process that uses it; at the end of the process it is closed.
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
        flows, steps = list(flows), list(steps)
        self._make = lambda: Engine(
            store,
            flows=flows,
            steps=steps,
            execute=execute,
            queues=queues,
            max_resident=max_resident,
            unload_after=unload_after,
            max_running=max_running,
            retention=retention,
            drain=drain,
            retry=retry,
            step_middleware=step_middleware,
            codec=codec,
            payload_limit=payload_limit,
            version=version,
            lease=lease,
            stall_limit=stall_limit,
            kill_hung=kill_hung,
        )
        self._make()  # what is wrong with the options is told here
        self._opening = threading.Lock()
        self._life: EngineThread | None = None
        self._closed = False

    # ------------------------------------------------------------ life

    def open(self) -> None:
        """The engine runs, from now to `close` or the end of the process. Again, or from many threads: nothing more.

        Raises:
            EngineClosed: it was closed; make a new one.
            ForkedEngine: it was opened before this process was forked; fork first.
        """
        if self._life is not None:
            self._life.check_pid()
        may_wait("SyncEngine.open()", _IN_A_STEP)
        with self._opening:
            if self._closed:
                raise EngineClosed("a closed engine is not opened again; make a new one")
            if self._life is not None:
                return
            # The engine is made here and not before: this process may be a fork of the one that made `self`.
            self._life = life = EngineThread(self._make())
            try:
                life.begin()
            except BaseException:
                self._life = None
                raise
            atexit.register(self.close)

    def close(self) -> None:
        """The engine has drained, its thread is gone; who still waits got `EngineClosed`. Again: nothing more.

        Interrupted (Ctrl-C) it stops hard: running steps begin again elsewhere. In a forked child it does nothing.
        """
        life = self._life
        if life is not None and life.is_this_thread():
            raise RuntimeError("SyncEngine.close() was called on the engine's own thread, which cannot wait for itself")
        self._closed = True
        atexit.unregister(self.close)
        if life is not None and life.is_of_this_process():
            life.end()

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, t: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None, /) -> None:
        self.close()

    def _ask(self, what: str, instead: str, work: Callable[[Engine], Coroutine[Any, Any, T]]) -> T:
        life = self._life
        if life is not None:
            life.check_pid()
        may_wait(what, instead)
        if life is None:
            raise EngineClosed("the engine is not running; use it inside `with engine:`, or open() it first")
        return life.ask(work)

    def _verb(self, what: str, work: Callable[[Engine], Coroutine[Any, Any, T]]) -> T:
        """For what a flow has too, journaled."""
        return self._ask(f"SyncEngine.{what}()", f"perdure.{what}()", work)

    def _other(self, what: str, work: Callable[[Engine], Coroutine[Any, Any, T]]) -> T:
        """For what a flow has not."""
        return self._ask(f"SyncEngine.{what}()", _IN_A_STEP, work)

    def health(self, *, timeout: Duration = 5.0) -> Health:
        """See `Engine.health`."""
        return self._other("health", lambda engine: engine.health(timeout=timeout))

    # ------------------------------------------------------------ starting

    @overload
    def start(
        self,
        flow: str,
        /,
        *args: object,
        id: str,
        at: datetime | None = None,
        after: Duration | None = None,
        initial: InitialState | None = None,
        queue: str | None = None,
    ) -> SyncHandle[Any]: ...
    @overload
    def start(
        self,
        flow: Callable[[Unpack[Ts]], Coroutine[Any, Any, R]],
        /,
        *args: Unpack[Ts],
        id: str,
        at: datetime | None = None,
        after: Duration | None = None,
        initial: InitialState | None = None,
        queue: str | None = None,
    ) -> SyncHandle[R]: ...
    def start(
        self,
        flow: Any,
        /,
        *args: Any,
        id: str,
        at: datetime | None = None,
        after: Duration | None = None,
        initial: InitialState | None = None,
        queue: str | None = None,
    ) -> SyncHandle[Any]:
        """See `Engine.start`."""
        handle = self._verb(
            "start", lambda engine: engine.start(flow, *args, id=id, at=at, after=after, initial=initial, queue=queue)
        )
        return SyncHandle(handle, self._ask)

    @overload
    def run(
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
    def run(
        self,
        flow: Callable[[Unpack[Ts]], Coroutine[Any, Any, R]],
        /,
        *args: Unpack[Ts],
        id: str,
        initial: InitialState | None = None,
        queue: str | None = None,
        timeout: Duration | None = None,
    ) -> R: ...
    def run(
        self,
        flow: Any,
        /,
        *args: Any,
        id: str,
        initial: InitialState | None = None,
        queue: str | None = None,
        timeout: Duration | None = None,
    ) -> Any:
        """See `Engine.run`."""
        return self._verb(
            "run", lambda engine: engine.run(flow, *args, id=id, initial=initial, queue=queue, timeout=timeout)
        )

    def start_many(
        self,
        flow: Callable[[Unpack[Ts]], Coroutine[Any, Any, R]],
        items: Iterable[tuple[str, Unpack[Ts]]],
        /,
        *,
        queue: str | None = None,
    ) -> Sequence[SyncHandle[R]]:
        """See `Engine.start_many`."""
        items = list(items)  # here, because what makes them may block
        handles = self._verb("start_many", lambda engine: engine.start_many(flow, items, queue=queue))
        return [SyncHandle(handle, self._ask) for handle in handles]

    # ------------------------------------------------------------ sending

    def send(
        self, flow: AnyFlow | str, id: str, message: object, /, *, key: str | None = None, name: str | None = None
    ) -> None:
        """See `Engine.send`."""
        self._verb("send", lambda engine: engine.send(flow, id, message, key=key, name=name))

    def send_many(self, flow: AnyFlow | str, items: Iterable[Outgoing], /) -> None:
        """See `Engine.send_many`."""
        items = list(items)
        self._verb("send_many", lambda engine: engine.send_many(flow, items))

    def cancel(self, flow: AnyFlow | str, id: str, reason: str | None = None, /) -> None:
        """See `Engine.cancel`."""
        self._verb("cancel", lambda engine: engine.cancel(flow, id, reason))

    # ------------------------------------------------------------ looking

    @overload
    def handle(self, flow: FlowFunction[..., R], id: str, /) -> SyncHandle[R]: ...
    @overload
    def handle(self, flow: str, id: str, /) -> SyncHandle[Any]: ...
    def handle(self, flow: Any, id: str, /) -> SyncHandle[Any]:
        """See `Engine.handle`."""

        async def made(engine: Engine) -> Handle[Any]:
            return engine.handle(flow, id)

        return SyncHandle(self._verb("handle", made), self._ask)

    def find(
        self,
        flow: AnyFlow | str | None = None,
        /,
        *,
        state: State | Sequence[State] | None = None,
        since: datetime | None = None,
    ) -> Iterator[Info]:
        """See `Engine.find`: pages are read while it is iterated, in whichever thread does that."""

        async def begun(engine: Engine) -> AsyncIterator[Info]:
            return engine.find(flow, state=state, since=since)

        return self._pages(self._other("find", begun))

    def _pages(self, found: AsyncIterator[Info]) -> Iterator[Info]:
        async def page(_: Engine) -> list[Info]:
            infos: list[Info] = []
            async for info in found:
                infos.append(info)
                if len(infos) == PAGE:
                    break
            return infos

        while infos := self._other("find", page):
            yield from infos

    # ------------------------------------------------------------ mending

    @overload
    def panel(self, flow: FlowFunction[..., R], id: str, /) -> SyncPanel[R]: ...
    @overload
    def panel(self, flow: str, id: str, /) -> SyncPanel[Any]: ...
    def panel(self, flow: Any, id: str, /) -> SyncPanel[Any]:
        """See `Engine.panel`."""
        return SyncPanel(self._other("panel", lambda engine: engine.panel(flow, id)), self._ask)

    @overload
    def restart(self, flow: FlowFunction[..., R], id: str, /) -> SyncHandle[R]: ...
    @overload
    def restart(self, flow: str, id: str, /) -> SyncHandle[Any]: ...
    def restart(self, flow: Any, id: str, /) -> SyncHandle[Any]:
        """See `Engine.restart`."""
        return SyncHandle(self._other("restart", lambda engine: engine.restart(flow, id)), self._ask)

    def delete(self, flow: AnyFlow | str, id: str, /) -> None:
        """See `Engine.delete`."""
        self._other("delete", lambda engine: engine.delete(flow, id))

    # ------------------------------------------------------------ schedules

    def schedule(
        self,
        flow: Callable[[Unpack[Ts]], Coroutine[Any, Any, Any]] | str,
        when: Cron | Duration,
        /,
        *args: Unpack[Ts],
        id: str,
        queue: str | None = None,
    ) -> None:
        """See `Engine.schedule`."""
        self._other("schedule", lambda engine: engine.schedule(flow, when, *args, id=id, queue=queue))

    def unschedule(self, id: str, /) -> None:
        """See `Engine.unschedule`."""
        self._other("unschedule", lambda engine: engine.unschedule(id))
