"""Each example after Cleipnir's pages runs, and its flow ends well although its engine dies once on the way."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from examples.cleipnir import (
    at_least_once,
    at_most_once,
    bus_handlers,
    control_panel,
    emit_signal,
    idempotent_steps,
    integration_test,
    job_scheduler,
    kafka_batches,
    message_based,
    metrics,
    order_brokered,
    order_capture_once,
    order_controller,
    order_rpc,
    postpone,
    primitives,
    restart_failed,
    ship_once,
    transaction_id,
    unprotected,
    wait_for_messages,
)
from perdure import EngineClosed, FlowFailed, Handle, InitialState, OutcomeUnknown, State, codec
from tests.examples.stage import Stage, modules, printed
from tests.support.clock import until
from tests.support.world import eventually

LAST_LINES = {
    "at_least_once": "solution: 054321 after 54322 hashes",
    "at_most_once": "OutcomeUnknown: RocketSender.fire was begun and its outcome is unknown"
    " (RocketSender.fire has not ended within 0.2 s): it may have happened; ask the other side before doing it again",
    "bus_handlers": "a b c d",
    "control_panel": "payments: captured",
    "emit_signal": "received: MK-54321",
    "idempotent_steps": "state: succeeded",
    "integration_test": "the payment was made under the given id",
    "job_scheduler": "and so has the first of many",
    "kafka_batches": "sums: 450 460 470 480 490 500 510 520 530 540",
    "message_based": "state: succeeded",
    "metrics": "{'completed': 2, 'failed': 1}",
    "order_brokered": "tracking number: TT-MK-54321",
    "order_capture_once": "tracking number: TT-1",
    "order_controller": "3 receipts for 6 posts",
    "order_rpc": "tracking number: TT-1",
    "postpone": "MK-54321 done",
    "primitives": "funds: reserved",
    "restart_failed": "processed valid parameter",
    "ship_once": "OutcomeUnknown: somebody must look whether the goods went out",
    "transaction_id": "payments: captured",
    "unprotected": "done, and nobody goes on: reserved shipped",
    "wait_for_messages": "complete after InventoryLocked and FundsReserved",
}
CUSTOMER, PRODUCT = UUID(int=1), UUID(int=2)


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    stage = Stage(tmp_path)
    yield stage
    await stage.end()


async def unknown(handle: Handle[Any]) -> None:
    """The instance has failed since the outcome of an at-most-once step was lost."""
    with pytest.raises(FlowFailed) as failed:
        await handle.result(timeout=10)
    assert isinstance(failed.value.__cause__, OutcomeUnknown)


@pytest.mark.parametrize("name", sorted(LAST_LINES))
def test_the_program_runs(name: str) -> None:
    assert printed(f"examples.cleipnir.{name}")[-1] == LAST_LINES[name]


def test_no_program_is_left_out() -> None:
    assert modules("cleipnir") == set(LAST_LINES)


# ---------------------------------------------------------------- capture, messages, suspension


async def test_primitives(stage: Stage) -> None:
    http = primitives.Http()
    run = primitives.primitives(http, pause=timedelta(minutes=5))
    engine = await stage.mortal(run, entries=4)  # begun, two ids, the request
    handle = await engine.start(run, "MK-1", id="MK-1")
    await eventually(lambda: stage.pending(handle))  # the first attempt has failed
    stage.clock.advance(1)
    engine = await stage.next_life(engine)

    (recorded,) = [entry.outcome for entry in await stage.journal(handle) if entry.key == "=TransactionId"]
    handle = engine.handle(run, "MK-1")
    await handle.send(primitives.FundsReserved("MK-1"))
    await eventually(lambda: stage.journal(handle), lambda entries: len(entries) == 5)
    await stage.later(handle, timedelta(minutes=5))
    transaction, funds = await handle.result(timeout=10)
    assert (codec.decode(recorded or b""), funds) == (transaction, "reserved")
    assert len(http.posted) == 1


async def test_primitives_go_on_without_the_message_when_its_time_is_over(stage: Stage) -> None:
    run = primitives.primitives(primitives.Http(), pause=timedelta(minutes=5))
    engine = await stage.engine(run)
    handle = await engine.start(run, "MK-1", id="MK-1")
    await eventually(lambda: stage.pending(handle))
    stage.clock.advance(1)
    await eventually(lambda: stage.journal(handle), lambda entries: len(entries) == 4)
    handle = (await stage.restart(engine)).handle(run, "MK-1")
    await stage.later(handle, timedelta(minutes=5))
    await eventually(lambda: stage.journal(handle), lambda entries: len(entries) == 5)
    await stage.later(handle, timedelta(minutes=5))
    assert (await handle.result(timeout=10))[1] == "too late"


# ---------------------------------------------------------------- the order flows


def rpc_order() -> order_rpc.Order:
    return order_rpc.Order("MK-1", CUSTOMER, [PRODUCT], Decimal(120))


@pytest.mark.parametrize("entries", [2, 4, 5, 6])
async def test_order_rpc_does_everything_once(stage: Stage, entries: int) -> None:
    payments, logistics, email = order_rpc.PaymentProvider(), order_rpc.Logistics(), order_rpc.Email()
    run = order_rpc.order_flow(payments, logistics, email)
    engine = await stage.mortal(run, entries=entries)
    await engine.start(run, rpc_order(), id="MK-1")
    engine = await stage.next_life(engine)
    assert await engine.run(run, rpc_order(), id="MK-1", timeout=10) == "TT-1"
    assert set(payments.reserved) == payments.captured
    assert (list(payments.reserved.values()), logistics.shipped, email.sent) == ([120], [PRODUCT], ["TT-1"])


async def test_order_rpc_does_not_ship_when_it_may_have_shipped(stage: Stage) -> None:
    logistics = order_rpc.Logistics()
    run = order_rpc.order_flow(order_rpc.PaymentProvider(), logistics, order_rpc.Email())
    engine = await stage.mortal(run, entries=3)  # with the reservation the intent to ship is on disk
    await engine.start(run, rpc_order(), id="MK-1")
    engine = await stage.next_life(engine)
    await unknown(engine.handle(run, "MK-1"))
    assert logistics.shipped == []


async def test_order_rpc_never_ships_twice(stage: Stage) -> None:
    class Silent(order_rpc.Logistics):
        async def ship(self, customer: UUID, products: list[UUID]) -> str:
            await super().ship(customer, products)
            return await asyncio.Future[str]()

    payments, logistics = order_rpc.PaymentProvider(), Silent()
    run = order_rpc.order_flow(payments, logistics, order_rpc.Email())
    engine = await stage.engine(run)
    await engine.start(run, rpc_order(), id="MK-1")
    await until(lambda: logistics.shipped)
    engine = await stage.restart(engine)
    await unknown(engine.handle(run, "MK-1"))
    assert (logistics.shipped, payments.captured) == ([PRODUCT], set())


@pytest.mark.parametrize("entries", [2, 4, 5])
async def test_order_capture_once_does_everything_once(stage: Stage, entries: int) -> None:
    payments, email = order_capture_once.PaymentProvider(), order_capture_once.Email()
    run = order_capture_once.order_flow(payments, email)
    order = order_capture_once.Order("MK-1", CUSTOMER, [PRODUCT], Decimal(120))
    engine = await stage.mortal(run, entries=entries)
    await engine.start(run, order, id="MK-1")
    engine = await stage.next_life(engine)
    assert await engine.handle(run, "MK-1").result(timeout=10) == "TT-1"
    assert payments.captured == list(payments.reserved)
    assert email.sent == ["TT-1"]


async def test_order_capture_once_never_captures_twice(stage: Stage) -> None:
    class Silent(order_capture_once.PaymentProvider):
        async def capture(self, transaction: UUID) -> str:
            await super().capture(transaction)
            return await asyncio.Future[str]()

    payments = Silent()
    run = order_capture_once.order_flow(payments, order_capture_once.Email())
    engine = await stage.engine(run)
    await engine.start(run, order_capture_once.Order("MK-1", CUSTOMER, [PRODUCT], Decimal(120)), id="MK-1")
    await until(lambda: payments.captured)
    engine = await stage.restart(engine)
    await unknown(engine.handle(run, "MK-1"))
    assert len(payments.captured) == 1


COMMANDS = ["ReserveFunds", "ShipProducts", "CaptureFunds", "SendOrderConfirmationEmail"]


def brokered_order() -> order_brokered.Order:
    return order_brokered.Order("MK-1", CUSTOMER, [PRODUCT], Decimal(120))


def commands(bus: order_brokered.Bus) -> list[str]:
    names = [type(message).__name__ for message in bus.published]
    return [name for name in names if name in COMMANDS]


@pytest.mark.parametrize("entries", range(2, 11))
async def test_order_brokered_goes_on_wherever_it_stopped(stage: Stage, entries: int) -> None:
    bus = order_brokered.Bus()
    order_brokered.services(bus)
    run = order_brokered.order_flow(bus)
    engine = await stage.mortal(run, entries=entries)
    order_brokered.forward(bus, await stage.engine(execute=False), run)  # the bus's consumer lives elsewhere
    await engine.start(run, brokered_order(), id="MK-1")
    engine = await stage.next_life(engine)
    assert await engine.handle(run, "MK-1").result(timeout=10) == "TT-MK-1"
    assert commands(bus) == COMMANDS


async def test_order_brokered_takes_an_event_once_that_is_published_twice(stage: Stage) -> None:
    class Slow(order_brokered.Bus):
        async def publish(self, message: object) -> None:
            await super().publish(message)
            if commands(self) == COMMANDS[:2]:  # the broker has it, and nobody hears so
                await asyncio.Event().wait()

    bus = Slow()
    order_brokered.services(bus)
    run = order_brokered.order_flow(bus)
    engine = await stage.engine(run)
    order_brokered.forward(bus, await stage.engine(execute=False), run)
    handle = await engine.start(run, brokered_order(), id="MK-1")
    await until(lambda: commands(bus) == COMMANDS[:2])
    engine = await stage.restart(engine)
    assert await engine.handle(run, "MK-1").result(timeout=10) == "TT-MK-1"
    assert Counter(commands(bus)) == Counter(COMMANDS) + Counter(["ShipProducts"])
    assert await stage.inbox(handle) == []


async def test_order_controller(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    orders = [order_controller.Order(f"MK-{n}", Decimal(n)) for n in range(3)]
    engine = await stage.mortal(order_controller, entries=len(orders))  # they are on disk, and nobody is told
    controller = order_controller.OrderController(engine)
    posts = [asyncio.create_task(controller.post(order)) for order in orders]
    engine = await stage.next_life(engine)
    assert [type(e) for e in await asyncio.gather(*posts, return_exceptions=True)] == [EngineClosed] * len(orders)

    controller = order_controller.OrderController(engine)
    assert await asyncio.gather(*(controller.post(order) for order in orders)) == [
        f"receipt of {order.id}" for order in orders
    ]
    assert sorted(capsys.readouterr().out.splitlines()) == [f"{order.id}: {order.total} charged" for order in orders]


# ---------------------------------------------------------------- buses


async def test_bus_handlers(stage: Stage) -> None:
    run = bus_handlers.simple_flow
    engine = await stage.mortal(run, entries=5)  # four begun, one message taken
    client = await stage.engine(execute=False)
    handlers = {
        "a": bus_handlers.MassTransitConsumer(client).consume,
        "b": bus_handlers.NServiceBusHandler(client).handle,
        "c": bus_handlers.RebusHandler(client).handle,
        "d": bus_handlers.WolverineHandler(client).handle,
    }
    handles = await engine.start_many(run, [(name,) for name in handlers])
    for name, handler in handlers.items():
        context = bus_handlers.ConsumeContext(bus_handlers.MyMessage(name), f"id of {name}")
        args = {"a": (context,), "b": (context.message, context)}.get(name, (context.message,))
        await bus_handlers.deliver(handler, *args, times=2 if name in "ab" else 1)
    engine = await stage.next_life(engine)
    assert [await engine.handle(run, name).result(timeout=10) for name in handlers] == list(handlers)
    assert [await stage.inbox(handle) for handle in handles] == [[]] * 4


async def test_kafka_batches(stage: Stage) -> None:
    run, count = kafka_batches.sum_flow, kafka_batches.INSTANCES
    topic = kafka_batches.Topic([kafka_batches.Reading(str(n % count), n) for n in range(10 * count)])
    engine = await stage.mortal(run, entries=4 * count)
    handles = await engine.start_many(run, [(str(n), 10) for n in range(count)])
    consumer = asyncio.create_task(kafka_batches.consume(topic, engine))
    engine = await stage.next_life(engine)
    with pytest.raises(EngineClosed):
        await consumer
    assert 0 < topic.committed < 10 * count
    topic.reopen()
    await kafka_batches.consume(topic, engine)
    sums = [await engine.handle(run, str(n)).result(timeout=10) for n in range(count)]
    assert sums == [450 + 10 * n for n in range(count)]
    assert [await stage.inbox(handle) for handle in handles] == [[]] * count


# ---------------------------------------------------------------- once, and once again


async def test_at_least_once(stage: Stage) -> None:
    solver = at_least_once.PuzzleSolver()
    run = at_least_once.at_least_once(solver)
    engine = await stage.mortal(run, entries=2)
    await engine.start(run, at_least_once.hash_of("000777"), id="1")
    engine = await stage.next_life(engine)
    assert await engine.handle(run, "1").result(timeout=10) == "000777"
    assert solver.tried == 778


async def test_at_most_once(stage: Stage) -> None:
    sender = at_most_once.RocketSender()
    run = at_most_once.at_most_once(sender)
    engine = await stage.engine(run)
    await engine.start(run, "silent", id="1")
    await until(lambda: sender.fired)
    engine = await stage.restart(engine)
    await unknown(engine.handle(run, "1"))
    assert sender.fired == ["silent"]


async def test_idempotent_steps(stage: Stage) -> None:
    class Slow(idempotent_steps.Services):
        async def ship(self, order_id: str) -> None:
            await super().ship(order_id)
            if self.calls.count(f"shipped {order_id}") == 1:
                await asyncio.Event().wait()

    services = Slow()
    run = idempotent_steps.order_flow(services)
    engine = await stage.engine(run)
    await engine.start(run, idempotent_steps.Order("MK-1", uuid4(), Decimal(5)), id="MK-1")
    await until(lambda: "shipped MK-1" in services.calls)
    engine = await stage.restart(engine)
    await engine.handle(run, "MK-1").result(timeout=10)
    assert services.calls == ["reserved 5", "shipped MK-1", "shipped MK-1", "captured", "confirmed MK-1"]


async def test_transaction_id(stage: Stage) -> None:
    class Slow(transaction_id.PaymentProvider):
        async def reserve(self, transaction: UUID, customer: UUID, amount: Decimal) -> None:
            await super().reserve(transaction, customer, amount)
            if self.requests == 1:
                await asyncio.Event().wait()

    payments = Slow()
    run = transaction_id.order_flow(payments)
    engine = await stage.engine(run)
    await engine.start(run, transaction_id.Order("MK-1", CUSTOMER, Decimal(5)), id="MK-1")
    await until(lambda: payments.requests)
    engine = await stage.restart(engine)
    transaction = await engine.handle(run, "MK-1").result(timeout=10)
    assert payments.payments == {transaction: "captured"}
    assert payments.requests == 3  # the reservation came twice


async def test_ship_once(stage: Stage) -> None:
    payments, logistics = ship_once.PaymentProvider(), ship_once.Logistics(answers=False)
    run = ship_once.order_flow(payments, logistics)
    engine = await stage.engine(run)
    await engine.start(run, ship_once.Order("MK-1", CUSTOMER, [PRODUCT]), id="MK-1")
    await until(lambda: logistics.shipped)
    engine = await stage.restart(engine)
    await unknown(engine.handle(run, "MK-1"))
    assert (logistics.shipped, list(payments.payments.values())) == ([PRODUCT], ["reserved"])


async def test_unprotected_code_stops_where_its_process_did() -> None:
    services = unprotected.Services()
    process = asyncio.create_task(unprotected.process_order(unprotected.Order("MK-1", Decimal(5)), services))
    await services.shipped.wait()
    process.cancel()
    await asyncio.wait([process])
    assert services.done == ["reserved", "shipped"]


# ---------------------------------------------------------------- given, mended, scheduled


async def test_integration_test(stage: Stage) -> None:
    payments, transaction = integration_test.PaymentStub(), uuid4()
    run = integration_test.order_flow(payments, integration_test.EmailStub())
    order = integration_test.Order("MK-1", CUSTOMER, [PRODUCT], Decimal(5))
    engine = await stage.mortal(run, entries=2)  # begun, and the reservation
    await engine.start(run, order, id="MK-1", initial=InitialState(entries={"TransactionId": transaction}))
    engine = await stage.next_life(engine)
    await engine.handle(run, "MK-1").result(timeout=10)
    assert payments.used == [transaction]


async def test_restart_failed(stage: Stage) -> None:
    run = restart_failed.fragile_flow
    engine = await stage.engine(run)
    with pytest.raises(FlowFailed):
        await engine.run(run, "invalid", id="1", timeout=10)
    engine = await stage.restart(engine)
    async with asyncio.timeout(10):
        assert await restart_failed.mend(engine, "1") == "processed valid parameter"


async def test_control_panel(stage: Stage) -> None:
    payments, logistics = ship_once.PaymentProvider(), control_panel.LostLetter()
    run = ship_once.order_flow(payments, logistics)
    engine = await stage.engine(run)
    await engine.start(run, ship_once.Order("MK-1", CUSTOMER, [PRODUCT]), id="MK-1")
    await until(lambda: logistics.asked)
    engine = await stage.restart(engine)
    await unknown(engine.handle(run, "MK-1"))
    async with asyncio.timeout(10):
        await control_panel.ship_again(engine, run, "MK-1")
    assert (logistics.asked, list(payments.payments.values())) == (2, ["captured"])


async def test_job_scheduler(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    run, day = job_scheduler.report, timedelta(days=1)
    engine = await stage.engine(run)
    await engine.start(run, "once", id="once", after=timedelta(hours=2))
    await engine.schedule(run, day, "daily", id="daily")
    schedule = engine.handle("perdure.schedule", "daily")
    due_at = stage.clock.wall() + day.total_seconds()
    await eventually(lambda: stage.row(schedule), lambda row: row.waiting and row.due_at == due_at)
    await stage.crash(engine)
    stage.clock.advance(1.5 * day.total_seconds())  # nobody is there when they are due

    engine = await stage.engine(run)
    assert await engine.handle(run, "once").result(timeout=10) == "once"

    async def ended() -> list[str]:
        return [info.id async for info in engine.find(run, state=State.SUCCEEDED) if info.id != "once"]

    await eventually(ended)
    await stage.later(engine.handle("perdure.schedule", "daily"), day / 2)
    ids = await eventually(ended, lambda found: len(found) == 2)
    assert all(id.startswith("daily@") for id in ids)
    assert sorted(capsys.readouterr().out.splitlines()) == ["report: daily"] * 2 + ["report: once"]


async def test_a_schedule_counts_from_when_it_was_set(stage: Stage) -> None:
    run, day = job_scheduler.report, timedelta(days=1)
    client = await stage.engine(execute=False)
    await client.schedule(run, day, "daily", id="daily")
    stage.clock.advance(1.5 * day.total_seconds())
    engine = await stage.engine(run)

    async def started() -> list[str]:
        return [info.id async for info in engine.find(run)]

    await eventually(started, seconds=2)


# ---------------------------------------------------------------- waiting


@pytest.mark.parametrize("unload_after", [None, 0])
async def test_wait_for_messages(stage: Stage, unload_after: float | None) -> None:
    run = wait_for_messages.wait_for_messages
    engine = await stage.engine(run, unload_after=unload_after)
    handle = await engine.start(run, "MK-1", id="MK-1")
    await handle.send(wait_for_messages.InventoryLocked("MK-1"))
    await eventually(lambda: stage.journal(handle), lambda entries: len(entries) == 2)
    await (stage.parked if unload_after is None else stage.unloaded)(handle)
    engine = await stage.restart(engine)
    await engine.send(run, "MK-1", wait_for_messages.FundsReserved("MK-1"))
    assert await engine.handle(run, "MK-1").result(timeout=10) == ["InventoryLocked", "FundsReserved"]


async def test_emit_signal(stage: Stage) -> None:
    run = emit_signal.order_flow
    engine = await stage.mortal(run, entries=2)  # begun, and the first message taken
    client = await stage.engine(execute=False)
    await engine.start(run, "MK-1", id="MK-1")
    for _ in range(2):
        await client.send(run, "MK-1", emit_signal.FundsReserved("MK-1"), key="FundsReserved")
    engine = await stage.next_life(engine)
    await client.send(run, "MK-1", emit_signal.FundsReserved("MK-1"), key="FundsReserved")
    handle = engine.handle(run, "MK-1")
    await eventually(lambda: stage.journal(handle), lambda entries: len(entries) == 2)
    await stage.later(handle, timedelta(seconds=1))
    assert await handle.result(timeout=10) == ["MK-1"]


async def test_postpone(stage: Stage) -> None:
    external = postpone.ExternalService(overloaded=2)
    run = postpone.postpone_flow(external, pause=timedelta(minutes=10))
    engine = await stage.engine(run)
    handle = await engine.start(run, "MK-1", id="MK-1")
    await stage.later(handle, timedelta(minutes=10))
    await until(lambda: external.asked == 2)
    await stage.parked(handle)
    handle = (await stage.restart(engine)).handle(run, "MK-1")
    await stage.later(handle, timedelta(minutes=10))
    assert await handle.result(timeout=10) == "MK-1 done"
    assert external.asked == 3


@pytest.mark.parametrize(("n", "end"), [(2, "completed"), (13, "failed")])
async def test_metrics(stage: Stage, n: int, end: str) -> None:
    counts: metrics.Metrics = Counter()
    run = metrics.fragile_flow(counts)
    engine = await stage.mortal(run, entries=2)  # begun, and the step
    await engine.start(run, n, id="1")
    assert "restarted" not in counts
    engine = await stage.next_life(engine)
    if end == "failed":
        with pytest.raises(FlowFailed, match="13 is odd"):
            await engine.handle(run, "1").result(timeout=10)
    else:
        assert await engine.handle(run, "1").result(timeout=10) == n // 2
    assert counts == {end: 1, "restarted": 1}


@pytest.mark.parametrize("entries", range(2, 11))
async def test_message_based(stage: Stage, entries: int) -> None:
    bus = message_based.Bus()
    run = message_based.order_flow(bus)
    engine = await stage.mortal(run, entries=entries)
    message_based.listen(bus, await stage.engine(execute=False), run)
    await engine.start(run, message_based.Order("MK-1", CUSTOMER), id="MK-1")
    engine = await stage.next_life(engine)
    await engine.handle(run, "MK-1").result(timeout=10)
    assert [command.what for command in bus.sent] == COMMANDS
    assert len({command.transaction for command in bus.sent if command.transaction}) == 1
