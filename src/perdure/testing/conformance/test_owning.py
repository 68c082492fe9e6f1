"""Claims: what can go on, and whose it is then."""

import pytest

from perdure.errors import LeaseLost
from perdure.model.records import State
from perdure.model.writes import NotOwned, Release, Update
from perdure.testing.conformance.kit import Kit, block, create, finish, message, plain_tests, send, suspend, uid


async def test_a_claim_gives_the_rows_as_they_were_and_makes_them_the_replicas(kit: Kit) -> None:
    await kit.commit(create(1, owned=False, due_at=5.0), create(2))
    await kit.commit(suspend(2, due_at=6.0))
    before = [await kit.row(1), await kit.row(2)]
    assert await kit.claim() == before
    for number in (1, 2):
        row = await kit.row(number)
        assert (row.state, row.owner, row.waiting, row.due_at) == (State.RUNNING, "a", False, None)
    assert await kit.claim() == []


async def test_only_what_is_due_is_claimed_longest_due_first(kit: Kit) -> None:
    now = kit.clock.now
    await kit.commit(
        create(1, owned=False, due_at=now - 1), create(2, owned=False, due_at=now - 3),
        create(3, owned=False, due_at=now), create(4, owned=False, due_at=now + 1), create(5),
    )  # fmt: skip
    await kit.commit(suspend(5, due_at=now - 2))
    assert await kit.claimed() == [2, 5, 1, 3]


async def test_a_claim_takes_at_most_its_limit(kit: Kit) -> None:
    await kit.commit(*(create(n, owned=False, due_at=float(n)) for n in range(10)))
    assert [r.due_at for r in await kit.claim(limit=3)] == [0.0, 1.0, 2.0]
    assert [r.due_at for r in await kit.claim(limit=4)] == [3.0, 4.0, 5.0, 6.0]
    assert len(await kit.claim(limit=100)) == 3


async def test_the_limit_of_a_claim_is_for_all_causes_together(kit: Kit) -> None:
    await kit.commit(*(create(n, owned=False, due_at=1.0) for n in (1, 2, 3)), *(create(n) for n in (4, 5, 6, 7, 8)))
    await kit.commit(*(suspend(n) for n in (4, 5, 6)), block(7), block(8))
    await kit.commit(*(send(n, n) for n in (4, 5, 6)), *(send(n, n, kind="cancel") for n in (7, 8)), by=None)
    found = [await kit.claimed(limit=limit, thorough=True) for limit in (0, 1, 3, 3, 3)]
    assert [len(numbers) for numbers in found] == [0, 1, 3, 3, 1]
    assert sorted(number for numbers in found for number in numbers) == [1, 2, 3, 4, 5, 6, 7, 8]


async def test_a_claim_tells_when_the_next_is_due(kit: Kit) -> None:
    assert await kit.next_due() is None
    now = kit.clock.now
    await kit.commit(
        create(1, owned=False, due_at=now + 9), create(2, owned=False, due_at=now + 4),
        create(3, owned=False, due_at=now + 1, flow="g"), create(4),
    )  # fmt: skip
    await kit.commit(Update(uid(4), True, now + 2))
    assert await kit.next_due() == now + 4
    kit.clock.now += 5
    assert await kit.claimed() == [2]
    assert await kit.next_due() == now + 9


async def test_only_the_given_flow_types_are_claimed(kit: Kit) -> None:
    await kit.commit(*(create(n, flow=f, owned=False, due_at=1.0) for n, f in enumerate("ffgh")))
    assert len(await kit.claim(flows={"g": "", "h": ""})) == 2
    assert await kit.claim(flows={}) == []
    assert len(await kit.claim()) == 2


@pytest.mark.parametrize("state", [State.BLOCKED, State.SUSPENDED])
async def test_what_has_no_cause_to_go_on_is_not_claimed(kit: Kit, state: State) -> None:
    await kit.commit(create(1), create(2), create(3))
    await kit.commit(Release(uid(1), 0, state, None), finish(2))
    assert await kit.claimed(thorough=True) == []


async def test_an_instance_is_claimed_by_one(kit: Kit) -> None:
    await kit.join("b")
    await kit.commit(*(create(n, owned=False, due_at=1.0) for n in range(20)))
    mine = await kit.claim("a", limit=12)
    theirs = await kit.claim("b", limit=12)
    assert len(mine) == 12
    assert len(theirs) == 8
    assert not {r.uid for r in mine} & {r.uid for r in theirs}


async def test_a_claim_needs_the_fence(kit: Kit) -> None:
    await kit.commit(create(1, owned=False, due_at=1.0))
    kit.epochs["a"] += 1
    with pytest.raises(LeaseLost):
        await kit.claim()
    kit.epochs["nobody"] = 1
    with pytest.raises(LeaseLost):
        await kit.claim("nobody")
    assert (await kit.row(1)).owner is None


async def test_a_thorough_claim_finds_messages_without_a_wakeup_row(kit: Kit) -> None:
    await kit.commit(create(1), suspend(1))
    await kit.commit(send(1, 1), by=None)
    assert await kit.claimed() == [1]  # the wake-up row is gone now
    await kit.commit(suspend(1, seen=(message(1).mid,)))
    assert await kit.claimed(thorough=True) == []


async def test_who_lost_an_instance_to_nobody_can_write_its_row_no_more(kit: Kit) -> None:
    await kit.join("b")
    await kit.commit(create(1))
    await kit.commit(Release(uid(1), 0, State.SCHEDULED, None))
    assert await kit.claimed("b") == [1]
    assert await kit.commit(Update(uid(1), True, None), suspend(1)) == [None, NotOwned(uid(1))]
    assert (await kit.row(1)).owner == "b"


async def test_every_claim_begins_another_term(kit: Kit) -> None:
    await kit.commit(create(1), create(2, owned=False), create(3))
    assert [(await kit.row(n)).term for n in (1, 2, 3)] == [0, 0, 0]
    await kit.commit(suspend(1, due_at=kit.clock.now), block(3))
    assert (await kit.row(1)).term == 0
    assert sorted(await kit.claimed()) == [1, 2]
    assert await kit.tried("v2") == [3]
    assert [(await kit.row(n)).term for n in (1, 2, 3)] == [1, 1, 1]
    await kit.commit(suspend(1, due_at=kit.clock.now))
    edited = await kit.staged(2, change={"state": State.SCHEDULED, "due_at": 9e12})
    assert await kit.claimed() == [1]
    await kit.edit(edited, "a")
    assert [(await kit.row(n)).term for n in (1, 2, 3)] == [2, 1, 1]


plain_tests(globals())
