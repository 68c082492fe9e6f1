"""A user's program. It must have no error under pyright strict and mypy strict. It is never run."""
from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any, assert_type
from uuid import UUID, uuid4

import perdure
from pydantic import BaseModel
from perdure import (
    Cron, Engine, FlowCancelled, FlowFailed, FlowFunction, Handle, Health, Info, InitialState, OutcomeUnknown, Outgoing,
    Panel, Retry, Step, Stream, SyncEngine, SyncHandle, SyncPanel, Tx, capture, continue_as_new, current, patched, transaction, delay, expose, exposed, flow, get_logger, handle, logger, messages, new_uuid, now, receive, start,
    start_many, step, type_name,
)


class Order(BaseModel):
    id: str
    customer: UUID
    total: Decimal
    lines: list[str]


@dataclass
class FundsReserved:
    order: str

@dataclass
class InventoryLocked:
    order: str

@type_name("payments.funds-captured")
@dataclass
class FundsCaptured:
    order: str
    amount: Decimal

@dataclass
class Shipped:
    tracking: str


# --- the example -------------------------------------------------------------------------------
class Logistics:
    async def ship(self, order: Order, express: bool = False) -> str: return ""
    def ship_sync(self, order: Order, *, express: bool = False) -> str: return ""

logistics = Logistics()

@step(retry=Retry(attempts=5, initial=timedelta(seconds=1)), timeout=timedelta(seconds=30))
async def reserve(customer: UUID, transaction: UUID, amount: Decimal) -> None: ...

@flow
async def order_flow(order: Order) -> str:
    transaction_id = await capture(uuid4)
    assert_type(transaction_id, UUID)
    await reserve(order.customer, transaction_id, order.total)
    await reserve.options(retry=Retry(attempts=1))(order.customer, transaction_id, amount=order.total)
    tracking = await capture(logistics.ship, order, at_most_once=True)
    assert_type(tracking, str)
    assert_type(await capture(logistics.ship, order, True), str)
    assert_type(await capture(partial(logistics.ship_sync, order, express=True), id="Ship"), str)
    assert_type(await capture(lambda: logistics.ship(order, express=True)), str)
    assert_type(await capture(lambda: {"a": 1}, returns=dict[str, int]), dict[str, int])
    assert_type(await capture(logistics.ship, order, returns=None), None)      # the answer is thrown away
    funds = await receive(FundsCaptured, timeout=timedelta(minutes=5))
    assert_type(funds, FundsCaptured)
    await delay(timedelta(days=7))
    await delay(5)
    await delay(until=now() + timedelta(days=1))
    await asyncio.sleep(1)
    return tracking


# --- messages ---------------------------------------------------------------------------------
@flow
async def listener(order: str) -> Decimal:
    assert_type(await receive(FundsReserved), FundsReserved)
    assert_type(await receive(FundsReserved, timeout=5, default=None), FundsReserved | None)
    assert_type(await receive(FundsReserved, InventoryLocked), FundsReserved | InventoryLocked)
    assert_type(await receive(FundsReserved | InventoryLocked), FundsReserved | InventoryLocked)
    assert_type(await receive(FundsReserved, InventoryLocked, where=lambda m: m.order == order), FundsReserved | InventoryLocked)
    assert_type(await receive(FundsReserved | InventoryLocked, where=lambda m: m.order == order), FundsReserved | InventoryLocked)
    assert_type(await receive(bool, name="Approval"), bool)
    assert_type(await receive(bool, name="Approval", timeout=timedelta(hours=24), default=False), bool)
    both = await messages(FundsReserved, InventoryLocked).take(2).list()
    assert_type(both, Sequence[FundsReserved | InventoryLocked])
    total = await messages(FundsCaptured).where(lambda m: m.order == order).map(lambda m: m.amount).scan(Decimal(0), lambda a, b: a + b).take(3).last()
    assert_type(total, Decimal)
    assert_type(messages(FundsReserved | InventoryLocked).of_types(FundsReserved), Stream[FundsReserved])
    assert_type(messages(FundsReserved).chunk(2), Stream[Sequence[FundsReserved]])
    assert_type(await messages(FundsReserved, name="funds").skip(1).skip_until(lambda m: bool(m.order)).first(), FundsReserved)
    assert_type(messages(FundsReserved).take_until(lambda m: m.order == order), Stream[FundsReserved])
    async for m in messages(FundsCaptured, Shipped).distinct().until(timedelta(minutes=1)):
        assert_type(m, FundsCaptured | Shipped)
    return total


