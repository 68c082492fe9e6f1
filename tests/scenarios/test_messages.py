"""Messages: typed, each taken once, delivered once per key; lost neither before the flow starts nor before it asks."""

import asyncio
import random
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import pytest

from perdure import FlowFailed, Outgoing, capture, delay, flow, receive, send, send_many, step
from tests.support.world import World, eventually


@dataclass(frozen=True)
class Paid:
    amount: int


@dataclass(frozen=True)
class Declined:
    reason: str


@dataclass(frozen=True)
class PaidLater(Paid):
    days: int = 3


class Renames:
    """A codec whose messages are of a type that no program has loaded."""

    def encode(self, data: bytes, /) -> bytes:
        return b'{"$":"gone.module:Order","fields":{}}'

    def decode(self, data: bytes, /) -> bytes:
        return data


@flow
async def collects(n: int) -> list[Any]:
    return [await receive(object) for _ in range(n)]


async def test_a_message_ends_the_wait(world: World) -> None:
    @flow
    async def waits() -> Paid:
        return await receive(Paid)

    engine = await world.engine(waits)
    handle = await engine.start(waits, id="1")
    await world.parked(handle)
    await handle.send(Paid(7))
    assert await handle.result(timeout=10) == Paid(7)
    assert await world.inbox(handle) == []


async def test_a_message_wakes_an_unloaded_flow(world: World) -> None:
    engine = await world.engine(collects, max_resident=0)
    handle = await engine.start(collects, 3, id="1")
    for n in range(3):
        await world.unloaded(handle)
        await handle.send(n)
        await eventually(lambda: world.journal(handle), lambda entries, n=n: len(entries) == n + 2)
    assert await handle.result(timeout=10) == [0, 1, 2]


@pytest.mark.fault(37)
async def test_a_message_sent_before_the_flow_starts_is_not_lost(world: World) -> None:
    engine = await world.engine(collects)
    await engine.send(collects, "1", "a")
    await engine.send_many(collects, [Outgoing("1", "b"), Outgoing("2", "x"), Outgoing("1", "c")])
    engine = await world.restart(engine)
    assert await engine.run(collects, 3, id="1", timeout=10) == ["a", "b", "c"]
    assert await engine.run(collects, 1, id="2", timeout=10) == ["x"]


async def test_a_message_sent_while_the_flow_is_being_started_is_not_lost(world: World) -> None:
    """They may come into one transaction, in either order."""
    engine = await world.engine(collects)
    await asyncio.gather(
        engine.send(collects, "1", "a"), engine.start(collects, 3, id="1"), engine.send(collects, "1", "b"),
        engine.send_many(collects, [Outgoing("1", "c")]),
    )  # fmt: skip
    assert await engine.handle(collects, "1").result(timeout=10) == ["a", "b", "c"]


@pytest.mark.parametrize("turns", range(12))
async def test_a_message_sent_while_the_flow_is_being_loaded_is_not_lost(world: World, turns: int) -> None:
    engine = await world.engine(collects)
    await world.parked(await engine.start(collects, 2, id="1"))
    await world.crash(engine)
    engine = await world.engine(collects)
    for _ in range(turns):
        await asyncio.sleep(0.0002 if world.kind == "sqlite" else 0)
    await engine.send(collects, "1", "a")
    await engine.send(collects, "1", "b")
    assert await engine.handle(collects, "1").result(timeout=10) == ["a", "b"]


async def test_a_message_that_came_before_it_was_asked_for_is_not_lost(world: World) -> None:
    reached = asyncio.Event()
    go_on = asyncio.Event()

    @step
    async def long() -> None:
        reached.set()
        await go_on.wait()

    @flow
    async def asks_late() -> str:
        await long()
        return await receive(str)

    engine = await world.engine(asks_late)
    handle = await engine.start(asks_late, id="1")
    await reached.wait()
    await handle.send("early")
    go_on.set()
    assert await handle.result(timeout=10) == "early"


@pytest.mark.fault(37)
async def test_messages_of_one_sender_come_in_order(world: World) -> None:
    engine = await world.engine(collects, max_resident=0)
    handle = await engine.start(collects, 50, id="1")
    for n in range(50):
        await handle.send(n)
    assert await handle.result(timeout=10) == list(range(50))


