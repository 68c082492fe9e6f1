"""What two do at once comes out as if one of them had come first: nothing is lost, and nothing happens twice."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from perdure.model.records import State
from perdure.model.writes import Created, Edited, Existing, Finished, Outdated, Sent
from perdure.testing.conformance.kit import (
    Kit,
    block,
    create,
    entry,
    finish,
    message,
    mids,
    numbers,
    plain_tests,
    send,
    suspend,
    uid,
    watch,
)

A = TypeVar("A")
B = TypeVar("B")

ROUNDS = 20
"""So often is a race run; in every other round the second is asked first."""


async def at_once(number: int, one: Awaitable[A], two: Awaitable[B]) -> tuple[A, B]:
    """What the two gave, of whom now the one and now the other was asked first."""
    if number % 2:
        second, first = await asyncio.gather(two, one)
        return first, second
    first, second = await asyncio.gather(one, two)
    return first, second


async def test_of_two_who_create_one_id_one_does(kit: Kit) -> None:
    await kit.join("b")
    for number in range(ROUNDS):
        mine, theirs = create(2 * number, "x"), create(2 * number + 1, "x", arguments=b"[9]")
        answers = await at_once(number, kit.one(mine), kit.one(theirs, "b"))
        assert sorted(type(a).__name__ for a in answers) == ["Created", "Existing"]
        row = await kit.store.instance("f", "x")
        assert row is not None
        made = answers[0] == Created()
        assert (row.uid, row.owner) == ((mine.uid, "a") if made else (theirs.uid, "b"))
        assert answers[made] == Existing(row.uid, State.RUNNING, row.arguments, row.digest)
        await kit.edited(2 * number + (not made), by=row.owner, id=f"e{number}", delete=True)


async def test_a_message_sent_while_its_receiver_is_created_is_in_its_inbox(kit: Kit) -> None:
    for number in range(ROUNDS):
        created, sent = await at_once(number, kit.created(create(number)), kit.sent(send(number, number), None))
        assert sent.new
        assert await kit.mids(number) == mids(number)
        waited = created.inbox == (message(number),)
        assert waited == (sent.uid is None)
        assert await kit.wakeups() == ([] if waited else [number])


async def test_of_two_messages_with_one_key_one_is_kept(kit: Kit) -> None:
    await kit.commit(*(create(number) for number in range(ROUNDS)))
    for number in range(ROUNDS + 5):  # the last ones wait for a creation
        one, two = send(number, 100 + number, key="k"), send(number, 200 + number, key="k")
        first, second = await at_once(number, kit.sent(one, None), kit.sent(two, None))
        assert first.new is not second.new
        if number >= ROUNDS:
            await kit.commit(create(number))
        assert await kit.mids(number) == mids((100 if first.new else 200) + number)


async def test_a_watch_is_answered_once_when_the_end_comes_at_the_same_instant(kit: Kit) -> None:
    await kit.join("b")
    for number in range(0, 2 * ROUNDS, 2):
        await kit.commit(create(number))
        await kit.commit(create(number + 1), by="b")
        told, finished = await at_once(
            number // 2, kit.one(watch(number, number + 1)), kit.one(finish(number + 1), "b")
        )
        assert isinstance(finished, Finished)
        assert [s.uid for s in finished.sent] == ([] if isinstance(told, Sent) else [uid(number)])
        assert [m.type for m in await kit.inbox(number)] == ["succeeded"]
        assert await kit.wakeups() == ([] if isinstance(told, Sent) else [number])


async def test_a_child_and_its_parent_that_end_at_the_same_instant_both_end(kit: Kit) -> None:
    await kit.join("b")
    for number in range(0, 2 * ROUNDS, 2):
        await kit.commit(create(number))
        await kit.commit(create(number + 1, parent=number), watch(number, number + 1), by="b")
        ends = await at_once(number // 2, kit.one(finish(number, children=True)), kit.one(finish(number + 1), "b"))
        assert [type(end) for end in ends] == [Finished, Finished]
        assert [(await kit.row(n)).state for n in (number, number + 1)] == [State.SUCCEEDED] * 2


async def test_of_two_edits_one_is_made(kit: Kit) -> None:
    for number in range(ROUNDS):
        await kit.commit(create(number, owned=False, due_at=9e12))
        blocked = await kit.staged(number, id="one", change={"state": State.BLOCKED, "due_at": None})
        deleted = await kit.staged(number, id="two", delete=True)
        answers = await at_once(number, kit.edit(blocked), kit.edit(deleted))
        assert sorted(type(a).__name__ for a in answers) == ["Edited", "Outdated"]
        assert len(await kit.store.instances([uid(number)])) == (answers == (Edited(), Outdated()))


async def test_two_who_claim_get_different_instances(kit: Kit) -> None:
    await kit.join("b")
    await kit.commit(*(create(n, owned=False, due_at=float(n)) for n in range(30)), *(create(n) for n in range(30, 60)))
    await kit.commit(*(suspend(n) for n in range(30, 60)))
    await kit.commit(*(send(n, n) for n in range(30, 60)), by=None)
    claimed: dict[str, list[int]] = {"a": [], "b": []}
    for number in range(60):
        mine, theirs = await at_once(number, kit.claimed("a", limit=5), kit.claimed("b", limit=5))
        claimed["a"] += mine
        claimed["b"] += theirs
    assert sorted(claimed["a"] + claimed["b"]) == list(range(60))
    owners = {row.uid: row.owner for row in await kit.store.instances([uid(n) for n in range(60)])}
    assert owners == {uid(n): by for by, found in claimed.items() for n in found}


async def test_two_who_try_blocked_instances_get_different_ones(kit: Kit) -> None:
    await kit.join("b")
    await kit.commit(*(create(n) for n in range(20)))
    await kit.commit(*(block(n) for n in range(20)))

    async def tried(by: str) -> list[int]:
        rows, _ = await kit.store.claim_blocked(
            by, kit.epochs[by], flows={"f": "v2"}, process="p1", after=b"", limit=100
        )
        return numbers(rows)

    mine, theirs = await at_once(0, tried("a"), tried("b"))
    assert sorted(mine + theirs) == list(range(20))


async def test_a_claim_and_a_cancel_request_that_meet_lose_neither(kit: Kit) -> None:
    for number in range(ROUNDS):
        await kit.commit(create(number, owned=False, due_at=1.0))
        claimed, sent = await at_once(number, kit.claimed(), kit.sent(send(number, number, kind="cancel"), None))
        assert claimed == [number]
        assert await kit.mids(number) == mids(number)
        assert await kit.wakeups() == ([number] if sent.owner else [])  # who claimed it before reads the inbox after


async def test_a_wakeup_that_comes_when_the_owner_looks_is_told_once(kit: Kit) -> None:
    await kit.commit(*(create(number) for number in range(ROUNDS)))
    for number in range(ROUNDS):
        called, _ = await at_once(number, kit.wakeups(), kit.sent(send(number, number), None))
        assert await kit.mids(number) == mids(number)
        assert called + await kit.wakeups() == [number]


async def test_batches_that_touch_the_same_instances_in_another_order_are_all_written(kit: Kit) -> None:
    await kit.join("b")
    await kit.commit(*(create(n) for n in range(10)))
    await kit.commit(*(create(n) for n in range(10, 20)), by="b")
    every = range(20)
    for number in range(ROUNDS):
        there = [send(to, 1000 * number + to) for to in every]
        back = [send(to, 1000 * number + 500 + to) for to in reversed(every)]
        mine = [entry(n, number + 1) for n in range(10)]
        theirs = [entry(n, number + 1) for n in range(19, 9, -1)]
        await at_once(number, kit.commit(*mine, *there), kit.commit(*theirs, *back, by="b"))
    for loaded in await kit.store.load([uid(n) for n in every]):
        assert len(loaded.entries) == ROUNDS + 1
        assert len({m.mid for m in loaded.inbox}) == 2 * ROUNDS


plain_tests(globals())
