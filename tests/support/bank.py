"""A bank in the flow's own database, whose accounts are its own tables; and a process that dies while it pays.

`python -m tests.support.bank DATABASE WHEN` pays once as instance "it" and kills itself at that moment of the work:
"begun", "written" or "done"; with "never" it pays, prints the result and ends.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import apsw
import pytest

from perdure import Engine, FlowFailed, Store, Tx, flow, transaction
from tests.support.stores import Through, as_store
from tests.support.world import World

WHENS = ("begun", "written", "done")
when = "never"


def dies(moment: str) -> None:
    """The process is gone, if this is the moment."""
    if when == moment:
        os.kill(os.getpid(), signal.SIGKILL)


TABLES = (
    "create table account(name text primary key, amount integer check (amount >= 0))",
    "create table paid(one integer primary key, what text)",
    "insert into account values ('a', 100), ('b', 100)",
)


async def opened(tx: Tx) -> None:
    """The tables are there, and two accounts of 100."""
    for sql in TABLES:
        await tx.execute(sql)


async def pay(tx: Tx, amount: int, what: str) -> int:
    """The amount went from a to b; gives what is left of a."""
    dies("begun")
    await tx.execute("update account set amount = amount + ? where name = 'b'", amount)
    await tx.execute("insert into paid(what) values (?)", what)
    dies("written")
    await tx.execute("update account set amount = amount - ? where name = 'a'", amount)
    (row,) = await tx.fetch("select amount from account where name = 'a'")
    dies("done")
    return row["amount"]


class Counted:
    """A payment that counts how often it was begun."""

    def __init__(self) -> None:
        self.begun = 0

    async def __call__(self, tx: Tx, amount: int, what: str) -> int:
        self.begun += 1
        return await pay(tx, amount, what)


class Faulty(Through):
    """The next transaction meets a fault: `instead` may do it, and says how it ended for the engine."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.instead: Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]] | None = None
        self.calls = 0

    async def transact(self, *args: Any, **options: Any) -> Any:
        """See Store."""
        self.calls += 1
        instead, self.instead = self.instead, None
        if instead is None:
            return await self.real.transact(*args, **options)
        return await instead(lambda: self.real.transact(*args, **options))


def faulty(world: World) -> Faulty:
    """The store of the world's next engine."""
    store = Faulty(world.store())
    world.store = lambda: as_store(store)  # type: ignore[method-assign]
    return store


async def engine_of(world: World, *flows: Any, **options: Any) -> Engine:
    """An engine over a file that has the bank's tables too."""
    engine = await world.engine(*flows, **options)
    found(world.path)
    return engine


def paid(world: World) -> int:
    """How many payments are in the database, which agrees with itself."""
    ((count,),) = rows(world.path, "select count(*) from paid")
    assert sum(accounts(world.path)) == 200
    return count


async def failed(engine: Engine, body: Any, *args: Any) -> BaseException:
    """The error of the flow itself."""
    with pytest.raises(FlowFailed) as error:
        await engine.run(body, *args, id="failed", timeout=10)
    assert error.value.__cause__ is not None
    return error.value.__cause__


@flow(name="pays")
async def pays(amount: int, what: str) -> int:
    """What is left after one payment."""
    await transaction(opened)
    return await transaction(pay, amount, what)


def found(path: Path) -> None:
    """The bank is founded, from outside, in a store that exists."""
    db: Any = apsw.Connection(str(path))
    try:
        for sql in TABLES:
            db.execute(sql)
    finally:
        db.close()


def rows(path: Path, sql: str) -> list[tuple[Any, ...]]:
    """What anybody reads in the file."""
    db: Any = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        return db.execute(sql).fetchall()
    finally:
        db.close()


def accounts(path: Path) -> tuple[int, int]:
    """What a and b have."""
    found = dict(rows(path, "select name, amount from account"))
    return found["a"], found["b"]


async def main(path: str) -> None:
    async with Engine(f"sqlite:///{path}", flows=[pays]) as engine:
        print(await engine.run(pays, 30, "it", id="it", timeout=20))


if __name__ == "__main__":
    when = sys.argv[2]
    asyncio.run(main(sys.argv[1]))
