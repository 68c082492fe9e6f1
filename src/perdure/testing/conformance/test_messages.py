"""Messages, wake-ups, watches, and what follows from a finish."""

import asyncio

import pytest

from perdure.errors import LeaseLost
from perdure.model.records import Message, MessageKind, State
from perdure.model.writes import Created, Finished, Release, Send, Sent, Take, Unwatch, Update, Write
from perdure.stores.contract import answer_mid, cancel_mid
from perdure.testing.conformance.kit import Kit, create, finish, message, mids, plain_tests, send, suspend, uid, watch


async def test_messages_are_kept_in_the_order_of_arrival(kit: Kit) -> None:
    await kit.commit(create(1))
    await kit.commit(send(1, 9), send(1, 3))
    await kit.commit(send(1, 5))
    assert [m.mid for m in await kit.inbox(1)] == mids(9, 3, 5)
    assert (await kit.load(1)).inbox == await kit.inbox(1)


async def test_the_answer_says_where_a_row_went_and_whose_it_is(kit: Kit) -> None:
    await kit.join("b")
    await kit.commit(create(1), create(2, owned=False))
    assert await kit.sent(send(1, 1)) == Sent(uid(1), "a", message(1), new=True)
    assert await kit.sent(send(1, 2), "b") == Sent(uid(1), "a", message(2), new=True)
    assert await kit.sent(send(2, 3), None) == Sent(uid(2), None, message(3), new=True)
    assert await kit.sent(send(9, 4)) == Sent(None, None, message(4), new=True)


async def test_the_answer_tells_the_owner_after_the_batch(kit: Kit) -> None:
    await kit.commit(create(1))
    answers = await kit.commit(send(1, 1), send(2, 2), suspend(1), create(2))
    assert [a.owner for a in answers if isinstance(a, Sent)] == [None, "a"]


async def test_a_message_with_a_key_seen_before_is_dropped_even_when_taken(kit: Kit) -> None:
    await kit.commit(create(1), create(2))
    assert (await kit.sent(send(1, 1, key="k"))).new
    assert not (await kit.sent(send(1, 2, key="k"))).new
    assert (await kit.sent(send(2, 3, key="k"))).new
    await kit.commit(Take(uid(1), message(1).mid))
    assert not (await kit.sent(send(1, 4, key="k"))).new
    assert await kit.inbox(1) == []


async def test_of_two_messages_with_one_key_in_a_batch_the_first_counts(kit: Kit) -> None:
    await kit.commit(create(1))
    answers = await kit.commit(send(1, 5, key="k"), send(1, 4, key="k"), send(1, 3))
    assert [a.new for a in answers if isinstance(a, Sent)] == [True, False, True]
    assert [m.mid for m in await kit.inbox(1)] == mids(5, 3)


async def test_the_same_row_sent_twice_is_kept_once(kit: Kit) -> None:
    await kit.commit(create(1))
    await kit.commit(send(1, 1, key="k"), send(1, 2))
    answers = await kit.commit(send(1, 1, key="k"), send(1, 2))
    assert [a.new for a in answers if isinstance(a, Sent)] == [True, True]
    await kit.commit(Take(uid(1), message(1).mid))
    await kit.commit(send(1, 1, key="k"))
    assert [m.mid for m in await kit.inbox(1)] == mids(2)


async def test_a_message_for_an_unknown_id_waits_for_its_creation(kit: Kit) -> None:
    await kit.commit(send(1, 7, key="k"), send(1, 2))
    answers = await kit.commit(send(1, 3, key="k"), send(1, 7, key="k"))
    assert [a.new for a in answers if isinstance(a, Sent)] == [False, True]
    other, created = await kit.commit(create(2), create(1))
    assert other == Created()
    assert isinstance(created, Created)
    assert [m.mid for m in created.inbox] == mids(7, 2)
    assert await kit.inbox(1) == [message(7, key="k"), message(2)]
    assert not (await kit.sent(send(1, 4, key="k"))).new
    assert await kit.wakeups() == []


async def test_wakeups_need_the_fence(kit: Kit) -> None:
    await kit.commit(create(1))
    await kit.sent(send(1, 1), None)
    old = kit.epochs["a"]
    kit.epochs["a"] = await kit.store.raise_epoch("a", old)
    with pytest.raises(LeaseLost):
        await kit.store.wakeups("a", old)  # it comes late: nobody hears the answer
    assert await kit.wakeups() == [1]


async def test_messages_that_waited_are_adopted_by_a_creation_that_is_not_owned(kit: Kit) -> None:
    await kit.commit(send(1, 7))
    await kit.commit(create(1, owned=False, due_at=kit.clock.now + 5))
    assert await kit.claimed() == []  # a message does not start what is scheduled for later
    kit.clock.now += 5
    assert await kit.claimed() == [1]
    assert [m.mid for m in await kit.inbox(1)] == mids(7)


