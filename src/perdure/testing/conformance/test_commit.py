"""What a batch does: creations, journal, images, and that it may be repeated."""

import pytest

from perdure.errors import LeaseLost
from perdure.model.records import Entry, Message, Pending, State
from perdure.model.writes import (
    Batch,
    Created,
    Existing,
    Expose,
    Finished,
    NotOwned,
    PendingDrop,
    Release,
    Take,
    Update,
    Write,
)
from perdure.testing.conformance.kit import (
    Kit,
    block,
    create,
    entry,
    finish,
    message,
    pending,
    plain_tests,
    send,
    suspend,
    uid,
    watch,
)


async def test_an_owned_creation_is_running_and_has_entry_0(kit: Kit) -> None:
    assert await kit.one(create(1)) == Created()
    loaded = await kit.load(1)
    row = loaded.instance
    assert (row.flow, row.id, row.state, row.owner, row.run) == ("f", "i1", State.RUNNING, "a", 0)
    assert (row.waiting, row.due_at, row.outcome, row.ended_at, row.version) == (False, None, None, None, "v1")
    assert [e.seq for e in loaded.entries] == [0]
    assert row == await kit.store.instance("f", "i1")


async def test_a_creation_not_owned_is_scheduled_at_its_time_and_has_no_entry(kit: Kit) -> None:
    await kit.commit(create(1, owned=False, due_at=50.0), create(2, owned=False, at=7.0))
    assert [(r.state, r.owner, r.due_at) for r in [await kit.row(1), await kit.row(2)]] == [
        (State.SCHEDULED, None, 50.0),
        (State.SCHEDULED, None, 7.0),
    ]
    assert (await kit.load(1)).entries == []


async def test_a_client_creates_without_a_replica(kit: Kit) -> None:
    assert await kit.one(create(1, owned=False), by=None) == Created()


async def test_an_id_that_exists_is_answered_by_its_life_and_nothing_of_the_new_one_is_kept(kit: Kit) -> None:
    await kit.commit(create(1, "x", arguments=b"[1]"))
    answers = await kit.commit(create(2, "x", arguments=b"[2]"), entry(2, 1), pending(2), Expose(uid(2), "k", b"v"))
    assert answers == [Existing(uid(1), State.RUNNING, b"[1]", b"d:[1]"), None, None, None]
    assert await kit.store.instances([uid(2)]) == []
    assert [e.uid for e in (await kit.load(1)).entries] == [uid(1)]
    assert await kit.store.exposed(uid(2)) == {}


async def test_of_two_creations_of_one_id_in_a_batch_the_first_counts(kit: Kit) -> None:
    answers = await kit.commit(create(7, "x"), create(3, "x"), create(5, "y"))
    assert [type(a) for a in answers] == [Created, Existing, Created]


async def test_the_same_id_of_another_flow_type_is_another_instance(kit: Kit) -> None:
    assert await kit.commit(create(1, "x"), create(2, "x", flow="g")) == [Created(), Created()]


async def test_ids_are_compared_byte_for_byte(kit: Kit) -> None:
    ids = ["A", "a", "A ", "Å", "A\u030a", "😀", "a\x01b", "a\x01c", ""]
    assert await kit.commit(*(create(n, id) for n, id in enumerate(ids))) == [Created()] * len(ids)
    for number, id in enumerate(ids):
        row = await kit.store.instance("f", id)
        assert row is not None
        assert (row.uid, row.id) == (uid(number), id)


async def test_all_fields_come_back_as_they_were_written(kit: Kit) -> None:
    full = Entry(uid(1), 0, 1, "4.0=id", "step", "näme", b"\0\xff", b"\x01" * 8, True, b"", 3, 1.25, 2.5, b"ref")
    empty = Entry(uid(1), 0, 2, "", "arrival", "", None, b"", False, None, 0, 0.0, 0.0)
    held = Pending(uid(1), 0, "4", "step", "n", None, b"", False, 0, None, None, None)
    letter = Message(b"q" * 16, "message", "k", "Name", "T", b"\0", True, -1, 1.5)
    await kit.commit(create(1), full, empty, type(pending(1))(held), pending(1, "9"))
    await kit.one(type(send(1, 1))("f", "i1", letter))
    loaded = await kit.load(1)
    assert loaded.entries[1:] == [full, empty]
    assert loaded.pending == [held, pending(1, "9").pending]
    assert loaded.inbox == [letter]
    assert all(type(e.failed) is bool for e in loaded.entries)


async def test_entries_come_back_by_seq_whatever_the_order_of_writing(kit: Kit) -> None:
    await kit.commit(create(1), create(2), entry(2, 2), entry(1, 3), entry(1, 1), entry(2, 1), entry(1, 2))
    assert [e.seq for e in (await kit.load(1)).entries] == [0, 1, 2, 3]
    assert [e.seq for e in (await kit.load(2)).entries] == [0, 1, 2]


async def test_an_entry_is_written_once(kit: Kit) -> None:
    await kit.commit(create(1), entry(1, 1, b"first"))
    await kit.commit(entry(1, 1, b"second"))
    assert (await kit.load(1)).entries[1].outcome == b"first"


