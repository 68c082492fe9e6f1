"""A deploy changes the code of flows that are under way, at every place where they may be.

For each flow of the corpus and each change, at every place of its script: the engine dies, and one with the changed code
takes over. Either what is recorded fits, and then every recorded value came to the call that it is for and nothing is
run again; or the instance is blocked, untouched, with a reason that names both sides and the line, and with the old code
back it ends as if nothing had happened.
"""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from perdure import State
from tests.deploys.corpus import CASES, RESEEDED, Case
from tests.deploys.lives import First, Found, Job, Later, Process, Record, first_life, later_life

SEEDS = (1, 2)
"""In which the sets of the corpus have different first elements."""


def all_changes(wanted: Callable[[Case, str], object] = Case.text) -> list[Any]:
    """(case, change) as parameters: those of the corpus that are `wanted`; another hash seed is no change of code."""
    return [
        pytest.param(case, change, id=f"{case.name}-{change}")
        for case in CASES.values()
        for change in (case.changes if case.name not in RESEEDED else ())
        if wanted(case, change)
    ]


class Lives:
    """All lives of the corpus, each played once. What a folder holds is copied before another life changes it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._played: dict[str, Any] = {}

    async def _once(self, key: str, play: Callable[[], Awaitable[Any]]) -> Any:
        if key not in self._played:
            try:
                self._played[key] = await play()
            except Exception as error:
                self._played[key] = error
        if isinstance(self._played[key], Exception):
            raise self._played[key]
        return self._played[key]

    def _place(self, *names: str) -> Path:
        return self._folder / "-".join(names).replace(" ", "_")

    def _copy(self, source: Path, target: Path) -> Path:
        return shutil.copytree(source, target)

    async def first(self, case: Case) -> First:
        """By the original code."""

        async def play() -> First:
            folder = self._place(case.name)
            folder.mkdir()
            return await first_life(case, folder)

        return await self._once(f"{case.name}: first", play)

    async def same(self, case: Case, *, pages: bool = False) -> Later:
        """After the first, by the same code; with journals whole, or in pages of an entry."""

        async def play() -> Later:
            first = await self.first(case)
            folder = self._copy(self._place(case.name), self._place(case.name, f"same {pages}"))
            return await later_life(case, None, folder, first.seconds, version="1", pages=pages)

        return await self._once(f"{case.name}: same {pages}", play)

    async def changed(self, case: Case, change: str, *, pages: bool = False) -> Later:
        """After the first, by changed code; with journals whole, or in pages of an entry."""

        async def play(change: str) -> Later:
            first = await self.first(case)
            folder = self._copy(self._place(case.name), self._place(case.name, change, "pages" * pages))
            return await later_life(case, change, folder, first.seconds, version="2", pages=pages)

        return await self._all(f"{case.name}: changed {pages}", case, change, play)

    async def back(self, case: Case, change: str) -> Later:
        """After the changed code's, by the original code."""

        async def play(change: str) -> Later:
            changed = await self.changed(case, change)
            folder = self._copy(self._place(case.name, change, ""), self._place(case.name, change, "back"))
            only = [k for k, found in changed.found.items() if found.state is State.BLOCKED]
            return await later_life(case, None, folder, changed.seconds, version="3", only=only)

        return await self._all(f"{case.name}: back", case, change, play)

    async def _all(self, key: str, case: Case, change: str, play: Callable[[str], Awaitable[Any]]) -> Any:
        """All changes of a case at once: most of a life is waiting for the disk."""

        async def play_all() -> dict[str, Any]:
            played = await asyncio.gather(*(play(change) for change in case.changes), return_exceptions=True)
            return dict(zip(case.changes, played, strict=True))

        played = (await self._once(key, play_all))[change]
        if isinstance(played, BaseException):
            raise played
        return played


@pytest.fixture(scope="module")
def lives(tmp_path_factory: pytest.TempPathFactory) -> Lives:
    return Lives(tmp_path_factory.mktemp("lives"))


def harmless(stopped: list[Record], found: Found) -> None:
    """What was recorded went to the calls that it is for; nothing recorded was run again."""
    assert found.wrong == []
    by_uid = {record.uid: record for record in found.family}
    for before in stopped:
        assert by_uid[before.uid].journal[: len(before.journal)] == before.journal
        assert not {key for key, _ in found.ran} & before.keys()
        assert before.state.ended or set(before.values()) <= set(found.got), "a recorded value was given to nobody"


def set_aside(case: Case, change: str, stopped: list[Record], found: Found) -> None:
    """Who is blocked is as it was, has done nothing, and the reason says what the difference is, and where."""
    assert found.wrong == []
    by_uid = {record.uid: record for record in stopped}
    for record in [r for r in found.family if r.state is State.BLOCKED]:
        before = by_uid[record.uid]
        assert not [asked for key, asked in found.ran if key.startswith(record.uid.hex())]
        assert record.journal == before.journal
        assert record.pending == before.pending
        assert record.inbox[: len(before.inbox)] == before.inbox
        both_sides(before, record.reason or "")
        names_a_line(case, change, record.reason or "")


def both_sides(before: Record, reason: str) -> None:
    """The reason names an entry that is there, and what the code asks for instead."""
    assert reason.startswith(f"NonDeterminismError: {before.name}"), reason
    recorded = re.search(r"the journal (?:holds|goes on with) (.+?) \((?:entry (\d+)|begun)", reason)
    assert recorded, reason
    rows = before.pending if recorded[2] is None else [e for e in before.journal if e.seq == int(recorded[2])]
    assert recorded[1] in [f"{row.kind} {row.name}" for row in rows], reason
    assert re.search(r"the code asks for \w|it asks for \w", reason), reason


