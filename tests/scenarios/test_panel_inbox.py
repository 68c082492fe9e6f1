"""The control panel's inbox: messages that nobody took are appended, replaced, removed, with their keys and names."""

from dataclasses import dataclass
from typing import Any

import pytest

from perdure import (
    Engine,
    FlowFailed,
    Handle,
    NotEncodable,
    Outdated,
    PayloadTooLarge,
    State,
    capture,
    flow,
    messages,
    receive,
)
from perdure.model.records import Kind
from tests.support.world import World, eventually


@dataclass(frozen=True)
class Go:
    """Lets the flow begin to take."""


@dataclass(frozen=True)
class Paid:
    amount: int


@flow(name="takes")
async def takes(n: int) -> list[Any]:
    await receive(Go)
    return [await receive(int | str | Paid) for _ in range(n)]


@flow(name="names")
async def names() -> list[Any]:
    await receive(Go)
    return [await receive(int, name="a"), await receive(int, name="b"), await receive(int)]


async def waiting(world: World, engine: Engine, *sent: Any, n: int = 3, flow: Any = takes) -> Handle[Any]:
    """An instance that has taken nothing, with these messages; each has its place as key."""
    for number, message in enumerate(sent):
        await engine.send(flow, "1", message, key=f"k{number}")
    handle = await engine.start(flow, *([n] if flow is takes else []), id="1")
    await world.parked(handle)
    return handle


async def inbox(world: World, handle: Handle[Any]) -> list[tuple[Any, str | None, str | None]]:
    """Value, key and name of every message that nobody took."""
    panel = await world.panel(handle)
    rows = await world.inbox(handle)
    return [(panel.inbox[i], row.key, row.name) for i, row in enumerate(rows)]


async def test_messages_are_shown_in_their_order(world: World) -> None:
    engine = await world.engine(takes)
    await waiting(world, engine, 1, Paid(2), "three")
    panel = await engine.panel(takes, "1")
    assert (len(panel.inbox), list(panel.inbox)) == (3, [1, Paid(2), "three"])
    assert panel.inbox[-1] == "three"
    with pytest.raises(IndexError):
        panel.inbox[3]
    with pytest.raises(IndexError):
        panel.inbox.remove(3)
    with pytest.raises(IndexError):
        panel.inbox.replace(3, "x")


@pytest.mark.parametrize("eager", [False, True])
async def test_messages_are_appended_replaced_and_removed_as_one_change(world: World, eager: bool) -> None:
    engine = await world.engine(takes, max_resident=0 if eager else 10)
    handle = await waiting(world, engine, 1, 2, 3, 4, n=5)
    before = await inbox(world, handle)
    panel = await engine.panel(takes, "1")
    panel.inbox.append("last", key="new")
    panel.inbox.replace(1, Paid(2))
    panel.inbox.remove(2)
    panel.inbox.append("very last")
    panel.inbox.replace(3, "last but one")
    panel.inbox.replace(0, "first", key="other")
    panel.inbox.append("not at all")
    panel.inbox.remove(-1)
    expected = ["first", Paid(2), 4, "last but one", "very last"]
    assert list(panel.inbox) == expected
    assert await inbox(world, handle) == before
    await panel.save()
    assert list(panel.inbox) == expected
    assert [row[1] for row in await inbox(world, handle)] == ["other", "k1", "k3", "new", None]
    await handle.send(Go())
    assert await handle.result(timeout=10) == expected


@pytest.mark.parametrize("eager", [False, True])
async def test_a_waiting_flow_takes_what_is_put_there(world: World, eager: bool) -> None:
    engine = await world.engine(takes, max_resident=0 if eager else 10)
    handle = await waiting(world, engine, n=1)
    panel = await engine.panel(takes, "1")
    panel.inbox.append(Go())
    panel.inbox.append(Paid(3))
    await panel.save()
    assert await handle.result(timeout=10) == [Paid(3)]


async def test_a_message_that_was_seen_is_looked_at_again_when_it_was_replaced(world: World) -> None:
    engine = await world.engine(takes, max_resident=0)
    handle = await waiting(world, engine, "not what it waits for", 1, n=1)
    await world.unloaded(handle)
    panel = await engine.panel(takes, "1")
    panel.inbox.replace(0, Go())
    await panel.save()
    assert await handle.result(timeout=10) == [1]


