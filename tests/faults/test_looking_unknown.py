"""The answer to the commit of a takeover is lost: the look at the others is made again, and it is no error."""

from __future__ import annotations

import asyncio
import logging

import pytest

from perdure import Engine
from perdure.errors import CommitUnknown
from perdure.stores.contract import Reaped
from perdure.stores.memory import MemoryStore


class Lossy(MemoryStore):
    """The first look of the running engine begins and its answer is lost."""

    looks = 0

    def __init__(self) -> None:
        super().__init__()
        self.looked_again = asyncio.Event()

    async def reap(self, me: str, *, kill_hung: bool, limit: int = 1000) -> Reaped:
        self.looks += 1
        if self.looks == 2:  # the first one is part of joining
            raise CommitUnknown("the connection was lost")
        if self.looks > 2:
            self.looked_again.set()
        return await super().reap(me, kill_hung=kill_hung, limit=limit)


async def test_a_look_whose_commit_is_unknown_is_made_again_without_an_error(caplog: pytest.LogCaptureFixture) -> None:
    store = Lossy()
    async with Engine(store):
        await asyncio.wait_for(store.looked_again.wait(), 10)
    assert [record.message for record in caplog.records if record.levelno >= logging.ERROR] == []
