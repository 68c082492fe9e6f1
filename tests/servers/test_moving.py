"""`perdure copy`: all that a store keeps goes to another kind of store and back, and engines go on there as if nothing was."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import apsw
import asyncpg
import pytest
from click.testing import CliRunner, Result

from perdure import (
    AlreadyStarted,
    Engine,
    Handle,
    InstanceNotFound,
    NotOurs,
    Retry,
    State,
    StoreUnavailable,
    delay,
    expose,
    flow,
    receive,
    step,
)
from perdure.cli.commands import perdure
from perdure.stores.moving import TABLES, Moved, copy
from perdure.stores.mysql import MysqlStore
from perdure.stores.open import open_store
from perdure.stores.postgres import PostgresStore
from perdure.stores.sqlite import SqliteStore
from tests.servers.conftest import mysql_done
from tests.support.clock import until
from tests.support.world import World, eventually

ROOT = Path(__file__).parents[2]

lives: dict[str, bool] = {}
"""What the steps find in the world outside."""
ran: list[str] = []


@step(retry=Retry(initial=60))
async def unsure() -> str:
    """Fails until it is mended outside."""
    ran.append("unsure")
    if not lives.get("mended"):
        raise OSError("not yet")
    return "sure"


@step
async def slow() -> str:
    """Is under way when its process dies."""
    ran.append("slow")
    if not lives.get("mended"):
        await asyncio.sleep(3600)
    return "at last"


@step
async def work(n: int) -> int:
    """Noted, so that it shows if it is done twice."""
    ran.append(f"work {n}")
    return n


@flow(name="house.ends")
async def ends(n: int) -> int:
    expose("n", n)
    return await work(n)


@flow(name="house.fails")
async def fails() -> None:
    raise ValueError("as it should")


@flow(name="house.sleeps")
async def sleeps() -> str:
    await delay(timedelta(hours=1))
    return "woken"


@flow(name="house.collects")
async def collects(n: int) -> list[str]:
    return [await receive(str) for _ in range(n)]


@flow(name="house.retries")
async def retries() -> str:
    return await unsure()


@flow(name="house.dies")
async def dies() -> str:
    return await slow()


@flow(name="house.parent")
async def parent() -> list[str]:
    return await collects(1)


@flow(name="house.order", version="one")
async def order_one() -> int:
    await work(0)
    await receive(str)
    return await work(1)


@flow(name="house.order", version="two")
async def order_two() -> str:
    await delay(1)
    return "another"


FLOWS = (ends, fails, sleeps, collects, retries, dies, parent)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A SQLite file whose time the test moves."""
    lives.clear()
    ran.clear()
    world = World("sqlite", tmp_path)
    yield world
    await world.end()


async def filled(world: World) -> None:
    """The file holds an instance in every state, and whatever else a store can hold; its last engine has died."""
    engine = await world.engine(*FLOWS, order_one, retention=3600)
    assert await (await engine.start(ends, 1, id="forgotten")).result(timeout=10) == 1
    world.clock.advance(3700)
    await eventually(lambda: engine._store.instance("house.ends", "forgotten"), lambda row: row is None)
    await world.close(engine)

    engine = await world.engine(*FLOWS, order_one)
    for number in range(3):
        assert await (await engine.start(ends, number, id=f"ended {number}")).result(timeout=10) == number
    await eventually((await engine.start(fails, id="failed")).state, lambda state: state is State.FAILED)
    cancelled = await engine.start(sleeps, id="cancelled")
    await cancelled.cancel("no more")
    await eventually(cancelled.state, lambda state: state is State.CANCELLED)
    await (await engine.start(ends, 9, id="deleted")).result(timeout=10)
    await (await engine.panel(ends, "deleted")).delete()
    await engine.start(sleeps, id="asleep")
    waiting = await engine.start(collects, 2, id="waiting")
    await waiting.send("first", key="k1")
    await eventually(lambda: world.journal(waiting), lambda entries: len(entries) == 2)
    await engine.send(collects, "unborn", "early", key="e1")
    await engine.send(collects, "unborn", "later", key="e2")
    await engine.start(parent, id="parent")
    await engine.schedule(ends, timedelta(hours=2), 77, id="nightly")
    await eventually(lambda: engine._store.find(flow="house.collects", states=None, since=None, after=None, limit=9),
                     lambda rows: len(rows) == 2)  # fmt: skip
    order = await engine.start(order_one, id="order")
    await world.parked(order)
    await engine.start(ends, 5, id="in an hour", after=timedelta(hours=1))
    trying = await engine.start(retries, id="trying")
    await eventually(lambda: world.pending(trying), lambda found: bool(found) and found[0].attempt == 1)
    await engine.start(dies, id="dying")
    await until(lambda: "slow" in ran)
    await world.crash(engine)

    other = await world.engine(order_two)
    await other.send(order_two, "order", "go")
    assert "journal" in await world.blocked(order)
    await world.close(other)
    last = await world.engine(*FLOWS)
    await until(lambda: ran.count("slow") == 2)
    await waiting_for(world)
    await world.crash(last)
    client = await world.engine(*FLOWS, execute=False)
    await client.send(collects, "waiting", "second", key="k2")
    await world.close(client)


