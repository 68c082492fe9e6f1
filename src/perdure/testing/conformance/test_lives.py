"""The next run of a life, what is left of one that is gone, and what a life begins with."""

import pytest
from msgspec.structs import replace

from perdure.errors import LeaseLost
from perdure.model.records import MessageKind, State
from perdure.model.writes import (
    Continued,
    Created,
    Edited,
    Existing,
    Expose,
    Finished,
    NotOwned,
    Send,
    Sent,
    Take,
    Unwatch,
    Update,
)
from perdure.stores.contract import REPEAT_SECONDS, answer_mid, cancel_mid
from perdure.testing.conformance.kit import (
    Kit,
    again,
    block,
    create,
    entry,
    finish,
    message,
    mids,
    pending,
    plain_tests,
    send,
    suspend,
    uid,
    watch,
)

# -- the next run


async def test_the_next_run_is_owned_and_running_and_has_its_own_entry_0(kit: Kit) -> None:
    await kit.commit(create(1, arguments=b"[1]"), entry(1, 1), entry(1, -1), pending(1), Update(uid(1), True, 5.0))
    before = await kit.row(1)
    write = replace(again(1, arguments=b"[2]"), version="v2")
    assert await kit.one(write) == Continued((), ())
    loaded = await kit.load(1)
    assert loaded.instance == replace(
        before, run=1, arguments=b"[2]", first=b"[1]", version="v2", state=State.RUNNING, waiting=False, due_at=None
    )
    assert (loaded.entries, loaded.pending) == ([write.begun], [])
    assert await kit.store.entries(uid(1), 0, -100) == ([], False)
    await kit.commit(entry(1, 1, run=1), pending(1, run=1))
    assert await kit.seqs(1) == [0, 1]


async def test_the_arguments_of_the_first_start_are_kept_over_all_runs(kit: Kit) -> None:
    await kit.commit(create(1, arguments=b"[1]"))
    await kit.commit(again(1, 1, arguments=b"[2]"))
    await kit.commit(again(1, 2, arguments=b"[3]"))
    row = await kit.row(1)
    assert (row.run, row.arguments, row.first, row.digest) == (2, b"[3]", b"[1]", b"d:[1]")
    assert await kit.one(create(2, "i1")) == Existing(uid(1), State.RUNNING, b"[1]", b"d:[1]")
    await kit.commit(create(3))
    assert await kit.one(watch(3, 1, digest=b"d:[1]")) is None


async def test_nothing_of_an_edit_concerns_the_next_run(kit: Kit) -> None:
    await kit.commit(create(1))
    await kit.edited(1, by="a", change={"state": State.SCHEDULED, "due_at": 1.0, "edited_seq": 5, "failed_seq": 3})
    assert await kit.claimed() == [1]
    edit = (await kit.row(1)).edit
    await kit.commit(again(1))
    row = await kit.row(1)
    assert (row.edited_seq, row.failed_seq, row.edit) == (-1, None, edit)


async def test_untaken_messages_move_on_and_untaken_answers_do_not(kit: Kit) -> None:
    await kit.commit(create(1), create(2), create(3), watch(1, 2))
    await kit.commit(send(1, 9, key="nine"), send(1, 1, key="one"), finish(2))
    await kit.commit(send(1, 5), send(1, 4, kind="cancel"), Take(uid(1), mids(1)[0]))
    assert len(await kit.inbox(1)) == 4
    expected = [message(9, key="nine"), message(5), message(4, kind="cancel")]
    assert await kit.continued(again(1)) == Continued(tuple(expected), ())
    assert await kit.inbox(1) == expected


async def test_keys_of_messages_stay_known_in_the_next_run(kit: Kit) -> None:
    await kit.commit(create(1), send(1, 1, key="k"))
    await kit.commit(Take(uid(1), mids(1)[0]))
    await kit.commit(again(1))
    assert not (await kit.sent(send(1, 2, key="k"))).new
    assert await kit.inbox(1) == []


