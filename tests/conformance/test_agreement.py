"""SQLite answers and keeps what the memory store does, whatever is written: scripts made by chance, compared."""

import random
from pathlib import Path
from typing import Any

import pytest

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

Action = tuple[Any, ...]

START = 12
"""So many instances exist from the start; the ids behind them are created on the way, or never."""


def some_mid(chance: random.Random, of: int) -> bytes:
    """One of the few messages that ever go to an id: a mid has one receiver."""
    return message(of % 100 * 10 + chance.randrange(3)).mid


def write(chance: random.Random) -> Write:
    there = chance.randrange(START)  # a journal is only ever written for what exists
    anyone = chance.choice([there, there, chance.randrange(START, START + 4) + 100 * chance.randint(1, 2)])
    due_at = chance.choice([None, 1_799_999_999.0, 1_800_000_009.0])
    key = chance.choice("12")
    match chance.randrange(16):
        case 0:  # one that meets another life of its id, or is the first for it; all of one uid are the same
            id, life = chance.randrange(START + 4), chance.randint(1, 2)
            return create(id + 100 * life, f"i{id}", owned=life == 1, due_at=due_at, parent=there)
        case 1:
            return entry(there, chance.randrange(1, 4))
        case 2:
            return pending(there, key, chance.randrange(3))
        case 3:
            return PendingDrop(uid(there), 0, key)
        case 4 | 5 | 6:
            to = chance.randrange(START + 4)
            number = int.from_bytes(some_mid(chance, to)[1:], "big")
            kind = "cancel" if number % 10 == 0 and to % 2 else "message"
            return send(to, number, key=None if number % 10 == 0 else "k", kind=kind)
        case 7:
            number = int.from_bytes(some_mid(chance, anyone)[1:], "big")
            return Send("", "", message(number, key=None if number % 10 == 0 else "k"), uid(anyone))
        case 8:
            return Take(uid(there), some_mid(chance, there))
        case 9:
            return Take(uid(there), answer_mid(uid(there), 0, key))
        case 10:
            return Expose(uid(there), key, b"v%d" % chance.randrange(9))
        case 11:
            return Update(uid(anyone), chance.random() < 0.7, due_at)
        case 12:
            state = chance.choice([State.SUSPENDED, State.SUSPENDED, State.SCHEDULED, State.BLOCKED])
            seen = tuple(some_mid(chance, anyone) for _ in range(chance.randrange(3)))
            return Release(uid(anyone), state, due_at, seen, "why", chance.choice(["", "v2"]))
        case 13:
            if chance.random() < 0.4:
                state = chance.choice([State.SUCCEEDED, State.FAILED, State.CANCELLED])
                return finish(anyone, state, chance.choice([b"out", b"", None]), children=chance.random() < 0.7)
            return Unwatch(uid(there), 0, key)
        case _:
            digest = chance.choice([None, b"d:[]", b"other"])
            return watch(there, chance.randrange(START + 4), key, digest=digest)


def script(chance: random.Random) -> list[Action]:
    actions: list[Action] = []
    for _ in range(60):
        verb = chance.choices(["commit", "again", "claim", "wakeups", "later", "leave"], [50, 10, 12, 8, 3, 1])[0]
        by = "b" if verb == "leave" else chance.choice("ab")
        batch = [write(chance) for _ in range(chance.randint(1, 6))]
        actions.append((verb, by, batch, chance.random() < 0.3))
    return actions


async def act(kit: Kit, action: Action, last: dict[str, list[Write]]) -> object:
    verb, by, batch, thorough = action
    try:
        match verb:
            case "commit":
                last[by] = batch
                return await kit.commit(*batch, by=by)
            case "again":
                return await kit.commit(*last.get(by, []), by=by)
            case "claim":
                rows, due_at = await kit.store.claim(
                    by, kit.epochs[by], flows=["f"], now=kit.clock.now, limit=100, thorough=thorough
                )
                return sorted(rows, key=lambda row: row.uid), due_at  # the order among equals is not promised
            case "wakeups":
                return sorted(await kit.store.wakeups(by))
            case "later":
                kit.clock.now += 2
                kit.store.renew("a", LEASE)
                return kit.store.renew(by, LEASE)
            case _:
                await kit.store.leave(by)
                return await kit.join(by)
    except LeaseLost:
        return "lease lost"


async def told(store: Store, clock: MovableClock, actions: list[Action]) -> list[object]:
    """All that the store says on the way, and what it holds after each step."""
    await store.open()
    kit = Kit(store, clock)
    await kit.join("a")
    await kit.join("b")
    for n in range(START):
        parent = n // 2 if n % 3 == 0 and n else None
        await kit.commit(create(n, owned=n % 4 != 3, due_at=2.0, parent=parent), by="ab"[n % 2])
    everybody = [uid(n + 100 * life) for n in range(START + 4) for life in range(3)]
    last: dict[str, list[Write]] = {}
    said: list[object] = []
    for action in actions:
        said.append((action[:2], await act(kit, action, last)))
        said.append(await store.load(everybody))
    said.append([await store.exposed(u) for u in everybody])
    await store.close()
    return said


@pytest.mark.parametrize("seed", range(40))
async def test_sqlite_says_what_the_memory_store_says(tmp_path: Path, seed: int) -> None:
    actions = script(random.Random(seed))
    one, two = MovableClock(), MovableClock()
    expected = await told(MemoryStore(System(one)), one, actions)
    found = await told(SqliteStore(tmp_path / "x.db", System(two)), two, actions)
    for number, (left, right) in enumerate(zip(expected, found, strict=True)):
        assert left == right, (number, actions[min(number // 2, len(actions) - 1)])
