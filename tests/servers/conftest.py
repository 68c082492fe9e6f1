"""A PostgreSQL server: the one that PERDURE_TEST_POSTGRES names, or the one of this machine; a schema for each test."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Iterator

import asyncpg
import pytest

URL = os.environ.get("PERDURE_TEST_POSTGRES", "postgresql://postgres@127.0.0.1:5432/test")
_numbers = itertools.count()


async def _answers() -> str:
    """Why the server cannot be used; empty: it can."""
    try:
        connection = await asyncpg.connect(URL, timeout=5)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    await connection.close()
    return ""


@pytest.fixture(scope="session")
def server() -> str:
    """The URL of a server that answers."""
    why = asyncio.run(_answers())
    if why:
        pytest.skip(f"no PostgreSQL at {URL} ({why}); name one by PERDURE_TEST_POSTGRES")
    return URL


async def _done(*statements: str) -> list[asyncpg.Record]:
    """The statements are done; gives the rows of the last one."""
    connection = await asyncpg.connect(URL)
    try:
        found: list[asyncpg.Record] = []
        for statement in statements:
            found = await connection.fetch(statement)
        return found
    finally:
        await connection.close()


def _schema() -> str:
    return f"perdure_test_{os.getpid()}_{next(_numbers)}"


@pytest.fixture
def url(server: str) -> Iterator[str]:
    """A store of the test's own, in a schema of its own. It waits for no disk: no test crashes this server."""
    schema = _schema()
    yield f"{server}?schema={schema}&synchronous_commit=off"
    asyncio.run(_done(f"drop schema if exists {schema} cascade"))


@pytest.fixture(scope="session")
def _one_schema(server: str) -> Iterator[str]:
    schema = _schema()
    yield schema
    asyncio.run(_done(f"drop schema if exists {schema} cascade"))


@pytest.fixture
def emptied(server: str, _one_schema: str) -> str:
    """A store with nothing in it, in a schema that the next test uses too: to make one takes longer than most tests."""
    named = f"select tablename from pg_tables where schemaname = '{_one_schema}' and tablename <> 'migration'"
    tables = asyncio.run(_done(named))
    asyncio.run(_done(*(f"delete from {_one_schema}.{table}" for (table,) in tables), "select"))
    return f"{server}?schema={_one_schema}&synchronous_commit=off"
