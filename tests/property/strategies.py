"""Programs and plans for hypothesis to draw."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import strategies as st

Node = dict[str, Any]

LONG = [0, 0.5, 1, 2, 5, 60]
SHORT = [0, 0.5, 1, 2, 5]
MAYBE = [None, None, 0, 1, 5]
NAME = [None, None, "named"]
BOTH = [False, True]

LEAVES: dict[str, dict[str, list[Any]]] = {
    "step": {"attempts": [1, 1, 2, 3], "fails": [0, 0, 0, 1, 2]},
    "careful": {"fails": [0, 0, 1]},
    "thread": {},
    "capture": {"named": BOTH},
    "sleep": {"seconds": LONG},
    "receive": {
        "form": ["ping", "text", "both", "union"], "name": NAME, "even": BOTH, "seconds": [None, None, 0, 1, 5, 60],
        "default": BOTH,
    },
    "stream": {"name": NAME, "seconds": LONG, "take": [1, 2, 3], "how": ["list", "first", "for"]},
    "child": {"fails": [0, 0, 1], "how": ["call", "run", "start", "detached"]},
    "yield": {"times": [0, 1, 2, 3]},
    "draw": {},
    "expose": {},
    "patch": {"of": [0, 1, 2]},
    "pay": {"fails": [0, 0, 1]},
    "raise": {},
    "send": {},
    "words": {"count": [2, 4, 6], "together": BOTH},
}  # fmt: skip
COMMON = ["step"] * 5 + ["sleep", "receive", "receive", "stream", "child", "careful", "draw"]
RARE = [do for do in LEAVES if do not in COMMON]

ONE: dict[str, dict[str, list[Any]]] = {
    "timeout": {"seconds": SHORT},
    "wait_for": {"seconds": SHORT},
    "shield": {"seconds": SHORT},
    "catch": {},
    "leave": {},
    "poll": {},
    "colour": {},
    "locked": {},
    "callback": {"seconds": LONG},
    "generator": {"how": ["dropped", "held", "aclosing"], "stop": [0, 1, 2, 3]},
    "any_move_on": {"seconds": SHORT},
    "any_fail": {"seconds": SHORT},
    "any_shield": {},
}
"""Structures around one part."""
TWO: dict[str, dict[str, list[Any]]] = {"finally": {}, "uncancel": {}, "cancel": {}}
"""Around a part and what comes last."""
SEVERAL: dict[str, dict[str, list[Any]]] = {
    "sequence": {},
    "gather": {"collect": BOTH},
    "group": {},
    "wait": {"seconds": MAYBE, "cancel": BOTH},
    "wait_all": {"stop": BOTH},
    "wait_gathers": {"seconds": MAYBE},
    "completed": {"seconds": MAYBE, "stop": [0, 1, 4]},
    "queue": {"size": [0, 1, 2]},
    "barrier": {},
    "condition": {},
    "stack": {},
    "any_start": {"stop": BOTH},
    "any_locks": {},
    "any_stream": {"size": [0, 1, 2]},
}
BOTH_KINDS: dict[str, dict[str, list[Any]]] = {"event": {}, "any_group": {}}
"""Around a part and several more."""


def grow(chance: random.Random, size: int) -> Node:
    """A program of about so many nodes."""
    if size <= 1:
        do = chance.choice(COMMON if chance.randrange(4) else RARE)
        return {"do": do, **chosen(chance, LEAVES[do])}
    kind = chance.choice([ONE, ONE, TWO, SEVERAL, SEVERAL, SEVERAL, BOTH_KINDS]) if size > 2 else ONE
    do = chance.choice(list(kind))
    found: Node = {"do": do, **chosen(chance, kind[do])}
    if kind is ONE:
        return found | {"part": grow(chance, size - 1)}
    if kind is TWO:
        last = chance.randint(1, max(1, size // 2))
        return found | {"part": grow(chance, size - 1 - last), "last": grow(chance, last)}
    count = chance.randint(2, 4)
    parts = [grow(chance, max(1, (size - 1) // count)) for _ in range(count)]
    if kind is SEVERAL:
        return found | {"parts": parts}
    return found | {"parts": parts[1:], "part": parts[0] if do == "event" or chance.randrange(2) else None}


def chosen(chance: random.Random, fields: dict[str, list[Any]]) -> Node:
    return {name: chance.choice(values) for name, values in fields.items()}


def numbered(tree: Node) -> Node:
    """Every node has its number `n` and its depth."""
    count = 0

    def visit(part: Node, depth: int) -> Node:
        nonlocal count
        copy = {**part, "n": count, "depth": depth}
        count += 1
        for name, value in part.items():
            if name == "parts":
                copy[name] = [visit(p, depth + 1) for p in value]
            elif name in ("part", "last") and value is not None:
                copy[name] = visit(value, depth + 1)
        return copy

    return visit(tree, 0)


def nodes(tree: Node) -> list[Node]:
    """The tree's nodes."""
    inner = [*tree.get("parts", ()), tree.get("part"), tree.get("last")]
    return [tree, *(n for part in inner if part is not None for n in nodes(part))]


def top(chance: random.Random, size: int) -> Node:
    """Failures are caught, several things go on at once, and what comes at the end shows whether anything shifted."""
    parts = [grow(chance, max(1, size // 3)) for _ in range(chance.randint(1, 4))]
    together: Node = {"do": "gather", "collect": True, "parts": parts}
    return {"do": "sequence", "parts": [together, {"do": "draw"}]} if chance.randrange(4) else grow(chance, size)


PROGRAMS = st.builds(top, st.randoms(use_true_random=False), st.integers(3, 24)).map(numbered)
MESSAGES = st.lists(
    st.tuples(st.sampled_from(["ping", "ping", "text"]), st.integers(0, 5), st.sampled_from(NAME)).map(list),
    min_size=0,
    max_size=12,
)
PLANS = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 1 << 16),
        "messages": MESSAGES,
        "cancel_after": st.sampled_from([None, None, None, None]) | st.integers(1, 60),
        "cuts": st.lists(st.floats(0, 0.999), min_size=2, max_size=4),
    }
)
