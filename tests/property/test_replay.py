"""Replay equals the first run: generated programs, cut anywhere, replayed in another process with another hash seed.

`PERDURE_PROPERTY_EXAMPLES=5000` runs many more programs, drawn anew each time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, note, settings

from tests.property.pool import Worker, workers
from tests.property.strategies import PLANS, PROGRAMS, Node, nodes

EXAMPLES = int(os.environ.get("PERDURE_PROPERTY_EXAMPLES", "0"))


def checked(examples: int) -> settings:
    """So many programs, always the same; or as many new ones as the environment says."""
    return settings(
        max_examples=EXAMPLES or examples,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )


@pytest.fixture(scope="module")
def pool() -> Iterator[list[Worker]]:
    with workers(1, 2, 3) as pool:
        yield pool


def loose(program: Node) -> bool:
    """Whether it iterates over a set of strings: then replay may stop, but never give a wrong value."""
    return any(n["do"] == "words" for n in nodes(program))


def stopped(report: dict[str, Any], program: Node) -> bool:
    """Whether replay stopped where it may; fails if it stopped elsewhere."""
    if report["state"] == "blocked: NonDeterminismError":
        assert loose(program), report["problem"]
        return True
    return False


def same(report: dict[str, Any], first: dict[str, Any]) -> None:
    assert report["trace"] == first["trace"]
    assert (report["state"], report["result"]) == (first["state"], first["result"])


@pytest.mark.fault(50, 1)
@pytest.mark.timeout(0 if EXAMPLES else 120)
@checked(250)
@given(program=PROGRAMS, plan=PLANS)
def test_a_cut_anywhere_changes_nothing(pool: list[Worker], program: Node, plan: dict[str, Any]) -> None:
    first = pool[0].do(do="first", program=program, plan=plan)
    note(f"{first['state']} {first['result']} {first['problem']}, {first['entries']} entries")
    for paged in (False, True):  # in one piece, and each entry a page of its own
        full = pool[1].do(do="replay", saved=first["whole"], plan=plan, only=True, paged=paged)
        if not stopped(full, program):
            same(full, first)
            assert full["started"] == []
    for number, cut in enumerate(first["cuts"]):
        going_on = {"seed": plan["seed"] + number + 1, "messages": cut["left"], "cancel_after": None}
        for paged in (False, True):
            report = pool[1 + number % 2].do(do="replay", saved=cut["saved"], plan=going_on, only=False, paged=paged)
            note(f"cut at {cut['at']}: {report['state']} {report['problem']}")
            if not stopped(report, program):
                check_cut(first, cut, report)
        if stopped(report, program):
            continue
        again = pool[2 - number % 2].do(do="replay", saved=report["whole"], plan=going_on, only=True, paged=False)
        if not stopped(again, program):
            same(again, report)
            assert again["started"] == []


def check_cut(first: dict[str, Any], cut: dict[str, Any], report: dict[str, Any]) -> None:
    """At the cut the flow has seen the same as before, and waits for the same."""
    length, asked = report["at_live"]
    if cut["expected"] is None:
        assert report["trace"][:length] == first["trace"][:length]
        return
    expected_length, expected_asked = cut["expected"]
    assert report["trace"][:length] == first["trace"][:expected_length]
    if first["state"] != "blocked: NonDeterminismError":
        assert sorted(asked) == expected_asked
