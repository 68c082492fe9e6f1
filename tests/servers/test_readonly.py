"""A store opened to be read alone: nothing is made, nothing is written, and `perdure check` works on it."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from perdure import Engine, NotOurs, State, Store, StoreUnavailable, flow, receive, step
from perdure.stores.open import open_store, to_read
from perdure.stores.versions import Migrating
from perdure.testing.conformance.kit import LEASE, uid
from tests.support.world import eventually

PATHS = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


@step
async def work(what: str) -> str:
    return what


def order_of(what: str) -> Any:
    """A flow that does this, and waits."""

    @flow(name="order")
    async def order() -> str:
        await work(what)
        return await receive(str)

    return order


OLD, NEW = order_of("old"), order_of("new")


@pytest.fixture(params=["url", "url&pooler=on", "mysql_url"])
def place(request: pytest.FixtureRequest) -> str:
    """The URL of a store that is not there yet."""
    fixture, also, options = request.param.partition("&")
    return request.getfixturevalue(fixture) + also + options


@pytest.fixture
async def reader(place: str) -> AsyncIterator[Store]:
    """A store with one instance, opened to be read alone."""
    async with Engine(place, flows=[OLD]) as engine:
        handle = await engine.start(OLD, id="1")
        await eventually(handle.state, lambda state: state is State.SUSPENDED)
    store = open_store(place, read_only=True)
    await store.open()
    yield store
    await store.close()


async def test_it_is_read(reader: Store) -> None:
    row = await reader.instance("order", "1")
    assert row is not None
    (loaded,) = await reader.load([row.uid])
    assert [entry.name for entry in loaded.entries][1:] == ["work"]
    assert await reader.find(flow="order", states=None, since=None, after=None, limit=9) == [row]
    assert await reader.results([row.uid, uid(7)]) == {uid(7): None}


async def test_the_server_refuses_what_would_write(reader: Store) -> None:
    for written in (reader.check(), reader.join("a", LEASE), reader.forget("order", "1")):
        with pytest.raises(Exception, match=r"read-only|READ ONLY|not open"):
            await written


async def test_nothing_is_made_where_nothing_is(place: str) -> None:
    with pytest.raises(NotOurs, match="check the URL"):
        await open_store(place, read_only=True).open()
    assert (await cast("Migrating", open_store(place)).versions()).found == 0


async def test_another_version_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    await cast("Migrating", open_store(url)).migrate()
    monkeypatch.setattr("perdure.stores.postgres.schema.VERSION", 2)
    with pytest.raises(NotOurs, match=r"version 1, and 2 is needed: call `perdure migrate`"):
        await open_store(url, read_only=True).open()


async def test_an_engines_store_is_opened_once_more_to_be_read(url: str) -> None:
    async with Engine(url, flows=[OLD]) as engine:
        handle = await engine.start(OLD, id="1")
        twin = to_read(engine._store)
        assert twin is not engine._store
        await twin.open()
        assert await twin.instance("order", handle.id) is not None
        await twin.close()


async def test_a_server_that_is_not_there_is_named(url: str) -> None:
    with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1"):
        await open_store("postgresql://postgres@127.0.0.1:1/test", read_only=True).open()


@pytest.mark.parametrize(("code", "said"), [("OLD", ""), ("NEW", "order '1' would be blocked: NonDeterminismError")])
async def test_the_check_works_on_it(place: str, tmp_path: Path, code: str, said: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "from perdure import Engine\nfrom tests.servers.test_readonly import OLD, NEW\n"
        f"engine = Engine({place!r}, flows=[{code}])\n"
    )
    async with Engine(place, flows=[OLD]) as engine:
        handle = await engine.start(OLD, id="1")
        await eventually(
            lambda: engine._store.instance("order", handle.id), lambda row: row is not None and row.waiting
        )
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "perdure.cli",
            "check",
            "program:engine",
            cwd=tmp_path,
            env=PATHS,
            stdout=PIPE,
            stderr=PIPE,
        )
        out, errors = await process.communicate()
    assert process.returncode == (1 if said else 0), errors.decode()
    assert said in out.decode()
