"""The store answers and keeps what the memory store does, whatever is written: scripts made by chance, compared."""

import random
from typing import Any

import pytest
from msgspec.structs import replace

from perdure.errors import LeaseLost
from perdure.model.records import Entry, Kind, Loaded, MessageKind, State
from perdure.model.writes import (
    Continue,
    Edit,
    Expose,
    Finish,
    PendingDrop,
    PendingPut,
    Release,
    Send,
    Take,
    Unwatch,
    Update,
    Watch,
    Write,
)
from perdure.stores.contract import Store, answer_mid
from perdure.stores.memory import MemoryStore
from perdure.system import System
from perdure.testing.conformance.kit import (
    LEASE,
    Kit,
    MovableClock,
    again,
    create,
    entry,
    finish,
    message,
    pending,
    plain_tests,
    send,
    uid,
    watch,
)

Action = tuple[Any, ...]

START = 12
"""So many instances exist from the start; the ids behind them are created on the way, or never."""
EVERYBODY = [uid(n + 100 * life) for n in range(START + 4) for life in range(3)]
ENDED = [State.SUCCEEDED, State.FAILED, State.CANCELLED]
OPEN = [State.SUSPENDED, State.SUSPENDED, State.SCHEDULED, State.BLOCKED]
WRONG: list[dict[str, Any]] = [*({},) * 8, {"run": 7}, {"length": 99}, {"last": b"x" * 16}, {"ended_at": 1.5}]
DUE = [None, 1_799_999_999.0, 1_800_000_009.0]


def some_mid(chance: random.Random, of: int) -> bytes:
    """One of the few messages that ever go to an id: a mid has one receiver."""
    return message(of % 100 * 10 + chance.randrange(3)).mid


def some_send(chance: random.Random, to: int, **address: Any) -> Send:
    """Messages 0 to 2 of an id; of some ids the first is a cancel request, of some a request to hand it over."""
    number = chance.randrange(3)
    sent_at = chance.choice([5.0, 1_900_000_000.0])
    kind = (MessageKind.CANCEL, MessageKind.EVICT, MessageKind.MESSAGE)[to % 3] if number == 0 else MessageKind.MESSAGE
    letter = message(
        to % 100 * 10 + number, key=None if number == 0 else "k", kind=kind, sent_at=sent_at,
        name="b" if kind == MessageKind.EVICT else None,
    )  # fmt: skip
    return replace(send(to, 0), message=letter, **address)


def end(chance: random.Random, anyone: int) -> Continue | Finish:
    """The end of a run or of the life."""
    if chance.random() < 0.5:
        return again(
            anyone, arguments=chance.choice([b"[3]", b"[4]"]), children=chance.random() < 0.7,
            at=chance.choice([2.0, 10_000.0]),
        )  # fmt: skip
    return finish(
        anyone, chance.choice(ENDED), chance.choice([b"out", b"", None]), at=chance.choice([8.0, 9.0]),
        children=chance.random() < 0.7, failed_seq=chance.choice([None, 1]),
    )  # fmt: skip


def write(chance: random.Random) -> Write:
    """One write of any kind."""
    there = chance.randrange(START)  # a journal is only ever written for what exists
    anyone = chance.choice([there, there, chance.randrange(START, START + 4) + 100 * chance.randint(1, 2)])
    due_at = chance.choice(DUE)
    key = chance.choice("12")
    match chance.randrange(18):
        case 0:  # one that meets another life of its id, or is the first for it; all of one uid are the same
            id, life = chance.randrange(START + 4), chance.randint(1, 2)
            number = id + 100 * life
            return create(
                number, f"i{id}", owned=life == 1, due_at=due_at, parent=there, version=f"v{life}",
                initial=(entry(number, -1),) * (id % 2), inbox=(message(number * 10 + 5, key="k"),) * (id % 2),
            )  # fmt: skip
        case 1 | 2:
            return entry(there, chance.randrange(-1, 4), chance.choice([b"1", b"22"]))
        case 3:
            return pending(there, key, chance.randrange(3))
        case 4:
            return PendingDrop(uid(there), 0, key)
        case 5 | 6 | 7:
            return some_send(chance, chance.randrange(START + 4))
        case 8:
            return some_send(chance, anyone, flow="", id="", uid=uid(anyone))
        case 9:
            return Take(uid(there), some_mid(chance, there))
        case 10:
            return Take(uid(there), answer_mid(uid(there), chance.randrange(2), key))
        case 11:
            return Expose(uid(there), key, b"v%d" % chance.randrange(9))
        case 12:
            return Update(uid(anyone), chance.random() < 0.7, due_at)
        case 13:
            seen = tuple(some_mid(chance, anyone) for _ in range(chance.randrange(3)))
            return Release(
                uid(anyone), 0, chance.choice(OPEN), due_at, seen, "why", chance.choice(["", "v1", "v2"]),
                chance.choice(["p1", "p2"]), chance.choice([None, None, "a", "b", "c"]),
            )  # fmt: skip
        case 14:
            return end(chance, anyone)
        case 15:
            return Unwatch(uid(there), 0, key)
        case _:
            digest = chance.choice([None, b"d:[]", b"other"])
            return watch(there, chance.randrange(START + 4), key, digest=digest)