async def test_types_choose(world: World) -> None:
    @flow
    async def chooses() -> list[Any]:
        declined = await receive(Declined)
        either = await receive(Declined, Paid)
        union = await receive(Paid | Declined)
        literal = await receive(Literal["b"])
        generic = await receive(list[int])
        number = await receive(int)
        return [declined, either, union, literal, generic, number, await receive(object)]

    engine = await world.engine(chooses)
    handle = await engine.start(chooses, id="1")
    for message in [Paid(1), True, "a", ["x"], [1], "b", PaidLater(2), Declined("first"), 5]:
        await handle.send(message)
    await handle.send(Declined("second"))
    assert await handle.result(timeout=10) == [
        Declined("first"), Paid(1), PaidLater(2), "b", [1], 5, True,
    ]  # fmt: skip
    left = [m.type for m in await world.inbox(handle)]
    assert len(left) == 3  # what nobody took is kept with the ended instance: "a", ["x"], the second Declined


async def test_a_message_arrives_as_its_own_class(world: World) -> None:
    engine = await world.engine(collects)
    handle = await engine.start(collects, 2, id="1")
    await handle.send(PaidLater(1, days=9))
    await handle.send(None)
    assert await handle.result(timeout=10) == [PaidLater(1, days=9), None]


async def test_named_messages_are_queues_of_their_own(world: World) -> None:
    @flow
    async def approvals() -> list[Any]:
        first = await receive(bool, name="Approval")
        second = await receive(bool, name="Approval")
        other = await receive(bool, name="Other")
        plain = await receive(bool)
        return [first, second, other, plain]

    engine = await world.engine(approvals)
    handle = await engine.start(approvals, id="1")
    await handle.send(False)
    await handle.send(True, name="Other")
    await handle.send(True, name="Approval")
    await handle.send(False, name="Approval")
    assert await handle.result(timeout=10) == [True, False, True, False]


async def test_a_filter_chooses_and_is_not_asked_at_replay(world: World) -> None:
    asked: list[int] = []

    def big(paid: Paid) -> bool:
        asked.append(paid.amount)
        return paid.amount > 10

    @flow
    async def chooses() -> list[int]:
        paid = await receive(Paid, where=big)
        await receive(str)
        rest = await receive(Paid)
        return [paid.amount, rest.amount]

    engine = await world.engine(chooses)
    handle = await engine.start(chooses, id="1")
    for amount in (1, 20, 30):
        await handle.send(Paid(amount))
    await world.parked(handle)
    assert asked == [1, 20]
    engine = await world.restart(engine)
    await engine.send(chooses, "1", "go")
    assert await engine.handle(chooses, "1").result(timeout=10) == [20, 1]
    assert asked == [1, 20]


async def test_a_filter_that_raises_fails_the_receive_and_takes_nothing(world: World) -> None:
    def broken(paid: Paid) -> bool:
        raise RuntimeError(f"cannot judge {paid.amount}")

    @flow
    async def chooses() -> list[Any]:
        try:
            await receive(Paid, where=broken)
        except RuntimeError as error:
            return [str(error), (await receive(Paid)).amount]
        return []

    engine = await world.engine(chooses)
    handle = await engine.start(chooses, id="1")
    await handle.send(Paid(3))
    assert await handle.result(timeout=10) == ["cannot judge 3", 3]


# ---------------------------------------------------------------- time limits


@flow
async def with_limit(seconds: float) -> Any:
    try:
        return await receive(str, timeout=seconds)
    except TimeoutError as error:
        return ["over", str(error)]


async def test_a_message_within_the_limit(world: World) -> None:
    engine = await world.engine(with_limit)
    handle = await engine.start(with_limit, 60, id="1")
    await world.parked(handle)
    world.clock.advance(59)
    await handle.send("in time")
    assert await handle.result(timeout=10) == "in time"
    kinds = [entry.kind for entry in await world.journal(handle)]
    assert kinds == ["begun", "receive"]  # the timer left no entry, and nothing is due any more


@pytest.mark.parametrize("unload", [False, True])
async def test_no_message_within_the_limit(world: World, unload: bool) -> None:
    engine = await world.engine(with_limit, max_resident=0 if unload else 100)
    handle = await engine.start(with_limit, 60, id="1")
    await (world.unloaded if unload else world.parked)(handle)
    world.clock.advance(60)
    assert await handle.result(timeout=10) == ["over", "no message str within 60 s"]