async def test_only_messages_wait_for_an_unknown_id(kit: Kit) -> None:
    assert await kit.sent(send(1, 1, kind="cancel")) == Sent(None, None, message(1, kind="cancel"), new=False)
    stray = Send("", "", message(2), uid(77))
    assert await kit.sent(stray) == Sent(None, None, message(2), new=False)
    assert await kit.created(create(1)) == Created()
    assert await kit.inbox(1) == []


async def test_a_message_for_an_ended_instance_is_kept_and_a_cancel_request_dropped(kit: Kit) -> None:
    await kit.commit(create(1))
    await kit.commit(finish(1))
    assert await kit.sent(send(1, 1), None) == Sent(uid(1), None, message(1), new=True)
    assert await kit.sent(send(1, 2, kind="cancel"), None) == Sent(uid(1), None, message(2, kind="cancel"), new=False)
    assert [m.mid for m in await kit.inbox(1)] == mids(1)
    assert await kit.claimed(thorough=True) == []


async def test_a_row_may_be_addressed_by_uid(kit: Kit) -> None:
    await kit.commit(create(1))
    assert await kit.sent(Send("", "", message(1), uid(1))) == Sent(uid(1), "a", message(1), new=True)


async def test_a_taken_message_is_not_loaded_any_more(kit: Kit) -> None:
    await kit.commit(create(1), send(1, 1), send(1, 2))
    await kit.commit(Take(uid(1), message(1).mid))
    assert [m.mid for m in (await kit.load(1)).inbox] == mids(2)


# -- wake-ups


async def test_what_others_send_wakes_the_owner_once(kit: Kit) -> None:
    await kit.join("b")
    await kit.commit(create(1), create(2))
    await kit.commit(create(3), by="b")
    await kit.commit(send(1, 1), send(1, 2), send(3, 3), by="b")
    await kit.commit(send(2, 4), by=None)
    assert await kit.wakeups("b") == []
    assert await kit.wakeups("a") == [1, 2]
    assert await kit.wakeups("a") == []


async def test_the_owner_learns_of_its_own_sends_by_the_answer_alone(kit: Kit) -> None:
    await kit.commit(create(1), send(1, 1))
    assert await kit.wakeups() == []


async def test_a_wakeup_row_outlives_a_release(kit: Kit) -> None:
    await kit.commit(create(1))
    await kit.commit(send(1, 1), by=None)
    await kit.commit(suspend(1))
    assert await kit.wakeups() == []
    assert await kit.claimed() == [1]


async def test_a_message_for_a_suspended_instance_makes_it_claimable(kit: Kit) -> None:
    await kit.commit(create(1), suspend(1))
    assert await kit.claimed() == []
    await kit.commit(send(1, 1), by=None)
    assert await kit.claimed() == [1]
    assert await kit.wakeups() == []


async def test_a_message_that_the_release_has_not_seen_wakes(kit: Kit) -> None:
    await kit.commit(create(1), create(2), create(3), create(4))
    await kit.commit(send(1, 1), send(2, 2), send(3, 3), send(3, 4), send(4, 5))
    await kit.commit(
        suspend(1), suspend(2, seen=(mids(2)[0],)), suspend(3, seen=(mids(3)[0],)),
        Take(uid(4), mids(5)[0]), suspend(4),
    )  # fmt: skip
    assert sorted(await kit.claimed()) == [1, 3]


async def test_a_message_sent_in_the_batch_of_the_release_wakes(kit: Kit) -> None:
    await kit.commit(create(1))
    await kit.commit(send(1, 1), suspend(1))
    assert await kit.claimed() == [1]


async def test_seen_messages_stay_and_wake_nobody_until_a_new_one_comes(kit: Kit) -> None:
    await kit.commit(create(1), send(1, 1))
    await kit.commit(suspend(1, seen=(mids(1)[0],)))
    assert await kit.claimed(thorough=True) == []
    await kit.commit(send(1, 2), by=None)
    assert await kit.claimed() == [1]
    assert [m.mid for m in await kit.inbox(1)] == mids(1, 2)


async def test_a_finish_leaves_no_wakeup(kit: Kit) -> None:
    await kit.commit(create(1))
    await kit.commit(send(1, 1), by=None)
    await kit.commit(finish(1))
    assert await kit.wakeups() == []
    assert await kit.claimed(thorough=True) == []


