"""Code identities: who runs an instance last ran it with, and which code may still try a blocked one."""

import pytest
from msgspec.structs import replace

from perdure.errors import LeaseLost
from perdure.model.records import State
from perdure.model.writes import Create, Release, Send, Take
from perdure.testing.conformance.kit import (
    LEASE,
    Kit,
    again,
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
)


def due(number: int, version: str, at: float = 1.0) -> Create:
    return create(number, owned=False, due_at=at, version=version)


ODD = 'g"\\\n\u00e9\U0001f600'
"""A flow whose name is hard to quote."""


# -- who goes on with an instance


async def test_an_instance_is_left_to_a_live_replica_of_the_code_that_last_ran_it(kit: Kit) -> None:
    await kit.join("old", "v1")
    await kit.join("new", "v2")
    await kit.commit(*(due(n, v) for n, v in enumerate(["", "v1", "v2", "v3", "v10", "v"])))
    assert sorted(await kit.claimed("new", version="v2")) == [0, 2, 3, 4, 5]
    assert await kit.claimed("new", version="v2") == []
    assert await kit.claimed("old", version="v1") == [1]


async def test_when_the_last_replica_of_that_code_has_left_any_other_goes_on(kit: Kit) -> None:
    await kit.join("old", "v1")
    await kit.join("older", "v1")
    await kit.join("new", "v2")
    await kit.commit(due(1, "v1"))
    await kit.store.leave("old")
    assert await kit.claimed("new", version="v2") == []
    await kit.store.leave("older")
    assert await kit.claimed("new", version="v2") == [1]


async def test_a_replica_that_was_taken_over_keeps_nothing_for_itself(kit: Kit) -> None:
    await kit.join("old", "v1")
    await kit.join("new", "v2")
    await kit.commit(due(1, "v1"))
    kit.clock.now += LEASE * 0.7
    kit.store.renew("new", LEASE)
    kit.clock.now += LEASE * 0.7
    assert await kit.claimed("new", version="v2") == []  # its lease is over, but nobody has taken it over
    kit.store.renew("new", LEASE)
    await kit.store.reap("new", kill_hung=False)
    assert await kit.claimed("new", version="v2") == [1]


async def test_nothing_is_left_to_oneself(kit: Kit) -> None:
    await kit.join("new", "v1")
    await kit.commit(due(1, "v1"))
    assert await kit.claimed("new", version="v2") == [1]


async def test_woken_and_overlooked_instances_are_left_to_that_code_too(kit: Kit) -> None:
    await kit.join("old", "v1")
    await kit.join("new", "v2")
    await kit.commit(create(1), create(2), suspend(1), suspend(2))
    await kit.commit(send(1, 1), send(2, 2), by=None)
    assert await kit.claimed("new", version="v2") == []
    assert await kit.claimed("new", version="v2", thorough=True) == []
    assert sorted(await kit.claimed("old", version="v1")) == [1, 2]


async def test_a_cancel_request_is_for_any_code(kit: Kit) -> None:
    await kit.join("old", "v1")
    await kit.join("new", "v2")
    await kit.commit(*(due(n, "v1") for n in (1, 2)), create(3), create(4), suspend(3), block(4))
    await kit.commit(*(send(n, n, kind="cancel") for n in (1, 3, 4)), by=None)
    assert sorted(await kit.claimed("new", version="v2")) == [1, 3, 4]
    assert await kit.claimed("old", version="v1") == [2]


async def test_what_is_left_to_others_takes_no_place_in_a_claim(kit: Kit) -> None:
    await kit.join("old", "v1")
    await kit.join("new", "v2")
    await kit.commit(*(due(n, "v1", at=float(n)) for n in range(20)), *(due(n, "v2", at=30.0) for n in (50, 51, 52)))
    assert sorted(await kit.claimed("new", version="v2", limit=3)) == [50, 51, 52]


async def test_what_is_left_to_others_is_not_what_is_due_next(kit: Kit) -> None:
    now = kit.clock.now
    await kit.join("old", "v1")
    await kit.join("new", "v2")
    await kit.commit(due(1, "v1", at=now - 5), due(2, "v1", at=now + 2))
    assert await kit.next_due("new", version="v2") is None
    await kit.commit(due(3, "v2", at=now + 5))
    assert await kit.next_due("new", version="v2") == now + 5
    assert await kit.next_due("old", version="v1") == now - 5


