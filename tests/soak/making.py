"""Makes the programs of a round by chance, and tells beforehand what will have come of them.

`made` is a function of its seed alone. What is certain is told exactly (`Effect.sure`); inside what a race, a time limit
or a cancellation may cut off, a command is done once or not at all.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, cast

from perdure import State
from tests.soak.programs import Node

SMALL: Final = (
    "work", "work", "thread", "flaky", "hopeless", "once", "slow", "draw", "progress", "delay", "sleeps", "receive", "maybe",
    "typed", "several", "stream", "capture", "expose", "look", "cancelled", "transaction", "broken", "talk",
)  # fmt: skip
SMALL_AND_SURE: Final = ("add", "add", "left", "post")
"""What cannot be told if it may be cut off: others wait for it."""
LARGE: Final = (
    "gather", "lock", "queue", "shield", "race", "limit", "group", "child", "started", "many", "patched"
)  # fmt: skip
LARGE_AND_SURE: Final = ("detached",)
STEPS: Final = {"work", "thread", "flaky", "hopeless", "once", "slow", "draw", "progress", "broken"}
WALK: Final = "soak.walk"
COUNTER: Final = "soak.counter"


@dataclass
class Effect:
    """What the ledger will tell of one place."""

    kind: str
    sure: bool
    attempts: set[int] | None = None
    """Which attempts there will have been, if that is known."""


@dataclass
class Message:
    """What the outside sends to a program."""

    to: str
    value: int
    name: str | None
    key: str
    after: float
    """Seconds from the program's beginning."""
    twice: bool


@dataclass
class Program:
    """One top-level instance, and how it ends."""

    id: str
    nodes: list[Node]
    after: float
    """Seconds before it is started: messages may come sooner."""
    ends: str = "succeeds"
    """`succeeds`, `fails`, `waits` (it is cancelled when it waits) or `cancelled` (at any time)."""
    cancel_after: float = 0.0
    messages: list[Message] = field(default_factory=list[Message])
    exposes: dict[str, int] = field(default_factory=dict[str, int])


@dataclass
class Round:
    """All that was made for a round."""

    programs: list[Program]
    counters: dict[str, list[int]]
    """What flows send to each."""
    per_run: dict[str, int]
    effects: dict[str, Effect]
    rows: dict[str, tuple[int, bool]]
    """What transactions write: place, number, whether surely."""
    detached: dict[str, list[Node]]
    kinds: Counter[str]
    sends: int = 0
    """How many messages flows send for certain."""


