"""Bugs that are planted into the engine and the store, to see that simulation finds them."""

from __future__ import annotations

from typing import Any

import pytest

from perdure.engine.claiming import Claims
from perdure.engine.committer import Committer
from perdure.engine.replica import Replica
from perdure.engine.scheduler import Scheduler
from perdure.engine.stepping import StepOp
from perdure.errors import CommitUnknown
from perdure.stores.contract import Reaped
from perdure.stores.memory.life import Life
from perdure.stores.memory.store import MemoryStore
from perdure.stores.memory.tables import Tables

Patch = pytest.MonkeyPatch


def fence_not_checked(patch: Patch) -> None:
    """Whoever writes may write."""
    patch.setattr(MemoryStore, "_fenced", lambda self, replica, epoch: None)


def epoch_not_raised(patch: Patch) -> None:
    """A commit that is said to be lost is sent again, and may come twice."""

    async def settle(self: Committer) -> None: ...

    patch.setattr(Committer, "_settle", settle)


def unknown_is_done(patch: Patch) -> None:
    """A commit whose outcome is unknown is taken for done."""
    real = MemoryStore.commit
    until_done = Committer._until_done

    async def until(self: Committer, writes: list[Any], *, split: bool = True) -> Any:
        commit = self._store.commit

        async def hopeful(batch: Any) -> Any:
            try:
                return await commit(batch)
            except CommitUnknown:
                return [None] * len(batch.writes)

        self._store.__dict__["commit"] = hopeful
        try:
            return await until_done(self, writes, split=split)
        finally:
            self._store.__dict__["commit"] = commit

    assert real is MemoryStore.commit
    patch.setattr(Committer, "_until_done", until)


def wakeups_deleted_after_reading(patch: Patch) -> None:
    """What comes between the two is overlooked."""

    async def read_wakeups(self: Claims) -> None:
        store: Any = self._store
        called, lives, me = store._store._tables.wakeups, store._store._lives, self._scheduler.replica.id
        again, self._again = self._again, set()
        await self._read_inboxes([*again, *(uid for uid in called if lives[uid].row.owner == me)])
        await self._store.wakeups(me)

    patch.setattr(Claims, "_read_wakeups", read_wakeups)


def early_message_dropped(patch: Patch) -> None:
    """What is sent before the instance exists does not wait for it."""
    born = Tables._born

    def forgetful(self: Tables, batch: Any, create: Any) -> None:
        self._early.pop((create.flow, create.id), None)
        born(self, batch, create)

    patch.setattr(Tables, "_born", forgetful)


def key_forgotten(patch: Patch) -> None:
    """A message that is sent again is another message."""
    patch.setattr(Life, "_claim_key", lambda self, message: True)
    patch.setattr(Life, "_free_key", lambda self, message: None)


def gate_left_open(patch: Patch) -> None:
    """Steps begin before what led to them is on disk."""

    def gate(self: Scheduler, execution: Any) -> None:
        execution.gated = False
        execution.gate_open()

    patch.setattr(Scheduler, "gate", gate)


def intent_not_written(patch: Patch) -> None:
    """An at-most-once step begins without a trace."""
    put_row = StepOp.put_row

    def put(self: StepOp, *, intent: bool = False) -> None:
        if not intent:
            put_row(self)

    patch.setattr(StepOp, "put_row", put)


def lease_not_looked_at(patch: Patch) -> None:
    """Who was stopped begins steps when it goes on."""
    patch.setattr(Replica, "safe_to_start", lambda self: not self.gone)


def taken_over_alive(patch: Patch) -> None:
    """A takeover frees the instances and leaves the fence as it is."""

    async def reap(self: MemoryStore, me: str, *, kill_hung: bool, limit: int = 1000) -> Reaped:
        now = self.system.clock.boot()
        taken = [r for r, fence in self._fences.items() if r != me and (not fence.alive or now > fence.lease.until)]
        for replica in taken:
            self._free(replica)
            if not self._fences[replica].alive:
                del self._fences[replica]
        return Reaped(tuple(taken))

    patch.setattr(MemoryStore, "reap", reap)


def answer_not_woken(patch: Patch) -> None:
    """The end of a child is written into the inbox of a parent that is not in memory, and nobody is woken by it."""
    deliver = Tables._deliver

    def quiet(self: Tables, batch: Any, life: Any, message: Any) -> Any:
        before = dict(self.wakeups)
        sent = deliver(self, batch, life, message)
        if message.kind == "answer" and life is not None and life.row.owner is None:
            self.wakeups = before
        return sent

    patch.setattr(Tables, "_deliver", quiet)


PLANTS = [
    fence_not_checked, epoch_not_raised, unknown_is_done, wakeups_deleted_after_reading, early_message_dropped, key_forgotten,
    gate_left_open, intent_not_written, lease_not_looked_at, taken_over_alive,
]  # fmt: skip
