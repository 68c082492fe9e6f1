"""Each example after Asynkron's page runs, and its flow ends well although its engine dies once on the way.

A step prints what it does, so what is printed is what was done.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from examples.asynkron import (
    auto_registration,
    data_pipeline,
    delayed_greeting,
    durable_timers,
    eternal,
    external_events,
    fan_out,
    first_function,
    function_chain,
    hello_world,
    human_approval,
    human_interaction,
    logging_setup,
    persistent_sqlite,
    retry_and_errors,
    storage,
    sub_orchestrations,
    typed_orchestrator,
    web_app,
)
from perdure import EngineClosed, FlowCancelled, Store
from perdure.model.records import Kind
from perdure.stores.sqlite import SqliteStore
from tests.examples.stage import Stage, modules, printed
from tests.support.world import World, eventually

LAST_LINES = {
    "auto_registration": "Sent 2 emails!",
    "data_pipeline": "Pipeline complete: stored-transformed-validated-data",
    "delayed_greeting": "Hello World (after delay)!",
    "durable_timers": "Email sequence completed over 7 days!",
    "eternal": "cancelled: seen enough",
    "external_events": "Request rejected",
    "fan_out": "Processed 5 items: Processed-data1, Processed-data2, Processed-data3, Processed-data4, Processed-data5",
    "first_function": "Orchestrator says: Hello, World!",
    "function_chain": "ProcessOrderOrchestrator 'MK-2' failed: ValueError: Invalid amount",
    "hello_world": "Hello World! 👋",
    "human_approval": "Request was rejected.",
    "human_interaction": "Approval timed out",
    "logging_setup": "shop.orders: order MK-54321 ends",
    "persistent_sqlite": "table for 4, at eight",
    "retry_and_errors": "Failed after retries",
    "storage": "some commits were counted: True",
    "sub_orchestrations": "Workflow completed",
    "typed_orchestrator": "Completed in UTC",
    "web_app": "Hello, World!",
}
Printed = pytest.CaptureFixture[str]


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    stage = Stage(tmp_path)
    yield stage
    await stage.end()


@pytest.mark.parametrize("name", sorted(LAST_LINES))
def test_the_program_runs(name: str) -> None:
    assert printed(f"examples.asynkron.{name}")[-1] == LAST_LINES[name]


def test_no_program_is_left_out() -> None:
    assert modules("asynkron") == set(LAST_LINES)


# ---------------------------------------------------------------- the first steps


@pytest.mark.parametrize(
    ("run", "result"),
    [
        (first_function.greeting, "Orchestrator says: Hello, World!"),
        (hello_world.hello, "Hello World! 👋"),
        (web_app.greeting, "Hello, World!"),
    ],
)
async def test_a_greeting(stage: Stage, run: Any, result: str) -> None:
    engine = await stage.mortal(run, entries=2)  # it has ended, and nobody is told
    handle = await engine.start(run.name, "World", id="1")
    engine = await stage.next_life(engine)
    assert await engine.handle(run.name, "1").result(timeout=10) == result
    assert [entry.attempts for entry in await stage.journal(handle) if entry.kind == Kind.STEP] == [1]


@pytest.mark.parametrize("entries", range(2, 5))
async def test_data_pipeline(stage: Stage, capsys: Printed, entries: int) -> None:
    run = data_pipeline.pipeline
    engine = await stage.mortal(run, entries=entries)
    await engine.start(run, "data", id="1")
    engine = await stage.next_life(engine)
    assert await engine.handle(run, "1").result(timeout=10) == LAST_LINES["data_pipeline"]
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == [
        "Validating:", "Transforming:", "Storing:",
    ]  # fmt: skip


async def test_delayed_greeting(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    run = delayed_greeting.delayed_greeting
    engine = await stage.engine(run)
    with caplog.at_level(logging.INFO, logger="perdure.flow"):
        await stage.parked(await engine.start(run, "World", timedelta(seconds=5), id="1"))
        handle = (await stage.restart(engine)).handle(run, "1")
        await stage.later(handle, timedelta(seconds=5))
        assert await handle.result(timeout=10) == "Hello World (after delay)!"
    lines = [record.getMessage() for record in caplog.records if record.name == "perdure.flow"]
    assert lines == ["⏰ Setting timer for 0:00:05...", "🎉 Timer fired! Greeting World"]


# ---------------------------------------------------------------- events and people


@pytest.mark.parametrize(
    ("answer", "result", "lines"),
    [
        (True, "Request approved", ["please approve: a holiday", "processing: Approved"]),
        (False, "Request rejected", ["please approve: a holiday", "processing: Rejected"]),
    ],
)
async def test_external_events(stage: Stage, capsys: Printed, answer: bool, result: str, lines: list[str]) -> None:
    run = external_events.approval
    engine = await stage.engine(run)
    await stage.parked(await engine.start(run, "a holiday", id="approval-123"))
    engine = await stage.restart(engine)
    await engine.send("ApprovalOrchestrator", "approval-123", answer, name="ApprovalEvent")
    assert await engine.handle(run, "approval-123").result(timeout=10) == result
    assert capsys.readouterr().out.splitlines() == lines


@pytest.mark.parametrize(
    ("answer", "result", "line"),
    [
        (True, "Request approved and processed!", "granted: a holiday"),
        (False, "Request was rejected.", "refused: a holiday"),
    ],
)
async def test_human_approval(stage: Stage, capsys: Printed, answer: bool, result: str, line: str) -> None:
    run = human_approval.approval
    engine = await stage.engine(run)
    await stage.parked(await engine.start(run, human_approval.ApprovalRequest("1", "a holiday"), id="1"))
    engine = await stage.restart(engine)
    await engine.send(run, "1", answer, name="ApprovalEvent")
    assert await engine.handle(run, "1").result(timeout=10) == result
    assert capsys.readouterr().out.splitlines() == ["please approve: a holiday", line]


@pytest.mark.parametrize(
    ("answer", "result"), [(True, "Approved by human"), (False, "Rejected by human"), (None, "Approval timed out")]
)
async def test_human_interaction(stage: Stage, capsys: Printed, answer: bool | None, result: str) -> None:
    run = human_interaction.human_approval
    engine = await stage.engine(run)
    await stage.parked(await engine.start(run, "a holiday", timedelta(hours=24), id="1"))
    handle = (await stage.restart(engine)).handle(run, "1")
    await stage.later(handle, timedelta(hours=23))
    if answer is None:
        await stage.later(handle, timedelta(hours=1))
    else:
        await handle.send(answer, name="HumanApproval")
    assert await handle.result(timeout=10) == result
    assert capsys.readouterr().out.splitlines() == ["please approve: a holiday"]


async def test_persistent_sqlite(stage: Stage, capsys: Printed) -> None:
    run = persistent_sqlite.dinner
    engine = await stage.engine(run)
    await stage.parked(await engine.start(run, 4, id="friday"))
    engine = await stage.restart(engine)
    await engine.send(run, "friday", "at nine")
    assert await engine.handle(run, "friday").result(timeout=10) == "table for 4, at nine"
    assert capsys.readouterr().out == "reserved for 4\n"


async def test_durable_timers(stage: Stage, capsys: Printed) -> None:
    run, day = durable_timers.long_running, timedelta(hours=24)
    engine = await stage.engine(run)
    handle = await engine.start(run, "Ada", day, id="Ada")
    await stage.parked(handle)
    await stage.crash(engine)
    stage.clock.advance(2 * day.total_seconds())  # nobody is there when the first timer is due

    handle = (await stage.engine(run)).handle(run, "Ada")
    await eventually(lambda: stage.journal(handle), lambda entries: len(entries) == 4)
    await stage.later(handle, 5 * day - timedelta(seconds=1))  # the second one counts from the beginning
    await stage.parked(handle)
    assert capsys.readouterr().out.splitlines() == ["welcome, Ada", "how is it, Ada"]
    await stage.later(handle, timedelta(seconds=1))
    assert await handle.result(timeout=10) == "Email sequence completed over 7 days!"
    assert capsys.readouterr().out.splitlines() == ["news, Ada"]


async def test_eternal(stage: Stage, capsys: Printed) -> None:
    run, pause = eternal.monitor, timedelta(minutes=5)
    engine = await stage.engine(run)
    handle = await engine.start(run, eternal.Config("sound", pause), id="1")

    async def checks(count: int) -> None:
        runs, rest = divmod(count - 1, eternal.CHECKS_PER_RUN)
        await eventually(lambda: stage.row(handle), lambda row: row.run == runs)
        await eventually(lambda: stage.journal(handle), lambda entries: len(entries) == 2 + 2 * rest)
        await stage.parked(handle)

    for count in range(1, 9):
        await checks(count)
        if count == 5:
            engine = await stage.restart(engine)
            handle = engine.handle(run, "1")
        stage.clock.advance(pause.total_seconds())
    await checks(9)
    await handle.cancel("seen enough")
    with pytest.raises(FlowCancelled, match="seen enough"):
        await handle.result(timeout=10)
    assert capsys.readouterr().out.splitlines() == ["checking sound"] * 9


# ---------------------------------------------------------------- chains, children, many at once


@pytest.mark.parametrize("entries", range(2, 6))
async def test_function_chain(stage: Stage, capsys: Printed, entries: int) -> None:
    run = function_chain.process_order
    engine = await stage.mortal(run, entries=entries)
    await engine.start(run, function_chain.OrderRequest("MK-1", Decimal(5)), id="1")
    engine = await stage.next_life(engine)
    result = await engine.handle(run, "1").result(timeout=10)
    assert result == "Order MK-1 processed successfully! Customer notified."
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        "Validating", "Charging", "Shipping", "Writing",
    ]  # fmt: skip


@pytest.mark.parametrize("entries", range(2, 8))
async def test_sub_orchestrations(stage: Stage, capsys: Printed, entries: int) -> None:
    run = sub_orchestrations.main_flow
    engine = await stage.mortal(run, sub_orchestrations.process_order, entries=entries)
    await engine.start(run, "MK-1", id="1")
    engine = await stage.next_life(engine)
    assert await engine.handle(run, "1").result(timeout=10) == "Workflow completed"
    assert capsys.readouterr().out.splitlines() == [
        "validating MK-1", "charging MK-1", "notifying: Order processed",
    ]  # fmt: skip


async def test_fan_out(stage: Stage, capsys: Printed) -> None:
    run, inputs = fan_out.process_parallel, [f"data{n}" for n in range(1, 6)]
    engine = await stage.mortal(run, entries=3)  # begun, and two of five
    await engine.start(run, inputs, id="1")
    engine = await stage.next_life(engine)
    assert await engine.handle(run, "1").result(timeout=10) == LAST_LINES["fan_out"]
    runs = Counter(capsys.readouterr().out.splitlines())
    assert set(runs) == {f"Processing {data}..." for data in inputs}
    assert sum(count == 1 for count in runs.values()) >= 2  # what was recorded did not run again
    assert max(runs.values()) == 2


async def test_auto_registration(stage: Stage, capsys: Printed) -> None:
    customers = [auto_registration.Customer(f"{n}@example.com") for n in range(4)]
    engine = await stage.mortal(auto_registration, entries=3)
    await engine.start("EmailCampaignOrchestrator", auto_registration.Campaign(customers), id="1")
    engine = await stage.next_life(engine)
    assert await engine.handle("EmailCampaignOrchestrator", "1").result(timeout=10) == "Sent 4 emails!"
    assert capsys.readouterr().out.splitlines() == [f"Sending email to {c.email}" for c in customers]


async def test_attempts_go_on_after_a_crash(stage: Stage, capsys: Printed) -> None:
    run = retry_and_errors.resilient
    engine = await stage.engine(run)
    handle = await engine.start(run, "test-data", 1.0, id="1")
    for attempts in (1, 2):
        await eventually(lambda: stage.pending(handle), lambda found, n=attempts: [p.attempt for p in found] == [n])
        if attempts == 2:
            engine = await stage.restart(engine)
        stage.clock.advance(1)
    await eventually(lambda: stage.pending(handle), lambda found: [p.attempt for p in found] == [3])
    stage.clock.advance(1)
    assert await engine.handle(run, "1").result(timeout=10) == "Failed after retries"
    assert capsys.readouterr().out.splitlines() == [
        *(f"attempt {n} fails" for n in (1, 2, 3, 4)),
        "error: Simulated failure!",
    ]


# ---------------------------------------------------------------- types, stores, logs, the web


async def test_typed_orchestrator(stage: Stage) -> None:
    run, order = typed_orchestrator.process_typed_order, typed_orchestrator.OrderRequest("lamp", 2, Decimal("19.90"))
    engine = await stage.mortal(run, entries=1)
    start = asyncio.create_task(engine.start(run, order, id="1"))
    engine = await stage.next_life(engine)
    with pytest.raises(EngineClosed):  # it is started all the same
        await start
    result = await engine.run(run, order, id="1", timeout=10)
    assert result == await engine.run(run, order, id="1", timeout=10)
    assert (UUID(result.order_id).version, result.status) == (4, "Completed")
    assert result.processed_at == datetime.fromtimestamp(stage.clock.wall(), UTC)


class CountingWorld(World):
    """Its store may be the example's own."""

    def __init__(self, kind: str, folder: Path) -> None:
        super().__init__(kind, folder)
        self.mine: list[storage.CountingStore] = []

    def store(self) -> Store:
        if self.kind != "mine":
            return super().store()
        self.mine.append(storage.CountingStore(self.path))
        return self.mine[-1]


