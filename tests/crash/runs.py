"""Canonical flows that go through several runs or write to their own database, and what must come of them."""

from __future__ import annotations

import asyncio
from typing import Any

import apsw

from perdure import (
    OutcomeUnknown,
    Tx,
    continue_as_new,
    delay,
    flow,
    handle,
    messages,
    receive,
    start,
    transaction,
)
from tests.crash.cases import Case, Session
from tests.crash.flows import Note, Paid, forever, leaf, patient, ship, work

# ---------------------------------------------------------------- runs


@flow
async def rounds(n: int, total: int) -> int:
    """Each run takes a note and leaves what was paid for the last one."""
    try:
        total += await work(f"run {n}", n)
        await receive(Note, where=lambda note: note.text == str(n))
        if n < 2:
            return await continue_as_new(n + 1, total)
    finally:
        await work(f"end of {n}")
    paid = [(await receive(Paid)).amount for _ in range(3)]
    return await work("after", total + sum(paid))


@flow
async def follows(of: str) -> int:
    """Waits for another flow through all its runs."""
    return await work("followed", await handle(rounds, of).result())


@flow
async def reader(n: int, seen: list[int]) -> list[int]:
    """Each run reads what nobody took, and takes one of it."""
    first, second = [paid.amount for paid in await messages(Paid).take(2).list()]
    taken = await receive(Paid)
    seen = [*seen, first, second, taken.amount]
    await work(f"read {n}")
    return seen if n == 2 else await continue_as_new(n + 1, seen)


@flow
async def parents(n: int) -> list[Any]:
    """Each run leaves a child behind, one that is cut loose, a task and a timer."""
    await start(patient, f"of run {n}", id=f"attached-{n}")
    loose = await start(leaf, n, id=f"loose-{n}", detached=True)
    task = asyncio.create_task(forever(f"maybe {n}"))
    late = asyncio.create_task(delay(3600))
    result = await loose.result()
    if n < 2:
        return await continue_as_new(n + 1)
    for left in (task, late):
        left.cancel()
    await asyncio.wait([task, late])
    return [n, result, await work("end")]


@flow
async def careful(n: int, found: list[str]) -> list[str]:
    """Something that is done at most once, in each run."""
    try:
        found = [*found, await ship(f"run {n}")]
    except OutcomeUnknown:
        found = [*found, f"unknown run {n}"]
    return found if n == 2 else await continue_as_new(n + 1, found)


# ---------------------------------------------------------------- transactions


async def opened(tx: Tx) -> None:
    await tx.execute("create table if not exists account(name text primary key, amount integer check (amount >= 0))")
    await tx.execute("create table if not exists paid(one integer primary key, who text, what text)")
    await tx.execute("insert or ignore into account values ('a', 100), ('b', 100)")


async def pay(tx: Tx, who: str, what: str, amount: int) -> int:
    await tx.execute("update account set amount = amount + ? where name = 'b'", amount)
    await tx.execute("insert into paid(who, what) values (?, ?)", who, what)
    await tx.execute("update account set amount = amount - ? where name = 'a'", amount)
    (row,) = await tx.fetch("select amount from account where name = 'b'")
    return row["amount"]


@flow
async def pays(who: str) -> list[Any]:
    """Payments alone and together, one that is refused, and steps between them."""
    await transaction(opened)
    first = await work("before", await transaction(pay, who, "first", 1))
    together = await asyncio.gather(
        transaction(pay, who, "second", 2), work("beside"), transaction(pay, who, "third", 3), delay(0.002)
    )
    try:
        await transaction(pay, who, "too much", 1000)
    except Exception as error:
        refused = "CHECK" in str(error)
    else:
        refused = False
    return [first, together, refused, await work("end")]


@flow
async def pays_always(n: int) -> int:
    """A payment in each run."""
    if n == 0:
        await transaction(opened)
    balance = await transaction(pay, "always", f"{n}", 1)
    return balance if n == 3 else await continue_as_new(n + 1)


# ---------------------------------------------------------------- what is done with them from outside


async def _rounds(session: Session) -> Any:
    it = await session.engine.start(rounds, 0, 0, id="it")
    by = await session.engine.start(follows, "it", id="by")
    async with session.client() as client:
        for n in range(3):
            for _ in range(2):
                await client.send(rounds, "it", Note(str(n)), key=f"note {n}")
                await it.send(Paid(10 * n), key=f"paid {n}")
    again = await session.engine.start(rounds, 0, 0, id="it")
    return [await session.ended(it), await session.ended(by), await session.ended(again)]


async def _reader(session: Session) -> Any:
    it = await session.engine.start(reader, 0, list[int](), id="it")
    for n in range(4):
        for _ in range(2):
            await it.send(Paid(n), key=f"{n}")
    return await session.ended(it)


async def _parents(session: Session) -> Any:
    engine = session.engine
    result = await session.ended(await engine.start(parents, 0, id="it"))
    children = [await session.ended(engine.handle(patient, f"attached-{n}")) for n in range(3)]
    return [result, children, [await session.ended(engine.handle(leaf, f"loose-{n}")) for n in range(3)]]


async def _careful(session: Session) -> Any:
    return await session.ended(await session.engine.start(careful, 0, list[str](), id="it"))


def _bank(session: Session) -> list[Any]:
    db: Any = apsw.Connection(session.path, flags=apsw.SQLITE_OPEN_READONLY)
    try:
        payments = [list(row) for row in db.execute("select who, what from paid order by who, what").fetchall()]
        return [dict(db.execute("select name, amount from account").fetchall()), payments]
    finally:
        db.close()


async def _pays(session: Session) -> Any:
    handles = [await session.engine.start(pays, who, id=who) for who in ("x", "y")]
    found = [await session.ended(handle) for handle in handles]
    return [[refused for _, _, refused, _ in found], _bank(session)]


async def _pays_always(session: Session) -> Any:
    return [await session.ended(await session.engine.start(pays_always, 0, id="it")), _bank(session)]


def _shipped_or_unknown(outcome: Any) -> bool:
    return len(outcome) == 3 and all(f"{how} run {n}" in outcome[n] for n, how in enumerate(_hows(outcome)))


def _hows(outcome: list[str]) -> list[str]:
    return ["unknown" if text.startswith("unknown") else "shipped" for text in outcome]


PAYMENTS = [[who, what] for who in ("x", "y") for what in ("first", "second", "third")]

RUN_CASES = [
    Case("runs", [rounds, follows], _rounds, [37, 38, 37], parallel=2),
    Case("runs-unloaded", [rounds, follows], _rounds, [37, 38, 37], {"max_resident": 1}, parallel=2),
    Case("runs-with-streams", [reader], _reader, [0, 1, 0, 1, 2, 1, 2, 3, 2], untaken=1),
    Case(
        "runs-with-children", [parents, patient, leaf], _parents,
        [[2, 21, 1], ["cancelled: None"] * 3, [1, 11, 21]], parallel=4,
    ),
    Case(
        "runs-at-most-once", [careful], _careful, [f"shipped run {n}" for n in range(3)],
        same_journal=False, may_end=_shipped_or_unknown,
    ),
    Case("transactions", [pays], _pays, [[True, True], [{"a": 88, "b": 112}, PAYMENTS]], parallel=2),
    Case(
        "transactions-in-runs", [pays_always], _pays_always,
        [104, [{"a": 96, "b": 104}, [["always", f"{n}"] for n in range(4)]]],
    ),
]  # fmt: skip