@pytest.mark.parametrize("count", [2, 5, 17, 70, 300, 1500])
async def test_batches_of_any_size_are_written_whole(kit: Kit, count: int) -> None:
    await kit.commit(*(create(n) for n in range(count)), *(entry(n, 1) for n in range(count)))
    assert all(len(loaded.entries) == 2 for loaded in await kit.store.load([uid(n) for n in range(count)]))
    answers = await kit.commit(*(finish(n) for n in range(count)))
    assert answers == [Finished(())] * count
    assert {r.state for r in await kit.store.instances([uid(n) for n in range(count)])} == {State.SUCCEEDED}


async def test_a_pending_operation_is_replaced_and_dropped(kit: Kit) -> None:
    await kit.commit(create(1), pending(1, attempt=1), pending(1, "2"))
    await kit.commit(pending(1, attempt=2))
    assert [p.attempt for p in (await kit.load(1)).pending] == [2, 1]
    await kit.commit(PendingDrop(uid(1), 0, "1"))
    assert [p.key for p in (await kit.load(1)).pending] == ["2"]


async def test_of_put_and_drop_in_a_batch_the_last_counts(kit: Kit) -> None:
    await kit.commit(
        create(1), pending(1, "1"), PendingDrop(uid(1), 0, "1"), PendingDrop(uid(1), 0, "2"), pending(1, "2")
    )
    assert [p.key for p in (await kit.load(1)).pending] == ["2"]


async def test_the_last_exposed_value_of_a_key_counts(kit: Kit) -> None:
    await kit.commit(create(1), Expose(uid(1), "k", b"1"), Expose(uid(1), "k", b"2"), Expose(uid(1), "o", b"3"))
    assert await kit.store.exposed(uid(1)) == {"k": b"2", "o": b"3"}
    await kit.commit(Expose(uid(1), "k", b"4"))
    assert await kit.store.exposed(uid(1)) == {"k": b"4", "o": b"3"}


async def test_update_says_whether_the_row_alone_is_enough(kit: Kit) -> None:
    await kit.commit(create(1))
    assert await kit.one(Update(uid(1), True, 77.0)) is None
    row = await kit.row(1)
    assert (row.waiting, row.due_at, row.owner, row.state) == (True, 77.0, "a", State.SUSPENDED)
    await kit.one(Update(uid(1), False, None))
    row = await kit.row(1)
    assert (row.waiting, row.due_at, row.owner, row.state) == (False, None, "a", State.RUNNING)


async def test_of_several_images_of_an_instance_the_last_counts(kit: Kit) -> None:
    await kit.commit(create(1), Update(uid(1), True, 5.0), Update(uid(1), True, 6.0), suspend(1, due_at=8.0))
    row = await kit.row(1)
    assert (row.state, row.owner, row.due_at) == (State.SUSPENDED, None, 8.0)


async def test_release_leaves_the_instance_to_nobody(kit: Kit) -> None:
    await kit.commit(create(1), create(2), create(3))
    await kit.commit(
        suspend(1),
        Release(uid(2), 0, State.SCHEDULED, None),
        Release(uid(3), 0, State.BLOCKED, None, reason="why", version="v2"),
    )
    rows = [await kit.row(n) for n in (1, 2, 3)]
    assert [(r.state, r.owner, r.due_at) for r in rows] == [
        (State.SUSPENDED, None, None),
        (State.SCHEDULED, None, kit.clock.now),
        (State.BLOCKED, None, None),
    ]
    assert [(r.reason, r.version) for r in rows] == [(None, "v1"), (None, "v1"), ("why", "v2")]


@pytest.mark.parametrize("state", [State.SUCCEEDED, State.FAILED, State.CANCELLED])
async def test_finish_ends_the_instance(kit: Kit, state: State) -> None:
    await kit.commit(create(1))
    assert await kit.one(finish(1, state, b"out")) == Finished(())
    row = await kit.row(1)
    assert (row.state, row.outcome, row.owner, row.ended_at, row.waiting, row.due_at) == (
        state, b"out", None, 9.0, False, None,
    )  # fmt: skip


async def test_an_image_of_an_instance_owned_by_another_is_answered_and_the_rest_stands(kit: Kit) -> None:
    await kit.join("b")
    await kit.commit(create(1), by="b")
    images: list[Write] = [Update(uid(1), True, None), suspend(1), finish(1)]
    for image in images:
        answers = await kit.commit(create(2), image, finish(3))
        assert answers[1:] == [NotOwned(uid(1)), NotOwned(uid(3))]
        assert (await kit.row(1)).owner == "b"
    assert (await kit.row(2)).owner == "a"


async def test_an_ended_instance_cannot_end_again(kit: Kit) -> None:
    await kit.commit(create(1))
    await kit.commit(finish(1, State.SUCCEEDED, b"first"))
    assert await kit.one(finish(1, State.FAILED, b"second", at=10.0)) == NotOwned(uid(1))
    assert (await kit.row(1)).outcome == b"first"


