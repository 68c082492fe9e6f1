"""Programs and plans for hypothesis to draw."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import strategies as st

Node = dict[str, Any]

SECONDS = st.sampled_from([0, 0.5, 1, 2, 5, 60])
LIMITS = st.sampled_from([0, 0.5, 1, 2, 5])
NAMES = st.sampled_from([None, None, "named"])


def node(do: str, **parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Node]:
    return st.fixed_dictionaries({"do": st.just(do), **parts})


STEP = st.one_of(
    node("step", attempts=st.just(1), fails=st.just(0)),
    node("step", attempts=st.integers(1, 3), fails=st.integers(0, 2)),
    node("careful", fails=st.sampled_from([0, 0, 1])),
    node("thread"),
    node("capture", named=st.booleans()),
)
WAITING = st.one_of(
    node("sleep", seconds=SECONDS),
    node("receive", form=st.sampled_from(["ping", "text", "both", "union"]), name=NAMES, even=st.booleans(),
         seconds=st.sampled_from([None, 0, 1, 5, 60]), default=st.booleans()),
    node("stream", name=NAMES, seconds=SECONDS, take=st.integers(1, 3), how=st.sampled_from(["list", "first", "for"])),
    node("child", fails=st.sampled_from([0, 0, 1]), how=st.sampled_from(["call", "run", "start", "detached"])),
)  # fmt: skip
OTHER = st.one_of(
    node("yield", times=st.integers(0, 3)), node("draw"), node("expose"), node("raise"), node("send"),
    node("words", count=st.integers(2, 6), together=st.booleans()),
)  # fmt: skip
LEAF = st.one_of(STEP, STEP, WAITING, WAITING, OTHER)


def around(inner: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    """The structures over inner nodes."""
    some = st.lists(inner, min_size=1, max_size=4)
    maybe = st.none() | LIMITS
    return st.one_of(
        node("sequence", parts=some),
        node("gather", parts=some, collect=st.booleans()),
        node("group", parts=some),
        node("wait", parts=some, seconds=maybe, cancel=st.booleans()),
        node("wait_gathers", parts=some, seconds=maybe),
        node("completed", parts=some, seconds=maybe, stop=st.integers(0, 4)),
        node("timeout", part=inner, seconds=LIMITS),
        node("wait_for", part=inner, seconds=LIMITS),
        node("shield", part=inner, seconds=LIMITS),
        node("finally", part=inner, last=inner),
        node("catch", part=inner),
        node("uncancel", part=inner, last=inner),
        node("cancel", part=inner, last=inner),
        node("leave", part=inner),
        node("poll", part=inner),
        node("colour", part=inner),
        node("locked", part=inner),
        node("event", part=inner, parts=some),
        node("queue", parts=some, size=st.integers(0, 2)),
        node("generator", part=inner, how=st.sampled_from(["dropped", "held", "aclosing"]), stop=st.integers(0, 3)),
        node("any_group", parts=some, part=st.none() | inner),
        node("any_move_on", part=inner, seconds=LIMITS),
        node("any_fail", part=inner, seconds=LIMITS),
        node("any_shield", part=inner),
        node("wait_all", parts=some, stop=st.booleans()),
        node("barrier", parts=some),
        node("condition", parts=some),
        node("stack", parts=some),
        node("callback", part=inner, seconds=SECONDS),
        node("any_start", parts=some, stop=st.booleans()),
        node("any_locks", parts=some),
        node("any_stream", parts=some, size=st.integers(0, 2)),
    )


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


LEAVES = int(os.environ.get("PERDURE_PROPERTY_LEAVES", "10"))
TREES = st.recursive(LEAF, around, max_leaves=LEAVES)
PROGRAMS = st.one_of(around(LEAF), TREES, TREES, st.builds(lambda p: {"do": "gather", "collect": True, "parts": p},
                     st.lists(TREES, min_size=2, max_size=4))).map(numbered)  # fmt: skip
MESSAGES = st.lists(
    st.tuples(st.sampled_from(["ping", "ping", "text"]), st.integers(0, 5), NAMES).map(list), min_size=0, max_size=8
)
PLANS = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 1 << 16),
        "messages": MESSAGES,
        "cancel_after": st.sampled_from([None, None, None, None]) | st.integers(1, 60),
        "cuts": st.lists(st.floats(0, 0.999), min_size=2, max_size=4),
    }
)