async def test_a_limit_that_was_over_stays_over_at_replay(world: World) -> None:
    """Even though a message is there by then."""

    @flow
    async def gives_up() -> list[Any]:
        first = await receive(str, timeout=timedelta(seconds=5), default=None)
        await receive(int)
        return [first, await receive(str)]

    engine = await world.engine(gives_up)
    handle = await engine.start(gives_up, id="1")
    await world.parked(handle)
    world.clock.advance(5)
    await eventually(lambda: world.journal(handle), lambda entries: len(entries) == 2)
    await handle.send("too late")
    engine = await world.restart(engine)
    await engine.send(gives_up, "1", 1)
    assert await engine.handle(gives_up, "1").result(timeout=10) == [None, "too late"]


async def test_five_messages_and_a_limit_on_the_sixth(world: World) -> None:
    @flow
    async def six() -> list[Any]:
        return [await receive(int, timeout=10, default="nothing") for _ in range(6)]

    engine = await world.engine(six, max_resident=0)
    handle = await engine.start(six, id="1")
    for n in range(5):
        await handle.send(n)
    await eventually(lambda: world.journal(handle), lambda entries: len(entries) == 6)
    await world.unloaded(handle)
    world.clock.advance(10)
    assert await handle.result(timeout=10) == [0, 1, 2, 3, 4, "nothing"]


async def test_a_limit_of_nothing_takes_what_is_there(world: World) -> None:
    reached, go_on = asyncio.Event(), asyncio.Event()

    @step
    async def hold() -> None:
        reached.set()
        await go_on.wait()

    @flow
    async def looks() -> list[Any]:
        before = await receive(str, timeout=0, default="nothing")
        await hold()
        return [before, await receive(str, timeout=0), await receive(str, timeout=0, default="empty")]

    engine = await world.engine(looks)
    handle = await engine.start(looks, id="1")
    await reached.wait()
    await handle.send("there")
    go_on.set()
    assert await handle.result(timeout=10) == ["nothing", "there", "empty"]


async def test_a_default_needs_a_limit(world: World) -> None:
    @flow
    async def wrong() -> None:
        await receive(str, default=None)  # type: ignore[call-overload]

    engine = await world.engine(wrong)
    with pytest.raises(FlowFailed, match="needs timeout="):
        await engine.run(wrong, id="1", timeout=10)


@pytest.mark.peer(12)
async def test_a_receive_that_is_cut_off_takes_nothing(world: World) -> None:
    @flow
    async def cuts() -> list[str]:
        try:
            async with asyncio.timeout(5):
                await receive(str)
        except TimeoutError:
            pass
        await receive(int)
        return [await receive(str)]

    engine = await world.engine(cuts)
    handle = await engine.start(cuts, id="1")
    await world.parked(handle)
    world.clock.advance(5)
    await eventually(lambda: world.journal(handle), lambda entries: len(entries) == 2)
    await handle.send("kept")
    await handle.send(1)
    assert await handle.result(timeout=10) == ["kept"]


async def test_two_receives_at_once_get_one_message_each(world: World) -> None:
    @flow
    async def two() -> list[str]:
        return list(await asyncio.gather(receive(str), receive(str)))

    engine = await world.engine(two)
    handle = await engine.start(two, id="1")
    await world.parked(handle)
    await handle.send("a")
    await handle.send("b")
    assert await handle.result(timeout=10) == ["a", "b"]


async def test_the_time_limit_of_a_taken_message_is_gone(world: World) -> None:
    """The next thing due is the delay of a day, not the limit of an hour."""

    @flow
    async def takes() -> None:
        await receive(str, timeout=timedelta(hours=1))
        await delay(timedelta(days=1))

    engine = await world.engine(takes, max_resident=0)
    handle = await engine.start(takes, id="1")
    await handle.send("x")
    await eventually(
        lambda: world.row(handle), lambda row: row.due_at is not None and row.due_at > world.clock.wall() + 80_000
    )
    world.clock.advance(86_400)
    await handle.result(timeout=10)


# ---------------------------------------------------------------- keys


@pytest.mark.fault(36)
async def test_a_key_is_delivered_once(world: World) -> None:
    engine = await world.engine(collects, max_resident=0)
    await engine.send(collects, "1", "early", key="k0")
    await engine.send(collects, "1", "early again", key="k0")
    handle = await engine.start(collects, 4, id="1")
    await handle.send("early once more", key="k0")
    await handle.send("a", key="k1")
    await handle.send("a again", key="k1")
    await world.unloaded(handle)
    await handle.send("a late", key="k1")
    engine = await world.restart(engine)
    handle = engine.handle(collects, "1")
    await handle.send("a after a restart", key="k1")
    await handle.send("no key")
    await handle.send("no key")
    assert await handle.result(timeout=10) == ["early", "a", "no key", "no key"]