# --- asyncio ------------------------------------------------------------------------------------
@step
async def process(item: str, *, times: int = 1) -> int: return times
@step(name="Resize")
def resize(pixels: bytes) -> bytes: return pixels
@step(copy=False, at_most_once=True)
def encode(pixels: bytes) -> bytes: return pixels

@flow
async def fan_out(items: list[str]) -> int:
    numbers = await asyncio.gather(*(process(i) for i in items))
    assert_type(numbers, list[int])
    async with asyncio.TaskGroup() as tg:
        task = tg.create_task(process("x", times=2))
        child = tg.create_task(listener("o-1"))
    assert_type(task.result(), int)
    assert_type(child.result(), Decimal)
    async with asyncio.timeout(60):
        assert_type(await resize(b""), bytes)
    event = asyncio.create_task(receive(bool, name="DeliveryConfirmed"))
    timer = asyncio.create_task(delay(timedelta(days=14)))
    tasks: set[asyncio.Task[Any]] = {event, timer}
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    if event in done:
        timer.cancel()
    expose("progress", 0.5)
    assert_type(exposed("progress", returns=float), float | None)
    return sum(numbers)


# --- children -------------------------------------------------------------------------------------
@flow(name="invoice", version="2", timeout=timedelta(days=30))
async def invoice(order: Order, copies: int = 1) -> str: return ""

@step(queue="gpu", timeout=60)
async def render(order: Order) -> bytes: return b""

@flow
async def parent(orders: list[Order]) -> None:
    assert_type(await invoice(orders[0], copies=2), str)
    child = await start(invoice, orders[0], id="inv-1", detached=True)
    assert_type(child, Handle[str])
    assert_type(await child.result(), str)
    many = await start_many(invoice, [(o.id, o, 1) for o in orders], queue="gpu")
    assert_type([await h.result() for h in many], list[str])
    assert_type(await start(invoice, orders[0]), Handle[str])
    assert_type(await start("HelloOrchestrator", "World"), Handle[Any])
    assert_type(await start(invoice, orders[0], queue="gpu"), Handle[str])
    assert_type(await perdure.run(invoice, orders[0], queue=""), str)
    assert_type(await render.options(queue=None)(orders[0]), bytes)
    assert_type(handle(invoice, "inv-1"), Handle[str])
    assert_type(handle("invoice", "inv-1"), Handle[Any])
    await perdure.send(order_flow, "o-1", FundsReserved("o-1"))
    await perdure.cancel(invoice, "inv-1", "not wanted")
    logger.info("children of %s", current().id)
    get_logger(__name__).info("x")
    _ = perdure.rng().choice([1, 2, 3])
    assert_type(new_uuid(), UUID)


# --- who am I -------------------------------------------------------------------------------------
@step(timeout=60)
async def export(rows: int) -> int:
    me = current()
    done = me.progress(int)
    assert_type(done, int | None)
    for row in range(done or 0, rows):
        me.heartbeat(row)
        if me.cancelled:
            break
    assert_type(me.attempt, int)
    assert_type(me.step, str | None)
    assert_type(me.key, str)
    assert_type(me.parent, tuple[str, str] | None)
    return rows


# --- wait while overloaded; a step whose outcome may stay unknown ----------------------------------
class External:
    async def is_overloaded(self) -> bool: return False
