"""An engine that is stopped at any place of its start, and steps whose errors look like the store's."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from perdure import Engine, flow, step
from perdure.errors import CommitUnknown, LeaseLost, StoreUnavailable
from perdure.stores.sqlite import SqliteStore


@step
async def says(what: str) -> str:
    """What it was told."""
    return what


@flow(name="faults.starting.one")
async def one(what: str) -> str:
    """One step."""
    return await says(what)


@pytest.mark.peer(16, 43)
@pytest.mark.fault(4)
async def test_a_start_that_is_cancelled_anywhere_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "flows.db"
    ended = 0
    for turns in range(0, 60, 2):
        engine = Engine(SqliteStore(path), flows=[one], lease=30)
        starting = asyncio.ensure_future(engine.__aenter__())
        for _ in range(turns):
            await asyncio.sleep(0 if turns % 4 else 0.0005)
        starting.cancel()
        await asyncio.wait([starting], timeout=5)
        if not starting.cancelled():
            starting.result()
            await engine.__aexit__(None, None, None)
            ended += 1
    assert ended < 30
    async with asyncio.timeout(5), Engine(SqliteStore(path), flows=[one]) as engine:
        assert await engine.run(one, "here", id="x") == "here"
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("perdure")] == []
    assert list(Path(f"{path}-replicas").glob("*.replica")) == []


ERRORS: dict[str, Callable[[], Exception]] = {
    "store away": lambda: StoreUnavailable("of the user's own store"),
    "commit unknown": lambda: CommitUnknown("of the user's own store"),
    "lease lost": lambda: LeaseLost("of the user's own store"),
    "connection": lambda: ConnectionResetError("of the user's own database"),
    "time": lambda: TimeoutError("of the user's own"),
}


@pytest.mark.peer(13)
@pytest.mark.fault(43)
@pytest.mark.parametrize("kind", ERRORS)
async def test_an_error_of_a_step_is_its_outcome_whatever_it_is(kind: str, tmp_path: Path) -> None:
    tries: list[int] = []

    @step
    async def fails() -> None:
        tries.append(1)
        raise ERRORS[kind]()

    @step
    async def returns() -> str:
        return repr(ERRORS[kind]())

    @flow
    async def goes_on() -> list[str]:
        try:
            await fails()
        except Exception as error:
            return [type(error).__name__, await returns()]
        return []

    async with asyncio.timeout(10), Engine(SqliteStore(tmp_path / "flows.db"), flows=[goes_on]) as engine:
        error = ERRORS[kind]()
        assert await engine.run(goes_on, id="x") == [type(error).__name__, repr(error)]
        assert (await engine.health()).paused is None
    assert len(tries) == 1