async def waiting_for(world: World) -> None:
    """All that waits is in memory again."""
    store = world._any_store()

    async def scheduled() -> list[str]:
        rows = await store.find(flow=None, states=[State.SCHEDULED], since=None, after=None, limit=99)
        return [row.id for row in rows]

    await eventually(scheduled, lambda ids: ids == ["in an hour"])


def postgres(url: str, world: World) -> PostgresStore:
    return PostgresStore(url, world.system)


async def moved(source: Any, target: Any) -> list[Moved]:
    return await copy(source, target, lambda table, rows: None)


def digests(found: Sequence[Moved]) -> dict[str, tuple[int, str]]:
    return {each.table: (each.rows, each.digest) for each in found}


async def test_there_and_back_nothing_is_lost_or_changed(
    world: World, url: str, mysql_url: str, tmp_path: Path
) -> None:
    await filled(world)
    there = await moved(SqliteStore(world.path), postgres(url, world))
    await moved(postgres(url, world), MysqlStore(mysql_url))
    back = await moved(MysqlStore(mysql_url), SqliteStore(tmp_path / "back.db"))
    again = await moved(SqliteStore(tmp_path / "back.db"), SqliteStore(tmp_path / "again.db"))
    assert all(each.same for each in [*there, *back, *again])
    assert digests(there) == digests(back) == digests(again)
    held = {each.table: each.rows for each in there}
    assert held.pop("tried") == held.pop("exposed") - 2 == 1
    assert all(held.values()), f"the test moves nothing of some tables: {held}"


@pytest.fixture(params=["sqlite", "postgresql", "mysql", "postgresql mysql sqlite"])
def way(request: pytest.FixtureRequest, world: World, tmp_path: Path) -> list[Any]:
    """Stores that are gone through, one after the other."""
    kinds: dict[str, Callable[[], Any]] = {
        "sqlite": lambda: SqliteStore(tmp_path / "target.db", world.system),
        "postgresql": lambda: postgres(request.getfixturevalue("url"), world),
        "mysql": lambda: MysqlStore(request.getfixturevalue("mysql_url"), world.system),
    }
    return [kinds[kind]() for kind in request.param.split()]


async def test_an_engine_goes_on_where_the_other_one_was(world: World, way: list[Any]) -> None:
    await filled(world)
    target: Any = SqliteStore(world.path)
    for following in way:
        await moved(target, following)
        target = following
    lives["mended"] = True
    ran.clear()
    async with Engine(target, flows=[*FLOWS, order_one]) as engine:
        await what_was_known_is_known(engine)
        await what_waited_goes_on(engine, world)
    assert sorted(ran) == ["slow", "unsure", "work 1", "work 5", "work 77"], "a recorded step ran again, or one is lost"


async def what_was_known_is_known(engine: Engine) -> None:
    """Ends, tombstones, deletions, and starts that are known."""

    def ended(id: str) -> Handle[int]:
        return engine.handle(ends, id)

    assert await ended("ended 2").result(timeout=10) == 2
    assert await ended("ended 2").exposed() == {"n": 2}
    assert await (await engine.start(ends, 1, id="ended 1")).result(timeout=10) == 1
    with pytest.raises(AlreadyStarted):
        await engine.start(ends, 2, id="ended 1")
    with pytest.raises(InstanceNotFound):
        await (await engine.start(ends, 1, id="forgotten")).result(timeout=10)
    with pytest.raises(AlreadyStarted):
        await engine.start(ends, 2, id="forgotten")
    assert await engine._store.instance("house.ends", "deleted") is None
    assert await engine.handle(fails, "failed").state() is State.FAILED
    assert await engine.handle(sleeps, "cancelled").state() is State.CANCELLED


