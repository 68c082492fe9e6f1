"""An instance is handed to who wants to edit it; what happens to it when its owner dies."""

import pytest
from msgspec.structs import replace

from perdure.model.records import State
from perdure.model.writes import Edited, NotOwned, OwnedBy, Release, Sent, Take, Update
from perdure.testing.conformance.kit import (
    LEASE,
    Kit,
    block,
    create,
    evict,
    finish,
    message,
    mids,
    plain_tests,
    send,
    suspend,
    uid,
)

# -- asking for it


async def test_a_request_to_hand_over_wakes_the_owner(kit: Kit) -> None:
    await kit.commit(create(1), create(2))
    request = evict(1, 1, "b")
    assert await kit.sent(request, None) == Sent(uid(1), "a", request.message, new=True)
    assert await kit.wakeups() == [1]
    assert await kit.inbox(1) == [request.message]
    assert (await kit.sent(evict(2, 2, "a"))).new
    assert await kit.wakeups() == []  # it knows by the answer


async def test_a_request_for_what_nobody_owns_is_dropped(kit: Kit) -> None:
    await kit.commit(create(1), create(2, owned=False), create(3), suspend(1), block(3))
    await kit.commit(create(4), finish(4))
    for number in (1, 2, 3, 4):
        request = evict(number, number, "b")
        assert await kit.sent(request, None) == Sent(uid(number), None, request.message, new=False)
        assert await kit.inbox(number) == []
    assert await kit.claimed(thorough=True) == [2]
    unknown = evict(9, 9, "b")
    assert await kit.sent(unknown, None) == Sent(None, None, unknown.message, new=False)
    assert await kit.one(create(9)) is not None
    assert await kit.inbox(9) == []


async def test_a_request_ends_with_the_ownership_and_wakes_nobody(kit: Kit) -> None:
    await kit.join("b")
    await kit.commit(create(1), create(2), create(3), send(2, 20))
    await kit.commit(evict(1, 1, "b"), evict(2, 2, "b"), evict(3, 3, "b"))
    await kit.commit(suspend(1), suspend(2, seen=tuple(mids(20))), block(3))
    assert [await kit.mids(n) for n in (1, 2, 3)] == [[], mids(20), []]
    assert await kit.claimed("b", thorough=True) == []


@pytest.mark.parametrize("release", [suspend(1), Release(uid(1), 0, State.SCHEDULED, 9e12), block(1)])
async def test_a_call_to_hand_over_is_no_cause_to_go_on(kit: Kit, release: Release) -> None:
    await kit.commit(create(1), send(1, 2))
    await kit.commit(evict(1, 1, "b"), by=None)  # and the owner does not look
    await kit.commit(replace(release, seen=tuple(mids(2))))
    assert await kit.claimed(thorough=True) == []
    await kit.commit(create(3))
    await kit.commit(evict(3, 3, "b"), send(3, 4), by=None)
    await kit.commit(suspend(3))
    assert await kit.claimed() == [3]


async def test_a_request_to_a_dead_owner_ends_with_it_and_wakes_nobody(kit: Kit) -> None:
    await kit.commit(create(1), create(2))
    await kit.commit(Update(uid(1), True, None), Update(uid(2), True, None), evict(1, 1, "b"), evict(2, 2, "b"))
    await kit.commit(send(2, 20))
    await kit.taken_over_by_b()
    assert [await kit.mids(n) for n in (1, 2)] == [[], mids(20)]
    assert await kit.claimed("b", thorough=True) == [2]


# -- handing over


async def test_an_instance_is_handed_to_a_live_replica_as_it_is(kit: Kit) -> None:
    await kit.join("b")
    await kit.commit(create(1), create(2), create(3), send(1, 1))
    await kit.commit(
        suspend(1, due_at=5.0, to="b"), Release(uid(2), 0, State.SCHEDULED, 6.0, to="b"), block(3, "v9", to="b")
    )
    rows = [await kit.row(n) for n in (1, 2, 3)]
    assert [(r.owner, r.state, r.waiting, r.due_at, r.reason, r.version) for r in rows] == [
        ("b", State.SUSPENDED, True, 5.0, None, "v1"),
        ("b", State.SCHEDULED, False, 6.0, None, "v1"),
        ("b", State.BLOCKED, False, None, "why", "v9"),
    ]
    assert await kit.wakeups("b") == []  # it is to be edited, not run
    assert await kit.claimed("b", thorough=True) == []
    assert await kit.next_due("b") is None


async def test_an_instance_is_not_handed_to_the_dead_or_unknown(kit: Kit) -> None:
    now = kit.clock.now
    await kit.join("c")
    await kit.store.leave("c")
    await kit.commit(create(1), create(2), create(3), send(2, 2))
    await kit.commit(suspend(1, due_at=now + 5, to="c"), suspend(2, to="nobody"), suspend(3, due_at=now, to="nobody"))
    assert [(await kit.row(n)).owner for n in (1, 2, 3)] == [None] * 3
    assert sorted(await kit.claimed()) == [2, 3]
    assert await kit.next_due() == now + 5


