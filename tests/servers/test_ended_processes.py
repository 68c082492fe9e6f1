"""A replica whose process has ended on this machine is taken over as soon as anybody looks: nothing else has to tell."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from perdure.stores.contract import Reaped
from perdure.stores.open import open_store
from tests.support.world import eventually

LEASE = 60.0
JOIN = f"""
import asyncio, sys
from perdure.stores.open import open_store

async def main():
    store = open_store(sys.argv[1])
    await store.open()
    await store.join("ended", {LEASE})
    print("joined", flush=True)
    await asyncio.sleep(3600)

asyncio.run(main())
"""


@pytest.fixture(params=["url", "mysql_url"])
def server(request: pytest.FixtureRequest) -> str:
    """The URL of a store on each kind of server."""
    return request.getfixturevalue(request.param)


async def test_a_process_that_was_killed_is_taken_over_at_once(server: str) -> None:
    joined = subprocess.Popen([sys.executable, "-c", JOIN, server], stdout=subprocess.PIPE, text=True)
    store = open_store(server)
    try:
        assert joined.stdout is not None
        assert joined.stdout.readline() == "joined\n"
        await store.open()
        await store.join("looks", LEASE)  # that renews nothing: no lock of its session says that it lives
        assert await store.reap("looks", kill_hung=False) == Reaped()
        joined.kill()
        os.waitid(os.P_PID, joined.pid, os.WEXITED | os.WNOWAIT)
        await eventually(lambda: store.reap("looks", kill_hung=False), lambda found: found.taken == ("ended",))
    finally:
        joined.kill()
        joined.communicate()
        await store.close()
