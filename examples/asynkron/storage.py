"""The same flow on three stores: in memory, in a SQLite file, and in one of your own."""

import asyncio
import tempfile
from pathlib import Path
from typing import Any

from perdure import Engine, Store, flow, step
from perdure.stores.sqlite import SqliteStore


@step
async def square(n: int) -> int:
    return n * n


@flow
async def sum_of_squares(count: int) -> int:
    return sum([await square(n) for n in range(count)])


class CountingStore(SqliteStore):
    """A store is whatever does what `perdure.Store` says; this one is SQLite's and counts its commits."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.commits = 0

    async def commit(self, batch: Any) -> Any:
        """See Store."""
        self.commits += 1
        return await super().commit(batch)


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        mine = CountingStore(Path(folder, "mine.db"))
        stores: list[str | Store] = ["memory://", f"sqlite:///{folder}/app.db", mine]
        for store in stores:
            async with Engine(store, flows=[sum_of_squares]) as engine:
                print(await engine.run(sum_of_squares, 5, id="1"))
        print("some commits were counted:", mine.commits > 0)


if __name__ == "__main__":
    asyncio.run(main())
