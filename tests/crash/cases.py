"""What is done with each canonical flow from outside, repeatable after a crash, and what must come of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

import apsw

from perdure import Engine, FlowCancelled, FlowFailed, Handle, State
from perdure.api.flow import AnyFlow
from tests.crash import flows
from tests.crash.flows import Note, Paid

WAIT = 10.0


class Session:
    """One process's view: its engine, a client beside it, and the file."""

    def __init__(self, engine: Engine, path: str, client: Callable[[], AbstractAsyncContextManager[Engine]]) -> None:
        self.engine = engine
        self.path = path
        self.client = client

    async def ended(self, handle: Handle[Any]) -> Any:
        """The result, or how it ended otherwise, in words."""
        try:
            return await handle.result(timeout=WAIT)
        except FlowFailed as error:
            return f"failed: {error.__cause__!r}"
        except FlowCancelled as error:
            return f"cancelled: {error.reason}"

    def asked_to_cancel(self, id: str) -> bool:
        """Whether a cancel request has reached the store: one more would interrupt what the first one began."""
        db: Any = apsw.Connection(self.path, flags=apsw.SQLITE_OPEN_READONLY)
        text = "select count(*) from inbox m join instance i on i.uid = m.uid where i.id = ? and m.kind = 'cancel'"
        try:
            return bool(db.execute(text, (id,)).get)
        finally:
            db.close()


Drive = Callable[[Session], Awaitable[Any]]


@dataclass(frozen=True)
class Case:
    name: str
    flows: Sequence[AnyFlow]
    drive: Drive
    expected: Any
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    same_journal: bool = True
    """Whether a crash leaves no trace in the journal (an unknown outcome does)."""
    untaken: int = 0
    """How many messages nobody takes."""
    parallel: int = 1
    """How many steps run at once at most."""
    may_end: Callable[[Any], bool] = lambda _: False
    """Which other outcomes a crash may lead to."""


def _just_run(flow: AnyFlow, *args: Any, after: float | None = None) -> Drive:
    async def drive(session: Session) -> Any:
        return await session.ended(await session.engine.start(flow, *args, id="it", after=after))

    return drive


async def _send_messages(session: Session) -> Any:
    """Messages before and after the start, from the engine and from a client, each twice."""
    for _ in range(2):
        await session.engine.send(flows.inbox, "it", Paid(1), key="early")
    handle = await session.engine.start(flows.inbox, id="it")
    async with session.client() as client:
        for _ in range(2):
            await client.send(flows.inbox, "it", Paid(3), key="small")
            await client.send(flows.inbox, "it", Paid(7), key="large")
    for _ in range(2):
        await handle.send(True, key="ok", name="approval")
    return await session.ended(handle)


async def _send_to_stream(session: Session) -> Any:
    handle = await session.engine.start(flows.stream, id="it")
    for i, amount in enumerate([1, 2, 3, 0]):
        for _ in range(2):
            await handle.send(Paid(amount), key=f"paid {i}")
    async with session.client() as client:
        for text in ("x", "y"):
            await client.send(flows.stream, "it", Note(text), key=text)
    return await session.ended(handle)


async def _flow_to_flow(session: Session) -> Any:
    to = await session.engine.start(flows.counter, id="to")
    by = await session.engine.start(flows.sender, "to", id="by")
    return [await session.ended(by), await session.ended(to)]


async def _family(session: Session) -> Any:
    parent = await session.engine.start(flows.family, id="it")
    return [await session.ended(parent), await session.ended(session.engine.handle(flows.leaf, "leaf-4"))]


async def _cancel(session: Session) -> Any:
    handle = await session.engine.start(flows.cancelled, id="it")
    while not (await handle.state()).ended and not await handle.exposed("phase", returns=str):
        await asyncio.sleep(0.002)
    if not session.asked_to_cancel("it"):
        await handle.cancel("enough")
    child = session.engine.handle(flows.patient, "child")
    return [
        await session.ended(handle),
        await session.ended(child),
        (await handle.state()).value,
        (await child.state()).value,
    ]


async def _cancel_early(session: Session) -> Any:
    """Cancelled before it began: it ends without its code."""
    handle = await session.engine.start(flows.chain, 1, id="it", after=3600)
    if not session.asked_to_cancel("it"):
        await handle.cancel()
    return [await session.ended(handle), (await handle.state()).value]


async def _exposing(session: Session) -> Any:
    handle = await session.engine.start(flows.exposing, id="it")
    return [await session.ended(handle), await handle.exposed()]


async def _many(session: Session) -> Any:
    """More than memory may hold: all are unloaded and claimed again on the way."""
    handles = await session.engine.start_many(flows.counter, [(f"n{i}",) for i in range(3)])
    for tens in range(3):
        for i, handle in enumerate(handles):
            await handle.send(tens * 10 + i, key=f"{tens}")
    return [await session.ended(handle) for handle in handles]


async def _timers(session: Session) -> Any:
    """More than memory may hold: all are unloaded while they wait for time."""
    handles = await session.engine.start_many(flows.timers, [(f"t{i}",) for i in range(3)])
    return [await session.ended(handle) for handle in handles]


UNKNOWN = {"one": ("shipped one", "unknown one"), "two": ("shipped two", "unknown two")}


def _shipped_or_unknown(outcome: Any) -> bool:
    return len(outcome) == 2 and outcome[0] in UNKNOWN["one"] and outcome[1] in UNKNOWN["two"]


CASES = [
    Case("chain", [flows.chain], _just_run(flows.chain, 1), 5),
    Case("fan-out", [flows.fan_out], _just_run(flows.fan_out), [1, 2, 3, 4, 1, 2, 3, 4], parallel=4),
    Case("race", [flows.race], _just_run(flows.race), [1, 1, 0, 1]),
    Case("retries", [flows.retries], _just_run(flows.retries), [3, "never 3", 1]),
    Case(
        "at-most-once", [flows.at_most_once], _just_run(flows.at_most_once), ["shipped one", "shipped two"],
        same_journal=False, may_end=_shipped_or_unknown,
    ),
    Case("messages", [flows.inbox], _send_messages, [2, 7, True, 3, None, 1]),
    Case(
        "streams", [flows.stream], _send_to_stream,
        {"total": 6, "texts": ["x", "y"], "pairs": [[1, 2], [3, 0]], "first": 1}, untaken=5,
    ),
    Case("flow-to-flow", [flows.counter, flows.sender], _flow_to_flow, [None, [2, 3, 4]], parallel=2),
    Case("timers", [flows.timers], _timers, [[1, 1, 1]] * 3, {"max_resident": 1}, parallel=3),
    Case("start-later", [flows.chain], _just_run(flows.chain, 1, after=0.005), 5),
    Case(
        "children", [flows.family, flows.leaf, flows.failing_leaf], _family,
        [[11, 21, 31, "failed: leaf 5", 21, 1], 41], parallel=4,
    ),
    Case(
        "cancellation", [flows.cancelled, flows.patient], _cancel,
        ["cancelled: enough", "cancelled: None", State.CANCELLED.value, State.CANCELLED.value], parallel=2,
    ),
    Case("cancelled-early", [flows.chain], _cancel_early, ["cancelled: None", State.CANCELLED.value]),
    Case("compensation", [flows.compensation], _just_run(flows.compensation), "failed: Declined('car')"),
    Case(
        "exposed", [flows.exposing], _exposing,
        [10, {"progress": {"done": 4, "total": 10}, "end": "now"}],
    ),
    Case("unloading", [flows.counter], _many, [[1, 11, 21], [2, 12, 22], [3, 13, 23]], {"max_resident": 1}, parallel=3),
]  # fmt: skip