external = External()

async def ask_human(id: str) -> bool: return True

@flow
async def postponing(order_id: str) -> str:
    if await capture(external.is_overloaded, id="overloaded"):
        await delay(timedelta(minutes=10))
    return "done"

@flow
async def rocket(id: str) -> None:
    try:
        await capture(print, "fire", at_most_once=True, id="FireRocket")
    except OutcomeUnknown:
        assert_type(await capture(ask_human, id), bool)


# --- steps that are methods ------------------------------------------------------------------------
class OrderSteps:
    def __init__(self, gateway: object) -> None: self.gateway = gateway
    @step(timeout=timedelta(seconds=30))
    async def verify(self, order: Order) -> bool: return True
    @step(retry=Retry(attempts=5, initial=10, backoff=2.0, give_up_on=(ValueError,)), timeout=timedelta(minutes=5))
    async def ship(self, order: Order) -> str: return ""
    @step(queue="gpu")
    def render(self, order: Order) -> bytes: return b""

steps = OrderSteps(None)

@flow
async def by_methods(order: Order) -> str:
    if not await steps.verify(order):
        return "failed"
    assert_type(await steps.render(order), bytes)
    return await steps.ship.options(retry=Retry(attempts=3, retry_on=lambda e: isinstance(e, OSError)))(order)


async def write(tx: Tx, order: Order) -> int:
    await tx.execute("insert into orders(id) values (?)", order.id)
    return len(await tx.fetch("select id from orders"))


@flow
async def outbox(order: Order) -> int:
    if patched("second copy"):
        assert_type(await transaction(write, order, id="copy"), int)
    if order.lines:
        await continue_as_new(order)
    return await transaction(write, order)


# --- outside ------------------------------------------------------------------------------------------
async def outside(order: Order) -> None:
    async with Engine("sqlite:///orders.db", flows=[order_flow, listener, fan_out, invoice]) as engine:
        handle = await engine.start(order_flow, order, id=order.id)
        assert_type(handle, Handle[str])
        assert_type(await handle.result(timeout=60), str)
        await handle.send(FundsCaptured("x", Decimal(1)), key="event-17")
        await engine.start(invoice, order, id="i-1")                       # copies has a default
        await engine.start(invoice, order, 2, id="i-1", after=timedelta(days=1), queue="gpu")
        assert_type(await engine.run(invoice, order, id="i-1", queue="gpu"), str)
        await engine.start(invoice, order, 2, id="i-1", at=datetime.fromisoformat("2030-01-01T00:00:00Z"))
        assert_type(await engine.run(partial(invoice, order, copies=3), id="i-2"), str)
        assert_type(await engine.run(order_flow, order, id="1", timeout=30), str)
        assert_type(await engine.start("HelloOrchestrator", "World", id="test"), Handle[Any])
        assert_type(engine.handle(order_flow, "1"), Handle[str])
        assert_type(engine.handle("order_flow", "1"), Handle[Any])
        await engine.start_many(order_flow, ((o.id, o) for o in [order]))
        await engine.start_many(invoice, [("a", order, 1), ("b", order, 2)])
        await engine.send(order_flow, "1", True, name="ApprovalEvent")
        await engine.send_many(order_flow, [Outgoing("1", FundsReserved("1"), key="k")])
        async for info in engine.find(order_flow, state=perdure.State.FAILED):
            assert_type(info, Info)
            await engine.cancel(order_flow, info.id, "set aside")
            await engine.restart(order_flow, info.id)
        panel = await engine.panel(order_flow, "1")
        assert_type(panel, Panel[str])
        panel.args = (order,)
        panel.entries.remove("ShipProducts")
        panel.entries.set("TransactionId", uuid4())
        panel.inbox.append(FundsReserved("1"))
        assert_type(await panel.restart(), Handle[str])
        assert_type(panel.result, str | None)
        assert_type(await engine.panel("order_flow", "1"), Panel[Any])
        await engine.delete(order_flow, "1")
        assert_type(
            await engine.run(order_flow, order, id="1", initial=InitialState(entries={"TransactionId": uuid4()})), str
        )
        await engine.schedule(listener, Cron("*/1 * * * *"), "o-1", id="every-minute")
        await engine.schedule(listener, timedelta(hours=1), "o-1", id="hourly")
        await engine.unschedule("hourly")
        assert_type(await engine.health(), Health)
        assert_type(await handle.state(), perdure.State)
        assert_type(await handle.exposed("progress", returns=float), float | None)
        assert_type(await handle.exposed(), Mapping[str, Any])
        await handle.cancel()
        try:
            await handle.result(timeout=1)
        except TimeoutError:
            pass
        except FlowCancelled:
            pass
        except FlowFailed as e:
            print(e.__cause__)