async def what_waited_goes_on(engine: Engine, world: World) -> None:
    """Timers, messages, children, attempts, what was blocked, and what ran when its process died."""
    assert await engine.handle(dies, "dying").result(timeout=20) == "at last"
    waiting = engine.handle(collects, "waiting")
    await waiting.send("first again", key="k1")  # taken before the move
    await waiting.send("second again", key="k2")  # sent before, and not taken
    assert await waiting.result(timeout=10) == ["first", "second"]
    await engine.send(collects, "unborn", "early again", key="e1")
    unborn = await engine.start(collects, 2, id="unborn")
    assert await unborn.result(timeout=10) == ["early", "later"]
    found = await engine._store.find(flow="house.collects", states=None, since=None, after=None, limit=9)
    (child,) = [row.id for row in found if row.id not in ("waiting", "unborn")]
    await engine.send(collects, child, "from outside")
    assert await engine.handle(parent, "parent").result(timeout=10) == ["from outside"]
    assert await engine.handle(order_one, "order").result(timeout=10) == 1
    sleeper = engine.handle(sleeps, "asleep")
    assert await sleeper.state() is State.SUSPENDED
    world.clock.advance(3700)
    assert await sleeper.result(timeout=10) == "woken"
    assert await engine.handle(retries, "trying").result(timeout=10) == "sure"
    assert await engine.handle(ends, "in an hour").result(timeout=10) == 5
    world.clock.advance(3700)
    await until(lambda: "work 77" in ran)


PLACE = {"flow", "id", "uid", "early", "gone", "gone_at", "state", "digest", "edit"}
LEASE = {"replica", "until", "server", "process"}
CHECKED = {"one", "at"}
STAYS = {
    "sqlite": {"fence": {"alive"}, "checked": CHECKED},
    "url": {
        "instance": {"watched"}, "inbox": {"nr"}, "early": {"nr"}, "fence": {"alive"}, "checked": CHECKED, "lease": LEASE,
        "migration": {"version", "at"}, "place": PLACE,
    },
    "mysql_url": {
        "instance": {"watched", "free_at", "rare"}, "entry": {"size"}, "inbox": {"nr", "once"}, "early": {"nr"},
        "fence": {"alive"}, "checked": CHECKED, "lease": LEASE, "bell": {"name", "n"},
        "migration": {"version", "steps", "done"}, "place": PLACE,
    },
}  # fmt: skip
"""The columns that are not moved: what each store derives, or keeps of itself alone."""


async def columns_at(place: str) -> set[tuple[str, str]]:
    """The columns of all tables of the store, by the name that the table has in every store."""
    store = store_at(place)
    await store.migrate()
    named = "select table_name, column_name from information_schema.columns where table_schema = "
    if place.startswith("sqlite"):
        db = apsw.Connection(store.path)
        found = db.execute(
            "select t.name, c.name from sqlite_schema t, pragma_table_info(t.name) c where t.type = 'table'"
        )
        return {(table, column) for table, column in found if not table.startswith("sqlite")}
    if place.startswith("mysql"):
        rows = await mysql_done(place, named + "database()")
        return {(table.removeprefix("perdure_"), column) for table, column in rows}
    connection = await asyncpg.connect(store.address.url)
    try:
        return {(row[0], row[1]) for row in await connection.fetch(named + "$1", store.address.schema)}
    finally:
        await connection.close()


async def test_every_column_is_moved_or_known_to_stay(place: str, request: pytest.FixtureRequest) -> None:
    """Whoever adds a column says here whether it goes along."""
    kind = request.node.callspec.params["place"]
    moves = {(table.name, column) for table in TABLES for column in table.columns}
    if kind != "sqlite":
        moves = {pair for pair in moves if pair[0] != "gone"}  # it is kept in `place`
    assert await columns_at(place) == moves | {
        (table, column) for table, names in STAYS[kind].items() for column in names
    }


# -- what is refused


def store_at(place: str) -> Any:
    return open_store(place)