async def test_all_are_cleared(world: World) -> None:
    engine = await world.engine(takes)
    handle = await waiting(world, engine, 1, 2, n=1)
    panel = await engine.panel(takes, "1")
    panel.inbox.append(3)
    panel.inbox.replace(0, 4)
    panel.inbox.clear()
    panel.inbox.append(5, key="k0")
    assert list(panel.inbox) == [5]
    await panel.save()
    await handle.send(Go())
    assert await handle.result(timeout=10) == [5]


async def test_a_key_that_was_removed_may_come_again_and_no_other(world: World) -> None:
    engine = await world.engine(takes)
    handle = await waiting(world, engine, 0, 1, 2)
    panel = await engine.panel(takes, "1")
    panel.inbox.remove(0)
    panel.inbox.replace(0, 11)
    panel.inbox.replace(1, 12, key="other")
    await panel.save()
    for key in ("k0", "k1", "other", "k2"):
        await handle.send(key, key=key)
    assert await inbox(world, handle) == [(11, "k1", None), (12, "other", None), ("k0", "k0", None), ("k2", "k2", None)]


async def test_an_appended_message_whose_key_is_known_does_not_come_twice(world: World) -> None:
    engine = await world.engine(takes)
    handle = await waiting(world, engine, 1)
    await handle.send(Go(), key="go")
    await eventually(lambda: world.journal(handle), lambda entries: len(entries) == 3)
    panel = await engine.panel(takes, "1")
    panel.inbox.append("taken before", key="go")
    panel.inbox.append("new", key="new")
    await panel.save()
    await handle.send("new again", key="new")
    await handle.send("end")
    assert await handle.result(timeout=10) == [1, "new", "end"]


async def test_names_stay_and_are_given(world: World) -> None:
    engine = await world.engine(names)
    handle = await waiting(world, engine, flow=names)
    for name in ("b", "a", None):
        await handle.send(1, name=name)
    panel = await engine.panel(names, "1")
    panel.inbox.replace(0, 2)
    panel.inbox.replace(1, 3)
    panel.inbox.replace(2, 4)
    panel.inbox.append(5, name="a")
    await panel.save()
    assert [row[2] for row in await inbox(world, handle)] == ["b", "a", None, "a"]
    await handle.send(Go())
    assert await handle.result(timeout=10) == [3, 2, 4]


async def test_a_message_that_was_taken_meanwhile_outdates_the_edit(world: World) -> None:
    engine = await world.engine(takes)
    handle = await waiting(world, engine, 1, 2, n=5)
    removes, replaces, appends = [await engine.panel(takes, "1") for _ in range(3)]
    removes.inbox.remove(0)
    removes.args = (1,)
    replaces.inbox.replace(0, "x")
    appends.inbox.append("appended")
    await handle.send(Go())
    await eventually(lambda: world.journal(handle), lambda entries: len(entries) == 4)
    for panel in (removes, replaces):
        with pytest.raises(Outdated, match="took an edited message"):
            await panel.save()
    await appends.save()  # it touches nothing that was taken
    await handle.send("more")
    await handle.send("end")
    assert await handle.result(timeout=10) == [1, 2, "appended", "more", "end"]


async def test_two_panels_edit_the_inbox_and_one_wins(world: World) -> None:
    engine = await world.engine(takes)
    handle = await waiting(world, engine, 1, n=2)
    one, two = await engine.panel(takes, "1"), await engine.panel(takes, "1")
    one.inbox.append("one")
    two.inbox.replace(0, "two")
    await one.save()
    with pytest.raises(Outdated):
        await two.save()
    await handle.send(Go())
    assert await handle.result(timeout=10) == [1, "one"]


async def test_inbox_edits_leave_the_rest_as_it_is(world: World) -> None:
    """An instance that waits goes on waiting; entries are compared as before."""
    engine = await world.engine(takes, max_resident=0)
    handle = await waiting(world, engine, 1)
    await world.unloaded(handle)
    before = await world.row(handle)
    panel = await engine.panel(takes, "1")
    panel.inbox.remove(0)
    await panel.save()
    after = await world.row(handle)
    assert (after.state, after.due_at, after.edited_seq) == (before.state, before.due_at, before.edited_seq)


