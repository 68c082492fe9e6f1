"""Edits: one guarded change of one instance by somebody who does not run it, and deletions."""

from typing import Any

import pytest
from msgspec.structs import replace

from perdure.errors import LeaseLost
from perdure.model.records import Entry, Kind, MessageKind, State
from perdure.model.writes import Created, Edited, Expose, Finished, Outdated, OwnedBy, Release, Take, Unwatch, Update
from perdure.stores.contract import answer_mid, cancel_mid
from perdure.testing.conformance.kit import (
    Kit,
    create,
    entry,
    evict,
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

BLOCKED = {"state": State.BLOCKED, "due_at": None, "reason": "edited"}
RESTARTED = {"state": State.SCHEDULED, "due_at": 7.0, "outcome": None, "ended_at": None, "failed_seq": None}


def ended(state: State = State.SUCCEEDED, outcome: bytes | None = b"made") -> dict[str, Any]:
    return {"state": state, "due_at": None, "outcome": outcome, "ended_at": 11.0}


# -- whether it is made


async def test_an_edit_replaces_the_row_and_leaves_the_instance_to_nobody(kit: Kit) -> None:
    await kit.commit(create(1, arguments=b"[1]"), suspend(1, due_at=5.0))
    before = await kit.row(1)
    change = {"arguments": b"[9]", "first": b"[1]", "edited_seq": 3, "due_at": 8.0, "reason": "r", "version": "v7"}
    edit = await kit.staged(1, change=change)
    assert await kit.edit(edit) == Edited()
    assert await kit.row(1) == replace(before, **change, edit=edit.id)
    assert await kit.store.instance("f", "i1") == await kit.row(1)


async def test_the_row_waits_exactly_if_it_is_suspended(kit: Kit) -> None:
    await kit.commit(create(1), create(2), suspend(1), Release(uid(2), 0, State.SCHEDULED, 5.0))
    await kit.edited(1, change=RESTARTED)
    await kit.edited(2, change={"state": State.SUSPENDED, "due_at": None})
    assert [(await kit.row(n)).waiting for n in (1, 2)] == [False, True]


async def test_who_owns_the_instance_may_edit_it_and_owns_it_no_more(kit: Kit) -> None:
    await kit.commit(create(1))
    assert await kit.edited(1, by="a", change=BLOCKED) == Edited()
    assert (await kit.row(1)).owner is None


@pytest.mark.parametrize("by", ["a", None])
async def test_an_instance_that_another_owns_is_not_edited(kit: Kit, by: str | None) -> None:
    await kit.join("b")
    await kit.commit(create(1), by="b")
    before = await kit.load(1)
    assert await kit.edit(await kit.staged(1, change=BLOCKED, put=(entry(1, 1),)), by) == OwnedBy("b")
    assert await kit.load(1) == before


@pytest.mark.parametrize(
    "other",
    [{"run": 1}, {"state": State.BLOCKED}, {"length": 3}, {"length": 0}, {"ended_at": 3.0}, {"last": b"x" * 16},
     {"open": (message(2).mid,)}, {"open": (message(1).mid, message(9).mid)}],
)  # fmt: skip
async def test_what_is_not_as_it_was_read_is_not_edited(kit: Kit, other: dict[str, Any]) -> None:
    await kit.commit(create(1), entry(1, 1), pending(1), send(1, 1), send(1, 2))
    await kit.commit(Take(uid(1), message(2).mid), suspend(1))
    before = await kit.load(1)
    edit = await kit.staged(
        1, change=BLOCKED, put=(entry(1, 7),), drop=(0,), forget=("1",), messages=(message(8),),
        unsend=(message(1).mid,), open=(message(1).mid,),
    )  # fmt: skip
    assert await kit.edit(replace(edit, **other)) == Outdated()
    assert await kit.load(1) == before
    assert await kit.edit(edit) == Edited()


async def test_the_length_that_is_compared_is_that_of_the_ordered_journal(kit: Kit) -> None:
    await kit.commit(create(1, owned=False, initial=(entry(1, -3), entry(1, -2))))
    assert await kit.edit(replace(await kit.staged(1, change=BLOCKED), length=0)) == Edited()


async def test_of_two_edits_of_what_was_read_once_the_first_is_made(kit: Kit) -> None:
    await kit.commit(create(1), suspend(1))
    one, two = await kit.staged(1, id="one", change=BLOCKED), await kit.staged(1, id="two", change=RESTARTED)
    assert await kit.edit(one) == Edited()
    assert await kit.edit(two) == Outdated()
    assert (await kit.row(1)).state is State.BLOCKED
    assert await kit.edited(1, id="three", change=RESTARTED) == Edited()


async def test_an_edit_made_again_is_answered_as_done_and_changes_nothing(kit: Kit) -> None:
    await kit.commit(create(1), send(1, 1), suspend(1))
    edit = await kit.staged(1, change=RESTARTED, put=(entry(1, 1),), messages=(message(5),))
    assert await kit.edit(edit) == Edited()
    assert await kit.claimed() == [1]
    await kit.commit(Take(uid(1), message(5).mid), entry(1, 2))
    before = await kit.load(1)
    assert await kit.edit(edit) == Edited()
    assert await kit.load(1) == before


async def test_an_edit_by_a_replica_needs_its_fence(kit: Kit) -> None:
    await kit.commit(create(1), suspend(1))
    edit = await kit.staged(1, change=BLOCKED)
    with pytest.raises(LeaseLost):
        await kit.store.edit("a", kit.epochs["a"] + 1, edit)
    with pytest.raises(LeaseLost):
        await kit.store.edit("stranger", 1, edit)
    assert (await kit.row(1)).state is State.SUSPENDED


async def test_what_does_not_exist_is_not_edited(kit: Kit) -> None:
    await kit.commit(create(1))
    edit = await kit.staged(1, change=BLOCKED)
    assert await kit.edit(replace(edit, uid=uid(2))) == Outdated()


# -- what it changes


async def test_entries_are_put_and_dropped(kit: Kit) -> None:
    await kit.commit(create(1), *(entry(1, n, b"old") for n in (1, 2, 3, -5)), suspend(1))
    new = Entry(uid(1), 0, 2, "k", Kind.AGAIN, "other", None, b"", True, None, 9, 8.0, 7.0, b"ref")
    await kit.edited(1, put=(new, entry(1, -1, b"new"), entry(1, 4, b"new")), drop=(1, -5, 77))
    entries = (await kit.load(1)).entries
    assert [(e.seq, e.outcome) for e in entries] == [(-1, b"new"), (0, b"1"), (2, None), (3, b"old"), (4, b"new")]
    assert entries[2] == new


async def test_a_step_that_runs_again_is_recorded_at_its_old_place_once(kit: Kit) -> None:
    await kit.commit(create(1), *(entry(1, n, b"old") for n in (1, 2, 3)))
    await kit.edited(1, by="a", change=RESTARTED, put=(entry(1, 2, b"", kind=Kind.AGAIN),))
    assert await kit.claimed() == [1]
    await kit.commit(entry(1, 1, b"new"), entry(1, 2, b"new"), entry(1, 4, b"new"))
    await kit.commit(entry(1, 2, b"newer"), entry(1, 2, b"", kind=Kind.AGAIN))
    assert [e.outcome for e in (await kit.load(1)).entries] == [b"1", b"old", b"new", b"old", b"new"]


async def test_pending_operations_are_forgotten_by_key(kit: Kit) -> None:
    await kit.commit(create(1), create(2), pending(1, "1"), pending(1, "2"), pending(2, "1"), suspend(1))
    await kit.edited(1, forget=("1", "9"))
    assert [p.key for p in (await kit.load(1)).pending] == ["2"]
    assert [p.key for p in (await kit.load(2)).pending] == ["1"]


async def test_exposed_values_stay(kit: Kit) -> None:
    await kit.commit(create(1), Expose(uid(1), "k", b"v"), suspend(1))
    await kit.edited(1, change=RESTARTED)
    assert await kit.store.exposed(uid(1)) == {"k": b"v"}


async def test_a_message_is_replaced_in_its_place(kit: Kit) -> None:
    await kit.commit(create(1), send(1, 9, key="nine"), send(1, 1), send(1, 5), suspend(1))
    new = replace(message(9, b"new", key="other", name="Name"), type="U")
    await kit.edited(1, messages=(replace(new, kind="cancel", failed=True, run=3, sent_at=77.0),))
    assert await kit.inbox(1) == [new, message(1), message(5)]  # kind, run and time of sending stay
    assert (await kit.sent(send(1, 20, key="nine"))).new
    assert not (await kit.sent(send(1, 21, key="other"))).new


async def test_a_message_that_was_taken_comes_back_at_its_place(kit: Kit) -> None:
    await kit.commit(create(1), send(1, 9, key="k"), send(1, 1), send(1, 5))
    await kit.commit(Take(uid(1), mids(9)[0]), Take(uid(1), mids(5)[0]), suspend(1))
    await kit.edited(1, messages=(message(9, b"back", key="k"), message(7)))
    assert await kit.inbox(1) == [message(9, b"back", key="k"), message(1), message(7)]


async def test_an_answer_that_was_taken_comes_back_as_an_answer(kit: Kit) -> None:
    await kit.commit(create(1), create(2), watch(1, 2))
    await kit.commit(finish(2))
    (answer,) = await kit.inbox(1)
    await kit.commit(Take(uid(1), answer.mid), suspend(1))
    await kit.edited(1, messages=(answer,))
    assert await kit.inbox(1) == [answer]


async def test_messages_of_an_edit_are_neither_taken_nor_seen(kit: Kit) -> None:
    await kit.commit(*(create(n) for n in (1, 2, 3, 4)), *(send(n, n) for n in (1, 2, 3)))
    await kit.commit(Take(uid(3), mids(3)[0]), suspend(4))
    await kit.commit(*(suspend(n, seen=tuple(mids(n))) for n in (1, 2, 3)))
    await kit.edited(1)
    await kit.edited(2, messages=(message(2),))
    await kit.edited(3, messages=(message(3),))
    await kit.edited(4, messages=(message(4),))
    assert sorted(await kit.claimed()) == [2, 3, 4]


async def test_a_new_message_with_a_key_that_is_known_is_left_out(kit: Kit) -> None:
    await kit.commit(create(1), send(1, 1, key="taken"), send(1, 2, key="open"), send(1, 3))
    await kit.commit(Take(uid(1), mids(1)[0]), suspend(1))
    await kit.edited(
        1, messages=(message(5, key="taken"), message(6, key="open"), message(7, key="new"), message(8, key="new"))
    )  # fmt: skip
    assert await kit.mids(1) == mids(2, 3, 7)


async def test_a_message_that_would_get_the_key_of_another_stays_as_it_is(kit: Kit) -> None:
    await kit.commit(create(1), send(1, 1, key="k"), send(1, 2, key="l"), send(1, 3))
    await kit.commit(Take(uid(1), mids(2)[0]), suspend(1))
    await kit.edited(1, messages=(message(2, b"new", key="k"), message(3, b"new", key="k")))
    assert await kit.inbox(1) == [message(1, key="k"), message(3)]
    assert not (await kit.sent(send(1, 9, key="l"))).new


@pytest.mark.parametrize("taken", [False, True])
async def test_a_message_keeps_its_key_if_the_new_one_has_none(kit: Kit, taken: bool) -> None:
    await kit.commit(create(1), send(1, 1, key="k"))
    if taken:
        await kit.commit(Take(uid(1), message(1).mid))
    await kit.edited(1, by="a", messages=(message(1, b"new"),))
    assert await kit.inbox(1) == [message(1, b"new", key="k")]
    assert not (await kit.sent(send(1, 2, key="k"))).new
    await kit.edited(1, id="other", messages=(message(1, b"newer", key="l"),))
    assert await kit.inbox(1) == [message(1, b"newer", key="l")]
    assert (await kit.sent(send(1, 3, key="k"))).new
    assert not (await kit.sent(send(1, 4, key="l"))).new


async def test_an_unsent_message_is_as_if_never_sent(kit: Kit) -> None:
    await kit.commit(create(1), send(1, 1, key="k"), send(1, 2), send(1, 3, key="l"))
    await kit.commit(Take(uid(1), mids(3)[0]), suspend(1))
    await kit.edited(1, unsend=tuple(mids(1, 3, 9)))
    assert await kit.mids(1) == mids(2)
    await kit.commit(send(1, 1, key="k"), send(1, 5, key="l"))
    assert await kit.mids(1) == mids(2, 1, 5)


async def test_a_message_that_was_seen_and_unsent_wakes_when_it_comes_again(kit: Kit) -> None:
    await kit.commit(create(1), send(1, 1))
    await kit.commit(suspend(1, seen=tuple(mids(1))))
    await kit.edited(1, unsend=tuple(mids(1)))
    await kit.commit(send(1, 1), by=None)
    assert await kit.claimed() == [1]
    await kit.commit(suspend(1))
    assert await kit.claimed() == [1]


async def test_a_message_takes_the_key_of_one_that_is_unsent_by_the_same_edit(kit: Kit) -> None:
    await kit.commit(create(1), send(1, 1, key="k"), suspend(1))
    await kit.edited(1, messages=(message(2, key="k"),), unsend=tuple(mids(1)))
    assert await kit.mids(1) == mids(2)


async def test_an_edited_instance_is_found_if_it_has_cause_to_go_on(kit: Kit) -> None:
    now = kit.clock.now
    await kit.commit(*(create(n) for n in range(1, 7)), send(4, 4), send(5, 5), send(6, 6, kind="cancel"))
    await kit.edited(1, by="a", change={"state": State.SCHEDULED, "due_at": now})
    await kit.edited(2, by="a", change={"state": State.SUSPENDED, "due_at": now + 4})
    await kit.edited(3, by="a", change={"state": State.SUSPENDED, "due_at": None})
    await kit.edited(4, by="a", change={"state": State.SUSPENDED, "due_at": None})
    await kit.edited(5, by="a", change=BLOCKED)
    await kit.edited(6, by="a", change=BLOCKED)
    assert sorted(await kit.claimed()) == [1, 4, 6]
    assert await kit.next_due() == now + 4


async def test_an_edit_leaves_no_request_to_hand_over(kit: Kit) -> None:
    await kit.commit(create(1))
    await kit.commit(evict(1, 1, "b"), send(1, 2), by=None)
    assert (await kit.mids(1)) == mids(1, 2)
    await kit.edited(1, by="a", change=BLOCKED)
    assert await kit.mids(1) == mids(2)


# -- an edit that ends


async def test_an_edit_that_ends_the_instance_does_what_a_finish_does(kit: Kit) -> None:
    await kit.join("b")
    await kit.commit(*(create(n) for n in (1, 2, 3, 9)), create(4, parent=1), create(5, parent=1), create(6, parent=4))
    await kit.commit(create(7), by="b")
    await kit.commit(watch(2, 1), watch(3, 1), watch(7, 1), watch(1, 9), finish(5), suspend(1), suspend(3))
    await kit.commit(send(1, 1), by=None)
    done = await kit.edited(1, by="a", change=ended(State.FAILED, b"why"))
    answers = [s for s in done.sent if s.message.kind == MessageKind.ANSWER]
    assert done.sent[: len(answers)] == tuple(answers)
    assert {(s.uid, s.owner, s.new) for s in answers} == {
        (uid(2), "a", True), (uid(3), None, True), (uid(7), "b", True),
    }  # fmt: skip
    assert {(s.message.type, s.message.body, s.message.failed) for s in answers} == {("failed", b"why", True)}
    assert [(s.uid, s.message.mid) for s in done.sent[len(answers) :]] == [(uid(4), cancel_mid(uid(1), uid(4)))]
    assert [len(await kit.inbox(n)) for n in (2, 3, 4, 5, 6, 7)] == [1, 1, 1, 0, 0, 1]
    assert await kit.wakeups("b") == [7]
    assert await kit.wakeups("a") == []  # the editor knows by the answer
    assert await kit.claimed(thorough=True) == [3]
    assert await kit.one(finish(9)) == Finished(())  # it waits for nobody now
    row = await kit.row(1)
    assert (row.state, row.outcome, row.ended_at, row.owner, row.waiting) == (State.FAILED, b"why", 11.0, None, False)


async def test_an_outsider_who_ends_an_instance_wakes_all_who_own_what_it_told(kit: Kit) -> None:
    await kit.commit(create(1), create(2), create(3, parent=1), watch(2, 1), suspend(1))
    await kit.edited(1, change=ended())
    assert await kit.wakeups("a") == [2, 3]


async def test_an_edit_of_what_had_ended_tells_nobody_again(kit: Kit) -> None:
    await kit.commit(create(1), create(2), create(3, parent=1), watch(2, 1))
    await kit.commit(finish(1, State.FAILED, b"err"))
    assert await kit.edited(1, change=ended(State.SUCCEEDED, b"out")) == Edited()
    assert [m.body for m in await kit.inbox(2)] == [b"err"]
    assert await kit.inbox(3) == []
    assert (await kit.sent(watch(2, 1, "2"))).message.body == b"out"


async def test_an_edit_of_what_had_ended_wakes_nobody(kit: Kit) -> None:
    await kit.commit(create(1), send(1, 1, kind="cancel"), send(1, 2))
    await kit.commit(finish(1, State.FAILED, b"err"))
    await kit.edited(1, change=ended(), messages=(message(3),))
    assert await kit.claimed(thorough=True) == []


async def test_an_ended_instance_that_is_restarted_runs_and_ends_again(kit: Kit) -> None:
    await kit.commit(create(1), create(2))
    await kit.commit(finish(1, State.FAILED, b"err", failed_seq=0))
    await kit.edited(1, change=RESTARTED)
    row = await kit.row(1)
    assert (row.state, row.outcome, row.ended_at, row.failed_seq) == (State.SCHEDULED, None, None, None)
    assert await kit.claimed() == [1]
    assert await kit.one(watch(2, 1)) is None
    answer = await kit.one(finish(1, State.SUCCEEDED, b"out"))
    assert isinstance(answer, Finished)
    assert [(s.uid, s.message.body) for s in answer.sent] == [(uid(2), b"out")]


# -- deletions


async def test_a_deletion_leaves_nothing_of_the_instance(kit: Kit) -> None:
    await kit.commit(
        create(1, initial=(entry(1, -1),)), create(2), entry(1, 1), pending(1), send(1, 1, key="k"), send(1, 2),
        Expose(uid(1), "k", b"v"), watch(1, 2),
    )  # fmt: skip
    await kit.commit(Take(uid(1), mids(1)[0]), Release(uid(1), 0, State.SUSPENDED, 5.0))
    await kit.commit(send(1, 3), by=None)
    assert await kit.edited(1, delete=True) == Edited()
    assert await kit.store.instance("f", "i1") is None
    assert await kit.store.instances([uid(1)]) == []
    assert await kit.store.load([uid(1)]) == []
    assert await kit.store.entries(uid(1), 0, -100) == ([], False)
    assert await kit.inbox(1) == []
    assert await kit.store.exposed(uid(1)) == {}
    assert [r.uid for r in await kit.store.find(flow=None, states=None, since=None, after=None, limit=9)] == [uid(2)]
    assert await kit.claimed(thorough=True) == []
    assert await kit.next_due() is None
    assert await kit.wakeups() == []
    assert await kit.one(finish(2)) == Finished(())


async def test_what_is_written_for_a_deleted_instance_is_not_kept(kit: Kit) -> None:
    await kit.commit(create(1), create(2))
    await kit.edited(1, by="a", delete=True)
    answers = await kit.commit(
        Update(uid(1), True, None), Expose(uid(1), "k", b"v"), Unwatch(uid(1), 0, "1"), Take(uid(1), mids(1)[0])
    )
    assert [type(a).__name__ for a in answers] == ["NotOwned", "NoneType", "NoneType", "NoneType"]
    assert not (await kit.sent(replace(send(1, 1), uid=uid(1)))).new
    assert await kit.store.load([uid(1)]) == []
    assert await kit.inbox(1) == []


async def test_who_waits_for_a_deleted_instance_is_told_that_it_is_not_found(kit: Kit) -> None:
    await kit.commit(create(1), create(2), create(3, parent=1), watch(2, 1), suspend(1))
    done = await kit.edited(1, by="a", delete=True)
    told, cancelled = done.sent
    assert (told.uid, told.new, told.message.mid) == (uid(2), True, answer_mid(uid(2), 0, "1"))
    assert (told.message.type, told.message.body, told.message.failed) == ("not-found", None, True)
    assert (cancelled.uid, cancelled.message.mid) == (uid(3), cancel_mid(uid(1), uid(3)))
    assert await kit.inbox(2) == [told.message]
    assert await kit.inbox(3) == [cancelled.message]


async def test_an_instance_that_waits_for_itself_is_told_nothing_when_it_is_edited_away(kit: Kit) -> None:
    await kit.commit(create(1), create(2), watch(1, 1), watch(2, 2))
    assert await kit.edited(1, by="a", delete=True) == Edited()
    assert await kit.edited(2, by="a", change=ended()) == Edited()
    assert [await kit.inbox(n) for n in (1, 2)] == [[], []]


async def test_the_deletion_of_what_had_ended_tells_nobody_again(kit: Kit) -> None:
    await kit.commit(create(1), create(2), create(3, parent=1), watch(2, 1))
    await kit.commit(finish(1))
    assert await kit.edited(1, delete=True) == Edited()
    assert [m.type for m in await kit.inbox(2)] == ["succeeded"]
    assert await kit.inbox(3) == []


async def test_a_child_of_a_deleted_instance_runs_on_and_ends(kit: Kit) -> None:
    await kit.commit(create(1), create(2, parent=1))
    await kit.edited(1, by="a", delete=True)
    assert (await kit.row(2)).parent == uid(1)
    assert await kit.one(finish(2, children=True)) == Finished(())
    assert await kit.retire(100.0) == 1


async def test_a_parent_whose_child_was_deleted_ends(kit: Kit) -> None:
    await kit.commit(create(1), create(2, parent=1), create(3, parent=1))
    await kit.edited(2, by="a", delete=True)
    done = await kit.one(finish(1, children=True))
    assert isinstance(done, Finished)
    assert [s.uid for s in done.sent] == [uid(3)]


async def test_a_deletion_made_again_is_answered_as_done_and_another_as_outdated(kit: Kit) -> None:
    await kit.commit(create(1), suspend(1))
    edit = await kit.staged(1, delete=True)
    assert await kit.edit(edit) == Edited()
    assert await kit.edit(edit) == Edited()
    assert await kit.edit(replace(edit, id=b"o" * 16)) == Outdated()
    assert await kit.one(create(2, "i1", owned=False)) == Created()
    assert await kit.edit(edit) == Edited()
    assert (await kit.row(2)).id == "i1"


async def test_a_deletion_is_guarded_as_any_edit(kit: Kit) -> None:
    await kit.join("b")
    await kit.commit(create(1))
    edit = await kit.staged(1, delete=True)
    assert await kit.edit(edit, "b") == OwnedBy("a")
    await kit.commit(entry(1, 1))
    assert await kit.edit(edit, "a") == Outdated()
    assert (await kit.row(1)).owner == "a"


plain_tests(globals())