def names_a_line(case: Case, change: str, reason: str) -> None:
    """It is a line in a function of the changed source, or its end."""
    line = re.search(rf"at (?:{re.escape(case.file(change))}:(\d+)|its end)$", reason)
    assert line, reason
    assert line[1] is None or case.text(change).splitlines()[int(line[1]) - 1].startswith("    "), reason


def goes_on(stopped: list[Record], found: Found, *, waits: bool = False) -> None:
    """The instance was taken over by code that fits, and ended, or waits for what never comes."""
    harmless(stopped, found)
    assert found.state is State.SUSPENDED if waits else found.state.ended


def as_if_nothing_had_happened(stopped: list[Record], same: Found, blocked: Found, found: Found) -> None:
    """Who was blocked went on, and the instance ended as it would have without the changed code."""
    aside = {record.uid for record in blocked.family if record.state is State.BLOCKED}
    goes_on([record for record in stopped if record.uid in aside], found)
    assert (found.state, found.result) == (same.state, same.result)


def blocked(later: Later) -> set[int]:
    return {k for k, found in later.found.items() if found.state is State.BLOCKED}


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in CASES.items()])
@pytest.mark.parametrize("pages", [False, True], ids=["whole", "pages"])
async def test_the_same_code_goes_on(lives: Lives, case: Case, pages: bool) -> None:
    first, same = await lives.first(case), await lives.same(case, pages=pages)
    for k, stopped in first.stops.items():
        goes_on(stopped, same.found[k])


@pytest.mark.fault(46, 50)
@pytest.mark.parametrize(("case", "change"), all_changes())
async def test_changed_code_never_gets_a_wrong_value(lives: Lives, case: Case, change: str) -> None:
    first, changed = await lives.first(case), await lives.changed(case, change)
    assert blocked(changed) == case.seen(change)
    for k, stopped in first.stops.items():
        if k in case.seen(change):
            set_aside(case, change, stopped, changed.found[k])
        else:
            goes_on(stopped, changed.found[k], waits=k in case.changes[change].waits)


@pytest.mark.parametrize(("case", "change"), all_changes(Case.seen))
async def test_changed_code_never_gets_a_wrong_value_from_a_journal_in_pages(
    lives: Lives, case: Case, change: str
) -> None:
    first, changed = await lives.first(case), await lives.changed(case, change, pages=True)
    assert blocked(changed) == case.seen(change)
    for k in case.seen(change):
        set_aside(case, change, first.stops[k], changed.found[k])


@pytest.mark.fault(46)
@pytest.mark.parametrize(("case", "change"), all_changes(Case.seen))
async def test_with_the_old_code_back_it_ends_as_if_nothing_had_happened(lives: Lives, case: Case, change: str) -> None:
    first, same = await lives.first(case), await lives.same(case)
    changed, back = await lives.changed(case, change), await lives.back(case, change)
    assert back.found.keys() == case.seen(change)
    for k, found in back.found.items():
        as_if_nothing_had_happened(first.stops[k], same.found[k], changed.found[k], found)


@pytest.mark.parametrize(("case", "change"), all_changes(lambda case, change: case.changes[change].lint))
async def test_what_makes_the_same_calls_is_not_seen(lives: Lives, case: Case, change: str) -> None:
    """For a lint: the flow's own code does something else, and no durable call shows it."""
    same, changed = await lives.same(case), await lives.changed(case, change)
    assert not blocked(changed)
    assert any(changed.found[k].result != same.found[k].result for k in case.stops)


# ---------------------------------------------------------------- another hash seed


@pytest.fixture(scope="module")
def seeded() -> Iterator[list[Process]]:
    pool = [Process(seed) for seed in SEEDS]
    yield pool
    for process in pool:
        process.close()


@pytest.mark.parametrize("name", RESEEDED)
def test_the_same_code_in_a_process_with_another_hash_seed(seeded: list[Process], name: str, tmp_path: Path) -> None:
    """The order of a set of strings is seen in the arguments; where it is the same again the instances go on."""
    case, change = CASES[name], "another_seed"
    one, other = seeded
    first, same, moved = (str(tmp_path / part) for part in ("first", "same", "moved"))
    Path(first).mkdir()
    life: First = one.play(Job(name, None, first), First)
    for folder in (same, moved):
        shutil.copytree(first, folder)
    unmoved: Later = one.play(Job(name, None, same, life.seconds, "1"), Later)
    reseeded: Later = other.play(Job(name, change, moved, life.seconds, "1"), Later)
    assert blocked(reseeded) == case.seen(change)
    for k, stopped in life.stops.items():
        goes_on(stopped, unmoved.found[k])
        if k in case.seen(change):
            set_aside(case, change, stopped, reseeded.found[k])
        else:
            goes_on(stopped, reseeded.found[k])
    if case.changes[change].lint:
        assert any(reseeded.found[k].result != unmoved.found[k].result for k in case.stops)


@pytest.mark.parametrize("name", [name for name in RESEEDED if CASES[name].seen("another_seed")])
def test_with_the_old_hash_seed_back_it_ends(seeded: list[Process], name: str, tmp_path: Path) -> None:
    one, other = seeded
    first, same, moved = (str(tmp_path / part) for part in ("first", "same", "moved"))
    Path(first).mkdir()
    life: First = one.play(Job(name, None, first), First)
    for folder in (same, moved):
        shutil.copytree(first, folder)
    unmoved: Later = one.play(Job(name, None, same, life.seconds, "1"), Later)
    reseeded: Later = other.play(Job(name, "another_seed", moved, life.seconds, "1"), Later)
    only = sorted(blocked(reseeded))
    back: Later = one.play(Job(name, None, moved, reseeded.seconds, "3", only), Later)
    for k in only:
        as_if_nothing_had_happened(life.stops[k], unmoved.found[k], reseeded.found[k], back.found[k])
