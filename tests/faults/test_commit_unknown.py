"""Commits whose answer is lost, a lease lost in the middle, a store that is away, data that the store refuses."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from perdure import (
    Engine,
    FlowFailed,
    FlowFunction,
    Handle,
    LeaseLost,
    State,
    StoreUnavailable,
    capture,
    flow,
    receive,
    step,
)
from perdure.errors import CommitUnknown, StoreRefused
from perdure.model.records import Entry
from perdure.model.writes import Answer, Batch
from perdure.stores.contract import Store
from perdure.stores.memory import MemoryStore
from perdure.stores.sqlite import SqliteStore
from tests.support.clock import until
from tests.support.world import eventually

ran: Counter[str] = Counter()
seen: list[int] = []


class Unsure:
    """The real store, whose commits end as `faults` says: one fault per commit, in order, None for none."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.faults: list[str | None] = []
        self.raised: list[int] = []
        self.commits = 0
        self.lost: list[Batch] = []
        self.fault: Callable[[Batch], None] = lambda _: None
        self.gate = asyncio.Event()
        self.gate.set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    async def commit(self, batch: Batch) -> list[Answer]:
        self.commits += 1
        await self.gate.wait()
        self.fault(batch)
        fault = self.faults.pop(0) if self.faults else None
        if fault in ("unknown, not done", "unknown, done later"):
            self.lost.append(batch)
            raise CommitUnknown(fault)
        answers = await self.store.commit(batch)
        if fault == "unknown, done":
            raise CommitUnknown(fault)
        return answers

    async def raise_epoch(self, replica: str, epoch: int) -> int:
        raised = await self.store.raise_epoch(replica, epoch)
        self.raised.append(raised)
        return raised

    async def take_over(self, replica: str) -> None:
        """What another process does that finds the replica's lease over."""
        if isinstance(self.store, SqliteStore):
            writer = self.store._open_writer()
            await writer.do(partial(self.store._take_over, writer, replica, 1000))
        else:
            assert isinstance(self.store, MemoryStore)
            self.store._fences[replica].alive = False
            await self.store.join("taker", 10)
            await self.store.reap("taker", kill_hung=False)


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Unsure:
    ran.clear()
    seen.clear()
    return Unsure(MemoryStore() if request.param == "memory" else SqliteStore(tmp_path / "flows.db"))


@pytest.fixture
async def engine(store: Unsure) -> AsyncIterator[Engine]:
    async with Engine(store, flows=[order, child, chain, parallel, many, slow]) as engine:
        yield engine


@step
async def act(what: str) -> str:
    """Noted."""
    ran[what] += 1
    return what


@step
async def blob(what: str) -> bytes:
    """Noted; the store may not like it."""
    ran[what] += 1
    return b"poison"


@flow
async def child(name: str) -> str:
    """A step."""
    return await act(f"child {name}")


@flow
async def chain(name: str) -> list[str]:
    """Three steps, one after the other."""
    return [await act(f"{name} {i}") for i in range(3)]


@flow
async def order(name: str) -> list[str]:
    """Steps at once, a child, messages, an at-most-once step."""
    done = list(await asyncio.gather(*[act(f"{name} {i}") for i in range(3)]))
    done.append(await child(name))
    done.append(await capture(act.fn, f"{name} once", at_most_once=True))
    done += [await receive(str), await receive(str)]
    return [*done, await act(f"{name} last")]


@flow
async def parallel(n: int) -> int:
    """Notes what it is given."""

    async def one(i: int) -> None:
        await act(f"p{i}")
        seen.append(i)

    async with asyncio.TaskGroup() as tasks:
        for i in range(n):
            tasks.create_task(one(i))
    return n


@flow
async def many(n: int) -> int:
    """Takes messages without doing anything."""
    for _ in range(n):
        seen.append(await receive(int))  # noqa: PERF401  seen from outside while it goes on
    return n


