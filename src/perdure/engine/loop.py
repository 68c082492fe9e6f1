"""The flow loop: a small asyncio event loop nested in the real one, in which one instance's code runs until it is idle.

It knows asyncio and nothing durable: the execution that owns it delivers outcomes when it is idle, makes timers of
`call_later`, and is told when nothing moves any more. So the order of everything inside is a function of the
deliveries.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import logging
import sys
import threading
import weakref
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from typing import Any, Final, Protocol

from perdure.api.scope import Place, scope
from perdure.engine.ordering import made_by_as_completed, order_anyio
from perdure.errors import NotDurable

logger = logging.getLogger("perdure")

IDLE_TURNS: Final = 2_000
"""So many turns without an operation asked for or a task ended count as idle (anyio re-delivers cancellation on
every turn).
"""
SPIN_TURNS: Final = 100_000
"""So many turns since the last delivery with nothing outstanding: the flow spins."""
SLICE_TURNS: Final = 500
SLICE_DELIVERIES: Final = 500
"""After so many the real loop gets its turn."""
DEAD_TURNS: Final = 200
"""So long a flow that is unloaded may run on after each cancellation of its tasks."""

_get_running = asyncio._get_running_loop
_set_running = asyncio._set_running_loop
_set_hooks = sys.set_asyncgen_hooks


class Owner(Protocol):
    """What the loop asks of its execution."""

    root: Place

    def schedule(self, loop: FlowLoop, /) -> None:
        """`loop.run` is called in the next turn of the real loop."""
        ...

    def deliver(self) -> bool:
        """The next outcome was given to the flow; False: there is none now."""
        ...

    def idle(self) -> None:
        """Nothing moves inside until the next delivery; called outside the flow loop."""
        ...

    def timer(self, handle: FlowTimer) -> None:
        """The flow asked for a timer."""
        ...

    def drop_timer(self, handle: FlowTimer) -> None:
        """The flow does not want it any more."""
        ...

    def activity(self) -> int:
        """A number that changes when the flow asks for something or a task of it ends."""
        ...

    def cut_short(self) -> None:
        """It is the real loop's turn, and there is more to do inside; called outside the flow loop."""
        ...

    def outstanding(self) -> bool:
        """Whether something was asked for that is still to come."""
        ...

    def spins(self) -> None:
        """The flow keeps turning with nothing outstanding."""
        ...

    def unhandled(self, context: dict[str, Any]) -> None:
        """Something in the flow raised where nobody catches it."""
        ...


class FlowTask(asyncio.Task[Any]):
    """A task whose hash is its number, so that sets of tasks iterate alike in every process."""

    __slots__ = ("number",)
    number: int

    def __hash__(self) -> int:
        return self.number


class FlowFuture(asyncio.Future[Any]):
    """A future whose hash is its number, for the same reason."""

    __slots__ = ("number",)
    number: int

    def __hash__(self) -> int:
        return self.number


class FlowHandle:
    """A callback to be called in the next turn."""

    __slots__ = ("__weakref__", "args", "callback", "context", "dropped")

    def __init__(self, callback: Callable[..., object], args: tuple[Any, ...], context: Context) -> None:
        self.callback = callback
        self.args = args
        self.context = context
        self.dropped = False

    def cancel(self) -> None:
        """The callback will not be called."""
        self.dropped = True

    def cancelled(self) -> bool:
        """Whether it was cancelled."""
        return self.dropped


class FlowTimer(FlowHandle):
    """A durable timer: its firing is an entry of the journal."""

    __slots__ = ("_when", "loop", "operation")

    def __init__(
        self, when: float, callback: Callable[..., object], args: tuple[Any, ...], context: Context, loop: FlowLoop
    ) -> None:
        super().__init__(callback, args, context)
        self._when = when
        self.loop = loop
        self.operation: Any = None

    def when(self) -> float:
        """Flow time at which it fires."""
        return self._when

    def cancel(self) -> None:
        """The callback will not be called; a timer that has not fired leaves no entry."""
        if not self.dropped:
            self.dropped = True
            self.loop.owner.drop_timer(self)


