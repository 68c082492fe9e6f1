"""Every store answers and keeps what the memory store does, whatever is written: batches made by chance, compared."""

import asyncio
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perdure.errors import LeaseLost
from perdure.model.records import State
from perdure.model.writes import Expose, PendingDrop, Release, Send, Take, Unwatch, Update, Write
from perdure.stores.contract import Store, answer_mid
from perdure.stores.memory import MemoryStore
from perdure.stores.sqlite import SqliteStore
from perdure.system import System
from tests.conformance.kit import (
    LEASE,
    Kit,
    MovableClock,
    create,
    entry,
    finish,
    message,
    pending,
    send,
    uid,
    watch,
)

number = st.integers(0, 5)
due = st.sampled_from([None, 1_799_999_999.0, 1_800_000_003.0])
key = st.sampled_from([None, "k", "l"])
kind = st.sampled_from(["message", "message", "message", "cancel"])
state = st.sampled_from([State.SUSPENDED, State.SCHEDULED, State.BLOCKED])
ended = st.sampled_from([State.SUCCEEDED, State.FAILED, State.CANCELLED])


there = st.integers(0, 3)
"""Instances that exist from the start: a journal is only ever written for what exists."""
anyone = st.sampled_from([0, 1, 2, 3, 14, 15, 24, 25])


which = st.integers(0, 2)


def letter(to: int, which: int) -> int:
    """The number of one of the few messages that ever go to an id: a mid has one receiver."""
    return to % 10 * 10 + which


mids = st.lists(st.builds(lambda n, m: message(letter(n, m)).mid, number, which), max_size=3).map(tuple)


def creation(id: int, life: int, due_at: float | None, parent: int | None) -> Write:
    """One that meets another life of its id, or is the first for it; all of one uid are the same."""
    return create(id + 10 * life, f"i{id}", owned=life == 1, due_at=due_at, parent=parent)


writes = st.one_of(
    st.builds(creation, number, st.integers(1, 2), due, st.one_of(st.none(), there)),
    st.builds(entry, there, st.integers(1, 4)),
    st.builds(pending, there, st.sampled_from("12"), st.integers(0, 3)),
    st.builds(lambda n, k: PendingDrop(uid(n), 0, k), there, st.sampled_from("12")),
    st.builds(lambda n, m, k, kind: send(n, letter(n, m), key=k, kind=kind), number, which, key, kind),
    st.builds(lambda n, m: Send("", "", message(letter(n, m)), uid(n)), anyone, which),
    st.builds(lambda n, m: Take(uid(n), message(letter(n, m)).mid), there, which),
    st.builds(lambda n, k: Take(uid(n), answer_mid(uid(n), 0, k)), there, st.sampled_from("12")),
    st.builds(lambda n, k: Expose(uid(n), k, b"v"), there, st.sampled_from("ab")),
    st.builds(lambda n, w, d: Update(uid(n), w, d), anyone, st.booleans(), due),
    st.builds(lambda n, s, d, seen: Release(uid(n), s, d, seen, "r", "v2"), anyone, state, due, mids),
    st.builds(lambda n, s, c: finish(n, s, children=c), anyone, ended, st.booleans()),
    st.builds(
        lambda n, m, k, d: watch(n, m, k, digest=d), there, number, st.sampled_from("12"),
        st.sampled_from([None, b"d:[]", b"other"]),
    ),
    st.builds(lambda n, k: Unwatch(uid(n), 0, k), there, st.sampled_from("12")),
)  # fmt: skip

replica = st.sampled_from(["a", "b"])
actions = st.one_of(
    st.tuples(st.just("commit"), replica, st.lists(writes, min_size=1, max_size=6)),
    st.tuples(st.just("commit"), replica, st.lists(writes, min_size=1, max_size=6)),
    st.tuples(st.just("again"), replica),
    st.tuples(st.just("claim"), replica, st.booleans(), st.integers(1, 9)),
    st.tuples(st.just("wakeups"), replica),
    st.tuples(st.just("later"), replica),
    st.tuples(st.just("leave"), st.just("b")),
)


async def act(kit: Kit, action: tuple[Any, ...], last: dict[str, list[Write]]) -> object:
    verb, by = action[:2]
    try:
        match verb:
            case "commit":
                last[by] = action[2]
                return await kit.commit(*action[2], by=by)
            case "again":
                return await kit.commit(*last.get(by, []), by=by)
            case "claim":
                return await kit.store.claim(
                    by, kit.epochs[by], flows=["f"], now=kit.clock.now, limit=action[3], thorough=action[2]
                )
            case "wakeups":
                return sorted(await kit.store.wakeups(by))
            case "later":
                kit.clock.now += 2
                return kit.store.renew(by, LEASE)
            case _:
                return await kit.store.leave(by)
    except LeaseLost:
        return "lease lost"


async def told(store_of: Any, script: list[tuple[Any, ...]]) -> list[object]:
    """All that the store says on the way, and what it holds at the end."""
    clock = MovableClock()
    store: Store = store_of(System(clock))
    await store.open()
    kit = Kit(store, clock)
    await kit.join("a")
    await kit.join("b")
    await kit.commit(create(0), create(1), create(2, owned=False, due_at=2.0))
    await kit.commit(create(3, parent=0), by="b")
    last: dict[str, list[Write]] = {}
    said = [await act(kit, action, last) for action in script]
    everybody = [uid(n) for n in range(30)]
    held = [await store.load(everybody), [await store.exposed(u) for u in everybody]]
    await store.close()
    return [*said, *held]


@settings(
    max_examples=120, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], print_blob=False
)
@given(st.lists(actions, min_size=2, max_size=14))
def test_every_store_says_what_the_memory_store_says(script: list[tuple[Any, ...]]) -> None:
    expected = asyncio.run(told(MemoryStore, script))
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(told(lambda system: SqliteStore(Path(folder) / "x.db", system), script))
    for action, one, other in zip([*script, "all", "exposed"], expected, found, strict=True):
        assert one == other, action