@flow
async def slow(name: str) -> str:
    """A step, then a message, then a step."""
    await act(f"{name} before")
    got = await receive(str)
    return await act(f"{name} {got}")


def expected(name: str) -> list[str]:
    return [*[f"{name} {i}" for i in range(3)], f"child {name}", f"{name} once", "m1", "m2", f"{name} last"]


async def journal(store: Unsure, handle: Handle[Any]) -> list[Entry]:
    row = await store.instance(handle.flow, handle.id)
    assert row is not None
    (loaded,) = await store.load([row.uid])
    return loaded.entries


@pytest.mark.fault(14)
@pytest.mark.parametrize("fault", ["unknown, done", "unknown, not done"])
@pytest.mark.parametrize("every", [1, 2, 3])
async def test_an_unknown_commit_is_settled_and_repeated(store: Unsure, engine: Engine, fault: str, every: int) -> None:
    store.faults = [fault if i % every == 0 else None for i in range(40)]
    handles = [await engine.start(order, name, id=name) for name in "ab"]
    for handle in handles:
        for text in ("m1", "m2", "m1"):
            await handle.send(text, key=text)
    for handle in handles:
        assert await handle.result(timeout=10) == expected(handle.id)
        entries = await journal(store, handle)
        assert [e.seq for e in entries] == list(range(len(entries)))
    assert set(ran.values()) == {1}
    assert len(ran) == 2 * 6
    assert store.raised == sorted(set(store.raised))
    assert len(store.raised) >= 2
    assert (await engine.health()).paused is None


@pytest.mark.fault(14)
@pytest.mark.peer(22)
async def test_a_lost_commit_that_comes_late_is_refused(store: Unsure, engine: Engine) -> None:
    store.faults = [None, "unknown, done later", None, "unknown, done later"]
    assert await engine.run(chain, "x", id="x", timeout=10) == ["x 0", "x 1", "x 2"]
    assert len(store.lost) == 2
    for late in store.lost:
        with pytest.raises(LeaseLost):
            await store.store.commit(late)
    assert await engine.run(chain, "y", id="y", timeout=10) == ["y 0", "y 1", "y 2"]
    assert set(ran.values()) == {1}


async def test_a_client_sends_again_after_an_unknown_commit(store: Unsure, engine: Engine) -> None:
    same = store.store
    other = Unsure(SqliteStore(same.path) if isinstance(same, SqliteStore) else same)
    async with Engine(other, execute=False) as client:
        other.faults = ["unknown, done", "unknown, not done"] * 4
        handle = await client.start(order, "c", id="c")
        for text in ("m1", "m2"):
            await handle.send(text)
        assert await handle.result(timeout=10) == expected("c")
    assert set(ran.values()) == {1}
    assert other.raised == []