async def test_a_release_says_which_code_ran_it(kit: Kit) -> None:
    await kit.join("old", "v1")
    await kit.join("new", "v2")
    await kit.commit(create(1), create(2))
    await kit.commit(
        Release(uid(1), 0, State.SCHEDULED, 1.0, version="v2"), Release(uid(2), 0, State.SCHEDULED, 1.0, version="")
    )
    assert [(await kit.row(n)).version for n in (1, 2)] == ["v2", "v1"]
    assert await kit.claimed("old", version="v1") == [2]
    assert await kit.claimed("new", version="v2") == [1]


async def test_each_instance_is_judged_by_its_own_flows_code(kit: Kit) -> None:
    await kit.join("old", "v1", **{ODD: "v1"})
    await kit.join("new", "v2", **{ODD: "w1"})
    await kit.commit(*(create(n, flow=flow, owned=False, due_at=1.0, version=version) for n, flow, version in (
        (1, "f", "v1"), (2, "f", "v2"), (3, ODD, "v1"), (4, ODD, "v2"), (5, ODD, "w1")
    )))  # fmt: skip
    flows = {"f": "v2", ODD: "w1"}
    rows, due = await kit.store.claim("new", kit.epochs["new"], flows=flows, now=kit.clock.now, limit=0)
    assert (rows, due) == ([], 1.0)
    assert sorted(numbers(await kit.claim("new", flows=flows))) == [2, 4, 5]
    rows, due = await kit.store.claim("new", kit.epochs["new"], flows=flows, now=kit.clock.now, limit=9)
    assert (rows, due) == ([], None)
    assert sorted(numbers(await kit.claim("old", flows={"f": "v1", ODD: "v1"}))) == [1, 3]


async def test_a_version_that_two_replicas_have_of_another_flow_keeps_neither_of_them_away(kit: Kit) -> None:
    """Of f both have v2, and of g v1; whoever had v1 of f is gone."""
    await kit.join("one", "v2", g="v1")
    await kit.join("two", "v2", g="v1")
    await kit.commit(due(1, "v1"))
    flows = {"f": "v2", "g": "v1"}
    claimed = [*await kit.claim("one", flows=flows), *await kit.claim("two", flows=flows)]
    assert numbers(claimed) == [1]


async def test_the_identities_of_all_live_replicas_count(kit: Kit) -> None:
    await kit.join("old", "v1")
    await kit.join("older", "v2", g="v3")
    await kit.join("oldest", "")
    await kit.join("new", "v4")
    await kit.commit(*(due(n, v) for n, v in enumerate(["", "v1", "v2", "v3", "v4", "v5"])))
    assert sorted(await kit.claimed("new", version="v4")) == [0, 3, 4, 5]
    await kit.join("old", "v2")
    assert sorted(await kit.claimed("new", version="v4")) == [1]
    await kit.join("old")
    await kit.join("older", "", g="v2")
    assert sorted(await kit.claimed("new", version="v4")) == [2]


async def test_a_claim_says_which_code_runs_it_from_now_on(kit: Kit) -> None:
    await kit.commit(due(1, ""), due(2, "v1"), create(3), create(4), create(5), create(6, flow="g"))
    await kit.commit(suspend(3), suspend(4), block(5), Release(uid(6), 0, State.SUSPENDED, None))
    await kit.commit(
        send(3, 1), send(4, 2), send(5, 3, kind="cancel"), Send("g", "i6", message(4, kind="cancel")), by=None
    )
    assert await kit.wakeups() == []
    before = [await kit.row(n) for n in range(1, 7)]
    rows = await kit.claim(version="v2", thorough=True)
    assert sorted(rows, key=lambda row: row.uid) == before
    assert [(await kit.row(n)).version for n in range(1, 7)] == ["v2"] * 5 + ["v1"]  # its own is not known of g