class FlowLoop(asyncio.AbstractEventLoop):
    """See the module. One per resident instance, entered from plain callbacks of the real loop only."""

    __slots__ = (
        "_activity", "_created", "_generators", "_meddled", "_ready", "_salt", "_stuck", "_turns",
        "closed", "idle_turns", "now", "owner", "real", "scheduled", "tasks", "turning",
    )  # fmt: skip
    is_flow_loop: Final = True

    def __init__(self, real: asyncio.AbstractEventLoop, owner: Owner, salt: int) -> None:
        self.real = real
        self.owner = owner
        order_anyio()
        self.now = 0.0
        self.tasks: list[FlowTask] = []
        self.turning = False
        self.closed = False
        self.idle_turns = IDLE_TURNS
        self._salt = salt
        self._created = 0
        self._ready: list[FlowHandle] = []
        self.scheduled = False
        self._stuck = False  # idle by rule: turns only after the next delivery
        self._turns = 0
        self._activity = 0
        self._meddled: list[FlowHandle] | None = None
        self._generators: dict[int, Callable[[], Any]] | None = None  # by id, in the order of their first iteration

    # ------------------------------------------------------------ running

    def wake(self) -> None:
        """The loop runs in the next turn of the real loop."""
        if not self.scheduled and not self.turning:
            self.scheduled = True
            self.owner.schedule(self)

    def run(self) -> None:
        """Everything inside runs until idle, outcomes are delivered until there are none; a callback of the real
        loop.
        """
        self.scheduled = False
        if self.closed:
            return
        hooks = sys.get_asyncgen_hooks()
        _set_hooks(self._generator_born, self._generator_dropped)
        _set_running(self)
        self.turning = True
        try:
            more = self._turn_and_deliver()
        finally:
            self.turning = False
            _set_running(self.real)
            _set_hooks(*hooks)
        if more:
            self.owner.cut_short()
            self.wake()
        elif not self.closed:
            self.owner.idle()

    def _turn_and_deliver(self) -> bool:
        """True: it is the real loop's turn, and there is more to do here."""
        deliver = self.owner.deliver
        deliveries = 0
        while True:
            turns = self._turns
            while self._ready and not self._stuck:
                self._turn()
                turns += 1
                if turns % SLICE_TURNS == 0 and self._ready:
                    self._turns = turns
                    if not self._judge():
                        return not self.closed
            if self.closed or not deliver():
                self._turns = turns
                return False
            self._turns = 0
            self._stuck = False
            deliveries += 1
            if deliveries > SLICE_DELIVERIES:
                return True

    def _turn(self) -> None:
        """Every callback that is ready now is called."""
        ready, self._ready = self._ready, []
        for handle in ready:
            if not handle.dropped:
                try:
                    handle.context.run(handle.callback, *handle.args)
                except (SystemExit, KeyboardInterrupt):
                    raise
                except BaseException as error:
                    self.call_exception_handler({"message": f"callback {handle.callback!r} raised", "exception": error})

    def _judge(self) -> bool:
        """At the end of a slice: whether the loop counts as idle although callbacks are ready. Decided by the turns
        alone.
        """
        owner = self.owner
        if not self.closed and self._turns % self.idle_turns == 0:
            activity = owner.activity()
            unmoved = self._turns > self.idle_turns and activity == self._activity
            self._activity = activity
            if not owner.outstanding():
                if self._turns >= SPIN_TURNS:
                    owner.spins()
                    self._stuck = True  # so that the owner is told that nothing moves any more
            elif unmoved:
                self._stuck = True
        return self._stuck

    def call(self, callback: Callable[..., object], *args: Any) -> None:
        """`callback` is called in the next turn, by order of the engine (not of the flow's code)."""
        self._ready.append(FlowHandle(callback, args, copy_context()))
        self.wake()

    def end_meddled(self) -> None:
        """Tasks that somebody outside tried to wake are called now, after their cancellation: else they never end."""
        if self._meddled:
            self._ready += self._meddled
            self._meddled = None

    def ready(self, handle: FlowHandle) -> None:
        """The handle's callback is called in the next turn."""
        self._ready.append(handle)
        self.wake()

    def run_dead(self, callbacks: list[Callable[[], object]]) -> None:
        """`callbacks` were called inside, and a bounded number of turns has run; nothing was delivered."""
        outer = _get_running()
        hooks = sys.get_asyncgen_hooks()
        _set_hooks(self._generator_born, self._generator_dropped)
        _set_running(self)
        self.turning = True
        try:
            for callback in callbacks:
                callback()
            self.end_meddled()
            for _ in range(DEAD_TURNS):
                if not self._ready:
                    break
                self._turn()
        finally:
            self.turning = False
            _set_running(outer)
            _set_hooks(*hooks)

    # ------------------------------------------------------------ what asyncio asks of a loop

    def _own_turn(self, what: str) -> None:
        if not self.turning or _get_running() is not self:
            raise NotDurable(
                f"{what} of a flow's loop was called from outside the flow's own turns (by another flow, a step, a thread or the "
                "real loop): a lock, event or queue belongs inside one flow; to reach a flow from outside send it a message"
            )

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Context | None = None) -> Any:
        """See asyncio. Raises NotDurable if the caller is not the flow itself."""
        if not self.turning or _get_running() is not self:
            handle = FlowHandle(callback, args, context or copy_context())
            if self.closed:
                return handle  # what is left of an unloaded flow: ignored
            self._meddled = [*(self._meddled or ()), handle]
            self._own_turn("call_soon()")
        handle = FlowHandle(callback, args, copy_context() if context is None else context)
        self._ready.append(handle)
        return handle

    def call_soon_threadsafe(self, callback: Callable[..., object], *args: Any, context: Context | None = None) -> Any:
        """See `call_soon`: no other thread may wake a flow."""
        return self.call_soon(callback, *args, context=context)

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Any:
        """A durable timer."""
        return self.call_at(self.now + delay, callback, *args, context=context)

    def call_at(self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None) -> Any:
        """A durable timer, at flow time `when`."""
        self._own_turn("call_at()")
        handle = FlowTimer(when, callback, args, copy_context() if context is None else context, self)
        self.owner.timer(handle)
        return handle

    def time(self) -> float:
        """Flow time: that of the last delivered entry."""
        return self.now

    def next_number(self) -> int:
        """A hash that no other task or future of the flow has, the same at every replay."""
        self._created += 1
        return self._salt + self._created

    def create_future(self) -> Any:
        """See asyncio."""
        future = FlowFuture.__new__(FlowFuture)
        self._created += 1
        future.number = self._salt + self._created
        future.__init__(loop=self)
        return future

    def create_task(  # pyright: ignore[reportIncompatibleMethodOverride]  later Pythons have more keywords
        self, coro: Coroutine[Any, Any, Any], *, name: str | None = None, context: Context | None = None, **_: Any
    ) -> Any:
        """See asyncio; keywords of later Pythons pass. The task's place goes into its context."""
        self._own_turn("create_task()")
        if made_by_as_completed():
            coro.close()
            raise NotDurable(
                "this asyncio.as_completed was imported before perdure and makes tasks in the order of addresses: "
                "call it as asyncio.as_completed(...), or give it tasks"
            )
        self._created = number = self._created + 1
        if context is None:
            context = copy_context()
        here: Any = scope.get()
        parent = here if type(here) is Place else self.owner.root
        context.run(scope.set, Place(parent.run, parent))
        return self._new_task(coro, name or f"task-{number}", context, number)

    def start_main(self, coro: Coroutine[Any, Any, Any], context: Context) -> FlowTask:
        """The main task exists; called in a turn."""
        self._created = number = self._created + 1
        return self._new_task(coro, "main", context, number)

    def _new_task(self, coro: Coroutine[Any, Any, Any], name: str, context: Context, number: int) -> FlowTask:
        task = FlowTask.__new__(FlowTask)
        task.number = self._salt + number  # before __init__, which puts it into asyncio's sets
        task.__init__(coro, loop=self, name=name, context=context)
        tasks = self.tasks
        if len(tasks) > 16 and len(tasks) & (len(tasks) - 1) == 0:  # at powers of two: drop what has ended
            self.tasks = tasks = [t for t in tasks if not t.done()]
        tasks.append(task)
        return task

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """What nobody caught is told to the execution."""
        self.owner.unhandled(context)

    default_exception_handler = call_exception_handler

    def get_debug(self) -> bool:
        """Never: debug mode would slow every step, and its warnings speak of real time."""
        return False

    def is_running(self) -> bool:
        """Whether the instance is loaded."""
        return not self.closed

    def is_closed(self) -> bool:
        """Whether the instance was unloaded."""
        return self.closed

    def get_task_factory(self) -> None:
        """None: tasks of a flow are made by its loop."""

    def get_exception_handler(self) -> None:
        """None: see `call_exception_handler`."""

    async def shutdown_asyncgens(self) -> None:
        """Generators that were left are closed."""
        await self.close_generators()

    def __repr__(self) -> str:
        return f"<flow loop of {self.owner!r}>"

    # ------------------------------------------------------------ async generators

    def _generator_born(self, generator: Any) -> None:
        if self._generators is None:
            self._generators = {}
        self._generators.pop(id(generator), None)
        self._generators[id(generator)] = weakref.ref(generator)

    def _generator_dropped(self, generator: Any) -> None:
        """Closed inside the flow if dropped by reference count in a turn; else kept until the flow is unloaded or
        ends.
        """
        if self.closed:
            return
        if self.turning and _get_running() is self and _collecting != threading.get_ident():
            self.create_task(generator.aclose(), name="close generator")
        else:
            self._strong(generator)

    def _strong(self, generator: Any) -> None:
        if self._generators is None:
            self._generators = {}
        self._generators[id(generator)] = lambda: generator  # keeps its place: when a collector comes is chance

    async def close_generators(self) -> None:
        """Every generator that is not exhausted is closed, as `asyncio.run` does at its end."""
        while self._generators:
            generators, self._generators = self._generators, None
            for reference in generators.values():
                generator = reference()
                if generator is not None:
                    try:
                        await generator.aclose()
                    except Exception as error:
                        self.call_exception_handler({"message": f"closing {generator!r} raised", "exception": error})

    def has_generators(self) -> bool:
        """Whether a generator may be left to close."""
        if self._generators:
            self._generators = {i: r for i, r in self._generators.items() if getattr(r(), "ag_frame", None) is not None}
        return bool(self._generators)


_collecting = 0
"""The thread in which the cycle collector is at work; another thread may run meanwhile."""


def _collector(phase: str, _: dict[str, int]) -> None:
    global _collecting
    _collecting = threading.get_ident() if phase == "start" else 0


gc.callbacks.append(_collector)


def _refuse(name: str) -> Any:
    def method(self: FlowLoop, *args: Any, **kwargs: Any) -> Any:
        raise NotDurable(f"loop.{name}() in a flow's own body cannot be replayed; put it in capture() or a @step")

    method.__name__ = name
    return method


for _name in dir(asyncio.AbstractEventLoop):
    if not _name.startswith("_") and _name not in FlowLoop.__dict__:
        setattr(FlowLoop, _name, _refuse(_name))


def salt(uid: bytes) -> int:
    """Where the numbers of an instance's tasks begin: anywhere in 60 bits, so that tasks of different flows do not collide
    in asyncio's own sets, which look at the lowest bits first (1,000 flows: 22 µs a step where 14 are enough).
    """
    return int.from_bytes(hashlib.blake2b(uid, digest_size=8).digest(), "big") >> 4
