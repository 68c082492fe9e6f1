"""A pydantic-ai agent with parallel tool calls and a LangGraph graph with parallel branches survive every SIGKILL."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.model.records import Entry, Kind
from perdure.stores.sqlite import SqliteStore
from tests.libraries.forks import Forks

PROGRAMS = ["ask", "try_tools", "study"]


@pytest.fixture(scope="module")
def processes() -> Iterator[list[Forks]]:
    """Two processes that hash strings differently."""
    forks = [Forks(seed) for seed in (1, 22)]
    yield forks
    for process in forks:
        process.close()


async def journal(folder: Path, program: str) -> list[Entry]:
    store = SqliteStore(folder / "flows.db")
    await store.open()
    try:
        row = await store.instance(program, "one")
        if row is None:
            return []
        (loaded,) = await store.load([row.uid])
        return loaded.entries
    finally:
        await store.close()


def effects(folder: Path) -> Counter[str]:
    """How often each step ran, by its idempotency key (without the instance's part)."""
    ledger = folder / "ledger"
    lines = ledger.read_text().splitlines() if ledger.exists() else []
    return Counter(line.split(" ")[0].split(".", 2)[2] for line in lines)


def recorded(entries: list[Entry]) -> set[str]:
    return {entry.key for entry in entries if entry.kind == Kind.STEP}


def asked(entries: list[Entry]) -> set[tuple[str, str, str, bytes]]:
    """What the code asked for, whatever the order in which it came."""
    return {(entry.key, entry.kind, entry.name, entry.digest) for entry in entries}


@pytest.fixture(params=PROGRAMS)
async def calm(
    request: pytest.FixtureRequest, processes: list[Forks], tmp_path: Path
) -> tuple[str, list[str], list[Entry]]:
    """A program, and the result and journal of a run without a crash."""
    folder = tmp_path / "calm"
    folder.mkdir()
    result = processes[0].live(folder, request.param)
    assert result is not None
    entries = await journal(folder, request.param)
    assert effects(folder) == Counter(recorded(entries))
    return request.param, result, entries


async def test_a_kill_after_any_entry_changes_nothing(
    calm: tuple[str, list[str], list[Entry]], processes: list[Forks], tmp_path: Path
) -> None:
    program, result, entries = calm
    for k in range(1, len(entries)):
        folder = tmp_path / str(k)
        folder.mkdir()
        assert processes[k % 2].live(folder, program, kill_after=k) is None, k
        before = await journal(folder, program)
        ran = effects(folder)
        assert len(before) >= k
        assert processes[(k + 1) % 2].live(folder, program) == result, k
        after = await journal(folder, program)
        assert after[: len(before)] == before, k
        assert asked(after) == asked(entries), k
        assert [e.seq for e in after] == list(range(len(entries))), k
        again = effects(folder) - ran
        assert not recorded(before) & set(again), k
        assert max(effects(folder).values()) <= 2, k


async def test_many_lives_are_one_run(
    calm: tuple[str, list[str], list[Entry]], processes: list[Forks], tmp_path: Path
) -> None:
    program, result, entries = calm
    lives = 0
    before: list[Entry] = []
    while (found := processes[lives % 2].live(tmp_path, program, kill_after=1)) is None:
        lives += 1
        after = await journal(tmp_path, program)
        assert after[: len(before)] == before
        before = after
        assert lives <= len(entries)
    assert lives >= 2
    assert found == result
    assert asked(await journal(tmp_path, program)) == asked(entries)


async def test_a_whole_replay_asks_for_the_same_and_runs_nothing(
    calm: tuple[str, list[str], list[Entry]], processes: list[Forks], tmp_path: Path
) -> None:
    program, result, _ = calm
    assert processes[0].live(tmp_path, program, ends=False) is None
    first, ran = await journal(tmp_path, program), effects(tmp_path)
    for process in (processes[1], processes[0]):
        assert process.live(tmp_path, program, ends=False) is None
        assert await journal(tmp_path, program) == first
        assert effects(tmp_path) == ran
    assert processes[1].live(tmp_path, program) == result
    assert (await journal(tmp_path, program))[: len(first)] == first
    assert effects(tmp_path) == ran
