"""The order flow: plain code that is carried on where it stopped, whenever and however the process dies."""

import os
from collections import Counter
from datetime import timedelta
from typing import Any, Final
from urllib.parse import quote
from uuid import UUID, uuid4

from examples.orders.model import Declined, FundsCaptured, Order, UnknownProduct
from examples.orders.wire import Answer, Client, NoAnswer, NotSent
from perdure import OutcomeUnknown, Retry, capture, current, flow, receive, step


class Unavailable(Exception):
    """The service is out of order for a moment and did nothing."""


class Unexpected(Exception):
    """A service answered what it never should."""


class Remote:
    """A service elsewhere, found by an environment variable; every request says which step asks."""

    def __init__(self, variable: str) -> None:
        self._variable = variable
        self._client: Client | None = None

    async def ask(self, method: str, path: str, body: object = None) -> Answer:
        """The service's answer, unless that is 503.

        Raises:
            Unavailable: the service did nothing.
            NotSent: nothing reached the service.
            NoAnswer: it may have been done.
        """
        if self._client is None:
            self._client = Client(os.environ[self._variable])
        me = current()
        headers = {
            "Idempotency-Key": quote(me.key, safe=":"),
            "Attempt": str(me.attempt),
            "Generation": os.environ.get("GENERATION", "1"),
        }
        answer = await self._client.request(method, path, body, headers)
        if answer.status == 503:
            raise Unavailable(f"{method} {path}")
        return answer


payments: Final = Remote("PAYMENTS_URL")
logistics: Final = Remote("LOGISTICS_URL")
email: Final = Remote("EMAIL_URL")

# Whoever knows a repeat when he sees one may be asked again after any failure of the line.
AGAIN: Final = Retry(attempts=30, initial=0.05, maximum=1.0, retry_on=(Unavailable, NotSent, NoAnswer, TimeoutError))
# Whoever does not, only after failures that prove that nothing happened.
ONLY_IF_NOTHING_HAPPENED: Final = Retry(attempts=30, initial=0.05, maximum=1.0, retry_on=(Unavailable, NotSent))


def expect(answer: Answer, *statuses: int) -> Any:
    """The answer's body, if its status is one of these; `Unexpected` otherwise."""
    if answer.status not in statuses:
        raise Unexpected(f"{answer.status}: {answer.body[:200]!r}")
    return answer.json()


@step(retry=AGAIN, timeout=timedelta(seconds=20))
async def reserve(order: Order, transaction: UUID) -> None:
    """The money is set aside under this transaction id."""
    body = {
        "order": order.id, "transaction": str(transaction), "amount": str(order.total), "currency": order.currency,
        "card": order.card,
    }  # fmt: skip
    answer = await payments.ask("POST", "/reserve", body)
    if answer.status == 402:
        raise Declined(answer.json()["error"])
    expect(answer, 200)


@step(retry=AGAIN, timeout=timedelta(seconds=20))
async def release(order_id: str, transaction: UUID) -> None:
    """The money is the customer's again."""
    expect(await payments.ask("POST", "/release", {"order": order_id, "transaction": str(transaction)}), 200)


@step(retry=AGAIN, timeout=timedelta(seconds=20))
async def capture_funds(order_id: str, transaction: UUID) -> None:
    """The payment service is on its way to take the money, and will say so to the order service."""
    callback = os.environ["ORDERS_URL"] + "/callbacks/funds-captured"
    body = {"order": order_id, "transaction": str(transaction), "callback": callback}
    expect(await payments.ask("POST", "/capture", body), 202)


@step(at_most_once=True, retry=ONLY_IF_NOTHING_HAPPENED, timeout=timedelta(seconds=20))
async def ship(order: Order) -> str:
    """The parcel is on its way; gives its tracking number."""
    quantities: Counter[str] = Counter()
    for line in order.lines:
        quantities[line.product] += line.quantity
    answer = await logistics.ask("POST", "/ship", {"order": order.id, "lines": quantities})
    if answer.status == 422:
        raise UnknownProduct(answer.json()["error"])
    return str(expect(answer, 200)["tracking"])


@step(retry=AGAIN, timeout=timedelta(seconds=20))
async def find_shipment(order_id: str) -> str | None:
    """The tracking number of what went out for this order; None if nothing did."""
    answer = await logistics.ask("GET", f"/shipments/{quote(order_id, safe='')}")
    return expect(answer, 200, 404)["tracking"]


@step(retry=AGAIN, timeout=timedelta(seconds=20))
async def confirm(order: Order, tracking: str) -> None:
    """The customer has been written to."""
    words = f"Dear {order.name}, your parcel {tracking} with {order.units} things is on its way."
    body = {"order": order.id, "to": order.email, "name": order.name, "tracking": tracking, "text": words}
    expect(await email.ask("POST", "/confirm", body), 200)


async def ship_once(order: Order) -> str:
    """The goods went out once, although logistics ships as often as it is told to and any telling may be cut off."""
    while True:
        try:
            return await ship(order)
        except (OutcomeUnknown, NoAnswer):
            tracking = await find_shipment(order.id)
            if tracking is not None:
                return tracking


@flow
async def order_flow(order: Order) -> str:
    """The order is paid, shipped and confirmed; gives the tracking number."""
    transaction = await capture(uuid4)  # the same after every restart
    await reserve(order, transaction)
    try:
        tracking = await ship_once(order)
    except UnknownProduct:
        await release(order.id, transaction)
        raise
    await capture_funds(order.id, transaction)
    await receive(FundsCaptured, where=lambda funds: funds.transaction == transaction, timeout=timedelta(minutes=2))
    await confirm(order, tracking)
    return tracking
