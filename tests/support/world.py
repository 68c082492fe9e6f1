"""What scenarios are played in: a store, a clock that only the test moves, and engines that can end well or die."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from perdure import Engine, EngineClosed, Handle, Panel, State, Store
from perdure.model.records import Entry, Instance, Message, Pending
from perdure.stores.memory import MemoryStore
from perdure.stores.sqlite import SqliteStore
from tests.support.clock import manual_system, until


class World:
    """Engines of one store, "memory" or "sqlite". A dead engine's instances are taken over at once, as a process's."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self.clock, self.system = manual_system()
        self.path = folder / "world.db"
        self._memory = MemoryStore(self.system)
        self._engines: dict[Engine, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def store(self) -> Store:
        """The store, as one more process would open it."""
        return self._memory if self.kind == "memory" else SqliteStore(self.path, self.system)

    async def engine(self, *flows: Any, **options: Any) -> Engine:
        """A running engine; the world closes it at its end. `max_resident=0`: whatever waits is unloaded."""
        eager = options.get("max_resident") == 0
        engine = Engine(self.store(), flows=flows, **(options | {"max_resident": 1} if eager else options))
        if eager:
            msgspec.structs.force_setattr(engine._settings, "max_resident", 0)
        await engine.__aenter__()
        self._engines[engine] = (flows, options)
        return engine

    async def close(self, engine: Engine) -> None:
        """The engine has drained and left."""
        del self._engines[engine]
        await engine.__aexit__(None, None, None)

    async def crash(self, engine: Engine) -> None:
        """The engine has written nothing more and given nothing back, as if its process had died."""
        del self._engines[engine]
        member = engine._member
        assert member is not None
        committer = member.committer
        await committer.give_up()
        for _, told in committer.take_outside():
            told(None, EngineClosed("the engine died"))
        if member.replica is not None and member.scheduler is not None:
            member.replica.gone = True  # so that nothing is drained, and nothing given back
            member.scheduler.abandon()
            if self.kind == "memory":  # what the operating system does for a file lock
                self._memory._fences[member.replica.id].alive = False
        await engine.__aexit__(None, None, None)

    async def restart(self, engine: Engine, *flows: Any, **options: Any) -> Engine:
        """Another engine goes on after the first one died, with the same flows and options unless others are given."""
        before = self._engines[engine]
        await self.crash(engine)
        return await self.engine(*(flows or before[0]), **(before[1] | options))

    async def end(self) -> None:
        """All engines are closed, the last one first."""
        for engine in reversed(list(self._engines)):
            await self.close(engine)

    # ------------------------------------------------------------ looking

    async def row(self, handle: Handle[Any]) -> Instance:
        """What the store says of the instance."""
        row = await self._any_store().instance(handle.flow, handle.id)
        assert row is not None, f"there is no {handle!r}"
        return row

    async def journal(self, handle: Handle[Any]) -> list[Entry]:
        """The instance's entries, by seq."""
        (loaded,) = await self._any_store().load([(await self.row(handle)).uid])
        return loaded.entries

    async def pending(self, handle: Handle[Any]) -> list[Pending]:
        """The instance's pending operations."""
        (loaded,) = await self._any_store().load([(await self.row(handle)).uid])
        return loaded.pending

    async def inbox(self, handle: Handle[Any]) -> list[Message]:
        """The instance's untaken messages."""
        (loaded,) = await self._any_store().load([(await self.row(handle)).uid])
        return loaded.inbox

    async def panel(self, handle: Handle[Any]) -> Panel[Any]:
        """The instance's control panel, by the engine that came last."""
        return await next(reversed(self._engines)).panel(handle.flow, handle.id)

    def _any_store(self) -> Store:
        return next(reversed(self._engines))._store

    async def parked(self, handle: Handle[Any]) -> None:
        """The instance waits, in memory or not, and the store knows it."""
        await eventually(lambda: handle.state(), lambda state: state is State.SUSPENDED)

    async def unloaded(self, handle: Handle[Any]) -> None:
        """The instance waits and is in no engine's memory."""
        await eventually(lambda: self.row(handle), lambda row: row.state is State.SUSPENDED and row.owner is None)

    async def leaving(self, handle: Handle[Any]) -> None:
        """The engine that has the instance in memory knows that it was asked to give it up."""
        uid = (await self.row(handle)).uid
        schedulers = [engine._member.scheduler for engine in self._engines if engine._member is not None]
        resident = [s.resident[uid] for s in schedulers if s is not None and uid in s.resident]
        await until(lambda: any(execution.leaving is not None for execution in resident))

    async def blocked(self, handle: Handle[Any]) -> str:
        """The instance is set aside; gives the reason."""
        row = await eventually(lambda: self.row(handle), lambda row: row.state is State.BLOCKED)
        return row.reason or ""


async def eventually(
    look: Callable[[], Awaitable[Any]], good: Callable[[Any], object] = bool, *, seconds: float = 5.0
) -> Any:
    """What was seen when it was good at last; fails with what was seen last if that takes so many real seconds."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not good(seen := await look()):
        if asyncio.get_running_loop().time() > deadline:
            raise AssertionError(f"it did not come true in time; seen last: {seen!r}")
        await asyncio.sleep(0.002)
    return seen
