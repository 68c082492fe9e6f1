"""A bank in the flow's own database, whose accounts are its own tables; and a process that dies while it pays.

`python -m tests.support.bank DATABASE WHEN` pays once as instance "it" and kills itself at that moment of the work:
"begun", "written" or "done"; with "never" it pays, prints the result and ends.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import apsw

from perdure import Engine, Tx, flow, transaction

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