@pytest.fixture(params=["sqlite", "url", "mysql_url"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a store that is not there yet."""
    return f"sqlite:///{tmp_path / 'house.db'}" if request.param == "sqlite" else request.getfixturevalue(request.param)


async def some(place: str, count: int = 3) -> None:
    """The store holds some ended instances."""
    async with Engine(place, flows=FLOWS) as engine:
        for handle in await engine.start_many(ends, [(f"i{number}", number) for number in range(count)]):
            await handle.result(timeout=10)


async def test_a_source_that_somebody_works_on_is_refused(place: str, tmp_path: Path) -> None:
    async with Engine(place, flows=FLOWS):
        with pytest.raises(StoreUnavailable, match=rf"replica {os.getpid()}-\w+.* works on .*stop it first"):
            await moved(store_at(place), SqliteStore(tmp_path / "target.db"))
    assert not (tmp_path / "target.db").exists()
    await moved(store_at(place), SqliteStore(tmp_path / "target.db"))


async def test_nobody_joins_or_writes_to_the_source_meanwhile(place: str) -> None:
    async with Engine(place, flows=FLOWS, execute=False) as client:
        async with store_at(place).dump():
            for refused in (client._store.join("a", 10.0), client._store.forget("f", "x")):
                with pytest.raises(StoreUnavailable):
                    await refused
        await client.start(ends, 1, id="after it")


async def test_a_target_that_holds_anything_is_refused_and_left_as_it_is(place: str, tmp_path: Path) -> None:
    source = f"sqlite:///{tmp_path / 'source.db'}"
    await some(source)
    await some(place)
    with pytest.raises(NotOurs, match=r"not empty \(there are rows in instance\)"):
        await moved(store_at(source), store_at(place))
    await some(place)


async def test_an_unfinished_target_is_refused_by_engines_and_taken_by_the_next_copy(
    place: str, tmp_path: Path
) -> None:
    source = f"sqlite:///{tmp_path / 'source.db'}"
    await some(source)
    early = Engine(place, flows=FLOWS, execute=False)
    async with early:  # was open before
        with pytest.raises(ZeroDivisionError):
            await copy(store_at(source), store_at(place), lambda table, rows: 1 // 0)
        with pytest.raises(NotOurs, match=r"copied|copy"):
            await early.start(ends, 1, id="too soon")
    for url in (place, place + ("&" if "?" in place else "?") + "migrate=off"):
        with pytest.raises(NotOurs, match="not finished"):
            await open_store(url).open()
    with pytest.raises(NotOurs, match="not finished"):
        await moved(store_at(place), SqliteStore(tmp_path / "other.db"))
    assert all(each.same for each in await moved(store_at(source), store_at(place)))
    await some(place)  # knows them already


async def test_what_differs_afterwards_leaves_the_target_unfinished(place: str, tmp_path: Path) -> None:
    source = f"sqlite:///{tmp_path / 'source.db'}"
    await some(source)
    target = store_at(place)

    class Careless:
        """A store that loses the last entry of each page."""

        @asynccontextmanager
        async def restore(self) -> AsyncIterator[Any]:
            async with target.restore() as real:
                put = real.put
                real.put = lambda table, rows: put(table, rows[:-1] if table.name == "entry" else rows)
                yield real

    found = await moved(store_at(source), Careless())
    assert [each.table for each in found if not each.same] == ["entry"]
    with pytest.raises(NotOurs, match="not finished"):
        await target.open()


@pytest.mark.parametrize("part", [0, 0.3, 0.6, 0.9, 1])
async def test_a_copy_that_is_killed_leaves_nothing_that_runs(place: str, tmp_path: Path, part: float) -> None:
    source = f"sqlite:///{tmp_path / 'source.db'}"
    await some(source, 1500)
    pages: list[str] = []
    await copy(store_at(source), SqliteStore(tmp_path / "counted.db"), lambda table, rows: pages.append(table))

    process = subprocess.Popen(
        [sys.executable, "-m", "tests.servers.mover", source, place],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        assert process.stdin is not None
        for number in range(1 + int(part * (len(pages) - 1))):
            if number:
                print("on", file=process.stdin, flush=True)
            assert process.stdout.readline().split()[0] == pages[number]
        process.kill()
    with pytest.raises(NotOurs, match="not finished"):
        await open_store(place).open()
    assert all(each.same for each in await moved(store_at(source), store_at(place)))
    await some(place)


# -- the command


def command(*args: str) -> Result:
    return CliRunner().invoke(perdure, ["copy", *args])


def test_the_command_shows_what_it_compared(tmp_path: Path) -> None:
    asyncio.run(some(f"sqlite:///{tmp_path / 'source.db'}"))
    done = command(f"sqlite:///{tmp_path / 'source.db'}", f"sqlite:///{tmp_path / 'target.db'}")
    assert done.exit_code == 0, done.stderr
    rows = [line.replace("│", " ").split() for line in done.stdout.splitlines() if "│" in line]
    assert [row[0] for row in rows] == [table.name for table in TABLES]
    assert rows[0][1:3] == ["3", "3"]
    assert all(row[3] == row[4] and row[5] == "yes" for row in rows)


@pytest.mark.parametrize(
    ("source", "target", "why"),
    [
        ("sqlite:///{}/none.db", "sqlite:///{}/b.db", "no Perdure store"),
        ("memory://", "sqlite:///{}/b.db", "can neither be copied"),
        ("sqlite:///{}/a.db", "sqlite:///{}/a.db", "the same"),
        ("sqlite:///{}/a.db", "mongo://b", "is no store"),
    ],
)
def test_the_command_says_why_it_cannot(tmp_path: Path, source: str, target: str, why: str) -> None:
    done = command(source.format(tmp_path), target.format(tmp_path))
    assert done.exit_code == 2
    assert done.stderr.startswith("perdure copy: ")
    assert why in done.stderr
    assert not list(tmp_path.iterdir())