async def test_a_lease_lost_in_the_middle(store: Unsure, engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    waiting = await engine.start(slow, "w", id="w")
    await eventually(waiting.state, lambda state: state is State.SUSPENDED)
    before = (await engine.health()).replica
    store.gate.clear()
    asked = asyncio.gather(
        engine.start(chain, "new", id="new"),
        waiting.send("go"),
        engine.start(slow, "w", id="w"),
        engine.send(slow, "later", "early"),
    )
    await until(lambda: store.commits and engine._member.committer._task is not None)  # type: ignore[union-attr]
    await store.take_over(before)
    store.gate.set()
    new, *_ = await asyncio.wait_for(asked, 10)
    assert await new.result(timeout=10) == ["new 0", "new 1", "new 2"]
    assert await waiting.result(timeout=10) == "w go"
    assert await engine.run(slow, "later", id="later", timeout=10) == "later early"
    assert set(ran.values()) == {1}
    assert (await engine.health()).replica != before
    assert "the lease was lost" in caplog.text


@pytest.mark.fault(15)
@pytest.mark.peer(23)
async def test_a_store_that_is_away_for_a_while(store: Unsure, engine: Engine) -> None:
    def away(_: Batch) -> None:
        raise StoreUnavailable("the test took it away")

    handle = await engine.start(parallel, 50, id="p")
    await until(lambda: sum(ran.values()) == 50 or seen)
    again = await engine.start(parallel, 30, id="q")
    store.fault = away
    sending = asyncio.create_task(engine.send(slow, "s", "hello"))
    await eventually(engine.health, lambda health: health.paused is not None)
    delivered = len(seen)
    tries = store.commits
    await until(lambda: store.commits >= tries + 3)
    assert len(seen) == delivered
    assert not sending.done()
    assert "store away" in str((await engine.health()).paused)
    store.fault = lambda _: None
    assert await handle.result(timeout=10) == 50
    assert await again.result(timeout=10) == 30
    await asyncio.wait_for(sending, 10)
    assert await engine.run(slow, "s", id="s", timeout=10) == "s hello"
    assert (await engine.health()).paused is None
    assert set(ran.values()) <= {1, 2}  # two flows have steps of the same name


async def test_an_instance_is_at_most_a_thousand_entries_ahead_of_the_disk(store: Unsure, engine: Engine) -> None:
    handle = await engine.start(many, 2_500, id="m")
    await eventually(handle.state, lambda state: state is State.SUSPENDED)
    await asyncio.gather(*[handle.send(i) for i in range(100)])
    await until(lambda: len(seen) == 100)
    client = store.store if isinstance(store.store, MemoryStore) else SqliteStore(store.store.path)
    async with Engine(client, execute=False) as other:
        store.gate.clear()
        for start in range(100, 2_500, 400):
            await asyncio.gather(*[other.send(many, "m", i) for i in range(start, start + 400)])
        await until(lambda: len(seen) >= 1_000, seconds=5)
        for _ in range(20):
            await asyncio.sleep(0)
        assert 1_000 <= len(seen) <= 1_101
        store.gate.set()
        assert await handle.result(timeout=10) == 2_500
    assert seen == list(range(2_500))


@flow
async def poisoned(name: str) -> str:
    """One of its outcomes is refused by the store."""
    await act(f"{name} first")
    await blob(f"{name} blob")
    return await act(f"{name} after")


@pytest.mark.fault(43)
@pytest.mark.peer(15, 29)
@pytest.mark.parametrize("refuses", ["the outcome", "whatever stands in its place"])
async def test_refused_data_of_one_instance_does_not_hurt_others(store: Unsure, refuses: str) -> None:
    def refuse(batch: Batch) -> None:
        for write in batch.writes:
            if isinstance(write, Entry) and "blob" in write.name and not (write.failed and refuses == "the outcome"):
                raise StoreRefused("the test does not like it")

    store.fault = refuse
    async with Engine(store, flows=[chain, poisoned, slow]) as engine:
        flows: list[FlowFunction[[str], Any]] = [chain, poisoned, slow]
        handles = [await engine.start(f, f"{f.name}{i}", id=str(i)) for i in range(5) for f in flows]
        for handle in handles:
            if handle.flow == "slow":
                await handle.send("go")
        for handle in handles:
            if handle.flow != "poisoned":
                await handle.result(timeout=10)
        for handle in handles:
            if handle.flow == "poisoned":
                if refuses == "the outcome":
                    with pytest.raises(FlowFailed) as failed:
                        await handle.result(timeout=10)
                    assert isinstance(failed.value.__cause__, StoreRefused)
                    assert [e.failed for e in (await engine.panel(handle.flow, handle.id)).loaded.entries] == [0, 0, 1]
                    continue
                await eventually(handle.state, lambda state: state is State.BLOCKED)
                row = await store.instance(handle.flow, handle.id)
                assert row is not None
                assert "StoreRefused" in str(row.reason)
    assert set(ran.values()) == {1}
    assert not any("after" in what for what in ran)
