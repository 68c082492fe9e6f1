"""Lanes: what a claim looks for. An instance keeps the one that it was created with, and only who serves it runs it."""

from msgspec.structs import replace

from perdure.model.records import State
from perdure.model.writes import Create, Release
from perdure.testing.conformance.kit import (
    Kit,
    again,
    block,
    create,
    entry,
    finish,
    message,
    numbers,
    plain_tests,
    send,
    suspend,
    uid,
)

LANE = "\x1fgpu\x1ff"
"""Of the flow f."""
MANY = 3000


def due(number: int, lane: str, at: float = 1.0, version: str = "") -> Create:
    return create(number, lane=lane, owned=False, due_at=at, version=version)


async def claimed(kit: Kit, *lanes: str, by: str = "a", thorough: bool = False, limit: int = 100) -> list[int]:
    return sorted(numbers(await kit.claim(by, flows=dict.fromkeys(lanes, ""), thorough=thorough, limit=limit)))


async def test_what_is_due_is_claimed_by_its_lane_and_not_by_its_flow(kit: Kit) -> None:
    await kit.commit(due(1, "f"), due(2, LANE), due(3, "f\x1fgpu"), due(4, "gpu"))
    assert await claimed(kit, "f") == [1]
    assert await claimed(kit, "g") == []
    assert await claimed(kit, "gpu", LANE) == [2, 4]
    assert await claimed(kit, "f\x1fgpu") == [3]


async def test_the_row_says_flow_and_lane(kit: Kit) -> None:
    await kit.commit(due(1, LANE), create(2, lane=LANE), due(3, "f"))
    rows = [await kit.row(n) for n in (1, 2, 3)]
    assert [(row.flow, row.lane) for row in rows] == [("f", LANE), ("f", LANE), ("f", "f")]
    assert await kit.claim(flows={LANE: ""}) == [rows[0]]
    assert await kit.store.instance("f", "i2") == rows[1]
    assert await kit.store.find(flow="f", states=None, since=None, after=None, limit=9) == [await kit.row(1), *rows[1:]]


async def test_what_is_due_in_a_lane_that_nobody_serves_is_not_what_is_due_next(kit: Kit) -> None:
    now = kit.clock.now
    await kit.commit(due(1, LANE, at=now - 5), due(2, "f", at=now + 7))
    assert await kit.next_due() == now + 7


async def test_a_lane_that_nobody_serves_takes_no_place_in_a_claim(kit: Kit) -> None:
    await kit.commit(*(due(n, LANE) for n in range(MANY)))
    await kit.commit(*(due(MANY + n, "f", at=2.0) for n in range(5)))
    assert await claimed(kit, "f", limit=3) == [MANY, MANY + 1, MANY + 2]
    assert await claimed(kit, "f", limit=3) == [MANY + 3, MANY + 4]
    assert await claimed(kit, "f", thorough=True) == []
    assert len(await claimed(kit, LANE, limit=MANY)) == MANY


async def test_messages_that_nobody_in_its_lane_reads_take_no_place_in_a_claim(kit: Kit) -> None:
    await kit.commit(*(create(n, lane=LANE) for n in range(200)), create(500))
    await kit.commit(*(suspend(n) for n in range(200)), suspend(500))
    await kit.commit(*(send(n, n) for n in range(200)), send(500, 500), by=None)
    assert await claimed(kit, "f", limit=2) == [500]
    assert await claimed(kit, "f", limit=2, thorough=True) == []
    assert await claimed(kit, LANE, limit=300) == list(range(200))


async def test_a_message_wakes_who_serves_the_lane(kit: Kit) -> None:
    await kit.commit(create(1, lane=LANE), create(2))
    await kit.commit(suspend(1), suspend(2))
    await kit.commit(send(1, 1), send(2, 2), by=None)
    assert await claimed(kit, "f") == [2]
    assert await claimed(kit, LANE) == [1]


async def test_a_message_whose_wakeup_was_lost_is_found_by_who_serves_the_lane(kit: Kit) -> None:
    """As if: it was seen by a replica that released the instance without saying so."""
    await kit.commit(create(1, lane=LANE), send(1, 1))
    await kit.commit(suspend(1))
    assert await claimed(kit, "f", thorough=True) == []
    assert await claimed(kit, LANE, thorough=True) == [1]


async def test_a_message_that_came_early_is_in_the_lane_of_who_is_created(kit: Kit) -> None:
    await kit.commit(send(1, 1), by=None)
    created = await kit.created(due(1, LANE, at=kit.clock.now + 50))
    assert created.inbox == (message(1),)
    assert await claimed(kit, "f", thorough=True) == []
    await kit.commit(due(2, "f"))
    assert await claimed(kit, "f") == [2]
    kit.clock.now += 60
    assert await claimed(kit, LANE) == [1]


