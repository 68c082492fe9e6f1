"""No statement of the hot path walks through a table: asked of SQLite itself, statement by statement."""

from pathlib import Path
from types import ModuleType

import pytest

from perdure.stores.sqlite import owning, reading, schema, writing
from perdure.stores.sqlite.bulk import Bulk
from perdure.stores.sqlite.connection import Database

# The safety poll walks over the messages that nobody has looked at; the rest ask whether a table is empty.
WALKS = {"OVERLOOKED", "ANY_EARLY", "ANY_WAKEUP", "ANY_WATCH"}


def statements() -> dict[str, str]:
    found: dict[str, str] = {}

    def look(module: ModuleType) -> None:
        for name, value in vars(module).items():
            where = f"{module.__name__.rpartition('.')[2]}.{name}"
            if isinstance(value, Bulk):
                found.update((f"{where}[{size}]", text) for size, text in value.texts)
            elif (
                name.isupper()
                and isinstance(value, str)
                and value.partition(" ")[0] in ("select", "insert", "update", "delete")
            ):
                found[where] = value

    for module in (writing, owning, reading):
        look(module)
    return found


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Database:
    path = str(Path(tmp_path_factory.mktemp("plans")) / "plans.db")
    db = schema.connect(path)
    schema.prepare(db, path)
    return db


@pytest.mark.parametrize("name", sorted(statements()))
def test_a_statement_finds_its_rows_by_an_index(db: Database, name: str) -> None:
    text = statements()[name]
    plan = [row[3] for row in db.execute("explain query plan " + text, [None] * text.count("?"))]
    walks = [step for step in plan if step.startswith("SCAN") and not step.startswith(("SCAN v", "SCAN CONSTANT"))]
    walks = [step for step in walks if "-ROW" not in step and "subquery" not in step.lower()]
    assert "AUTOMATIC" not in " ".join(plan)
    if name != "owning.OWNED":  # else it would walk over all that a replica owns
        assert "instance_owner" not in " ".join(plan)
    if name.partition(".")[2].partition("[")[0] not in WALKS:
        assert walks == [], plan


def test_the_statements_are_seen() -> None:
    assert len(statements()) > 100
    assert {"owning.DUE", "writing.FENCE", "reading.ENTRIES[512]"} <= set(statements())
