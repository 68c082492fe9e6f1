"""Every line that ends in the mark below must be refused (or warned of) by pyright; no other line may be. It is never run."""
from __future__ import annotations
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from uuid import UUID, uuid4
import perdure
from perdure import Engine, Retry, Step, capture, delay, flow, receive, messages, start, step

@dataclass
class A: order: str
@dataclass
class B: total: int

@step
async def reserve(customer: UUID, amount: Decimal) -> None: ...
@step
def resize(pixels: bytes) -> bytes: return pixels
@flow
async def order_flow(order: str, copies: int = 1) -> str: return order
@flow
async def keyword_only(order: str, *, resend: bool) -> str: return order
async def plain(order: str) -> str: return order

@flow  # E
def not_async(order: str) -> str: return order

@flow
async def body(order: str) -> None:
    reserve(uuid4(), Decimal(1))  # E
    order_flow(order)  # E
    delay(5)  # E
    capture(uuid4)  # E
    receive(A)  # E
    start(order_flow, order)  # E
    perdure.send(order_flow, "1", A("o"))  # E
    await reserve(uuid4(), 1.0)  # E
    await reserve.options(retries=3)(uuid4(), Decimal(1))  # E
    await capture(plain)  # E
    await capture(plain, 1)  # E
    await capture(plain, order=order)  # E
    x: bytes = resize(b"")  # E
    await receive(A, default=None)  # E
    y: A = await receive(A, timeout=5, default=None)  # E
    await receive(A, B, where=lambda m: m.order == "")  # E
    await receive(A | B, where=lambda m: m.order == "")  # E
    await messages(A).map(lambda a: a.total).list()  # E
    await delay("5")  # E
    await delay(timedelta(days=1), until=perdure.now())  # E
    await order_flow(1)  # E
    await start(order_flow, 1)  # E
    print(x, y)

async def outside(engine: Engine) -> None:
    await engine.start(order_flow, "o")  # E
    await engine.start(order_flow, 1, id="1")  # E
    await engine.start(order_flow, id="1")  # E
    await engine.start(order_flow, "o", 1, 2, id="1")  # E
    await engine.start(order_flow, "o", id="1", prioirty=3)  # E
    await engine.start(keyword_only, "o", id="1")  # E
    n: int = await engine.run(order_flow, "o", id="1")  # E
    handle = await engine.start(order_flow, "o", id="1")
    m: int = await handle.result()  # E
    await engine.start_many(order_flow, [("1", 2)])  # E
    handle.result()  # E
    engine.start(order_flow, "o", id="1")  # E
    panel = await engine.panel(order_flow, "1")
    panel.args = "o"  # E
    panel.restart()  # E
    k: int | None = panel.result  # E
    await engine.schedule(order_flow, "daily", "o", id="s")  # E
    await engine.schedule(order_flow, timedelta(hours=1), 1, id="s")  # E
    await engine.send_many(order_flow, [A("o")])  # E
    Engine("memory://", flows=[plain])  # E
    Engine("memory://", steps=[plain])  # E
    print(n, m)

Retry(3)  # E
Retry(attempts="3")  # E
text_step: Step[[str], bytes] = resize  # E