async def test_what_was_taken_without_a_key_is_known_for_an_hour_after_it_was_sent(kit: Kit) -> None:
    await kit.commit(create(1), create(2))
    letters = [send(to, 10 * to + n, sent_at=float(n)) for to in (1, 2) for n in (1, 2, 3)]
    await kit.commit(*letters, send(1, 4, key="k", sent_at=1.0), send(1, 5, sent_at=1.0))
    await kit.commit(*(Take(uid(to), mids(10 * to + n)[0]) for to in (1, 2) for n in (1, 2, 3)))
    await kit.commit(Take(uid(1), mids(4)[0]))
    batch = again(1, at=2.0 + REPEAT_SECONDS)
    assert await kit.one(batch) == Continued((message(5, sent_at=1.0),), ())
    assert await kit.one(batch) == Continued((message(5, sent_at=1.0),), ())
    await kit.commit(*letters)  # sent once more: what is known comes no second time
    assert await kit.inbox(1) == [message(5, sent_at=1.0), message(11, sent_at=1.0)]
    assert await kit.inbox(2) == []
    assert not (await kit.sent(send(1, 6, key="k"))).new
    await kit.commit(again(1, 2, at=3.0 + REPEAT_SECONDS))
    await kit.commit(*letters)
    assert await kit.mids(1) == mids(5, 11, 12)


async def test_a_continuation_with_its_takes_sent_again_leaves_the_same(kit: Kit) -> None:
    await kit.commit(create(1), send(1, 1, sent_at=1.0), send(1, 2, sent_at=1.0))
    batch = [entry(1, 1), Take(uid(1), mids(1)[0]), again(1, at=10_000.0)]
    first = await kit.commit(*batch)
    assert await kit.commit(*batch) == first
    assert await kit.mids(1) == mids(2)


async def test_what_the_old_run_asked_for_in_the_batch_in_which_it_ends_is_not_asked(kit: Kit) -> None:
    await kit.commit(create(1), create(2), create(3), create(4), watch(1, 3, "3"))
    await kit.commit(finish(4))
    batch = [
        watch(1, 2), Unwatch(uid(1), 0, "3"), watch(1, 4, "4"), watch(1, 99, "9"), again(1), watch(3, 2),
        watch(1, 2, "new", run=1),
    ]  # fmt: skip
    for _ in range(2):
        assert await kit.commit(*batch) == [None, None, None, None, Continued((), ()), None, None]
    done = await kit.one(finish(2))
    assert isinstance(done, Finished)
    assert sorted((s.uid, s.message.run, s.message.key) for s in done.sent if s.uid) == [
        (uid(1), 1, "new"), (uid(3), 0, "1")
    ]  # fmt: skip
    assert await kit.one(finish(3)) == Finished(())


async def test_a_message_of_the_same_batch_is_in_the_inbox_that_is_answered(kit: Kit) -> None:
    await kit.commit(create(1))
    continued, sent = await kit.commit(again(1), send(1, 1))
    assert continued == Continued((message(1),), ())
    assert sent == Sent(uid(1), "a", message(1), new=True)


async def test_the_waits_of_the_old_run_are_gone(kit: Kit) -> None:
    await kit.commit(create(1), create(2), watch(1, 2))
    await kit.commit(again(1))
    assert await kit.one(finish(2)) == Finished(())
    assert await kit.inbox(1) == []


async def test_an_answer_for_another_run_is_dropped(kit: Kit) -> None:
    await kit.commit(create(1))
    await kit.commit(again(1))
    for run, new in ((0, False), (1, True), (2, False)):
        letter = replace(message(run, kind=MessageKind.ANSWER, run=run), mid=answer_mid(uid(1), run, "w"), key="w")
        assert await kit.sent(Send("", "", letter, uid(1)), None) == Sent(uid(1), "a", letter, new)
    assert [m.run for m in await kit.inbox(1)] == [1]


async def test_an_answer_that_the_store_makes_for_another_run_is_dropped(kit: Kit) -> None:
    await kit.join("b")
    await kit.commit(create(1), create(2))
    await kit.commit(again(1))
    assert not (await kit.sent(watch(1, 99), "b")).new
    await kit.commit(watch(1, 2, run=1))
    await kit.commit(again(1, 2))
    assert await kit.inbox(1) == []
    assert await kit.wakeups() == []