async def test_a_claim_by_code_without_an_identity_leaves_that_of_the_last(kit: Kit) -> None:
    await kit.commit(due(1, "v1"), create(2), block(2, "v1"))
    assert await kit.claimed(version="") == [1]
    assert await kit.tried("", "p1") == [2]
    assert [(await kit.row(n)).version for n in (1, 2)] == ["v1", "v1"]


@pytest.mark.parametrize("blocked", [False, True])
async def test_after_a_takeover_it_is_known_who_ran_it_last(kit: Kit, blocked: bool) -> None:
    await kit.join("new", "v2")
    if blocked:
        await kit.commit(create(1), block(1, "v1"))
        assert await kit.tried("v2") == [1]
    else:
        await kit.commit(due(1, "v1"))
        assert await kit.claimed("a", version="v2") == [1]
    await kit.join("old", "v1")
    await kit.taken_over("a", "old", me="new")
    await kit.join("old2", "v1")
    assert (await kit.row(1)).state is State.SCHEDULED
    assert await kit.claimed("old2", version="v1") == []
    assert await kit.claimed("new", version="v2") == [1]


# -- who may try a blocked instance


async def test_code_tries_a_blocked_instance_once_and_once_more_in_another_process(kit: Kit) -> None:
    await kit.commit(create(1), block(1, "v1", "p1"))
    assert await kit.tried("v1", "p1") == []
    assert await kit.tried("v1", "p2") == [1]
    await kit.commit(block(1, "v1", "p2"))
    for process in ("p1", "p2", "p3"):
        assert await kit.tried("v1", process) == []
    assert await kit.tried("v2", "p1") == [1]
    await kit.commit(block(1, "v2", "p1"))
    assert await kit.tried("v1", "p3") == []
    assert await kit.tried("v2", "p1") == []
    assert await kit.tried("v2", "p3") == [1]


async def test_a_try_is_of_the_code_that_ran_it_last_if_none_is_named(kit: Kit) -> None:
    await kit.commit(create(1, version="v5"), block(1, "", "p1"))
    assert (await kit.row(1)).version == "v5"
    assert await kit.tried("v5", "p1") == []
    assert await kit.tried("v1", "p1") == [1]


async def test_a_claimed_blocked_instance_is_the_replicas_and_given_as_it_was(kit: Kit) -> None:
    await kit.commit(create(1), send(1, 1, kind="cancel"), block(1))
    before = await kit.row(1)
    rows, last = await kit.store.claim_blocked(
        "a", kit.epochs["a"], flows={"f": "v2"}, process="p1", after=b"", limit=10
    )
    assert (rows, last) == ([before], b"")
    after = replace(before, state=State.RUNNING, owner="a", waiting=False, due_at=None, version="v2", term=1)
    assert await kit.row(1) == after
    assert await kit.wakeups() == []
    assert await kit.claimed() == []


async def test_a_longer_journal_may_be_tried_again_by_all(kit: Kit) -> None:
    await kit.commit(create(1), block(1, "v1", "p1"))
    assert await kit.tried("v2", "p1") == [1]
    await kit.commit(entry(1, 1))
    await kit.commit(block(1, "v2", "p1"))
    assert await kit.tried("v2", "p1") == []
    assert await kit.tried("v1", "p1") == [1]


async def test_unordered_entries_make_a_journal_no_longer(kit: Kit) -> None:
    await kit.commit(create(1), block(1, "v1", "p1"))
    assert await kit.tried("v2", "p1") == [1]
    await kit.commit(entry(1, -1))
    await kit.commit(block(1, "v2", "p1"))
    assert await kit.tried("v1", "p1") == []


async def test_an_edited_instance_may_be_tried_again_by_all(kit: Kit) -> None:
    await kit.commit(create(1), block(1, "v1", "p1"))
    await kit.edited(1)
    assert (await kit.row(1)).state is State.BLOCKED
    assert await kit.tried("v1", "p1") == [1]


async def test_the_next_run_may_be_tried_by_all(kit: Kit) -> None:
    await kit.commit(create(1), block(1, "v1", "p1"))
    assert await kit.tried("v2", "p1") == [1]
    await kit.commit(again(1))
    await kit.commit(block(1, "v2", "p1"))
    assert await kit.tried("v1", "p1") == [1]