async def test_calls_go_to_the_new_owner(kit: Kit) -> None:
    await kit.join("b")
    await kit.commit(create(1), create(2))
    await kit.commit(send(1, 1), by=None)
    await kit.commit(suspend(1, to="b"), suspend(2, to="b"))
    assert await kit.wakeups("a") == []
    assert await kit.wakeups("b") == [1]
    assert await kit.sent(send(2, 2)) == Sent(uid(2), "b", message(2), new=True)
    assert await kit.wakeups("a") == []
    assert await kit.wakeups("b") == [2]


async def test_a_handover_sent_again_changes_nothing(kit: Kit) -> None:
    await kit.join("b")
    await kit.commit(create(1))
    await kit.commit(suspend(1, to="b"))
    before = await kit.load(1)
    assert await kit.one(suspend(1, to="b")) is None
    assert await kit.load(1) == before
    assert await kit.one(suspend(1, to="c")) == NotOwned(uid(1))


async def test_a_handover_sent_again_after_the_edit_gives_nothing_away(kit: Kit) -> None:
    await kit.join("b")
    await kit.commit(create(1), create(2))
    await kit.commit(suspend(1, to="b"), block(2, to="b"))
    await kit.edited(1, by="b")
    await kit.edited(2, by="b")
    assert await kit.commit(suspend(1, to="b"), block(2, to="b")) == [None, None]
    assert [(await kit.row(n)).owner for n in (1, 2)] == [None, None]


async def test_who_got_an_instance_edits_it_and_then_it_goes_on(kit: Kit) -> None:
    await kit.join("b")
    await kit.commit(create(1))
    await kit.commit(evict(1, 1, "b"), send(1, 2), by=None)
    await kit.commit(suspend(1, to="b"))
    edit = await kit.staged(1, messages=(message(3),))
    assert await kit.edit(edit, "a") == OwnedBy("b")
    assert await kit.edit(edit, "b") == Edited()
    assert await kit.inbox(1) == [message(2), message(3)]
    assert await kit.claimed("a") == [1]


async def test_what_was_asked_for_and_edited_goes_on_only_if_it_has_cause(kit: Kit) -> None:
    await kit.join("b")
    await kit.commit(create(1), create(2))
    await kit.commit(evict(1, 1, "b"), evict(2, 2, "b"), send(2, 3), by=None)
    await kit.commit(suspend(1, to="b"), suspend(2, to="b"))
    await kit.edited(1, by="b")
    await kit.edited(2, by="b")
    assert await kit.claimed(thorough=True) == [2]


async def test_a_blocking_handover_is_a_try(kit: Kit) -> None:
    await kit.join("b")
    await kit.commit(create(1))
    await kit.commit(block(1, "v1", "p1", to="b"))
    await kit.commit(block(1, "v2", "p2"), by="b")
    assert await kit.tried("v1", "p1") == []
    assert await kit.tried("v2", "p2") == []
    assert await kit.tried("v3", "p1") == [1]


# -- when the owner dies


async def test_what_the_dead_replica_did_not_run_stays_as_it_is(kit: Kit) -> None:
    now = kit.clock.now
    await kit.join("b")
    await kit.join("c")
    await kit.commit(*(create(n) for n in range(1, 7)), by="c")
    await kit.commit(
        suspend(2, due_at=now + 99, to="a"), Release(uid(3), 0, State.SCHEDULED, now + 98, to="a"), block(4, to="a"),
        suspend(5, to="a"), block(6, to="a"), by="c",
    )  # fmt: skip
    await kit.commit(send(5, 5), send(6, 6, kind="cancel"), by="c")
    before = [await kit.row(n) for n in range(1, 7)]
    assert [r.owner for r in before] == ["c", "a", "a", "a", "a", "a"]
    await kit.taken_over("a", "c", me="b")
    rows = [await kit.row(n) for n in range(1, 7)]
    assert rows[1:] == [replace(row, owner=None) for row in before[1:]]
    assert (rows[0].state, rows[0].owner, rows[0].due_at) == (State.SCHEDULED, None, kit.clock.now)
    assert sorted(await kit.claimed("b")) == [1, 5, 6]
    assert await kit.next_due("b") == now + 98


async def test_what_is_left_by_who_leaves_stays_as_it_is(kit: Kit) -> None:
    await kit.join("b")
    await kit.commit(create(1), create(2), send(2, 2))
    await kit.commit(block(1, to="b"), suspend(2, due_at=kit.clock.now + LEASE, seen=tuple(mids(2)), to="b"))
    await kit.store.leave("b")
    assert [(r.state, r.owner) for r in [await kit.row(1), await kit.row(2)]] == [
        (State.BLOCKED, None), (State.SUSPENDED, None),
    ]  # fmt: skip
    assert await kit.claimed(thorough=True) == []
    assert await kit.next_due() == kit.clock.now + LEASE


async def test_an_instance_that_was_taken_and_parked_needs_no_replay_when_its_owner_dies(kit: Kit) -> None:
    await kit.commit(create(1), send(1, 1), suspend(1))
    assert await kit.claimed() == [1]
    await kit.commit(Take(uid(1), mids(1)[0]), Update(uid(1), True, None))
    await kit.taken_over_by_b()
    assert (await kit.row(1)).state is State.SUSPENDED
    assert await kit.claimed("b", thorough=True) == []


plain_tests(globals())
