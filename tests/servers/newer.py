"""`python -m tests.servers.newer URL PAUSE [LEDGER]`: a Perdure whose stores have one more version, in a process of its own.

Prints `migrating` in the midst of its migration, for PAUSE seconds, and `open` when it has opened the store. With a
ledger it then is an engine for the flows of `tests.servers.worker`, until SIGTERM.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from typing import Any

import asyncpg

from perdure import Engine
from perdure.stores.mysql import schema as mysql
from perdure.stores.open import open_store
from perdure.stores.postgres import schema as postgres
from perdure.stores.sqlite import schema as sqlite

URL, PAUSE = sys.argv[1], float(sys.argv[2])
NAME = f"newer-{os.getpid()}"
SQLITE = "alter table instance add column note text;\nselect pause();\ncreate table noted(one integer) strict;\n"
POSTGRES = (
    f"alter table perdure.instance add column note text; select pg_sleep({PAUSE});"
    " create table perdure.noted(one bigint)"
)

MYSQL = (
    "alter table perdure_instance add column note text",
    "create table if not exists perdure_noted(one bigint)",
)


def pause() -> int:
    """Called by SQLite, in the transaction."""
    print("migrating", flush=True)
    time.sleep(PAUSE)
    return 1


def be_newer() -> None:
    """From now on this process knows version 2."""
    for module, text in ((sqlite, SQLITE), (postgres, POSTGRES), (mysql, MYSQL)):
        known: Any = module
        known.MIGRATIONS = (*module.MIGRATIONS, text)
        known.VERSION = len(known.MIGRATIONS)
    connect = sqlite.connect

    def connected(path: str) -> Any:
        db: Any = connect(path)
        db.create_scalar_function("pause", pause, 0)
        return db

    sqlite.connect = connected
    patched: Any = mysql
    real = patched._step

    async def stepped(db: Any, text: bytes) -> None:
        if b"noted" in text:
            print("migrating", flush=True)
            await asyncio.sleep(PAUSE)
        await real(db, text)

    patched._step = stepped


async def watched() -> None:
    """`migrating` is printed when the server is at it."""
    connection = await asyncpg.connect(URL.partition("?")[0])
    while not await connection.fetch(
        "select 1 from pg_stat_activity where query like 'alter table %' and state = 'active' and application_name = $1",
        NAME,
    ):
        await asyncio.sleep(0.01)
    print("migrating", flush=True)


async def main() -> None:
    """See the module."""
    watching = asyncio.create_task(watched()) if URL.startswith("postgres") else None
    store = open_store(URL if watching is None else f"{URL}&application_name={NAME}")
    await store.open()
    print("open", flush=True)
    if watching is not None:
        watching.cancel()
    if len(sys.argv) > 3:
        from tests.servers.worker import FLOWS

        sys.argv[2] = sys.argv[3]  # where its steps are noted
        async with Engine(store, flows=FLOWS) as engine:
            await engine.serve()
    await store.close()


if __name__ == "__main__":
    be_newer()
    asyncio.run(main())