async def test_who_waits_for_the_instance_waits_for_the_end_of_its_life(kit: Kit) -> None:
    await kit.commit(create(1), create(2), watch(2, 1))
    await kit.commit(again(1))
    assert await kit.inbox(2) == []
    done = await kit.one(finish(1, State.SUCCEEDED, b"out"))
    assert isinstance(done, Finished)
    assert [(s.uid, s.message.body) for s in done.sent] == [(uid(2), b"out")]


async def test_exposed_values_stay_over_runs(kit: Kit) -> None:
    await kit.commit(create(1), Expose(uid(1), "k", b"v"))
    await kit.commit(again(1))
    assert await kit.store.exposed(uid(1)) == {"k": b"v"}


async def test_the_next_run_knows_by_the_answer_what_woke_the_old_one(kit: Kit) -> None:
    await kit.commit(create(1))
    await kit.commit(send(1, 1), by=None)
    assert (await kit.continued(again(1))).inbox == (message(1),)
    assert await kit.wakeups() == []


async def test_attached_children_of_the_old_run_are_asked_to_cancel_if_told(kit: Kit) -> None:
    await kit.commit(create(1), create(2, parent=1), create(3, parent=1), create(4, parent=1, owned=False))
    await kit.commit(finish(3))
    done = await kit.continued(again(1, children=True))
    assert [(s.uid, s.owner, s.message.mid) for s in done.sent] == [
        (uid(n), owner, cancel_mid(uid(1), uid(n))) for n, owner in ((2, "a"), (4, None))
    ]
    assert [len(await kit.inbox(n)) for n in (2, 3, 4)] == [1, 0, 1]
    await kit.commit(create(5, parent=1))
    assert (await kit.continued(again(1, 2))).sent == ()
    assert await kit.inbox(5) == []


async def test_a_continuation_sent_again_changes_nothing_and_gives_the_same_answer(kit: Kit) -> None:
    await kit.commit(create(1), create(2, parent=1), create(3), watch(1, 3), send(1, 1), send(1, 2))
    batch = [
        entry(1, 1), entry(1, 2), pending(1, "9"), Take(uid(1), mids(1)[0]), Expose(uid(1), "k", b"v"),
        again(1, children=True),
    ]  # fmt: skip
    first = await kit.commit(*batch)
    assert isinstance(first[-1], Continued)
    before = await kit.load(1)
    assert (before.instance.run, len(before.entries), before.pending) == (1, 1, [])
    kit.epochs["a"] = await kit.store.raise_epoch("a", kit.epochs["a"])
    assert await kit.commit(*batch) == first
    assert await kit.load(1) == before
    assert await kit.store.entries(uid(1), 0, -100) == ([], False)
    assert len(await kit.inbox(2)) == 1


async def test_a_continuation_sent_again_leaves_what_the_new_run_has_begun(kit: Kit) -> None:
    await kit.commit(create(1), create(2), create(3))
    await kit.commit(again(1), finish(3))
    await kit.commit(watch(1, 2, run=1), entry(1, 1, run=1), pending(1, run=1), send(1, 1))
    answer = await kit.sent(watch(1, 3, "3", run=1))
    before = await kit.load(1)
    assert await kit.one(again(1)) == Continued((message(1), answer.message), ())
    assert await kit.load(1) == before
    done = await kit.one(finish(2))
    assert isinstance(done, Finished)
    assert [(s.uid, s.message.run) for s in done.sent] == [(uid(1), 1)]


async def test_only_the_owner_continues_and_only_by_one_run(kit: Kit) -> None:
    await kit.join("b")
    await kit.commit(create(1), create(2), create(3), suspend(2))
    await kit.commit(create(4), by="b")
    before = await kit.store.load([uid(n) for n in (1, 2, 3, 4)])
    wrong = [again(1, 2), again(2), again(4), again(9)]
    for write in wrong:
        assert await kit.one(write) == NotOwned(write.uid)
    assert await kit.one(again(1), None) == NotOwned(uid(1))
    assert await kit.store.load([uid(n) for n in (1, 2, 3, 4)]) == before
    await kit.commit(again(3))
    await kit.commit(again(3, 2))
    assert await kit.one(again(3, 1)) == NotOwned(uid(3))


async def test_the_next_run_of_a_dead_replica_is_taken_over(kit: Kit) -> None:
    await kit.commit(create(1), entry(1, 1), again(1))
    await kit.taken_over_by_b()
    assert await kit.claimed("b") == [1]
    assert [(e.run, e.seq) for e in (await kit.load(1)).entries] == [(1, 0)]


