"""A batch that is full ends where no entry is parted from what it does: a crash between two batches loses no child."""

from typing import Any

import pytest

from perdure import Engine, flow, receive, start, step
from perdure.engine import committer
from perdure.model.records import Entry, Kind
from perdure.model.writes import Batch, Create, PendingDrop, Send, Take
from perdure.stores.memory import MemoryStore
from tests.support.clock import manual_system


class Spy(MemoryStore):
    """Keeps the batches."""

    def __init__(self) -> None:
        super().__init__(manual_system()[1])
        self.batches: list[Batch] = []

    async def commit(self, batch: Batch) -> list[Any]:
        self.batches.append(batch)
        return await super().commit(batch)


@step(at_most_once=True)
async def once() -> int:
    return 1


@flow
async def small() -> int:
    return 1


@flow
async def does_much() -> int:
    total = 0
    for _ in range(3):
        handle = await start(small)
        total += await receive(int) + await once() + await handle.result()
    return total


async def test_a_full_batch_never_parts_an_entry_from_what_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(committer, "BATCH_WRITES", 1)
    store = Spy()
    async with Engine(store, flows=[does_much, small]) as engine:
        handle = await engine.start(does_much, id="one")
        for number in range(3):
            await handle.send(number)
        assert await handle.result(timeout=20) == 9
    caused = {Kind.START: Create, Kind.RECEIVE: Take, Kind.WAIT: Take, Kind.SEND: Send, Kind.STEP: PendingDrop}
    entries = 0
    for batch in store.batches:
        for i, write in enumerate(batch.writes):
            if isinstance(write, Entry) and write.kind in caused:
                entries += 1
                assert isinstance(batch.writes[i + 1], caused[write.kind]), write
    assert entries == 12