async def test_a_dropped_duplicate_wakes_nobody(kit: Kit) -> None:
    await kit.commit(create(1), send(1, 1, key="k"))
    await kit.commit(suspend(1, seen=(mids(1)[0],)))
    await kit.commit(Take(uid(1), mids(1)[0]))
    await kit.commit(send(1, 2, key="k"), send(1, 1, key="k"), by=None)
    assert await kit.claimed(thorough=True) == []


async def test_a_sender_at_the_same_instant_is_never_lost(kit: Kit) -> None:
    """Release and send race in either order: the message is answered to the owner, or makes the instance claimable."""
    for number in range(40):
        await kit.commit(create(number))
        first, second = kit.one(suspend(number)), kit.sent(send(number, number), None)
        await asyncio.gather(*((first, second) if number % 2 else (second, first)))
        assert await kit.claimed() == [number]
        await kit.commit(finish(number))


# -- watches


def answer(asker: int, type: str, body: bytes | None, now: float, key: str = "1") -> Message:
    failed = type != "succeeded"
    mid = answer_mid(uid(asker), 0, key)
    return Message(mid, MessageKind.ANSWER, key, None, type, body, failed, 0, now)


@pytest.mark.parametrize(
    ("state", "outcome"), [(State.SUCCEEDED, b"out"), (State.FAILED, b"err"), (State.CANCELLED, None)]
)
async def test_a_watch_is_answered_by_the_finish(kit: Kit, state: State, outcome: bytes | None) -> None:
    await kit.commit(create(1), create(2))
    assert await kit.one(watch(1, 2)) is None
    expected = answer(1, state.value, outcome, kit.clock.now)
    assert await kit.one(finish(2, state, outcome)) == Finished((Sent(uid(1), "a", expected, new=True),))
    assert await kit.inbox(1) == [expected]
    assert await kit.wakeups() == []


@pytest.mark.parametrize("outcome", [b"out", b"", None])
async def test_a_watch_of_an_ended_instance_is_answered_at_once(kit: Kit, outcome: bytes | None) -> None:
    await kit.commit(create(1), create(2))
    await kit.commit(finish(2, State.SUCCEEDED, outcome))
    assert await kit.sent(watch(1, 2)) == Sent(uid(1), "a", answer(1, "succeeded", outcome, kit.clock.now), new=True)
    assert len(await kit.inbox(1)) == 1


async def test_a_watch_in_the_batch_of_the_finish_is_answered(kit: Kit) -> None:
    await kit.commit(create(1), create(2))
    sent, finished = await kit.commit(watch(1, 2), finish(2))
    assert isinstance(sent, Sent)
    assert finished == Finished(())
    assert await kit.inbox(1) == [sent.message]


async def test_a_watch_of_the_unknown_is_answered_not_found(kit: Kit) -> None:
    await kit.commit(create(1))
    assert (await kit.sent(watch(1, 2))).message == answer(1, "not-found", None, kit.clock.now)


async def test_a_watch_with_another_digest_is_answered_already_started(kit: Kit) -> None:
    await kit.commit(create(1), create(2))
    assert (await kit.sent(watch(1, 2, digest=b"other"))).message == answer(1, "already-started", None, kit.clock.now)
    assert await kit.one(watch(1, 2, "2", digest=b"d:[]")) is None


async def test_a_watch_of_a_creation_in_the_same_batch_finds_it(kit: Kit) -> None:
    await kit.commit(create(1))
    assert (await kit.commit(watch(1, 2, digest=b"d:[]"), create(2, owned=False)))[0] is None


async def test_an_answer_wakes_an_asker_elsewhere(kit: Kit) -> None:
    await kit.join("b")
    await kit.commit(create(1), create(3), create(4))
    await kit.commit(create(2), by="b")
    await kit.commit(watch(1, 2), watch(3, 2), watch(4, 2), suspend(3))
    await kit.commit(finish(4))
    done = await kit.one(finish(2), "b")
    assert isinstance(done, Finished)
    assert sorted((s.uid, s.owner) for s in done.sent) == [(uid(1), "a"), (uid(3), None)]
    assert await kit.wakeups("a") == [1]
    assert await kit.claimed("a") == [3]


async def test_an_unwatched_finish_answers_nobody(kit: Kit) -> None:
    await kit.commit(create(1), create(2), watch(1, 2), watch(1, 2, "2"))
    await kit.commit(Unwatch(uid(1), 0, "1"))
    done = await kit.one(finish(2))
    assert isinstance(done, Finished)
    assert [s.message.key for s in done.sent] == ["2"]


async def test_unwatching_leaves_an_answer_that_was_written(kit: Kit) -> None:
    await kit.commit(create(1), create(2), watch(1, 2))
    await kit.commit(finish(2))
    await kit.commit(Unwatch(uid(1), 0, "1"))
    assert len(await kit.inbox(1)) == 1


