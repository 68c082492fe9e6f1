"""The servers that tests ask for, by fixtures of the names in `tests.support.required`; a schema for each test."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from perdure.stores.mysql.connection import connect as connect_mysql
from perdure.stores.mysql.connection import parse as parse_mysql
from tests.servers.services import Services

_numbers = itertools.count()


@pytest.fixture(scope="session")
def services() -> Iterator[Services]:
    """Servers, each of which is started when it is first asked for."""
    services = Services()
    yield services
    services.end()


@pytest.fixture
def postgresql(services: Services) -> str:
    """The URL of a PostgreSQL."""
    return services.url("PostgreSQL")


@pytest.fixture
def pgbouncer(services: Services) -> str:
    """The URL of a PgBouncer in transaction mode, in front of that PostgreSQL."""
    return services.url("PgBouncer")


async def _done(server: str, *statements: str) -> list[asyncpg.Record]:
    """The statements are done; gives the rows of the last one."""
    connection = await asyncpg.connect(server)
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
def url(postgresql: str) -> Iterator[str]:
    """A store of the test's own, in a schema of its own. It waits for no disk: no test crashes this server."""
    schema = _schema()
    yield f"{postgresql}?schema={schema}&synchronous_commit=off"
    asyncio.run(_done(postgresql, f"drop schema if exists {schema} cascade"))


@pytest.fixture(scope="session")
def _one_schema() -> Iterator[dict[str, str]]:
    """The schema that tests use one after the other, by server."""
    schemas: dict[str, str] = {}
    yield schemas
    for server, schema in schemas.items():
        asyncio.run(_done(server, f"drop schema if exists {schema} cascade"))


@pytest.fixture
def emptied(postgresql: str, _one_schema: dict[str, str]) -> str:
    """A store with nothing in it, in a schema that the next test uses too: to make one takes longer than most tests."""
    schema = _one_schema.setdefault(postgresql, _schema())
    named = f"select tablename from pg_tables where schemaname = '{schema}' and tablename <> 'migration'"
    tables = asyncio.run(_done(postgresql, named))
    asyncio.run(_done(postgresql, *(f"delete from {schema}.{table}" for (table,) in tables), "select"))
    return f"{postgresql}?schema={schema}&synchronous_commit=off"


def through(pooler: str, url: str) -> str:
    """The URL of the same store behind the pooler, which takes no settings of the server from a URL."""
    schema = next(each for each in urlsplit(url).query.split("&") if each.startswith("schema="))
    return urlunsplit(urlsplit(pooler)._replace(query=schema))


@pytest.fixture
def mysql(services: Services) -> str:
    """The URL of a MariaDB or MySQL."""
    return services.url("MariaDB or MySQL")


@pytest.fixture
def mysql_url(mysql: str) -> Iterator[str]:
    """A store of the test's own, in a database of its own."""
    name = _schema()
    asyncio.run(mysql_done(mysql, f"create database {name}"))
    yield urlunsplit(urlsplit(mysql)._replace(path=f"/{name}"))
    asyncio.run(mysql_done(mysql, f"drop database {name}"))


@pytest.fixture(scope="session")
def _one_mysql_database() -> Iterator[dict[str, str]]:
    """The database that tests use one after the other, by server."""
    names: dict[str, str] = {}
    yield names
    for server, name in names.items():
        asyncio.run(mysql_done(server, f"drop database if exists {name}"))


@pytest.fixture
def emptied_mysql(mysql: str, _one_mysql_database: dict[str, str]) -> str:
    """A store with nothing in it, in a database that the next test uses too, with the table that the conformance suite
    asks for where a table cannot be made in a transaction.
    """
    name = _one_mysql_database.setdefault(mysql, _schema())
    note = f"create table if not exists {name}.conformance_note(n integer)"
    asyncio.run(mysql_done(mysql, f"create database if not exists {name}", note))
    made = f"select table_name from information_schema.tables where table_schema = '{name}'"
    tables = [table for (table,) in asyncio.run(mysql_done(mysql, made)) if not table.endswith("migration")]
    asyncio.run(mysql_done(mysql, "begin", *(f"delete from {name}.{table}" for table in tables), "commit"))
    return urlunsplit(urlsplit(mysql)._replace(path=f"/{name}"))


async def mysql_done(server: str, *statements: str) -> list[Any]:
    """The statements are done; gives the rows of the last one."""
    connection = await connect_mysql(parse_mysql(server), 10, ours=False)
    try:
        found: list[Any] = []
        for statement in statements:
            found = list((await connection.ask(statement.encode()))[-1][0])
        return found
    finally:
        await connection.close()