async def test_a_wakeup_that_was_written_for_a_lost_owner_is_in_its_lane(kit: Kit) -> None:
    await kit.join("b")
    await kit.commit(create(1, lane=LANE), create(2))
    await kit.commit(suspend(1), suspend(2))
    await kit.claim("b", flows={"f": "", LANE: ""}, thorough=True)
    await kit.commit(send(1, 1), send(2, 2), by=None)
    await kit.taken_over_by_b()
    assert await claimed(kit, "f", by="b") == [2]
    assert await claimed(kit, LANE, by="b") == [1]


async def test_what_a_dead_replica_ran_stays_in_its_lane(kit: Kit) -> None:
    await kit.commit(create(1, lane=LANE), create(2))
    await kit.taken_over_by_b()
    assert (await kit.row(1)).lane == LANE
    assert await claimed(kit, "f", by="b") == [2]
    assert await claimed(kit, LANE, by="b") == [1]


async def test_the_next_run_stays_in_its_lane(kit: Kit) -> None:
    await kit.commit(create(1, lane=LANE))
    await kit.continued(again(1))
    await kit.commit(Release(uid(1), (await kit.row(1)).term, State.SCHEDULED, 1.0))
    assert await claimed(kit, "f") == []
    assert await claimed(kit, LANE) == [1]


async def test_an_edit_leaves_the_lane_as_it_is(kit: Kit) -> None:
    await kit.commit(create(1, lane=LANE), entry(1, 1))
    await kit.commit(finish(1, State.FAILED))
    change = {"state": State.SCHEDULED, "due_at": 1.0, "outcome": None, "ended_at": None}
    await kit.edited(1, change=change)
    assert (await kit.row(1)).lane == LANE
    assert await claimed(kit, "f") == []
    assert await claimed(kit, LANE) == [1]


async def test_blocked_instances_are_tried_by_who_serves_the_lane(kit: Kit) -> None:
    await kit.commit(create(1, lane=LANE), create(2), create(3, lane=LANE))
    await kit.commit(block(1), block(2), block(3))

    async def tried(flows: dict[str, str], limit: int = 9) -> tuple[list[int], bytes]:
        rows, last = await kit.store.claim_blocked(
            "a", kit.epochs["a"], flows=flows, process="p2", after=b"", limit=limit
        )
        return numbers(rows), last

    assert await tried({"f": "v2"}, limit=1) == ([2], b"")
    assert await tried({LANE: "v1"}, limit=1) == ([1], uid(1))
    assert await tried({LANE: "v2", "f": "v2"}) == ([3], b"")
    assert [(await kit.row(n)).version for n in (1, 2, 3)] == ["v1", "v2", "v2"]


async def test_a_lane_has_its_own_version_and_is_left_to_its_own_replicas(kit: Kit) -> None:
    """A live replica that has this code and serves another lane keeps nobody from going on."""
    await kit.join("old", "v1")
    await kit.join("new")
    await kit.commit(due(1, LANE, version="v1"), due(2, "f", version="v1"))
    rows = await kit.claim("new", flows={"f": "v2", LANE: "v2"})
    assert numbers(rows) == [1]
    assert (await kit.row(1)).version == "v2"
    await kit.join("gpu", **{LANE: "v1"})
    await kit.commit(due(3, LANE, version="v1"))
    assert await kit.claim("new", flows={"f": "v2", LANE: "v2"}) == []
    await kit.store.leave("gpu")
    assert numbers(await kit.claim("new", flows={LANE: "v2"})) == [3]


async def test_a_cancel_request_is_left_to_a_live_replica_that_serves_the_lane(kit: Kit) -> None:
    await kit.join("gpu", **{LANE: ""})
    await kit.commit(due(1, LANE), create(2, lane=LANE), create(3, lane=LANE), due(4, "\x1fnobody\x1ff"))
    await kit.commit(suspend(2), block(3))
    await kit.commit(*(send(n, n, kind="cancel") for n in (1, 2, 3, 4)), by=None)
    assert await claimed(kit, "f") == [4]
    await kit.store.leave("gpu")
    assert await claimed(kit, "f") == [1, 2, 3]


async def test_a_cancel_request_left_by_a_replica_that_was_taken_over_is_for_any(kit: Kit) -> None:
    await kit.join("gpu", **{LANE: ""})
    await kit.commit(due(1, LANE))
    await kit.commit(send(1, 1, kind="cancel"), by=None)
    assert await claimed(kit, "f") == []
    await kit.taken_over("gpu", me="a")
    assert await claimed(kit, "f") == [1]


async def test_starting_again_in_another_lane_changes_nothing(kit: Kit) -> None:
    await kit.commit(due(1, LANE))
    again = replace(due(2, "f"), id="i1")
    answer = await kit.one(again)
    assert getattr(answer, "uid", None) == uid(1)
    assert (await kit.row(1)).lane == LANE


plain_tests(globals())