async def test_a_failure_names_the_entry_whose_exception_escaped(kit: Kit) -> None:
    await kit.commit(create(1), create(2))
    await kit.commit(finish(1, State.FAILED, b"e", failed_seq=7), finish(2, State.FAILED, b"e"))
    assert [(await kit.row(n)).failed_seq for n in (1, 2)] == [7, None]


# -- what is left of a life that is gone


async def test_after_a_deletion_the_id_begins_a_new_life(kit: Kit) -> None:
    await kit.commit(create(1), entry(1, 1), send(1, 1, key="k"), Expose(uid(1), "k", b"v"))
    await kit.edited(1, by="a", delete=True)
    assert await kit.one(create(2, "i1")) == Created()
    assert await kit.seqs(2) == [0]
    assert await kit.store.exposed(uid(2)) == {}
    assert (await kit.sent(send(1, 2, key="k"))).uid == uid(2)


async def test_what_was_sent_before_the_deletion_does_not_reach_the_new_life(kit: Kit) -> None:
    now = kit.clock.now
    await kit.commit(create(1))
    await kit.edited(1, by="a", delete=True)
    for number, at, new in ((1, now - 1, False), (2, now, False), (3, now + 1, True)):
        answer = await kit.sent(send(1, number, sent_at=at))
        assert answer == Sent(None, None, message(number, sent_at=at), new)
    assert await kit.created(create(2, "i1")) == Created((message(3, sent_at=now + 1),))
    assert (await kit.sent(send(1, 4, sent_at=now - 1))).uid == uid(2)  # there is somebody to get it now


async def test_the_last_deletion_counts(kit: Kit) -> None:
    await kit.commit(create(1))
    await kit.edited(1, by="a", delete=True, id="one")
    kit.clock.now += 5
    await kit.commit(create(2, "i1"))
    await kit.edited(2, by="a", delete=True, id="two")
    assert not (await kit.sent(send(1, 1, sent_at=kit.clock.now - 1))).new
    assert (await kit.sent(send(1, 2, sent_at=kit.clock.now + 1))).new


async def test_what_has_ended_long_ago_is_retired_oldest_first(kit: Kit) -> None:
    await kit.commit(*(create(n) for n in range(1, 7)))
    await kit.commit(*(finish(n, at=at) for n, at in ((1, 5.0), (2, 3.0), (3, 4.0), (4, 9.0), (5, 10.0))))

    async def left() -> list[int]:
        rows = await kit.store.instances([uid(n) for n in range(1, 7)])
        return sorted(int.from_bytes(r.uid, "big") for r in rows)

    assert await kit.retire(9.0, limit=2) == 2
    assert await left() == [1, 4, 5, 6]
    assert await kit.retire(9.0, limit=2) == 1
    assert await kit.retire(9.0) == 0
    assert await left() == [4, 5, 6]


async def test_an_instance_is_not_retired_while_its_parent_may_wait_for_it(kit: Kit) -> None:
    await kit.commit(create(1), create(2, parent=1), create(3, parent=2), create(5, parent=99))
    await kit.commit(finish(2), finish(3), finish(5))
    assert await kit.retire(100.0) == 2
    assert [r.uid for r in await kit.store.instances([uid(n) for n in (2, 3, 5)])] == [uid(2)]
    await kit.commit(finish(1))
    assert await kit.retire(100.0) == 2


async def test_what_has_not_ended_is_not_retired(kit: Kit) -> None:
    await kit.commit(create(1, owned=False), create(2), create(3), create(4), suspend(3), block(4))
    await kit.commit(create(5), finish(5))
    await kit.edited(5, change={"state": State.SCHEDULED, "due_at": 1.0, "outcome": None, "ended_at": None})
    assert await kit.retire(100.0) == 0


