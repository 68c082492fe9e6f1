"""No statement of the hot path walks through a table: asked of SQLite itself, statement by statement."""

from pathlib import Path
from types import ModuleType

import pytest

from perdure.model.records import State
from perdure.stores.sqlite import editing, owning, reading, schema, sending, transacting, writing
from perdure.stores.sqlite.bulk import Bulk
from perdure.stores.sqlite.connection import Database

# The safety poll walks over the messages that nobody has looked at, and OTHERS over the replicas, which are few; the
# rest ask whether a table is empty.
WALKS = {"OVERLOOKED", "OVERLOOKED_PINNED", "OTHERS"} | {
    "ANY_EARLY_OR_GONE", "ANY_GONE", "ANY_TRIED", "ANY_WAKEUP", "ANY_WAKEUP_OR_EVICT", "ANY_WATCH"
}  # fmt: skip


LISTS = ("SCAN v", "SCAN CONSTANT", "SCAN json_each")
"""What is given with the statement."""


def statements() -> dict[str, str]:
    found: dict[str, str] = {}

    def look(module: ModuleType) -> None:
        for name, value in vars(module).items():
            where = f"{module.__name__.rpartition('.')[2]}.{name}"
            if isinstance(value, tuple) and all(isinstance(one, Bulk) for one in value):
                found.update((f"{where}[{n}][{size}]", text) for n, one in enumerate(value) for size, text in one.texts)
            elif isinstance(value, Bulk):
                found.update((f"{where}[{size}]", text) for size, text in value.texts)
            elif (
                name.isupper()
                and not name.startswith("_")  # a part of others
                and isinstance(value, str)
                and value.partition(" ")[0] in ("select", "insert", "update", "delete")
            ):
                found[where] = value

    for module in (writing, sending, editing, owning, reading, transacting):
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
    walks = [step for step in plan if step.startswith("SCAN") and not step.startswith(LISTS)]
    walks = [step for step in walks if "-ROW" not in step and "subquery" not in step.lower()]
    assert "AUTOMATIC" not in " ".join(plan)
    if name != "owning.OWNED":  # else it would walk over all that a replica owns
        assert "instance_owner" not in " ".join(plan)
    if name.partition(".")[2].partition("[")[0] not in WALKS:
        assert walks == [], plan


@pytest.mark.parametrize("states", [[State.FAILED], [State.BLOCKED, State.FAILED], list(reading.RARE)])
@pytest.mark.parametrize("flow", [None, "f"])
@pytest.mark.parametrize("after", [None, b"u"])
@pytest.mark.parametrize("since", [None, 1.0])
def test_finding_what_is_in_rare_states_walks_over_nothing_else(
    db: Database, states: list[State], flow: str | None, after: bytes | None, since: float | None
) -> None:
    text, values = reading.finding(flow, states, since, after, 10)
    plan = [row[3] for row in db.execute("explain query plan " + text, values)]
    steps = [step for step in plan if step.startswith(("SCAN", "SEARCH", "USE"))]
    assert len(steps) == len(states)
    assert all(step.startswith("SEARCH instance USING INDEX instance_state (state=?") for step in steps), plan


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("writing.TAKE[1]", "inbox_mid (uid=? AND mid=?)"),
        ("writing.TAKE[64]", "inbox_mid (uid=? AND mid=?)"),
        ("writing.SEEN[64]", "inbox_mid (uid=? AND mid=?)"),
        ("editing.OPEN[64]", "inbox_mid (uid=? AND mid=?)"),
        ("editing.DELETE[2][64]", "inbox_mid (uid=?)"),
        ("sending.EVICTED[64]", "inbox_untaken (uid=?)"),
        ("writing._LENGTH", "entry_seq (uid=? AND run=?)"),
        ("writing.OLD_ENTRIES[64]", "entry_seq (uid=? AND run=?)"),
        ("writing.OLD_MESSAGES[64]", "inbox_mid (uid=?)"),
        ("editing.ENDED_BEFORE", "instance_ended (ended_at<?)"),
        ("editing.UNTOMB", "PRIMARY KEY (flow=? AND id=?)"),
        ("owning.BLOCKED", "instance_state (state=? AND uid>?)"),
        ("reading.ENTRIES", "entry_seq (uid=? AND run=? AND seq>?)"),
    ],
)
def test_a_statement_uses_the_index_that_was_made_for_it(db: Database, name: str, index: str) -> None:
    text = writing.LENGTH if name == "writing._LENGTH" else statements()[name]
    plan = [row[3] for row in db.execute("explain query plan " + text, [None] * text.count("?"))]
    assert any(index in step for step in plan), plan
    assert not any("TEMP B-TREE" in step for step in plan), plan


def test_the_statements_are_seen() -> None:
    assert len(statements()) > 200
    assert {"owning.DUE", "writing.FENCE", "reading.ENTRIES", "editing.DELETE[0][512]", "sending.WAKE[4]"} <= set(
        statements()
    )