@pytest.mark.parametrize("kind", ["memory", "sqlite", "mine"])
async def test_storage(kind: str, tmp_path: Path) -> None:
    world = CountingWorld(kind, tmp_path)
    try:
        engine = await world.engine(storage.sum_of_squares)
        handle = await engine.start(storage.sum_of_squares, 300, id="1")
        await eventually(lambda: world.journal(handle), lambda entries: len(entries) > 1)
        engine = await world.restart(engine)
        total = await engine.handle(storage.sum_of_squares, "1").result(timeout=10)
        assert total == sum(n * n for n in range(300))
        assert all(store.commits > 0 for store in world.mine)
    finally:
        await world.end()


async def test_logging_setup(stage: Stage) -> None:
    shelf, run = logging_setup.Shelf(), logging_setup.order_flow
    logging_setup.log.addHandler(shelf)
    logging_setup.log.setLevel(logging.INFO)
    try:
        engine = await stage.engine(run)
        await stage.parked(await engine.start(run, "MK-1", id="1"))
        engine = await stage.restart(engine)
        await engine.send(run, "1", True)
        await engine.handle(run, "1").result(timeout=10)
    finally:
        logging_setup.log.removeHandler(shelf)
    assert shelf.lines == ["shop.orders: order MK-1 begins", "shop.orders: order MK-1 ends"]


async def test_web_app(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/flows.db"
    answers: list[str] = []
    for _ in range(2):
        app = web_app.make_app(url)
        async with app.lifespan(app):
            answers.append(await app.request("/greetings", "World"))
    assert answers == ["Hello, World!"] * 2
    store = SqliteStore(tmp_path / "flows.db")
    await store.open()
    row = await store.instance("greeting", "World")
    assert row is not None
    (loaded,) = await store.load([row.uid])
    await store.close()
    assert [entry.kind for entry in loaded.entries].count(Kind.STEP) == 1
