"""A cluster in one thread: engines, each a process with a loop of its own, on one store in memory, in virtual time.

A process is killed by not being driven any more: none of its code runs on, not even its `finally`. What goes wrong and
when is decided by a `Weather`; here is what can.
"""

from __future__ import annotations

import asyncio
import heapq
import inspect
import itertools
import math
import random
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol, cast

from perdure.clock import Clock
from perdure.engine import collector, ending
from perdure.engine.engine import Engine
from perdure.errors import LeaseLost
from perdure.stores.contract import Store
from perdure.stores.memory import MemoryStore
from perdure.system import System
from perdure.testing.loops import Time, VirtualLoop, done
from perdure.threads import Repeating, Threads

BEGINNING: Final = 1_767_225_600.0
"""When virtual time begins: 2026-01-01, 00:00 UTC."""
TURNS: Final = 50
"""So many turns a killed process's tasks get to end, when everything is over."""


class Killed(SystemExit):
    """The process is no more. Nothing catches it but who drives the loop."""


class Weather(Protocol):
    """What befalls a process's calls of the store."""

    async def call(self, process: Process, method: str, args: Any, work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """The answer to the call, which `work` makes. May kill the process, lose the answer, or take its time."""
        ...

    def renew(self, process: Process, work: Callable[[], float]) -> float:
        """The answer to a renewal of the lease, which `work` makes."""
        ...

    def notified(self, process: Process, notify: Callable[[], None]) -> None:
        """The process is told, or not, that somebody else has written."""
        ...


class Calm:
    """Nothing goes wrong."""

    async def call(self, process: Process, method: str, args: Any, work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """See `Weather`."""
        return await work()

    def renew(self, process: Process, work: Callable[[], float]) -> float:
        """See `Weather`."""
        return work()

    def notified(self, process: Process, notify: Callable[[], None]) -> None:
        """See `Weather`."""
        notify()


class Cluster:
    """See the module. `turn` is one step of its life; the same seed and weather make the same life.

    Args:
        calm: see `Clock.calm`.
        store: makes the store.
    """

    def __init__(
        self,
        weather: Weather | None = None,
        seed: int = 0,
        calm: float = 1.0,
        store: Callable[[System], MemoryStore] = MemoryStore,
    ) -> None:
        self.time = Time()
        self.calm = calm
        self.seed = seed
        self.chance = random.Random(seed)
        """Of two processes that could go on, it says which does."""
        self.weather: Weather = weather or Calm()
        self.skew = 0.0
        """How wrong the store's wall clock is, in seconds."""
        self.store = store(ClusterSystem(self, None))
        self.processes: list[Process] = []
        """Those that live."""
        self.dead: list[Process] = []
        self._coming: list[tuple[float, int, Callable[[], None]]] = []
        self._number = itertools.count()

    def now(self) -> float:
        """Epoch seconds, without anybody's error."""
        return BEGINNING + self.time.now

    def start(self, program: Callable[[Process], Coroutine[Any, Any, Any]], name: str | None = None) -> Process:
        """A process lives and runs the program. No two have the same name."""
        process = Process(self, name or f"process {len(self.processes) + len(self.dead) + 1}", program)
        self.processes.append(process)
        return process

    def later(self, seconds: float, do: Callable[[], None]) -> None:
        """This is done in so many seconds, by the network, the store or whatever else is no process."""
        heapq.heappush(self._coming, (self.time.now + seconds, next(self._number), do))

    def turn(self) -> Process | Cluster | None:
        """Who has something to do soonest did it, at that time: a process, or the cluster; None: nobody ever will."""
        soonest = math.inf
        for process in self.processes:
            if (wakes_at := process.wakes_at) < soonest:
                soonest = wakes_at
        coming = self._coming
        if coming and coming[0][0] <= soonest:
            at, _, do = heapq.heappop(coming)
            self.time.now = max(self.time.now, at)
            do()
            return self
        if soonest == math.inf:
            return None
        now = max(soonest, self.time.now)
        ready = [p for p in self.processes if p.wakes_at <= now]
        process = ready[0] if len(ready) == 1 else self.chance.choice(ready)
        if soonest > self.time.now:
            self.time.move_to(soonest)
        process.run()
        return process

    def kill(self, process: Process, *, known: bool = True) -> None:
        """The process is no more; if that is `known`, as the system knows of its own, others may take over at once."""
        if process not in self.processes:
            return
        self.processes.remove(process)
        self.dead.append(process)
        process.alive = False
        process.loop.set_exception_handler(lambda loop, context: None)
        if known and (replica := process.replica) is not None:
            self.store.bury(replica)

    def end(self) -> None:
        """Everything is over: the processes' tasks have ended, as far as they do, and nothing is left to the collector."""
        for process in list(self.processes):
            self.kill(process)
        for process in self.dead:
            process.clear()
        self.dead.clear()


class Process:
    """One process: a loop of its own, a connection to the store, and a program that makes an engine there."""

    def __init__(self, cluster: Cluster, name: str, program: Callable[[Process], Coroutine[Any, Any, Any]]) -> None:
        self.cluster = cluster
        self.name = name
        self.skew = 0.0
        """How wrong its wall clock is, in seconds."""
        self.asleep_until = 0.0
        """Until then it is stopped, as by SIGSTOP."""
        self.system = ClusterSystem(cluster, self)
        self.connection = Connection(cluster.store, self)
        self.loop = VirtualLoop(cluster.time)
        self.alive = True
        self.engine: Engine | None = None
        self.outcome: asyncio.Task[Any] = asyncio.Task(program(self), loop=self.loop)

    @property
    def store(self) -> Store:
        """The store, as this process reaches it."""
        return cast("Store", self.connection)

    @property
    def wakes_at(self) -> float:
        """When it has something to do."""
        wakes_at, asleep_until = self.loop.wakes_at, self.asleep_until
        return wakes_at if wakes_at > asleep_until else asleep_until

    def settle(self, future: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
        """What somebody else gives is there, for whoever waits for it in this process, if that lives."""
        if not self.alive or future.done():
            return
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)
        self.loop.wakes_at = min(self.loop.wakes_at, self.cluster.time.now)

    @property
    def replica(self) -> str | None:
        """The id of its engine's replica."""
        member = self.engine._member if self.engine is not None else None  # pyright: ignore[reportPrivateUsage]  # noqa: SLF001
        return member.replica.id if member is not None and member.replica is not None else None

    def run(self) -> None:
        """Everything that it can do now is done; or it was killed."""
        try:
            self.loop.run_until_idle()
        except Killed:
            self.cluster.kill(self)

    def clear(self) -> None:
        """Its tasks have ended or are held; the user's `finally` has run, with no engine and no store behind it."""
        member = self.engine._member if self.engine is not None else None  # pyright: ignore[reportPrivateUsage]  # noqa: SLF001
        if member is not None and member.scheduler is not None:
            for execution in list(member.scheduler.resident.values()):
                execution.stopped = True
                _held.extend(ending.unload(execution))
        for _ in range(TURNS):
            tasks = asyncio.all_tasks(self.loop)
            if not tasks:
                break
            for task in tasks:
                task.cancel()
            try:
                self.loop.run_until_idle()
            except SystemExit:
                continue
        _held.extend(asyncio.all_tasks(self.loop))
        if self.engine is not None and self.engine._member is not None:  # pyright: ignore[reportPrivateUsage]  # noqa: SLF001
            collector.engine_stopped()  # it did not come to that by itself
        if self.outcome.done() and not self.outcome.cancelled():
            self.outcome.exception()
        self.loop.close()


_held: list[Any] = []
"""Tasks that swallow their cancellation, kept so that no collector ends them."""


class Connection:
    """The store as one process reaches it: the weather may get between the two."""

    def __init__(self, store: MemoryStore, process: Process) -> None:
        self._store = store
        self._process = process
        self.system = process.system

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._store, name)
        if not inspect.iscoroutinefunction(real):
            return real
        process = self._process

        async def call(*args: Any, **kwargs: Any) -> Any:
            if not process.alive:
                raise LeaseLost("the process is dead")
            return await process.cluster.weather.call(process, name, args, lambda: real(*args, **kwargs))

        self.__dict__[name] = call
        return call

    def renew(self, replica: str, lease: float) -> float:
        """See Store."""
        process = self._process
        if not process.alive:
            raise LeaseLost("the process is dead")
        return process.cluster.weather.renew(process, lambda: self._store.renew(replica, lease))

    def on_change(self, notify: Callable[[], None]) -> None:
        """See Store."""
        process = self._process
        self._store.on_change(lambda: process.cluster.weather.notified(process, notify) if process.alive else None)

    async def close(self) -> None:
        """See Store; the tables stay."""


class ClusterClock(Clock):
    """The cluster's time as one process sees it."""

    def __init__(self, cluster: Cluster, process: Process | None) -> None:
        self._cluster = cluster
        self._time = cluster.time
        self._shown_by: Cluster | Process = process or cluster

    @property
    def calm(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]  it may change meanwhile
        return self._cluster.calm

    def wall(self) -> float:
        return BEGINNING + self._time.now + self._shown_by.skew

    def boot(self) -> float:
        return 1_000.0 + self._time.now

    def monotonic(self) -> float:
        return self._time.now


class ClusterSystem(System):
    """A process's machine: no thread, and all chance from the cluster's seed."""

    reads_sources = False
    queues = False

    def __init__(self, cluster: Cluster, process: Process | None) -> None:
        name = "the store" if process is None else process.name
        self._chance = random.Random(f"{cluster.seed}/{name}")
        self._replicas = 0
        super().__init__(ClusterClock(cluster, process))
        self.process = name

    def new_replica_id(self) -> str:
        self._replicas += 1
        return f"{self.process}/{self._replicas}"

    def random_bytes(self, n: int) -> bytes:
        return self._chance.randbytes(n)

    def threads(self, limit: int) -> Threads:
        return cast("Threads", Inline())

    def repeat(self, work: Callable[[], bool], pause: float, name: str) -> Repeating:
        return cast("Repeating", OnLoop(work, pause))


class Inline:
    """Threads for sync steps that are none: the work is done at once."""

    def run(self, loop: asyncio.AbstractEventLoop, work: Callable[[], Any]) -> asyncio.Future[Any]:
        """See `Threads`."""
        return done(loop, work)

    def close(self) -> None:
        """See `Threads`."""


class OnLoop:
    """A function that is called again and again, on the running loop instead of a thread."""

    def __init__(self, work: Callable[[], bool], pause: float) -> None:
        self._work = work
        self._pause = pause
        self._loop = asyncio.get_running_loop()
        self.running = True
        self._next = self._loop.call_later(pause, self._call)

    def hurry(self) -> None:
        """See `Repeating`."""
        self._next.cancel()
        self._next = self._loop.call_soon_threadsafe(self._call)

    def stop(self) -> None:
        """See `Repeating`."""
        self.running = False
        self._next.cancel()

    def _call(self) -> None:
        if self.running and self._work():
            self._next = self._loop.call_later(self._pause, self._call)
        else:
            self.running = False
