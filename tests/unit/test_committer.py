"""What the committer sends again when the answer to a batch was lost, on a real store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import pytest

from perdure.engine.committer import Committer, Outcome
from perdure.errors import CommitUnknown, LeaseLost, StoreRefused
from perdure.model.records import State
from perdure.model.writes import Answer, Batch, Expose, Finished, PendingDrop, Release, Update, Write
from perdure.stores.sqlite import SqliteStore
from perdure.system import System
from perdure.testing.conformance.kit import Kit, MovableClock, create, entry, finish, message, pending, send, uid

Meanwhile = Callable[[Kit], Coroutine[Any, Any, None]]
PARKED = [
    entry(1, 1),
    pending(1),
    Expose(uid(1), "k", b"old"),
    Update(uid(1), True, 2.0),
    Release(uid(1), 1, State.SUSPENDED, 2.0),
]


class Losing(SqliteStore):
    """The first batch that releases or ends something is done, and its answer is lost."""

    meanwhile: Meanwhile | None = None
    kit: Kit

    async def commit(self, batch: Batch) -> list[Answer]:
        answers = await super().commit(batch)
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            await meanwhile(self.kit)
            raise CommitUnknown("the answer was lost")
        return answers


class Host:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.answers: dict[int, Outcome] = {}
        self.holding: str | None = None

    def now(self) -> float:
        return 1.0

    def large_bytes(self) -> int:
        return 1 << 20

    def committed(self, writes: list[Write], answers: Sequence[Outcome]) -> None:
        self.answers |= {id(write): answer for write, answer in zip(writes, answers, strict=True)}

    def holding_changed(self, reason: str | None) -> None:
        self.holding = reason

    def refused(self, writes: list[Write], error: StoreRefused) -> list[list[Write]]:
        raise error

    def lost(self, error: LeaseLost) -> None:
        raise error


@pytest.fixture
async def kit(tmp_path: Path) -> AsyncIterator[Kit]:
    """Instance 1 was claimed by a."""
    clock = MovableClock()
    store = Losing(tmp_path / "store.db", System(clock=clock))
    await store.open()
    store.kit = kit = Kit(store, clock)
    await kit.join("a")
    await kit.join("b")
    await kit.commit(create(1, owned=False), by=None)
    assert await kit.claimed() == [1]
    yield kit
    await store.close()


async def sent_again(kit: Kit, writes: Sequence[Write], meanwhile: Meanwhile) -> list[Outcome]:
    """The answers to writes of `a` that were lost, and during which this happened."""
    assert isinstance(kit.store, Losing)
    kit.store.meanwhile = meanwhile
    host = Host()
    committer = Committer(kit.store, host, asyncio.get_running_loop(), "a", kit.epochs["a"])
    for write in writes:
        committer.write(write)
    while committer.durable < len(writes):
        await asyncio.sleep(0)
    assert host.holding is None
    kit.epochs["a"] = committer.epoch
    return [host.answers[id(write)] for write in writes]


async def gone_on(kit: Kit, by: str) -> None:
    """Whoever has it has written what it exposes, and done what was pending."""
    put = pending(1).pending
    await kit.commit(Expose(uid(1), "k", b"new"), PendingDrop(put.uid, put.run, put.key), by=by)


@pytest.mark.parametrize("by", ["a", "b"])
async def test_what_was_released_and_claimed_is_left_alone(kit: Kit, by: str) -> None:
    async def meanwhile(kit: Kit) -> None:
        kit.clock.now += 100
        kit.store.renew("a", 1000.0)
        kit.store.renew("b", 1000.0)
        assert await kit.claimed(by) == [1]
        await gone_on(kit, by)

    assert await sent_again(kit, PARKED, meanwhile) == [None] * 5
    row = await kit.row(1)
    assert (row.state, row.owner, row.term) == (State.RUNNING, by, 2)
    assert await kit.store.exposed(uid(1)) == {"k": b"new"}
    assert (await kit.load(1)).pending == []


async def test_what_was_released_and_deleted_leaves_nothing(kit: Kit) -> None:
    async def meanwhile(kit: Kit) -> None:
        await kit.edited(1, delete=True)

    await sent_again(kit, PARKED, meanwhile)
    assert await kit.store.exposed(uid(1)) == {}
    assert await kit.store.entries(uid(1), 0, -1) == ([], False)


@pytest.mark.parametrize("by", ["a", "b", None])
async def test_what_has_ended_and_was_begun_anew_is_left_alone(kit: Kit, by: str | None) -> None:
    async def meanwhile(kit: Kit) -> None:
        change = {"state": State.SCHEDULED, "due_at": 1.0, "outcome": None, "ended_at": None}
        await kit.edited(1, change=change, drop=[1])
        if by is not None:
            assert await kit.claimed(by) == [1]

    await sent_again(kit, [entry(1, 1), finish(1, term=1)], meanwhile)
    row = await kit.row(1)
    assert (row.state.ended, row.owner) == (False, by)
    assert [e.seq for e in (await kit.load(1)).entries] == []


async def test_what_is_ours_still_is_written(kit: Kit) -> None:
    async def meanwhile(kit: Kit) -> None:
        await kit.sent(send(1, 1), None)

    answers = await sent_again(kit, [entry(1, 1), finish(1, term=1)], meanwhile)
    assert answers == [None, Finished(())]
    assert (await kit.row(1)).state is State.SUCCEEDED
    assert await kit.inbox(1) == [message(1)]