async def test_an_ended_instance_keeps_what_is_put_there_for_a_restart(world: World) -> None:
    @flow(name="fails")
    async def fails() -> list[int]:
        got = await receive(int)
        if got < 10:
            raise ValueError(got)
        return [got, await receive(int)]

    engine = await world.engine(fails)
    handle = await engine.start(fails, id="1")
    await handle.send(1)
    with pytest.raises(FlowFailed):
        await handle.result(timeout=10)
    panel = await engine.panel(fails, "1")
    panel.entries.set("0", 11)
    panel.inbox.append(12)
    await panel.save()
    assert panel.state is State.FAILED
    assert list(panel.inbox) == [12]
    await panel.restart()
    assert await handle.result(timeout=10) == [11, 12]


async def test_streams_read_messages_as_they_are_when_they_arrive(world: World) -> None:
    @flow(name="reads")
    async def reads() -> list[int]:
        await receive(Go)
        return list(await messages(int).take(3).list())

    engine = await world.engine(reads)
    handle = await waiting(world, engine, 1, 2, flow=reads)
    panel = await engine.panel(reads, "1")
    panel.inbox.remove(0)
    panel.inbox.replace(0, 22)
    panel.inbox.append(Go())
    panel.inbox.append(33)
    await panel.save()
    await eventually(lambda: world.journal(handle), lambda es: [e.kind for e in es].count(Kind.ARRIVAL) == 2)
    panel = await engine.panel(reads, "1")
    panel.inbox.clear()  # what has arrived is in the journal
    panel.inbox.append(44)
    await panel.save()
    assert await handle.result(timeout=10) == [22, 33, 44]


async def test_what_cannot_be_sent_is_refused(world: World) -> None:
    engine = await world.engine(takes, payload_limit=1000)
    await waiting(world, engine, 1)
    panel = await engine.panel(takes, "1")
    with pytest.raises(NotEncodable):
        panel.inbox.append(object())
    with pytest.raises(PayloadTooLarge):
        panel.inbox.replace(0, "x" * 2000)
    for wrong in ("", "x" * 300):
        with pytest.raises(ValueError):
            panel.inbox.append(1, key=wrong)
        with pytest.raises(ValueError):
            panel.inbox.append(1, name=wrong)
    assert list(panel.inbox) == [1]


async def test_a_message_whose_type_is_not_known_is_removed(world: World) -> None:
    engine = await world.engine(takes)
    handle = await waiting(world, engine, {"$": "nowhere:Type"}, 1, n=1)
    panel = await engine.panel(takes, "1")
    assert panel.inbox[0] == {"$": "nowhere:Type"}
    panel.inbox.remove(0)
    await panel.save()
    await handle.send(Go())
    assert await handle.result(timeout=10) == [1]


async def test_the_same_key_is_not_given_to_two(world: World) -> None:
    engine = await world.engine(takes)
    handle = await waiting(world, engine, 0, 1)
    panel = await engine.panel(takes, "1")
    panel.inbox.replace(1, "other", key="k0")
    await panel.save()
    assert await inbox(world, handle) == [(0, "k0", None), (1, "k1", None)]


async def test_steps_run_while_the_inbox_is_edited(world: World) -> None:
    """An edit of a running instance loses no message that comes meanwhile."""

    @flow(name="works")
    async def works() -> list[int]:
        found: list[int] = []
        while (n := await receive(int)) >= 0:
            found.append(await capture(lambda n=n: n, name="work"))
        return found

    engine = await world.engine(works)
    editor = await world.engine(execute=False)
    handle = await engine.start(works, id="1")
    for n in range(20):
        await handle.send(n)
        if n % 5 == 0:
            panel = await editor.panel("works", "1")
            panel.inbox.append(100 + n)
            await panel.save()
    await handle.send(-1)
    result = await handle.result(timeout=10)
    assert [n for n in result if n < 100] == list(range(20))
    assert sorted(result) == [*range(20), 100, 105, 110, 115]