def change(chance: random.Random) -> dict[str, Any]:
    """What an edit does beside the row, and how the row becomes."""
    of = chance.randrange(START)
    life = chance.choice([0] * 8 + [1, 2])
    number = of + 100 * life
    seqs = [chance.randrange(-2, 5) for _ in range(3)]
    state = chance.choice([*OPEN, *OPEN, *ENDED])
    row: dict[str, Any] = {
        "state": state,
        "due_at": None if state.ended or state is State.BLOCKED else chance.choice(DUE) or 5.0,
        "outcome": b"edited" if state.ended else None,
        "ended_at": 8.5 if state.ended else None,
        "edited_seq": chance.randrange(-1, 3),
        "failed_seq": None,
    }
    return {
        "of": number,
        "id": f"edit{chance.randrange(10_000)}",
        "row": None if chance.random() < 0.1 else row,
        "put": tuple(entry(number, seq, b"put", kind=chance.choice([Kind.STEP, Kind.AGAIN])) for seq in set(seqs[:2])),
        "drop": tuple(seqs[2:]),
        "forget": (chance.choice("12"),),
        "messages": tuple(
            message(of * 10 + n, b"put", key=chance.choice([None, "k", "l"]), name="n")
            for n in chance.sample([1, 2, 3, 4], chance.randrange(3))
        ),
        "unsend": tuple(some_mid(chance, of) for _ in range(chance.randrange(2))),
        "open": (some_mid(chance, of),) if chance.random() < 0.2 else (),
        "wrong": chance.choice(WRONG),
    }


def script(chance: random.Random) -> list[Action]:
    verbs = {"commit": 50, "again": 10, "claim": 12, "wakeups": 8, "later": 3, "leave": 1} | {
        "edit": 20, "edit again": 4, "retire": 2, "forget": 2, "claim blocked": 5, "page": 4
    }  # fmt: skip
    actions: list[Action] = []
    for _ in range(70):
        verb = chance.choices(list(verbs), list(verbs.values()))[0]
        by = "b" if verb == "leave" else chance.choice("ab")
        match verb:
            case "commit":
                how: Any = [write(chance) for _ in range(chance.randint(1, 6))]
            case "edit":
                how = change(chance)
            case "page" | "forget":
                how = chance.randrange(12)
            case _:
                how = (chance.random() < 0.3, chance.choice(["", "v1", "v2"]), chance.choice(["p1", "p2", "p3"]))
        actions.append((verb, by, how))
    return actions