class Maker:
    """See the module."""

    def __init__(self, seed: object, prefix: str, *, programs: int, transactions: bool) -> None:
        self._chance = random.Random(f"programs {seed}")
        self._prefix = prefix
        self._transactions = transactions
        self._numbers = itertools.count()
        self._owed: defaultdict[int, list[Node]] = defaultdict(list)
        self._all = programs
        self._now: Program = Program("", [], 0.0)
        self._index = 0
        counters = {f"{prefix}c{i}": list[int]() for i in range(max(1, programs // 25))}
        self.round = Round([], counters, {}, {}, {}, {}, Counter())
        for id in counters:
            self.round.per_run[id] = self._chance.randrange(1, 12)

    def made(self) -> Round:
        """The programs, from first to last: each may send to later ones only, so that no two wait for each other."""
        for index in range(self._all):
            self._index = index
            self.round.programs.append(self._program(f"{self._prefix}p{self._index}"))
        return self.round

    def _program(self, id: str) -> Program:
        chance = self._chance
        ends = chance.choices(("succeeds", "fails", "waits", "cancelled"), (80, 7, 6, 7))[0]
        owed = self._owed.pop(self._index, [])
        if owed and ends == "cancelled":
            ends = "succeeds"
        self._now = Program(id, [], round(3 * chance.random(), 3), ends)
        sure = ends != "cancelled"
        nodes = [self._node(id, 0, sure=sure) for _ in range(chance.randrange(3, 13))]
        for node in owed:
            nodes.insert(chance.randrange(len(nodes) + 1), node)
        for _ in range(chance.choice((0, 0, 0, 1, 2))):
            nodes.insert(chance.randrange(len(nodes) + 1), {"do": "again", "at": f"{id}/{next(self._numbers)}"})
            self.round.kinds["again"] += 1
        if ends in ("fails", "waits"):
            place = f"{id}/{next(self._numbers)}"
            nodes.append({"do": ends, "at": place})
            self.round.kinds[ends] += 1
            if ends == "waits":
                self.round.effects[place] = Effect("waits", sure=True)
        self._now.nodes = nodes
        self._now.cancel_after = round(5 * chance.random(), 3)
        return self._now

    def _node(self, id: str, depth: int, *, sure: bool) -> Node:
        """A command; `sure`: it will be done, once."""
        small = SMALL + (SMALL_AND_SURE if sure else ())
        large = LARGE + (LARGE_AND_SURE if sure else ())
        do = self._chance.choice(small if depth >= 2 or self._chance.random() < 0.7 else large)
        if (do == "post" and self._index + 1 >= self._all) or (do == "transaction" and not self._transactions):
            do = "work"
        place = f"{id}/{next(self._numbers)}"
        self.round.kinds[do] += 1
        if do in STEPS:
            self.round.effects[place] = Effect(do, sure)
        node = {"do": do, "at": place}
        return node | getattr(self, f"_{do}", self._nothing)(place, id, depth, sure)

    def _seconds(self, most: float) -> float:
        return round(most * self._chance.random() ** 3, 3)

    def _nothing(self, at: str, id: str, depth: int, sure: bool) -> Node:
        return {}

    def _work(self, at: str, id: str, depth: int, sure: bool) -> Node:
        return {"s": self._seconds(1.0)}

    _once = _slow = _work

    def _delay(self, at: str, id: str, depth: int, sure: bool) -> Node:
        return {"s": self._seconds(4.0)}

    def _thread(self, at: str, id: str, depth: int, sure: bool) -> Node:
        return {"s": self._seconds(0.3)}

    def _flaky(self, at: str, id: str, depth: int, sure: bool) -> Node:
        fails = self._chance.randrange(4)
        self.round.effects[at].attempts = set(range(1, fails + 2))
        return {"fails": fails}

    def _hopeless(self, at: str, id: str, depth: int, sure: bool) -> Node:
        self.round.effects[at].attempts = {1, 2}
        return {}

    def _draw(self, at: str, id: str, depth: int, sure: bool) -> Node:
        self.round.effects[f"{at}/draw"] = Effect("draw", sure)
        return {}

    def _progress(self, at: str, id: str, depth: int, sure: bool) -> Node:
        return {"n": self._chance.randrange(1, 6)}

    def _sleeps(self, at: str, id: str, depth: int, sure: bool) -> Node:
        return {"several": self._chance.sample((0.05, 0.3, 0.6, 1.2), 3)}

    def _transaction(self, at: str, id: str, depth: int, sure: bool) -> Node:
        n = self._chance.randrange(1000)
        self.round.rows[at] = (n, sure)
        return {"n": n}

    def _expose(self, at: str, id: str, depth: int, sure: bool) -> Node:
        value = self._chance.randrange(1000)
        if sure and id == self._now.id:
            self._now.exposes[at] = value
        return {"value": value}

    # -- messages

    def _sent(self, id: str, value: int, name: str | None, key: str) -> None:
        after, twice = self._seconds(6.0), self._chance.random() < 0.1
        self._now.messages.append(Message(id, value, name, key, after, twice))

    def _receive(self, at: str, id: str, depth: int, sure: bool) -> Node:
        value = self._chance.randrange(1000)
        self._sent(id, value, at, at)
        return {"name": at, "value": value}

    def _maybe(self, at: str, id: str, depth: int, sure: bool) -> Node:
        return self._receive(at, id, depth, sure) | {"s": self._seconds(2.0)}

    def _typed(self, at: str, id: str, depth: int, sure: bool) -> Node:
        value = next(self._numbers)
        self._sent(id, value, None, at)
        return {"value": value}

    def _several(self, at: str, id: str, depth: int, sure: bool) -> Node:
        count = self._chance.randrange(1, 6)
        for i in range(count):
            self._sent(id, i, at, f"{at}/{i}")
        return {"name": at, "count": count}

    _stream = _several

    def _talk(self, at: str, id: str, depth: int, sure: bool) -> Node:
        count = self._chance.randrange(1, 4)
        self.round.sends += 2 * count * sure
        return {"id": f"{id}.{next(self._numbers)}", "count": count}

    def _add(self, at: str, id: str, depth: int, sure: bool) -> Node:
        to, n = self._chance.choice(list(self.round.counters)), self._chance.randrange(1, 100)
        self.round.counters[to].append(n)
        self.round.sends += 1
        return {"to": to, "n": n}

    def _post(self, at: str, id: str, depth: int, sure: bool) -> Node:
        later = self._chance.randrange(self._index + 1, min(self._index + 20, self._all))
        value = self._chance.randrange(1000)
        receiving = {"do": "receive", "at": f"{at}/there", "name": at, "value": value}
        self._owed[later].append(receiving)
        self.round.kinds["receive"] += 1
        self.round.sends += 1
        return {"to": f"{self._prefix}p{later}", "name": at, "value": value}

    # -- commands made of others

    def _parts(self, id: str, depth: int, *, sure: bool) -> list[Node]:
        return [self._node(id, depth + 1, sure=sure) for _ in range(self._chance.randrange(1, 4))]

    def _gather(self, at: str, id: str, depth: int, sure: bool) -> Node:
        return {"parts": self._parts(id, depth, sure=sure)}

    _queue = _gather

    def _lock(self, at: str, id: str, depth: int, sure: bool) -> Node:
        return self._gather(at, id, depth, sure) | {"limit": self._chance.choice((1, 1, 2))}

    def _race(self, at: str, id: str, depth: int, sure: bool) -> Node:
        return {"parts": self._parts(id, depth, sure=False)}

    def _group(self, at: str, id: str, depth: int, sure: bool) -> Node:
        return self._race(at, id, depth, sure) | {"s": self._seconds(1.0)}

    def _limit(self, at: str, id: str, depth: int, sure: bool) -> Node:
        return {"part": self._node(id, depth + 1, sure=False), "s": self._seconds(2.0)}

    def _shield(self, at: str, id: str, depth: int, sure: bool) -> Node:
        return {"part": self._node(id, depth + 1, sure=sure), "s": self._seconds(1.0)}

    def _patched(self, at: str, id: str, depth: int, sure: bool) -> Node:
        return {"new": self._node(id, depth + 1, sure=sure)}

    # -- children

    def _child(self, at: str, id: str, depth: int, sure: bool) -> Node:
        child = f"{id}.{next(self._numbers)}"
        return {"id": child, "parts": self._parts(child, depth, sure=sure)}

    def _started(self, at: str, id: str, depth: int, sure: bool) -> Node:
        return self._child(at, id, depth, sure) | {"between": self._node(id, depth + 1, sure=sure)}

    def _many(self, at: str, id: str, depth: int, sure: bool) -> Node:
        child = f"{id}.{next(self._numbers)}"
        parts = [self._node(f"{child}.{i}", depth + 1, sure=sure) for i in range(self._chance.randrange(1, 5))]
        return {"id": child, "parts": parts}

    def _detached(self, at: str, id: str, depth: int, sure: bool) -> Node:
        made = self._child(at, id, depth, sure)
        self.round.detached[made["id"]] = made["parts"]
        return made

    def _broken(self, at: str, id: str, depth: int, sure: bool) -> Node:
        return {"id": f"{id}.{next(self._numbers)}"}

    _left = _broken

    def _cancelled(self, at: str, id: str, depth: int, sure: bool) -> Node:
        by_handle, detached = self._chance.random() < 0.5, sure and self._chance.random() < 0.5
        made = self._broken(at, id, depth, sure)
        return made | {"s": self._seconds(0.5), "by_handle": by_handle, "detached": detached}

    def _look(self, at: str, id: str, depth: int, sure: bool) -> Node:
        return {"id": self._chance.choice(list(self.round.counters))}


# ---------------------------------------------------------------- what may come of it


def fits(node: Node, got: Any) -> bool:
    """Whether this may have come of the command."""
    match node["do"]:
        case "work" | "thread" | "flaky":
            return got == node["at"]
        case "hopeless" | "broken":
            return got == f"{node['at']} is {node['do']}"
        case "once":
            return got in (node["at"], "unknown")
        case "slow":
            return got in (node["at"], "too slow")
        case "draw":
            return isinstance(got, str) and len(got) == 12
        case "progress" | "transaction":
            return got == node["n"]
        case "delay":
            return got == "late enough"
        case "sleeps":
            return got == node["several"].index(min(node["several"]))
        case "receive" | "typed" | "expose":
            return got == node["value"]
        case "maybe":
            return got in (node["value"], None)
        case "several" | "stream":
            return got == list(range(node["count"]))
        case "talk":
            return got == [*(10 * i + 1 for i in range(node["count"])), node["count"]]
        case "gather" | "lock" | "queue" | "child" | "many":
            return all_fit(node["parts"], got)
        case "shield" | "patched":
            return fits(node.get("part") or node["new"], got)
        case "group":
            return got == "the group failed"
        case "race":
            return fits(node["parts"][got[0]], got[1])
        case "limit":
            return got == "out of time" or fits(node["part"], got)
        case "started":
            return fits(node["between"], got[0]) and all_fit(node["parts"], got[1])
        case "look":
            return got in {*(state.value for state in State), "InstanceNotFound"}
        case "cancelled":
            return got == "FlowCancelled"
        case "capture":
            return got is True
        case other:
            return got == {"add": "added", "post": "posted"}.get(other, other)


def all_fit(nodes: list[Node], got: Any) -> bool:
    """Whether there is one for each command, and it fits."""
    outcomes = cast("list[Any]", got)
    return isinstance(got, list) and len(outcomes) == len(nodes) and all(map(fits, nodes, outcomes))


def unfitting(nodes: list[Node], got: list[Any]) -> Iterator[tuple[Node, Any]]:
    """The commands whose outcome cannot be, each with that."""
    if len(got) != len(nodes):
        yield {"do": "all of it", "commands": len(nodes)}, got
        return
    yield from ((node, part) for node, part in zip(nodes, got, strict=True) if not fits(node, part))