async def test_nothing_remains_of_a_retired_instance_but_its_tombstone(kit: Kit) -> None:
    await kit.commit(create(1), create(2), entry(1, 1), pending(1), send(1, 1), Expose(uid(1), "k", b"v"), watch(2, 1))
    await kit.commit(finish(1))
    before = await kit.load(2)
    assert await kit.retire(100.0) == 1
    assert await kit.store.instance("f", "i1") is None
    assert await kit.store.load([uid(1)]) == []
    assert await kit.store.entries(uid(1), 0, -100) == ([], False)
    assert await kit.inbox(1) == []
    assert await kit.store.exposed(uid(1)) == {}
    assert await kit.load(2) == before
    assert len(before.inbox) == 1
    assert await kit.wakeups() == []


async def test_retiring_needs_the_fence(kit: Kit) -> None:
    await kit.commit(create(1))
    await kit.commit(finish(1))
    kit.epochs["a"] += 1
    with pytest.raises(LeaseLost):
        await kit.retire(100.0)
    assert len(await kit.store.instances([uid(1)])) == 1


@pytest.mark.parametrize("state", [State.SUCCEEDED, State.FAILED, State.CANCELLED])
async def test_a_tombstone_is_answered_to_a_start_that_comes_again(kit: Kit, state: State) -> None:
    await kit.commit(create(1, arguments=b"[1]"))
    await kit.commit(again(1, arguments=b"[2]"))
    await kit.commit(finish(1, state))
    await kit.retire(100.0)
    answers = await kit.commit(
        create(2, "i1", arguments=b"[1]"), entry(2, 1), pending(2), Expose(uid(2), "k", b"v"), create(3), finish(2)
    )
    assert answers == [Existing(b"", state, b"", b"d:[1]"), None, None, None, Created(), NotOwned(uid(2))]
    assert await kit.store.instances([uid(2)]) == []
    assert await kit.store.instance("f", "i1") is None
    assert await kit.store.exposed(uid(2)) == {}
    assert await kit.store.entries(uid(2), 0, -100) == ([], False)
    assert await kit.one(create(1, arguments=b"[1]")) == Existing(b"", state, b"", b"d:[1]")


async def test_a_start_that_comes_late_does_not_bring_back_what_was_deleted(kit: Kit) -> None:
    await kit.commit(create(1), create(2))
    await kit.edit(await kit.staged(1, delete=True), "a")
    answers = await kit.commit(
        create(1), entry(1, 1), pending(1), Expose(uid(1), "k", b"v"), create(3, "i3"), finish(1)
    )
    assert answers == [NotOwned(uid(1)), None, None, None, Created(), NotOwned(uid(1))]
    assert await kit.store.instance("f", "i1") is None
    assert await kit.store.exposed(uid(1)) == {}
    assert await kit.store.entries(uid(1), 0, -100) == ([], False)
    assert await kit.one(create(1, owned=False), None) == NotOwned(uid(1))
    assert await kit.created(create(4, "i1")) == Created()  # another life may begin


async def test_a_message_for_a_tombstone_is_dropped(kit: Kit) -> None:
    await kit.commit(create(1))
    await kit.commit(finish(1))
    await kit.retire(100.0)
    for at in (1.0, kit.clock.now + 100):
        assert await kit.sent(send(1, 1, sent_at=at)) == Sent(None, None, message(1, sent_at=at), new=False)
    assert not (await kit.sent(send(1, 2, kind="cancel"))).new


async def test_an_id_whose_tombstone_is_forgotten_may_be_started_again(kit: Kit) -> None:
    await kit.commit(create(1), create(2))
    await kit.commit(finish(1), finish(2))
    await kit.retire(100.0)
    assert await kit.store.forget("f", "i1")
    assert not await kit.store.forget("f", "i1")
    later = kit.clock.now + 1
    assert not (await kit.sent(send(1, 1, sent_at=1.0))).new  # it was for the life that is gone
    assert (await kit.sent(send(1, 2, sent_at=later))).new
    assert await kit.one(create(1)) == NotOwned(uid(1))
    assert await kit.created(create(3, "i1")) == Created((message(2, sent_at=later),))
    assert await kit.one(create(4, "i2")) == Existing(b"", State.SUCCEEDED, b"", b"d:[]")
    assert not await kit.store.forget("g", "i2")
    assert not await kit.store.forget("f", "i9")