class Player:
    """Plays a script on one store, and keeps what must be known to send something again."""

    def __init__(self, store: Store, clock: MovableClock) -> None:
        self.kit = Kit(store, clock)
        self.last: dict[str, list[Write]] = {}
        self.last_edit: Edit | None = None

    async def start(self) -> None:
        """Both replicas have joined, and there are instances to play with."""
        await self.kit.join("a", "v1")
        await self.kit.join("b", "v2", g="v3")
        for n in range(START):
            parent = n // 2 if n % 3 == 0 and n else None
            await self.kit.commit(create(n, owned=n % 4 != 3, due_at=2.0, parent=parent), by="ab"[n % 2])

    async def act(self, action: Action) -> object:
        """What the store says to one action of the script."""
        try:
            return await self._act(*action)
        except LeaseLost:
            return "lease lost"

    async def _act(self, verb: str, by: str, how: Any) -> object:
        kit, epoch = self.kit, self.kit.epochs[by]
        match verb:
            case "commit":
                self.last[by] = await self._of_this_run(how)
                return await kit.commit(*self.last[by], by=by)
            case "again":
                return await kit.commit(*self.last.get(by, []), by=by)
            case "edit":
                self.last_edit = await self._edit(**how)
                return self.last_edit and await kit.edit(self.last_edit, by)
            case "edit again":
                return self.last_edit and await kit.edit(self.last_edit, None)
            case "retire":
                return await kit.store.retire(by, epoch, before=8.7, now=kit.clock.now, limit=3)
            case "forget":
                return [await kit.store.forget("f", f"i{number}") for number in range(how, START)]
            case "claim":
                thorough, version, _ = how
                rows, due_at = await kit.store.claim(
                    by, epoch, flows={"f": version}, now=kit.clock.now, limit=100, thorough=thorough
                )
                return sorted(rows, key=lambda row: row.uid), due_at  # the order among equals is not promised
            case "claim blocked":
                few, version, process = how
                return await kit.store.claim_blocked(
                    by, epoch, flows={"f": version}, process=process, after=uid(2), limit=2 if few else 100
                )
            case "page":
                return await kit.store.load(EVERYBODY, budget=how)
            case "wakeups":
                return sorted(await kit.store.wakeups(by, epoch))
            case "later":
                kit.clock.now += 2
                kit.store.renew("a", LEASE)
                return kit.store.renew(by, LEASE)
            case _:
                await kit.store.leave(by)
                return await kit.join(by, "v2")

    async def _of_this_run(self, writes: list[Write]) -> list[Write]:
        """The writes as an owner makes them: for the run that the instance is in."""
        runs = {row.uid: row.run for row in await self.kit.store.instances(EVERYBODY)}
        made: list[Write] = []
        for one in writes:
            match one:
                case PendingPut(pending=p):
                    one = PendingPut(replace(p, run=runs.get(p.uid, 0)))
                case Continue():
                    run = runs.get(one.uid, 0) + 1
                    one = replace(one, run=run, begun=replace(one.begun, run=run))
                case Watch() | Unwatch():
                    one = replace(one, run=runs.get(one.asker, 0))
                case Entry() | PendingDrop():
                    one = replace(one, run=runs.get(one.uid, 0))
                case _:
                    pass
            made.append(one)
        return made

    async def _edit(self, of: int, row: Any, put: Any, wrong: Any, **how: Any) -> Edit | None:
        if not await self.kit.store.instances([uid(of)]):
            return None
        run = (await self.kit.row(of)).run
        put = tuple(replace(e, run=run) for e in put)
        return replace(await self.kit.staged(of, delete=row is None, change=row, put=put, **how), **wrong)

    async def all(self) -> list[object]:
        """What the store holds that can be seen."""
        loaded: list[Loaded] = await self.kit.store.load(EVERYBODY)
        return [*loaded, *[await self.kit.store.exposed(x.instance.uid) for x in loaded]]


async def told(store: Store, clock: MovableClock, actions: list[Action]) -> list[object]:
    """All that the store says on the way, and what it holds after each step."""
    player = Player(store, clock)
    await player.start()
    said: list[object] = []
    for action in actions:
        said.append((action[:2], await player.act(action)))
        said.append(await player.all())
    return said


@pytest.mark.parametrize("seed", range(60))
async def test_the_store_says_what_the_memory_store_says(kit: Kit, seed: int) -> None:
    actions = script(random.Random(seed))
    clock = MovableClock()
    expected = await told(MemoryStore(System(clock)), clock, actions)
    found = await told(kit.store, kit.clock, actions)
    for number, (left, right) in enumerate(zip(expected, found, strict=True)):
        assert left == right, (number, actions[min(number // 2, len(actions) - 1)])


plain_tests(globals())
