"""The benchmarks' own helpers: what they count is so, what they fill in is as real, and nothing of a run stays."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import filling
from benchmarks.counting import Counting
from benchmarks.flows import FLOWS, wait
from benchmarks.stores import connect, plain, with_schema
from perdure import Engine, State

ROOT = Path(__file__).parents[2]


async def schemas(url: str, prefix: str) -> list[str]:
    """The schemas of the database whose names begin so."""
    db = await connect(url)
    try:
        return [
            row[0] for row in await db.fetch("select nspname from pg_namespace where starts_with(nspname, $1)", prefix)
        ]
    finally:
        await db.close()


async def test_the_proxy_counts_statements_and_transactions(postgresql: str) -> None:
    with Counting(postgresql) as counting:
        db = await connect(counting.url)
        assert (counting.statements, counting.transactions) == (0, 0)
        await db.fetch("select 1")
        await db.fetch("select 1")
        async with db.transaction():  # begin, commit
            await db.fetch("select $1::int", 1)
            await db.execute("select 2")
        await db.close()
        assert (counting.statements, counting.transactions) == (6, 3)


async def test_what_was_filled_in_is_as_real_instances_are(url: str) -> None:
    db = await connect(url)
    try:
        made = await filling.fill(db, url, 30)
        assert made["instances"] == 33
        async with Engine(url, flows=FLOWS) as engine:
            found = [info async for info in engine.find()]
            suspended = [info for info in found if info.state is State.SUSPENDED]
            assert len([info for info in found if info.state is State.SUCCEEDED]) == 31
            assert len(suspended) == 4
            for info in suspended:
                await engine.send(wait, info.id, "go")
                assert await engine.handle(wait, info.id).result(timeout=20) == "go"
            ended = next(info for info in found if info.state is State.SUCCEEDED and info.id != "ended")
            assert await engine.handle("counted", ended.id).result(timeout=20) == 1
    finally:
        await db.close()


async def test_nothing_stays_of_a_run_that_was_killed(postgresql: str, tmp_path: Path) -> None:
    options = ["--url", postgresql, "--no-peers", "--only", "w9i", "--dir", str(tmp_path)]
    command = [sys.executable, "-m", "benchmarks", *options]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
        prefix = f"perdure_bench_{run.pid}_"
        try:
            await until_schemas(postgresql, prefix, there=True)
        finally:
            run.send_signal(signal.SIGKILL)
    await until_schemas(postgresql, prefix, there=False)


async def until_schemas(url: str, prefix: str, *, there: bool) -> None:
    """There are such schemas, or none: within 20 s."""
    limit = time.monotonic() + 20
    while bool(await schemas(url, prefix)) is not there:
        assert time.monotonic() < limit
        await asyncio.sleep(0.05)


def test_a_schema_takes_the_place_of_another() -> None:
    url = with_schema("postgresql://me@here/db?schema=a&notify=off&sslmode=disable", "b")
    assert url == "postgresql://me@here/db?notify=off&sslmode=disable&schema=b"
    assert plain(url) == "postgresql://me@here/db?sslmode=disable"
