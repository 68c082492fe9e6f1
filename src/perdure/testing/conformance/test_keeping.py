"""What a store keeps it keeps whole, through a close too; whom it tells of changes; and that it is a good neighbour."""

import asyncio
import os
import threading
import warnings
from collections.abc import Callable

import pytest
from msgspec.structs import replace

from perdure.errors import ForkedEngine, LeaseLost
from perdure.model.records import State
from perdure.model.writes import Batch, Expose
from perdure.stores.contract import BUDGET
from perdure.system import System
from perdure.testing.conformance.kit import (
    LEASE,
    Kit,
    create,
    entry,
    finish,
    message,
    pending,
    plain_tests,
    send,
    suspend,
    uid,
    until,
)

LARGEST = 16 * 1024 * 1024
"""Bytes of one value that an engine lets through by itself."""
LONGEST = "\U0001f600" * 63 + "abc"
"""An id, key or name of 255 bytes in UTF-8."""


# -- what was written


async def test_what_was_committed_is_there_after_the_store_was_closed_and_opened_again(kit: Kit) -> None:
    await kit.commit(create(1), entry(1, 1), pending(1), send(1, 1), Expose(uid(1), "k", b"v"), create(2), create(3))
    await kit.commit(finish(2), suspend(3, due_at=5.0))
    before = await kit.store.load([uid(n) for n in (1, 2, 3)])
    await kit.store.leave("a")
    left = await kit.row(1)
    await kit.store.close()
    await kit.store.open()
    assert await kit.store.load([uid(n) for n in (1, 2, 3)]) == [replace(before[0], instance=left), *before[1:]]
    assert await kit.store.exposed(uid(1)) == {"k": b"v"}
    await kit.join("b")
    assert sorted(await kit.claimed("b")) == [1, 3]
    await kit.commit(entry(1, 2), by="b")
    assert await kit.seqs(1) == [0, 1, 2]


