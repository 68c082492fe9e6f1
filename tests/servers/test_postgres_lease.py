"""The session that holds a replica's lock: cut off while the lease is renewed, there is one again, and it has the lock."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import Any, cast

import asyncpg  # pyright: ignore[reportMissingTypeStubs]

from perdure import StoreUnavailable
from perdure.stores.postgres import PostgresStore
from tests.support.world import eventually

connect = cast("Any", asyncpg).connect
LEASE = 20.0
HOLDERS = (
    "select pid from pg_locks where locktype = 'advisory' and mode = 'ExclusiveLock' and granted"
    " and (classid::bigint << 32) | objid::bigint = hashtextextended($1, 0)"
)


async def test_who_is_cut_off_while_it_renews_has_one_session_which_holds_the_lock(url: str) -> None:
    """Two sessions at once, and the one with the lock is lost sight of: others would take a replica over that lives."""
    store, beside = PostgresStore(url), await connect(url.partition("?")[0])
    await store.open()
    await store.join("me", LEASE)
    store.renew("me", LEASE)
    stop = threading.Event()
    renewing = threading.Thread(target=_renew, args=(store, stop))
    renewing.start()
    try:
        for _ in range(20):
            before = await eventually(lambda: _holders(store, beside))
            await beside.execute("select pg_terminate_backend($1)", before[0])
            await eventually(lambda: _holders(store, beside), lambda found, before=before: found not in ([], before))
            assert await _holders(store, beside) == [_session(store)]
    finally:
        stop.set()
        await asyncio.to_thread(renewing.join)
        await beside.close()
        await store.close()


def _renew(store: PostgresStore, stop: threading.Event) -> None:
    while not stop.is_set():
        with suppress(StoreUnavailable):  # it was cut off just then
            store.renew("me", LEASE)


def _session(store: PostgresStore) -> int | None:
    lease_keeper: Any = store._beside  # pyright: ignore[reportPrivateUsage]
    connection = lease_keeper._connection
    return None if connection is None else connection.get_server_pid()


async def _holders(store: PostgresStore, beside: Any) -> list[int]:
    return [row[0] for row in await beside.fetch(HOLDERS, f'"{store.address.schema}".me')]
