"""No statement of the PostgreSQL store reads a table from its beginning, whatever it was planned for."""

import itertools
import re
from collections.abc import Iterator
from types import ModuleType

import asyncpg
import pytest

from perdure.model.records import State
from perdure.stores.postgres import PostgresStore, editing, owning, quick, reading, sending, writing
from perdure.stores.postgres.connection import connect, parse
from perdure.stores.postgres.reading import finding
from perdure.stores.postgres.schema import MIGRATIONS

TABLES = re.findall(r"create table perdure\.(\w+)", MIGRATIONS[-1])
SMALL = {"fence", "lease", "checked"}
"""One row for each replica."""
WALKS = {
    "OVERLOOKED", "STRANDED",  # the safety polls, over what is short in health
}  # fmt: skip
SEARCHES = {
    "in the order of creation": finding(None, None, None, b"", 10),
    "of a flow": finding("f", None, None, None, 10),
    **{state.value: finding(None, [state], None, b"", 10) for state in State},
    "failed or blocked": finding("f", [State.FAILED, State.BLOCKED], 1.0, b"", 10),
}


def statements(module: ModuleType) -> Iterator[tuple[str, str]]:
    for name, value in vars(module).items():
        texts = value if isinstance(value, tuple) else (value,)
        for text in texts:
            if (
                isinstance(text, str)
                and re.match(r"(select|insert|update|delete|with) ", text)
                and not name.startswith("_")
            ):
                yield name, text


ALL = (
    {
        f"{module.__name__.rpartition('.')[2]}.{name}.{number}": text
        for module in (writing, sending, editing, owning, quick, reading)
        for number, (name, text) in enumerate(statements(module))
    }
    | {f"quick {parts}": quick.statement(*parts) for parts in itertools.product([False, True], repeat=5)}
    | {f"find {name}": text for name, (text, _) in SEARCHES.items()}
)


async def plans(url: str, *, analyzed: bool) -> dict[str, str]:
    """The plan of every statement, made before or after the server has looked at tables with many rows."""
    address = parse(url)
    store = PostgresStore(url)
    await store.open()
    await store.close()
    connection = await connect(address, 20)
    found: dict[str, str] = {}
    try:
        if analyzed:
            for table in TABLES:
                if table not in SMALL:
                    await fill(connection, address.schema, table)
            await connection.execute("analyze")
        for number, (name, template) in enumerate(ALL.items()):
            text = template.replace("perdure.", f"{address.schema}.")
            wanted = max((int(n) for n in re.findall(r"\$(\d+)", text)), default=0)
            await connection.execute(f"prepare s{number} as {text}")
            given = f"({','.join(['null'] * wanted)})" if wanted else ""
            found[name] = "\n".join(row[0] for row in await connection.fetch(f"explain execute s{number}{given}"))
    finally:
        await connection.close()
    return found


async def fill(connection: asyncpg.Connection, schema: str, table: str) -> None:
    """5,000 rows, with values that are all different where they may be."""
    columns = await connection.fetch(
        "select column_name, data_type, is_identity from information_schema.columns"
        " where table_schema = $1 and table_name = $2 order by ordinal_position", schema, table,
    )  # fmt: skip
    made = {
        "bytea": "decode(md5(n::text), 'hex')", "bigint": "n % 3", "double precision": "n", "boolean": "n % 2 = 0",
        "text": "'text ' || n", "timestamp with time zone": "now()",
    }  # fmt: skip
    special = {
        "state": "(array['succeeded','suspended','running','failed'])[1 + n % 4]", "kind": "'message'", "flow": "'f'",
        "owner": "'owner ' || n % 5",
    }  # fmt: skip
    wanted = [(c[0], special.get(c[0], made[c[1]])) for c in columns if c[2] == "NO"]
    names, values = zip(*wanted, strict=True)
    await connection.execute(
        f"insert into {schema}.{table}({','.join(names)}) select {','.join(values)} from generate_series(1, 5000) n"
    )


@pytest.mark.parametrize("analyzed", [False, True], ids=["as when the tables were empty", "with many rows"])
async def test_no_statement_scans(url: str, analyzed: bool) -> None:
    found = await plans(url, analyzed=analyzed)
    assert len(found) > 80
    wrong = {
        name: plan
        for name, plan in found.items()
        if name.split(".")[1 if "." in name else 0] not in WALKS
        and (
            any(table not in SMALL for table in re.findall(r"Seq Scan on (\w+)", plan)) or "Join Filter" in plan
            or "Materialize" in plan
        )
    }  # fmt: skip
    assert not wrong, "\n\n".join(f"{name}: {ALL[name]}\n{plan}" for name, plan in wrong.items())


SPECIAL = {
    "HOLD", "LET_GO", "OTHERS_AND_LOCKS",  # session locks, for an early sight of death
    "FREE_STILL",  # skip locked, so that two who claim need not wait for each other
}  # fmt: skip
"""Statements for speed alone, with what not every database that speaks PostgreSQL has."""
WORDS = re.compile(
    r"\b(advisory|skip locked|savepoint|truncate|listen|notify|trigger|nextval|currval|pg_\w+|merge|now\(\)|random\(\)"
    r"|temp|unlogged|execute|plpgsql)",
    re.IGNORECASE,
)


def test_statements_use_what_others_that_speak_postgresql_have_too() -> None:
    found = {name: words for name, text in ALL.items() if (words := WORDS.findall(text))}
    assert {name.split(".")[1] for name in found} == SPECIAL
    assert not re.search(r"(?<!big)serial|trigger|unlogged| references |create function", MIGRATIONS[0])
