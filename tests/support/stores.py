"""Stores between engine and database: one that reads journals in small pages, one whose calls wait for the test."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, cast

from perdure.model.records import Entry, Loaded
from perdure.model.writes import Batch
from perdure.stores.contract import Store
from tests.support.clock import until


class Through:
    """Every method is the real store's."""

    def __init__(self, store: Store) -> None:
        self.real = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


class SmallPages(Through):
    """Journals come in pages of a few bytes; with a budget of 0 each entry is a page."""

    def __init__(self, store: Store, budget: int = 0) -> None:
        super().__init__(store)
        self._budget = budget
        self.pages = 0
        """How many pages were read after the first ones."""

    async def load(self, uids: Sequence[bytes]) -> list[Loaded]:
        """See Store."""
        return await self.real.load(uids, budget=self._budget)

    async def entries(self, uid: bytes, run: int, after: int) -> tuple[list[Entry], bool]:
        """See Store."""
        self.pages += 1
        return await self.real.entries(uid, run, after, budget=self._budget)


class Counted(Through):
    """Counts what some calls of one engine gave."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.claimed: Counter[bytes] = Counter()
        """How often each instance was claimed, blocked or not."""
        self.asked = 0
        """How often it was asked for blocked instances."""
        self.may_claim = asyncio.Event()
        """While it is not set, the engine comes too late for everything."""
        self.may_claim.set()

    async def claim(self, *args: Any, **options: Any) -> Any:
        """See Store."""
        await self.may_claim.wait()
        rows, due = await self.real.claim(*args, **options)
        self.claimed.update(row.uid for row in rows)
        return rows, due

    async def claim_blocked(self, *args: Any, **options: Any) -> Any:
        """See Store."""
        self.asked += 1
        rows, after = await self.real.claim_blocked(*args, **options)
        self.claimed.update(row.uid for row in rows)
        return rows, after


class Held(Through):
    """The next batch that has such a write in it waits until the test lets it go."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._stops: Callable[[Any], bool] = lambda _: False
        self._go = asyncio.Event()
        self.waits = False
        """Whether a batch is being held."""

    def hold(self, stops: Callable[[Any], bool]) -> None:
        """The next batch with a write of which this is true is held."""
        self._stops = stops
        self._go.clear()

    async def held(self) -> None:
        """A batch is being held."""
        await until(lambda: self.waits)

    def let_go(self) -> None:
        """The batch is written, and all others."""
        self._stops = lambda _: False
        self._go.set()

    async def commit(self, batch: Batch) -> Any:
        """See Store."""
        if any(self._stops(write) for write in batch.writes):
            self.waits = True
            await self._go.wait()
            self.waits = False
        return await self.real.commit(batch)


def as_store(store: Through) -> Store:
    """The same, for the type checker."""
    return cast("Store", store)
