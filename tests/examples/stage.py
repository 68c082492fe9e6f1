"""Where the examples are played: one SQLite file, a clock that the test moves, and an engine that dies when told."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from perdure import Engine, Handle
from perdure.model.records import Entry
from perdure.model.writes import Answer, Batch, Created
from perdure.stores.sqlite import SqliteStore
from perdure.system import System
from tests.support.world import World

ROOT: Final = Path(__file__).parents[2]


class MortalStore(SqliteStore):
    """No commit comes back from the one on with which so many entries are on disk."""

    def __init__(self, path: Path, system: System, entries: int) -> None:
        super().__init__(path, system)
        self._left = entries
        self.dead = asyncio.Event()

    async def commit(self, batch: Batch) -> list[Answer]:
        """See Store."""
        answers = await super().commit(batch)
        self._left -= sum(isinstance(write, Entry) for write in batch.writes)
        self._left -= sum(isinstance(answer, Created) for answer in answers)  # each with its first entry
        if self._left <= 0:
            self.dead.set()
            await asyncio.Event().wait()
        return answers


class Stage(World):
    """A world on one SQLite file. Its first engine may be mortal: see `mortal`."""

    def __init__(self, folder: Path) -> None:
        super().__init__("sqlite", folder)
        self._mortal: MortalStore | None = None

    async def mortal(self, *flows: Any, entries: int, **options: Any) -> Engine:
        """An engine that learns nothing more when so many entries (of all instances, `begun` included) are on disk."""
        engine = Engine(store := MortalStore(self.path, self.system, entries), flows=flows, **options)
        self._mortal = store
        await engine.__aenter__()
        self._engines[engine] = (flows, options)
        return engine

    async def next_life(self, engine: Engine) -> Engine:
        """The mortal engine has died with its entries on disk, and another one goes on."""
        assert self._mortal is not None
        async with asyncio.timeout(10):
            await self._mortal.dead.wait()
        return await self.restart(engine)

    async def later(self, handle: Handle[Any], duration: timedelta) -> None:
        """The instance waits, and so much time has passed."""
        await self.parked(handle)
        self.clock.advance(duration.total_seconds())


def printed(module: str) -> list[str]:
    """The lines that the program prints when it is run by itself."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", module],
        cwd=ROOT, capture_output=True, encoding="utf-8", timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def modules(package: str) -> set[str]:
    """The names of all programs of the package."""
    return {file.stem for file in (ROOT / "examples" / package).glob("[a-z]*.py")}