async def test_values_as_large_as_an_engine_lets_through_are_kept_whole(kit: Kit) -> None:
    large = bytes(range(256)) * (LARGEST // 256)
    await kit.commit(create(1), entry(1, 1, large), Expose(uid(1), "k", large))
    await kit.sent(replace(send(1, 1), message=message(1, large)))
    (loaded,) = await kit.store.load([uid(1)], budget=4 * BUDGET)
    assert loaded.entries[1] == entry(1, 1, large)
    assert loaded.inbox == [message(1, large)]
    assert await kit.store.exposed(uid(1)) == {"k": large}


async def test_names_as_long_as_an_engine_lets_through_are_kept_whole(kit: Kit) -> None:
    row = replace(create(1, LONGEST, flow=LONGEST, version="v" * 64), begun=None, owned=False)
    letter = message(1, key=LONGEST, name=LONGEST)
    outcome = replace(entry(1, 1), key="=" + LONGEST, name=LONGEST)
    await kit.commit(row, outcome, Expose(uid(1), LONGEST, b"v"))
    await kit.sent(replace(send(1, 1), flow=LONGEST, id=LONGEST, message=letter))
    found = await kit.store.instance(LONGEST, LONGEST)
    assert found is not None
    assert (found.flow, found.id, found.version) == (LONGEST, LONGEST, "v" * 64)
    loaded = await kit.load(1)
    assert (loaded.entries, loaded.inbox) == ([outcome], [letter])
    assert await kit.store.exposed(uid(1)) == {LONGEST: b"v"}
    again = replace(send(1, 2), flow=LONGEST, id=LONGEST, message=message(2, key=LONGEST))
    assert not (await kit.sent(again)).new


async def test_times_come_back_to_the_last_bit(kit: Kit) -> None:
    at = 1_800_000_000.1234567
    await kit.commit(create(1, at=at), replace(entry(1, 1), started_at=at, at=at), create(2), create(3))
    await kit.commit(send(1, 1, sent_at=at), suspend(2, due_at=at), finish(3, at=at))
    loaded = await kit.load(1)
    assert (loaded.instance.created_at, loaded.entries[1].started_at, loaded.entries[1].at) == (at, at, at)
    assert loaded.inbox[0].sent_at == at
    assert ((await kit.row(2)).due_at, (await kit.row(3)).ended_at) == (at, at)


async def test_an_empty_batch_is_answered_by_nothing_and_needs_the_fence(kit: Kit) -> None:
    assert await kit.commit() == []
    kit.epochs["a"] += 1
    with pytest.raises(LeaseLost):
        await kit.commit()


# -- noticing


@pytest.mark.parametrize("what", ["commit", "edit"])
async def test_one_who_shares_the_store_is_told_of_changes(kit: Kit, what: str) -> None:
    await kit.commit(create(1, owned=False))
    told: list[str] = []
    kit.store.on_change(lambda: told.append("one"))
    kit.store.on_change(lambda: told.append("two"))
    if what == "commit":
        await kit.commit(create(2))
    else:
        await kit.edited(1, change={"state": State.BLOCKED, "due_at": None})
    await until(lambda: {*told} == {"one", "two"})


async def test_one_who_is_alone_is_not_told_of_its_own_commits(kit: Kit) -> None:
    told: list[str] = []
    kit.store.on_change(lambda: told.append("one"))
    await kit.commit(create(1))
    await kit.commit(suspend(1, due_at=1.0))
    await kit.claim()
    await kit.store.check()
    assert told == []


# -- a good neighbour


async def test_the_store_says_that_it_is_well(kit: Kit) -> None:
    await kit.store.check()


def test_the_clock_is_the_systems(kit: Kit) -> None:
    assert isinstance(kit.store.system, System)
    assert kit.store.system.clock is kit.clock


async def test_close_may_be_repeated(kit: Kit) -> None:
    await kit.store.close()
    await kit.store.close()


async def test_a_closed_store_holds_no_threads_and_no_files(kit: Kit) -> None:
    async def used(replica: str) -> None:
        await kit.store.open()
        await kit.join(replica)
        await kit.commit(create(1), entry(1, 1), by=replica)
        await asyncio.to_thread(kit.store.renew, replica, LEASE)
        await kit.store.leave(replica)
        await kit.store.close()

    await kit.store.close()
    await used("b")  # what the loop itself makes once and keeps is there now
    threads, files = threading.active_count(), len(os.listdir("/dev/fd"))
    await used("c")
    await until(lambda: threading.active_count() <= threads and len(os.listdir("/dev/fd")) <= files)


async def test_a_forked_child_is_refused_at_once(kit: Kit) -> None:
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # since 3.12, where there are threads: the child needs none
        child = os.fork()
    if child == 0:  # pragma: no cover
        try:
            os.write(writer, " ".join(let_in(kit)).encode() or b"nothing")
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        assert answer.read() == b"nothing"
    os.waitpid(child, 0)  # noqa: ASYNC222  it has ended


def let_in(kit: Kit) -> list[str]:
    """Which calls are not refused in this forked child before they wait for anything."""
    store, epoch = kit.store, kit.epochs["a"]
    calls: dict[str, Callable[[], object]] = {
        "renew": lambda: store.renew("a", LEASE),
        "join": lambda: store.join("b", LEASE).send(None),
        "raise_epoch": lambda: store.raise_epoch("a", epoch).send(None),
        "commit": lambda: store.commit(Batch("a", epoch, [], 1.0)).send(None),
        "claim": lambda: store.claim("a", epoch, flows={"f": ""}, now=1.0, limit=1).send(None),
        "load": lambda: store.load([uid(1)]).send(None),
    }
    found: list[str] = []
    for name, call in calls.items():
        try:
            call()
        except ForkedEngine:
            continue
        except BaseException as error:
            name = f"{name} ({error!r})"
        found.append(name)
    return found


plain_tests(globals())
