"""No statement of the MariaDB and MySQL store reads a table from its beginning, whether there is much in it or little."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from types import ModuleType

import pytest

from perdure.stores.mysql import editing, owning, quick, reading, schema, sending, transacting, writing
from perdure.stores.mysql.connection import connect, parse
from perdure.testing.conformance import run
from tests.servers import noting
from tests.servers.conftest import mysql_done
from tests.servers.mysqld import INSTALL, PROGRAM, Mysqld
from tests.support.required import not_here

MODULES: tuple[ModuleType, ...] = (writing, sending, editing, owning, quick, reading, transacting)
SMALL = {"fence", "lease", "checked", "bell"}
"""One row for each replica."""
WALKS = {"owning.OVERLOOKED", "owning.STRANDED"}
"""The safety polls, over what is short in health."""
RARE = {"sending.WAKE_CALLED"}
"""What only a race between two transactions needs: an insert by key."""
ROWS = 5000
TESTS = "test_agreement or test_transact or test_races or test_versions or test_owning or test_handover or results"


def constants() -> Iterator[tuple[str, str]]:
    """The statements of the package with their names."""
    for module in MODULES:
        for name, value in vars(module).items():
            for text in value if isinstance(value, tuple) else (value,):
                if isinstance(text, str) and re.match(r"\(?(select|insert|update|delete) ", text) and name[0] != "_":
                    yield f"{module.__name__.rpartition('.')[2]}.{name}", text


NAMES = {text: name for name, text in constants()}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A database in which the conformance suite was played, so that all statements are known."""
    if PROGRAM is None or INSTALL is None:
        not_here("a MariaDB of the test's own", "no programs mariadbd and mariadb-install-db")
    server = Mysqld(innodb_flush_log_at_trx_commit=0)
    try:
        server.start()
        url = f"{server.url.rpartition('/')[0]}/plans"
        asyncio.run(mysql_done(server.url, "create database plans", "create table plans.conformance_note(n integer)"))
        noting.URL[:] = [url]
        assert run("tests.servers.noting:store", "-q", "-k", TESTS) == 0
        yield url
    finally:
        server.remove()


async def fill(url: str) -> None:
    """Some thousand rows in each table, with values that are all different where they may be."""
    for table in schema.TABLES:
        if table in SMALL:
            continue
        columns = await mysql_done(
            url,
            "select column_name, data_type, extra from information_schema.columns where table_schema = database()"
            f" and table_name = 'perdure_{table}' order by ordinal_position",
        )
        made = {
            "binary": "unhex(md5(seq))", "bigint": "seq % 3", "double": "seq", "tinyint": "seq % 2", "smallint": "seq % 3",
            "varbinary": "concat('text ', seq)", "longblob": "concat('blob ', seq)", "tinyblob": "concat('b ', seq)",
        }  # fmt: skip
        special = {
            "state": "elt(1 + seq % 4, 'succeeded', 'suspended', 'running', 'failed')", "kind": "'message'",
            "lane": "'f'", "flow": "'f'", "owner": "if(seq % 2, concat('owner ', seq % 50), null)",
        }  # fmt: skip
        if table == "wakeup":
            special["owner"] = "concat('owner ', seq % 50)"
        wanted = [(c, special.get(c, made[kind])) for c, kind, extra in columns if not extra]
        names, values = zip(*wanted, strict=True)
        listed = ",".join(f"`{name}`" for name in names)
        await mysql_done(
            url,
            f"delete from perdure_{table}",
            f"insert into perdure_{table}({listed}) select {','.join(values)} from seq_1_to_{ROWS}",
            f"analyze table perdure_{table}",
        )


def locks(sql: str) -> bool:
    """Whether the statement locks rows: all that it looks at, and so waits for rows that it is not after."""
    return not sql.startswith(("select", "(select")) or "for update" in sql or "lock in share mode" in sql


async def wrong(url: str, *, locking: bool) -> dict[str, str]:
    """The plans that read a whole table or index: those of all statements, or of those that lock."""
    connection = await connect(parse(url), 20)
    found: dict[str, str] = {}
    try:
        for sql, text in noting.SEEN.items():
            if (locking and not locks(sql)) or sql not in NAMES or NAMES[sql] in WALKS or " values %s" in sql:
                continue
            for row in (await connection.ask(b"explain " + text))[0][0]:
                table, how, key = row[2], row[3], row[5]
                derived = table is None or table.startswith("<") or table in ("v", "f", "l", "perdure_fence")
                if not derived and how in ("ALL", "index"):
                    found[NAMES[sql]] = f"{table} {how} {key}: {text[:400]!r}"
    finally:
        await connection.close()
    return found


@pytest.mark.timeout(180)
async def test_no_statement_scans(url: str) -> None:
    unseen = {name for text, name in NAMES.items() if text not in noting.SEEN}
    assert unseen <= RARE
    assert await wrong(url, locking=True) == {}, "with few rows"
    await fill(url)
    assert await wrong(url, locking=False) == {}, "with many rows"