async def test_two_hundred_sends_of_fifty_keys_with_restarts_between(world: World) -> None:
    rng = random.Random(7)
    sends = [n % 50 for n in range(200)]
    rng.shuffle(sends)

    @flow
    async def fifty() -> list[int]:
        got = [await receive(int) for _ in range(50)]
        await receive(str)
        return got

    engine = await world.engine(fifty, max_resident=0)
    await engine.start(fifty, id="1")
    for start in range(0, 200, 20):
        await engine.send_many(fifty, [Outgoing("1", n, key=f"key-{n}") for n in sends[start : start + 20]])
        if rng.random() < 0.4:
            engine = await world.restart(engine)
    await engine.send(fifty, "1", "end")
    handle = engine.handle(fifty, "1")
    got = await handle.result(timeout=20)
    assert sorted(got) == list(range(50))
    assert await world.inbox(handle) == []


# ---------------------------------------------------------------- between flows


async def test_ping_and_pong(world: World) -> None:
    @flow(name="ping")
    async def ping(rounds: int) -> list[int]:
        got: list[int] = []
        for n in range(rounds):
            await send("pong", "p", n)
            got.append(await receive(int))
        return got

    @flow(name="pong")
    async def pong(rounds: int) -> None:
        for _ in range(rounds):
            n = await receive(int)
            await send(ping, "p", n * 10)

    engine = await world.engine(ping, pong, max_resident=0)
    handle = await engine.start(ping, 10, id="p")
    await engine.start(pong, 10, id="p")
    assert await handle.result(timeout=20) == [n * 10 for n in range(10)]


async def test_a_flow_sends_exactly_once(world: World) -> None:
    @flow
    async def sends() -> None:
        await send(collects, "1", "a")
        await send_many(collects, [Outgoing("1", "b"), Outgoing("1", "c", key="k")])
        await receive(str)
        await send(collects, "1", "c again", key="k")
        await send(collects, "1", "d")

    engine = await world.engine(sends, collects)
    target = await engine.start(collects, 4, id="1")
    sender = await engine.start(sends, id="s")
    await world.parked(sender)
    for _ in range(2):
        engine = await world.restart(engine)
    await engine.send(sends, "s", "go")
    assert await engine.handle(collects, "1").result(timeout=10) == ["a", "b", "c", "d"]
    await engine.handle(sends, "s").result(timeout=10)
    assert await world.inbox(target) == []


async def test_children_message_their_parent(world: World) -> None:
    @flow
    async def child(n: int, parent: str) -> None:
        await capture(lambda: n)
        await send("parent", parent, n)

    @flow(name="parent")
    async def parent(n: int) -> int:
        children = [asyncio.create_task(child(i, "p")) for i in range(n)]
        total = sum([await receive(int) for _ in range(n)])
        await asyncio.gather(*children)
        return total

    engine = await world.engine(parent, child)
    assert await engine.run(parent, 100, id="p", timeout=20) == sum(range(100))


@pytest.mark.fault(37)
async def test_a_message_to_an_ended_flow_changes_nothing(world: World) -> None:
    @flow
    async def short() -> str:
        return "done"

    engine = await world.engine(short)
    handle = await engine.start(short, id="1")
    assert await handle.result(timeout=10) == "done"
    await handle.send("late")
    assert await handle.result(timeout=10) == "done"


async def test_a_message_whose_type_is_not_loaded_stays_in_the_inbox(world: World) -> None:
    @flow
    async def waits() -> str:
        return await receive(str)

    engine = await world.engine(waits)
    handle = await engine.start(waits, id="1")
    await world.parked(handle)
    other = await world.engine(execute=False, codec=Renames())
    await other.send(waits, "1", "of a type that nobody has here")
    await handle.send("hello")
    assert await handle.result(timeout=10) == "hello"
    assert len(await world.inbox(handle)) == 1


async def test_many_flows_get_their_messages(world: World) -> None:
    engine = await world.engine(collects, max_resident=30)
    handles = await engine.start_many(collects, [(str(n), 2) for n in range(100)])
    await engine.send_many(collects, [Outgoing(str(n), n) for n in range(100)])
    await engine.send_many(collects, [Outgoing(str(n), -n) for n in range(100)])
    assert [await handle.result(timeout=20) for handle in handles] == [[n, -n] for n in range(100)]