async def worker() -> None:
    engine = Engine("sqlite:///orders.db", flows=[order_flow], max_resident=100, unload_after=60, drain=timedelta(seconds=5), retry=Retry())
    Engine("sqlite:///orders.db", queues=["", "gpu"], steps=[render, steps.render])
    async with engine:
        await engine.serve()


# --- without an event loop -----------------------------------------------------------------------------
def without_a_loop(order: Order) -> None:
    with SyncEngine("sqlite:///orders.db", flows=[order_flow, listener, invoice], drain=5, retention=timedelta(days=30)) as engine:
        handle = engine.start(order_flow, order, id=order.id)
        assert_type(handle, SyncHandle[str])
        assert_type(handle.result(timeout=60), str)
        handle.send(FundsCaptured("x", Decimal(1)), key="event-17")
        engine.start(invoice, order, 2, id="i-1", after=timedelta(days=1))
        assert_type(engine.run(partial(invoice, order, copies=3), id="i-2"), str)
        assert_type(engine.run(order_flow, order, id="1", initial=InitialState(messages=[True]), timeout=30), str)
        assert_type(engine.start("HelloOrchestrator", "World", id="test"), SyncHandle[Any])
        assert_type(engine.handle(order_flow, "1"), SyncHandle[str])
        assert_type(engine.handle("order_flow", "1"), SyncHandle[Any])
        assert_type(engine.start_many(invoice, [("a", order, 1), ("b", order, 2)]), Sequence[SyncHandle[str]])
        engine.send(order_flow, "1", True, name="ApprovalEvent")
        engine.send_many(order_flow, [Outgoing("1", FundsReserved("1"), key="k")])
        for info in engine.find(order_flow, state=perdure.State.FAILED):
            assert_type(info, Info)
            engine.cancel(order_flow, info.id, "set aside")
            assert_type(engine.restart(order_flow, info.id), SyncHandle[str])
        panel = engine.panel(order_flow, "1")
        assert_type(panel, SyncPanel[str])
        panel.args = (order,)
        panel.entries.remove("ShipProducts")
        assert_type(panel.restart(), SyncHandle[str])
        assert_type(panel.result, str | None)
        engine.delete(order_flow, "1")
        engine.schedule(listener, Cron("*/1 * * * *"), "o-1", id="every-minute")
        engine.unschedule("every-minute")
        assert_type(engine.health(), Health)
        assert_type(handle.state(), perdure.State)
        assert_type(handle.exposed("progress", returns=float), float | None)
        assert_type(handle.exposed(), Mapping[str, Any])
        handle.cancel()
    engine = SyncEngine("memory://")
    engine.open()
    engine.close()


# --- the decorated things are first-class ----------------------------------------------------------------
assert_type(order_flow.name, str)
def takes_flow(f: FlowFunction[[Order], str]) -> None: ...
def takes_step(s: Step[[str], bytes]) -> None: ...
def takes_bytes_step(s: Step[[bytes], bytes]) -> None: ...
takes_flow(order_flow)
takes_bytes_step(resize)
when: datetime = now()
