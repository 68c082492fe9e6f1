"""Replaying a recording says what an engine does with the instance: it fits, or the same reason with the same line.

For each flow of the corpus of deploys, at every place of its script, under every change; some of them against an engine
that takes the instances over, all of them against what the corpus says.
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from perdure import NonDeterminismError, State
from perdure.testing.record_source import opened_to_read
from perdure.testing.recording import Recording, record
from perdure.testing.replaying import replay
from tests.deploys.corpus import CASES, RESEEDED, Case
from tests.deploys.lives import Later, Outside, first_life, flows, later_life

PLAYED = [
    "anyio", "at most once", "cancelled", "chain", "child", "delays", "gather", "generator", "messages", "retries", "stream",
]  # fmt: skip


async def recordings(folder: Path) -> list[Recording]:
    """Of all instances in the folder that have not ended, as they are after a file."""
    async with opened_to_read(f"sqlite:///{folder / 'world.db'}") as store:
        rows = await store.find(flow=None, states=None, since=None, after=None, limit=500)
        found = [await record(store, row.flow, row.id) for row in rows if not row.state.ended]
    again: list[Recording] = []
    for number, recording in enumerate(found):
        recording.save(folder / f"{number}.json")
        again.append(Recording.load(folder / f"{number}.json"))
    assert again == found
    return again


async def verdicts(case: Case, change: str | None, recorded: list[Recording]) -> dict[bytes, str]:
    """Why each instance would be blocked, by uid; none for those that fit."""
    code = {flow.name: flow for flow in flows(case, change, Outside("2", scripted=False))}
    found: dict[bytes, str] = {}
    for recording in recorded:
        if recording.flow not in code:
            continue  # nobody has the flow: it waits
        try:
            await replay(recording, code[recording.flow])
        except NonDeterminismError as error:
            found[recording.loaded.instance.uid] = f"NonDeterminismError: {error}"
    return found


@pytest.mark.parametrize("name", [name for name in CASES if name not in RESEEDED])
async def test_what_fits_and_what_does_not(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    first = await first_life(case, tmp_path)
    recorded = await recordings(tmp_path)
    of_stop = {record.uid: k for k, family in first.stops.items() for record in family}
    assert not await verdicts(case, None, recorded)
    for change in case.changes:
        found = await verdicts(case, change, recorded)
        assert {of_stop[uid] for uid in found} == case.seen(change), change


@pytest.mark.parametrize("name", PLAYED)
async def test_an_engine_says_the_same(name: str, tmp_path: Path) -> None:
    case, begin = CASES[name], tmp_path / "first"
    begin.mkdir()
    first = await first_life(case, begin)
    recorded = await recordings(begin)

    async def played(change: str) -> Later:
        folder = shutil.copytree(begin, tmp_path / change)
        return await later_life(case, change, folder, first.seconds, version="2")

    later = dict(zip(case.changes, await asyncio.gather(*map(played, case.changes)), strict=True))
    for change in case.changes:
        family = [one for found in later[change].found.values() for one in found.family]
        blocked = {one.uid: one.reason for one in family if one.state is State.BLOCKED}
        assert await verdicts(case, change, recorded) == blocked, change
