"""Edits of canonical instances, repeatable after a crash, and what must come of them, made or not made."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perdure import Engine, FlowFailed, InstanceNotFound, Panel, State, StoreUnavailable, flow, receive, start, step
from perdure.api.flow import AnyFlow
from perdure.errors import CommitUnknown
from tests.crash import flows
from tests.crash.cases import Case, Drive, Session
from tests.crash.flows import LEDGER, Declined, Note, Paid, effect, patient, work

# ---------------------------------------------------------------- flows


@step
async def slow(label: str) -> None:
    effect(label)
    await asyncio.sleep(0.02)


def closed() -> Path:
    """While this file is there, everything is declined."""
    return Path(os.environ[LEDGER]).with_name("closed")


@step
async def deliver(label: str) -> int:
    effect(label)
    if closed().exists():
        raise Declined(label)
    return 1


@flow
async def waiting(guest: str) -> list[object]:
    a = await work("a")
    b = await work("b")
    await receive(Note)
    paid = await receive(Paid, timeout=0.003, default=None)
    return [guest, a, b, None if paid is None else paid.amount]


@flow
async def running(guest: str) -> list[object]:
    a = await work("a")
    await slow("slow")
    await receive(Note)
    paid = await receive(Paid, timeout=0.003, default=None)
    return [guest, a, None if paid is None else paid.amount]


@flow
async def short(guest: str) -> int:
    return await work("a") + await work("b")


@flow
async def failing(guest: str) -> list[object]:
    a = await work("a")
    try:
        b = await deliver("b")
    except Declined:
        await receive(Paid)
        await work("undo")
        raise
    return [guest, a, b, (await receive(Paid)).amount]


@flow
async def worker() -> str:
    await start(patient, "of the worker", id="leaf")
    await work("a")
    await receive(Note)
    return "by itself"


@flow
async def boss() -> str:
    try:
        return await (await start(worker, id="it")).result()
    except FlowFailed as error:
        return f"failed: {error.__cause__}"
    except InstanceNotFound:
        return "gone"


# ---------------------------------------------------------------- what is done with them


@dataclass(frozen=True)
class Edit:
    """What is done before, the edit, and what is done after it, by the same process or another."""

    name: str
    flows: Sequence[AnyFlow]
    prepare: Drive | None
    edit: Drive
    after: Drive
    """Gives the outcome."""
    edited: Any
    """The outcome if the edit was made."""
    unedited: Any
    again: frozenset[str] = frozenset()
    """The labels of steps that run again because of the edit, though they were recorded."""
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def cases(self) -> list[Case]:
        """As runs of one process: `prepare`, the edit until it is made, the edit tried once, no edit."""

        async def again(session: Session) -> Any:
            await self.edit(session)
            return await self.after(session)

        async def once(session: Session) -> Any:
            try:
                await self.edit(session)
            except (StoreUnavailable, CommitUnknown):
                pass  # nobody does it again
            return await self.after(session)

        drives = {"prepare": self.prepare, "again": again, "once": once, "alone": self.after}
        return [
            Case(f"{self.name}/{name}", self.flows, drive, None, {} if name == "prepare" else self.options)
            for name, drive in drives.items()
            if drive is not None
        ]

    def case(self, name: str) -> Case:
        """One of these."""
        return next(case for case in self.cases() if case.name == f"{self.name}/{name}")


async def until_suspended(engine: Engine, *instances: tuple[AnyFlow, str]) -> None:
    for of, id in instances:
        while True:
            try:
                if await engine.handle(of, id).state() is State.SUSPENDED:
                    break
            except InstanceNotFound:
                pass
            await asyncio.sleep(0.002)


def started(of: AnyFlow, *args: Any) -> Drive:
    async def drive(session: Session) -> None:
        await session.engine.start(of, *args, id="it")
        await until_suspended(session.engine, (of, "it"))

    return drive


def ended(of: AnyFlow, *args: Any) -> Drive:
    async def drive(session: Session) -> None:
        await session.ended(await session.engine.start(of, *args, id="it"))

    return drive


def edited_by(of: AnyFlow, change: Callable[[Panel[Any]], Awaitable[object]]) -> Drive:
    """The edit is made unless the panel shows that it was made before."""

    async def drive(session: Session) -> None:
        panel: Panel[Any] = await session.engine.panel(of, "it")
        if panel.args != ("bob",):
            panel.args = ("bob",)
            await change(panel)

    return drive


async def _save_all(panel: Panel[Any]) -> None:
    panel.entries.remove("0")
    panel.entries.set("1", 99)
    panel.inbox.append(Paid(5), key="by hand")
    await panel.save()


async def _edit_running(session: Session) -> None:
    await session.engine.start(running, "ann", id="it")
    ledger = Path(os.environ[LEDGER])
    while not ledger.exists() or "slow" not in ledger.read_text():
        await asyncio.sleep(0.002)

    async def save(panel: Panel[Any]) -> None:
        panel.entries.remove("0")
        panel.inbox.append(Paid(5), key="by hand")
        await panel.save()

    await edited_by(running, save)(session)


def told(of: AnyFlow, *args: Any) -> Drive:
    """It is told to go on, and ends."""

    async def drive(session: Session) -> Any:
        handle = await session.engine.start(of, *args, id="it")
        await handle.send(Note("go on"), key="go on")
        return await session.ended(handle)

    return drive


async def _look(session: Session) -> Any:
    panel = await session.engine.panel(short, "it")
    entries, inbox = panel.entries, len(panel.inbox)
    return [list(panel.args), "0" in entries, entries["1"], inbox, panel.state.value, panel.result]


async def _fail(session: Session) -> None:
    closed().touch()
    handle = await session.engine.start(failing, "ann", id="it")
    await handle.send(Paid(5), key="paid")
    await session.ended(handle)
    closed().unlink()


async def _just_wait(session: Session) -> Any:
    return await session.ended(session.engine.handle(failing, "it"))


async def _family(session: Session) -> None:
    await session.engine.start(boss, id="boss")
    await until_suspended(session.engine, (boss, "boss"), (worker, "it"), (patient, "leaf"))


def _by_hand(end: Callable[[Panel[Any]], Awaitable[object]]) -> Drive:
    async def drive(session: Session) -> None:
        try:
            panel = await session.engine.panel(worker, "it")
            if not panel.state.ended:
                await end(panel)
        except InstanceNotFound:
            pass  # it was deleted before

    return drive


async def _family_ends(session: Session) -> Any:
    engine = session.engine
    try:
        if not (await engine.handle(worker, "it").state()).ended:
            await engine.send(worker, "it", Note("go on"), key="go on")
    except InstanceNotFound:
        pass
    return [await session.ended(engine.handle(boss, "boss")), await session.ended(engine.handle(patient, "leaf"))]


async def _postpone(session: Session) -> None:
    await (await session.engine.panel(waiting, "it")).postpone(0.02)


async def _retired(session: Session) -> None:
    """Done by the engine itself."""
    while [info.id async for info in session.engine.find(flows.chain)]:
        await asyncio.sleep(0.002)


async def _start_again(session: Session) -> Any:
    await _retired(session)
    handle = await session.engine.start(flows.chain, 1, id="it")
    try:
        return await handle.result(timeout=10)
    except InstanceNotFound:
        return "remembered"


FAMILY = [boss, worker, patient]
CANCELLED = "cancelled: None"
EDITS = [
    Edit(
        "saved-waiting", [waiting], started(waiting, "ann"), edited_by(waiting, _save_all), told(waiting, "ann"),
        ["bob", 1, 99, 5], ["ann", 1, 1, None], frozenset("a"),
    ),
    Edit(
        "saved-running", [running], None, _edit_running, told(running, "ann"),
        ["bob", 1, 5], ["ann", 1, None], frozenset("a"),
    ),
    Edit(
        "saved-ended", [short], ended(short, "ann"), edited_by(short, _save_all), _look,
        [["bob"], False, 99, 1, "succeeded", 2], [["ann"], True, 1, 0, "succeeded", 2],
    ),
    Edit(
        "restarted", [failing], _fail, edited_by(failing, lambda panel: panel.restart()), _just_wait,
        ["bob", 1, 1, 5], "failed: Declined('b')", frozenset("b"),
    ),
    Edit(
        "succeeded", FAMILY, _family, _by_hand(lambda panel: panel.succeed("by hand")), _family_ends,
        ["by hand", CANCELLED], ["by itself", CANCELLED],
    ),
    Edit(
        "failed", FAMILY, _family, _by_hand(lambda panel: panel.fail(Declined("by hand"))), _family_ends,
        ["failed: by hand", CANCELLED], ["by itself", CANCELLED],
    ),
    Edit(
        "deleted", FAMILY, _family, _by_hand(lambda panel: panel.delete()), _family_ends,
        ["gone", CANCELLED], ["by itself", CANCELLED],
    ),
    Edit(
        "postponed", [waiting], started(waiting, "ann"), _postpone, told(waiting, "ann"),
        ["ann", 1, 1, None], ["ann", 1, 1, None],
    ),
    Edit(
        "retired", [flows.chain], ended(flows.chain, 1), _retired, _start_again, "remembered", "remembered",
        options={"retention": 0},
    ),
]  # fmt: skip
ONLY_EDITS = Case("only-edits", [], edited_by(waiting, _save_all), None, {"execute": False})
"""Edits what another process runs."""
EDIT_CASES = [ONLY_EDITS, *(case for edit in EDITS for case in edit.cases())]