async def test_a_blocking_release_sent_again_is_one_try(kit: Kit) -> None:
    await kit.commit(create(1))
    await kit.commit(block(1, "v1", "p1"))
    await kit.commit(block(1, "v1", "p1"))
    assert await kit.tried("v1", "p2") == [1]
    await kit.commit(block(1, "v1", "p1"))  # it tried once more, forced
    assert await kit.tried("v1", "p2") == [1]


async def test_other_releases_are_no_tries(kit: Kit) -> None:
    await kit.commit(create(1), Release(uid(1), 0, State.SCHEDULED, 1.0, version="v1", process="p1"))
    assert await kit.claimed() == [1]
    await kit.commit(block(1, "v2", "p1"))
    assert await kit.tried("v1", "p1") == [1]


async def test_only_blocked_instances_that_nobody_owns_are_tried(kit: Kit) -> None:
    await kit.join("b")
    await kit.commit(create(1), create(2), create(3), create(4), create(5, owned=False, due_at=1.0))
    await kit.commit(create(6, flow="g"), create(7))
    await kit.commit(block(6), block(7), block(3, to="b"), suspend(2), finish(4))
    assert await kit.tried("v2") == [7]


async def test_blocked_instances_are_looked_at_in_pages_by_uid(kit: Kit) -> None:
    await kit.commit(*(create(n, flow="fgh"[n % 3]) for n in range(1, 13)))
    await kit.commit(*(block(n, "v2" if n in (4, 7) else "v1") for n in range(1, 13)))

    async def page(after: bytes, limit: int = 3) -> tuple[list[int], bytes]:
        rows, last = await kit.store.claim_blocked(
            "a", kit.epochs["a"], flows={"h": "v2", "g": "v2"}, process="p1", after=after, limit=limit
        )
        return numbers(rows), last

    assert await page(b"", 0) == ([], b"")
    assert await page(uid(4), 0) == ([], uid(4))
    assert await page(b"") == ([1, 2], uid(4))  # of 1, 2 and 4
    assert await page(uid(4)) == ([5, 8], uid(8))  # of 5, 7 and 8
    assert await page(uid(8)) == ([10, 11], b"")
    assert await page(uid(11)) == ([], b"")
    assert await page(b"") == ([], b"")


async def test_a_full_page_after_which_nothing_comes_is_the_last(kit: Kit) -> None:
    await kit.commit(*(create(n) for n in (1, 2, 3)), create(4, flow="g"), create(5))
    await kit.commit(*(block(n) for n in (1, 2, 3, 4)))
    for limit, last in ((2, uid(2)), (3, b""), (4, b"")):
        _, found = await kit.store.claim_blocked(
            "a", kit.epochs["a"], flows={"f": "v1"}, process="p1", after=b"", limit=limit
        )
        assert found == last, limit


async def test_each_blocked_instance_is_judged_by_its_own_flows_code(kit: Kit) -> None:
    await kit.commit(create(1), create(2), create(3, flow=ODD), create(4, flow=ODD), create(5, flow="h"))
    await kit.commit(block(1, "v1"), block(2, "v2"), block(3, "v1"), block(4, "v2"), block(5, "v1"))
    rows, last = await kit.store.claim_blocked(
        "a", kit.epochs["a"], flows={ODD: "v1", "f": "v2"}, process="p1", after=b"", limit=10
    )
    assert (numbers(rows), last) == ([1, 4], b"")
    assert [(await kit.row(n)).version for n in range(1, 6)] == ["v2", "v2", "v1", "v1", "v1"]


async def test_trying_needs_the_fence(kit: Kit) -> None:
    await kit.commit(create(1), block(1))
    kit.epochs["a"] += 1
    with pytest.raises(LeaseLost):
        await kit.tried("v2")
    assert (await kit.row(1)).owner is None


async def test_a_blocked_instance_that_is_tried_has_all_its_messages(kit: Kit) -> None:
    await kit.commit(create(1), send(1, 1), send(1, 2))
    await kit.commit(Take(uid(1), mids(1)[0]), block(1))
    await kit.commit(send(1, 3), by=None)
    assert await kit.tried("v2") == [1]
    assert await kit.inbox(1) == [message(2), message(3)]
    assert await kit.wakeups() == []


plain_tests(globals())