async def test_a_life_and_the_record_of_a_deletion_are_not_forgotten(kit: Kit) -> None:
    await kit.commit(create(1), create(2))
    edit = await kit.staged(1, delete=True)
    await kit.edit(edit, "a")
    assert not await kit.store.forget("f", "i1")
    assert not (await kit.sent(send(1, 1, sent_at=kit.clock.now - 1))).new
    assert await kit.edit(edit, "a") == Edited()
    assert not await kit.store.forget("f", "i2")
    assert (await kit.row(2)).state is State.RUNNING


async def test_a_new_life_that_is_retired_leaves_a_tombstone(kit: Kit) -> None:
    await kit.commit(create(1))
    await kit.edited(1, by="a", delete=True)
    await kit.commit(create(2, "i1", arguments=b"[5]"))
    await kit.commit(finish(2))
    assert await kit.retire(100.0) == 1
    assert await kit.one(create(3, "i1")) == Existing(b"", State.SUCCEEDED, b"", b"d:[5]")
    assert not (await kit.sent(send(1, 1, sent_at=kit.clock.now + 100))).new


async def test_other_ids_and_flows_are_as_before(kit: Kit) -> None:
    await kit.commit(create(1), create(2))
    await kit.commit(finish(1))
    await kit.edited(2, by="a", delete=True)
    await kit.retire(100.0)
    assert await kit.commit(create(3, "i1", flow="g"), create(4, "i2", flow="g"), create(5)) == [Created()] * 3
    assert (await kit.sent(send(7, 1))).new


# -- what a life begins with


@pytest.mark.parametrize("owned", [True, False])
async def test_an_instance_begins_with_unordered_entries(kit: Kit, owned: bool) -> None:
    initial = (replace(entry(1, -2), name="", key="=a"), entry(1, -1))
    await kit.commit(create(1, owned=owned, initial=initial))
    entries = (await kit.load(1)).entries
    assert entries[:2] == list(initial)
    assert [e.seq for e in entries] == ([-2, -1, 0] if owned else [-2, -1])


@pytest.mark.parametrize("owned", [True, False])
async def test_what_an_instance_begins_with_is_written_once(kit: Kit, owned: bool) -> None:
    write = create(1, owned=owned, initial=(entry(1, -1),), inbox=(message(1, key="k"), message(2)))
    first = await kit.one(write)
    await kit.commit(Take(uid(1), mids(1)[0]))
    await kit.edited(1, by="a", drop=(-1,), unsend=tuple(mids(2)))
    before = await kit.load(1)
    assert first == Created((message(1, key="k"), message(2)))
    assert await kit.one(write) == Created()
    assert await kit.load(1) == before


async def test_messages_that_an_instance_begins_with_come_before_those_that_waited(kit: Kit) -> None:
    await kit.commit(send(1, 9), send(1, 8, key="k"), send(1, 7))
    answer = await kit.created(create(1, inbox=(message(20), message(21, key="k"), message(22, key="k"))))
    assert answer.inbox == (message(20), message(21, key="k"), message(9), message(7))
    assert await kit.inbox(1) == list(answer.inbox)
    assert not (await kit.sent(send(1, 30, key="k"))).new


async def test_messages_that_a_scheduled_instance_begins_with_wait_for_its_time(kit: Kit) -> None:
    now = kit.clock.now
    await kit.commit(create(1, owned=False, due_at=now + 5, inbox=(message(1),)))
    assert await kit.claimed(thorough=True) == []
    kit.clock.now += 5
    assert await kit.claimed() == [1]


async def test_a_life_that_does_not_begin_waits_for_nobody(kit: Kit) -> None:
    await kit.commit(create(1, "x"), create(2))
    answers = await kit.commit(create(3, "x"), watch(3, 2))
    assert [type(a) for a in answers] == [Existing, type(None)]
    assert await kit.one(finish(2)) == Finished(())


async def test_a_life_that_does_not_begin_leaves_nothing_of_what_it_would_begin_with(kit: Kit) -> None:
    await kit.commit(create(1, "x"), create(2, "y"))
    await kit.commit(finish(2))
    await kit.retire(100.0)
    for number, id in ((3, "x"), (4, "y")):
        write = create(number, id, initial=(entry(number, -1),), inbox=(message(number),))
        assert type(await kit.one(write)) is Existing
        assert await kit.store.entries(uid(number), 0, -100) == ([], False)
        assert await kit.inbox(number) == []
    assert await kit.inbox(1) == []


plain_tests(globals())