async def test_of_watch_and_unwatch_in_a_batch_the_last_counts(kit: Kit) -> None:
    await kit.commit(
        create(1), create(2), watch(1, 2), Unwatch(uid(1), 0, "1"), Unwatch(uid(1), 0, "2"), watch(1, 2, "2")
    )
    done = await kit.one(finish(2))
    assert isinstance(done, Finished)
    assert [s.message.key for s in done.sent] == ["2"]


async def test_a_taken_answer_is_not_written_again(kit: Kit) -> None:
    await kit.commit(create(1), create(2), watch(1, 2))
    await kit.commit(finish(2))
    await kit.commit(Take(uid(1), answer_mid(uid(1), 0, "1")))
    await kit.commit(watch(1, 2))
    assert await kit.inbox(1) == []


async def test_many_watches_in_one_batch(kit: Kit) -> None:
    children = range(100, 700)
    await kit.commit(create(1), *(create(n, parent=1) for n in children))
    await kit.commit(*(watch(1, n, str(n)) for n in children))
    answers = await kit.commit(*(finish(n) for n in children))
    assert all(isinstance(a, Finished) and len(a.sent) == 1 for a in answers)
    assert len(await kit.inbox(1)) == 600


# -- children


async def test_unfinished_attached_children_are_asked_to_cancel(kit: Kit) -> None:
    await kit.join("b")
    await kit.commit(create(1), create(2, parent=1), create(3, parent=1), create(4), create(5, parent=1, owned=False))
    await kit.commit(finish(3))
    await kit.commit(create(6, parent=1), by="b")
    done = await kit.one(finish(1, State.FAILED, b"e", children=True))
    assert isinstance(done, Finished)
    assert [(s.uid, s.owner, s.new, s.message.kind) for s in done.sent] == [
        (uid(2), "a", True, "cancel"), (uid(5), None, True, "cancel"), (uid(6), "b", True, "cancel"),
    ]  # fmt: skip
    assert [s.message.mid for s in done.sent] == [cancel_mid(uid(1), uid(n)) for n in (2, 5, 6)]
    assert [len(await kit.inbox(n)) for n in (2, 3, 4, 5, 6)] == [1, 0, 0, 1, 1]
    assert await kit.wakeups("a") == []
    assert await kit.wakeups("b") == [6]


async def test_no_child_is_looked_for_unless_told(kit: Kit) -> None:
    await kit.commit(create(1), create(2, parent=1))
    assert await kit.one(finish(1)) == Finished(())
    assert await kit.inbox(2) == []


async def test_parent_and_child_that_end_in_one_batch_see_each_other_ended(kit: Kit) -> None:
    await kit.commit(create(1), create(2, parent=1), watch(1, 2))
    writes: list[Write] = [finish(1, children=True), finish(2)]
    assert await kit.commit(*writes) == [Finished(()), Finished(())]
    assert await kit.inbox(1) == []
    assert await kit.inbox(2) == []


async def test_a_cancel_request_reaches_what_messages_do_not_wake(kit: Kit) -> None:
    later = kit.clock.now + 100
    await kit.commit(
        create(1, owned=False, due_at=later), create(2), create(3, flow="unknown", owned=False, due_at=later)
    )
    await kit.commit(Release(uid(2), 0, State.BLOCKED, None, reason="r"))
    await kit.commit(send(1, 1), send(2, 2), by=None)
    assert await kit.claimed() == []
    await kit.commit(
        send(1, 3, kind="cancel"), send(2, 4, kind="cancel"), Send("unknown", "i3", message(5, kind="cancel")), by=None
    )
    rows = await kit.claim()
    assert sorted((r.uid, r.state, r.reason) for r in rows) == [
        (uid(1), State.SCHEDULED, None), (uid(2), State.BLOCKED, "r"), (uid(3), State.SCHEDULED, None),
    ]  # fmt: skip


async def test_a_cancel_request_that_a_blocking_release_has_not_seen_wakes(kit: Kit) -> None:
    await kit.commit(create(1), create(2), send(1, 1, kind="cancel"), send(2, 2))
    await kit.commit(
        Release(uid(1), 0, State.BLOCKED, None, reason="r"), Release(uid(2), 0, State.BLOCKED, None, reason="r")
    )
    assert await kit.claimed() == [1]


async def test_a_parked_instance_is_woken_like_any_other(kit: Kit) -> None:
    await kit.commit(create(1))
    await kit.commit(Update(uid(1), True, None))
    await kit.commit(send(1, 1), by=None)
    assert await kit.wakeups() == [1]


plain_tests(globals())