async def test_a_batch_needs_a_fence_that_is_alive_and_of_its_epoch(kit: Kit) -> None:
    with pytest.raises(LeaseLost):
        await kit.store.commit(Batch("stranger", 1, [create(1)], 1.0))
    old = kit.epochs["a"]
    kit.epochs["a"] = await kit.store.raise_epoch("a", old)
    with pytest.raises(LeaseLost):
        await kit.store.commit(Batch("a", old, [create(1)], 1.0))
    assert await kit.store.instance("f", "i1") is None
    await kit.commit(create(1))


async def test_raising_the_epoch_twice_from_the_same_one_is_safe(kit: Kit) -> None:
    first = await kit.store.raise_epoch("a", kit.epochs["a"])
    second = await kit.store.raise_epoch("a", kit.epochs["a"])
    assert second > first > kit.epochs["a"]


async def test_a_batch_sent_again_changes_nothing_and_gives_the_same_answers(kit: Kit) -> None:
    await kit.join("b")
    await kit.commit(create(20), by="b")
    await kit.commit(*(create(n) for n in range(1, 8)), send(1, 1), send(1, 2))
    await kit.commit(watch(2, 1, "w"), watch(20, 1, "w"), create(8, parent=1))
    await kit.commit(watch(20, 1, "w"), by="b")
    batch: list[Write] = [
        create(9), create(10, "i2"), entry(9, 1), entry(1, 1), pending(1), Take(uid(1), message(1).mid),
        Expose(uid(1), "k", b"v"), finish(1, children=True), suspend(3, due_at=5.0, seen=(message(2).mid,)),
        Update(uid(4), True, 6.0), watch(5, 3, "q"), watch(5, 1, "r"), watch(5, 99, "s"),
        send(3, 11, key="k"), send(20, 12), send(77, 13, key="k"), send(4, 14, kind="cancel"), finish(6),
        Release(uid(7), 0, State.BLOCKED, None, reason="r"),
    ]  # fmt: skip
    first = await kit.commit(*batch)
    everything = await kit.store.load([uid(n) for n in range(25)])
    kit.epochs["a"] = await kit.store.raise_epoch("a", kit.epochs["a"])
    assert await kit.commit(*batch) == first
    assert await kit.store.load([uid(n) for n in range(25)]) == everything
    assert await kit.wakeups("b") == [20]


async def test_a_refused_batch_leaves_nothing(kit: Kit) -> None:
    await kit.commit(create(1))
    await kit.taken_over_by_b()
    with pytest.raises(LeaseLost):
        await kit.commit(entry(1, 1), create(2), send(1, 1))
    loaded = await kit.load(1)
    assert len(loaded.entries) == 1
    assert loaded.inbox == []
    assert await kit.store.instance("f", "i2") is None


async def test_reading_what_is_not_there(kit: Kit) -> None:
    assert await kit.store.instance("f", "none") is None
    assert await kit.store.instances([uid(1)]) == []
    assert await kit.store.load([uid(1)]) == []
    assert await kit.store.load([]) == []
    assert await kit.store.inbox([uid(1)]) == {uid(1): []}
    assert await kit.store.exposed(uid(1)) == {}


async def test_load_gives_instances_in_the_order_of_their_uid(kit: Kit) -> None:
    await kit.commit(create(1), create(2), create(3))
    assert [x.instance.uid for x in await kit.store.load([uid(3), uid(9), uid(1)])] == [uid(1), uid(3)]


async def test_find_pages_by_uid(kit: Kit) -> None:
    await kit.commit(*(create(n, at=float(n), flow="f" if n % 2 else "g") for n in range(1, 9)))
    await kit.commit(finish(3), finish(4))

    async def found(**how: object) -> list[int]:
        terms: dict[str, object] = {"flow": None, "states": None, "since": None, "after": None, "limit": 100, **how}
        return [int.from_bytes(r.uid, "big") for r in await kit.store.find(**terms)]  # type: ignore[arg-type]

    assert await found() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert await found(flow="f") == [1, 3, 5, 7]
    assert await found(states=[State.SUCCEEDED]) == [3, 4]
    assert await found(states=[State.SUCCEEDED, State.RUNNING], flow="g", since=4.0) == [4, 6, 8]
    assert await found(limit=3) == [1, 2, 3]
    assert await found(limit=3, after=uid(3)) == [4, 5, 6]
    assert await found(states=[]) == []


async def test_results_are_of_what_goes_on_no_more(kit: Kit) -> None:
    states = [State.SUCCEEDED, State.FAILED, State.CANCELLED]
    await kit.commit(*(create(n) for n in range(1, 7)), create(7, owned=False), suspend(4), block(5))
    await kit.commit(*(finish(n, state) for n, state in enumerate(states, 1)))
    found = await kit.store.results([uid(n) for n in (9, *range(1, 8), 1)])
    rows = {row.uid: row for row in await kit.store.instances([uid(n) for n in (1, 2, 3, 5)])}
    assert found == {uid(9): None} | rows
    assert await kit.store.results([]) == {}
    many = [uid(n) for n in range(1, 1200)]
    assert set(await kit.store.results(many)) == {one for one in many if one not in (uid(4), uid(6), uid(7))}


plain_tests(globals())
