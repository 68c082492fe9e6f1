"""Tables of another version: one process brings them up, whole or not at all, and older ones write nothing any more."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from click.testing import CliRunner, Result

from perdure import Engine, LeaseLost, NotOurs
from perdure.cli.commands import perdure
from perdure.model.writes import Batch
from perdure.stores.open import open_store
from perdure.stores.versions import Migrating, Versions
from perdure.testing.conformance.kit import LEASE, create
from tests.servers.worker import FLOWS, busy, echo
from tests.support.clock import until

ROOT = Path(__file__).parents[2]
START_S = 30


@pytest.fixture(params=["sqlite", "url", "mysql_url"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a store that is not there yet."""
    return f"sqlite:///{tmp_path / 'house.db'}" if request.param == "sqlite" else request.getfixturevalue(request.param)


class Newer:
    """A process of the next version."""

    def __init__(self, *args: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.servers.newer", *map(str, args)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )

    def says(self) -> str:
        """Its next line; empty if it has ended."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def end(self) -> None:
        """It is gone."""
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


@pytest.fixture
def newer() -> Iterator[Callable[..., Newer]]:
    """Starts processes of the next version."""
    started: list[Newer] = []

    def start(*args: object) -> Newer:
        started.append(Newer(*args))
        return started[-1]

    yield start
    for each in started:
        each.end()


def store_at(url: str) -> Any:
    return open_store(url)


async def versions(url: str) -> Versions:
    return await cast("Migrating", open_store(url)).versions()


async def made(url: str) -> None:
    await cast("Migrating", open_store(url)).migrate()


def command(*args: str) -> Result:
    return CliRunner().invoke(perdure, args)


# -- the command


def test_the_command_says_what_is_missing_and_what_it_did(place: str) -> None:
    asked = command("migrate", "--check", place)
    assert (asked.exit_code, asked.stdout) == (
        1,
        "missing: 1 (there are no tables); call perdure migrate without --check\n",
    )
    assert command("migrate", "--check", place).exit_code == 1, "--check made the tables"
    done = command("migrate", place)
    assert (done.exit_code, done.stdout) == (0, "applied: 1 (there were none)\n")
    again = command("migrate", place)
    assert (again.exit_code, again.stdout) == (0, "nothing to do: the tables are of version 1\n")
    assert command("migrate", "--check", place).exit_code == 0


@pytest.mark.parametrize("url", ["memory://", "mongo://db", "sqlite:////no/such/folder/x.db"])
def test_the_command_says_why_it_cannot(url: str) -> None:
    done = command("migrate", url)
    assert done.exit_code == 2
    assert done.stderr.startswith("perdure migrate: ")
    assert done.stdout == ""


@pytest.mark.parametrize("options", [[], ["--check"]])
def test_the_command_refuses_a_newer_schema(place: str, newer: Callable[..., Newer], options: list[str]) -> None:
    assert newer(place, 0).process.wait(START_S) == 0
    done = command("migrate", *options, place)
    assert done.exit_code == 2
    assert "store version 2, known here: 1" in done.stderr


# -- opening without migrating


async def test_who_may_not_migrate_is_told_what_to_do(place: str, newer: Callable[..., Newer]) -> None:
    off = place + ("&" if "?" in place else "?") + "migrate=off"
    with pytest.raises(NotOurs, match=r"no Perdure store yet.*perdure migrate"):
        await store_at(off).open()
    assert (await versions(place)).found == 0, "something was made all the same"
    await made(off)  # the command does it, whatever the URL says of opening
    store = store_at(off)
    await store.open()
    await store.close()
    if not place.startswith("sqlite"):
        first = newer(off, 0)
        assert first.says() == ""
        assert first.process.wait(START_S) == 1
        assert (await versions(place)).found == 1


# -- several processes


async def test_two_that_open_at_once_migrate_once(place: str, newer: Callable[..., Newer]) -> None:
    await made(place)
    first = newer(place, 1)
    assert first.says() == "migrating"
    second = newer(place, 1)
    assert first.says() == "open"
    assert second.says() == "open", "it has migrated too"
    assert first.process.wait(START_S) == second.process.wait(START_S) == 0
    with pytest.raises(NotOurs, match="store version 2, known here: 1"):
        await store_at(place).open()


async def test_a_migration_that_is_killed_has_left_nothing(place: str, newer: Callable[..., Newer]) -> None:
    """MariaDB and MySQL take no table change back: there it is for the newer ones alone, until one has finished it."""
    await made(place)
    first = newer(place, 2)  # so long the server goes on for nobody
    assert first.says() == "migrating"
    first.end()
    if place.startswith("mysql"):
        with pytest.raises(NotOurs, match="store version 2, known here: 1"):
            await store_at(place).open()
        second = newer(place, 0)
        assert [second.says(), second.says()] == ["migrating", "open"]
        return
    store = store_at(place)
    await store.open()
    epoch = await store.join("a", LEASE)
    await store.commit(Batch("a", epoch, [create(1)], 1.0))
    await store.leave("a")
    await store.close()
    second = newer(place, 0)
    assert "open" in (second.says(), second.says())
    with pytest.raises(NotOurs, match="store version 2"):
        await versions(place)


# -- older ones at work


@pytest.mark.fault(20)
async def test_an_older_client_writes_nothing_after_a_migration(place: str, newer: Callable[..., Newer]) -> None:
    async with Engine(place, flows=FLOWS, execute=False) as client:
        await client.start(echo, id="before")
        assert newer(place, 0).process.wait(START_S) == 0
        with pytest.raises(NotOurs, match="newer Perdure"):
            await client.start(echo, id="after")
        assert await client._store.instance("servers.echo", "after") is None


async def test_nothing_without_a_fence_is_written_after_a_migration(place: str, newer: Callable[..., Newer]) -> None:
    store = store_at(place)
    await store.open()
    try:
        epoch = await store.join("a", LEASE)
        await store.commit(Batch("a", epoch, [create(1)], 1.0))
        assert newer(place, 0).process.wait(START_S) == 0
        with pytest.raises((LeaseLost, NotOurs)):
            await store.commit(Batch("a", epoch, [create(2)], 1.0))
        for refused in (
            store.join("b", LEASE), store.leave("a"), store.forget("f", "i1"), store.raise_epoch("a", epoch),
            store.commit(Batch(None, 0, [create(3)], 1.0)), store.claim("a", epoch, flows={"f": ""}, now=9.0, limit=9),
        ):  # fmt: skip
            with pytest.raises((LeaseLost, NotOurs)):
                await refused
        assert await store.instance("f", "i2") is None
    finally:
        await store.close()


@pytest.mark.fault(20)
async def test_an_older_replica_stops_and_a_newer_one_goes_on(
    place: str,
    newer: Callable[..., Newer],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ledger = tmp_path / "ledger"
    monkeypatch.setattr(sys, "argv", ["", "", str(ledger)])  # where the steps are noted
    async with Engine(place, flows=FLOWS) as engine:
        await engine.start(busy, 100, id="a")
        await until(lambda: ledger.exists() and len(ledger.read_text().splitlines()) > 3)
        other = newer(place, 0, ledger)
        await until(lambda: "joining again is tried until it succeeds" in caplog.text, seconds=START_S)
        with pytest.raises(LeaseLost):
            await engine.health()
        deadline = time.monotonic() + START_S
        while not (row := await engine._store.instance("servers.busy", "a")) or not row.state.ended:
            assert time.monotonic() < deadline, "the newer one has not gone on with it"
            await asyncio.sleep(0.05)
        other.process.terminate()
        assert await asyncio.to_thread(other.process.wait, START_S) == 0
    assert "newer Perdure" in caplog.text
    steps = [line.split() for line in ledger.read_text().splitlines()]
    by_old = [what for pid, _, what in steps if pid == str(os.getpid())]
    by_new = [what for pid, _, what in steps if pid == str(other.process.pid)]
    assert by_new[-1] == "99"
    assert len(by_old) + len(by_new) in (100, 101), "more was done twice than the step under way"
