"""The world around the order service, in a process of its own: payments, logistics and email over HTTP.

They are as good and as bad as real ones: some answers take long, some requests meet a 503, and each writes what it did
into a ledger before it answers. Payments and email know a repeat when they see one; logistics ships as often
as it is told to.
"""

import argparse
import asyncio
import logging
import random
import signal
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from examples.orders import lifetime
from examples.orders.ledger import Ledger, Record
from examples.orders.model import CURRENCIES
from examples.orders.wire import BadMessage, Client, NoAnswer, NotSent, Request, Server, bound

UNAVAILABLE_SHARE: Final = 0.04
SLOW_SHARE: Final = 0.15
CALLBACK_FIRST_S: Final = 0.05
CALLBACK_LAST_S: Final = 0.4
REFUSED_CARDS: Final = ("declined_", "expired_", "stolen_")


class Weather:
    """How long things take and what fails for the moment: drawn from the seed, the service and the request."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._seen: Counter[str] = Counter()

    def draw(self, service: str, key: str) -> tuple[bool, float]:
        """Whether the service is out of order for this request, and else how many seconds it takes."""
        name = f"{service}/{key}"
        self._seen[name] += 1
        rng = random.Random(f"{self._seed}/{name}/{self._seen[name]}")
        slow = rng.random() < SLOW_SHARE
        seconds = rng.uniform(0.05, 0.2) if slow else rng.uniform(0.002, 0.015)
        return rng.random() < UNAVAILABLE_SHARE, seconds


class Service:
    """What the three have in common: a ledger, the weather, and requests by path."""

    name = ""

    def __init__(self, directory: Path, weather: Weather) -> None:
        self.ledger = Ledger(directory / f"{self.name}.jsonl")
        self.weather = weather

    async def handle(self, request: Request) -> tuple[int, object]:
        """One request is carried out and is in the ledger."""
        if request.method == "POST" and len(request.parts) == 1:
            body = request.json()
            order, op = text(body, "order"), request.parts[0]
            record = Record(op=op, order=order, transaction=str(body.get("transaction", "")), **sender(request))
            unavailable, seconds = self.weather.draw(self.name, record.key)
            await asyncio.sleep(seconds / 2)
            if unavailable:
                return self.write(record, 503), {"error": "out of order for a moment"}
            status, answer = self.post(record, body)
            await asyncio.sleep(seconds / 2)  # done and in the ledger, but nobody knows it yet
            return status, answer
        raise BadMessage(404, "no such thing here")

    def post(self, record: Record, body: dict[str, Any]) -> tuple[int, object]:
        """The effect, with its record, in one go: nothing else happens meanwhile."""
        raise BadMessage(404, f"{self.name} cannot {record.op} {body}")

    def write(self, record: Record, status: int, *, effect: bool = False, repeat: bool = False) -> int:
        """The record is in the ledger; gives back the status."""
        self.ledger.append(replace(record, status=status, effect=effect, repeat=repeat))
        return status


def text(body: dict[str, Any], field: str) -> str:
    """A field of the body that is a string; `BadMessage` (400) otherwise."""
    value = body.get(field)
    if not isinstance(value, str) or not value:
        raise BadMessage(400, f"{field!r} is missing")
    return value


def sender(request: Request) -> dict[str, Any]:
    """Which step asks: its idempotency key, its attempt, and which life of the order service."""
    headers = request.headers
    try:
        return {
            "key": headers["idempotency-key"],
            "attempt": int(headers["attempt"]),
            "generation": int(headers["generation"]),
        }
    except (KeyError, ValueError) as error:
        raise BadMessage(400, f"a step says who it is: {error!r}") from error


@dataclass(slots=True)
class Reservation:
    """Money set aside."""

    order: str
    amount: str
    currency: str
    state: str = "reserved"


class Payments(Service):
    """Reserves, captures and releases money, each once per transaction id; a captured sum is announced by callback."""

    name = "payments"

    def __init__(self, directory: Path, weather: Weather) -> None:
        super().__init__(directory, weather)
        self._reservations: dict[str, Reservation] = {}
        self._callbacks: set[asyncio.Task[None]] = set()
        self._clients: dict[str, Client] = {}

    async def handle(self, request: Request) -> tuple[int, object]:
        """See Service; also tells how many callbacks are still to be taken."""
        if request.method == "GET" and request.parts == ("outstanding",):
            return 200, {"callbacks": len(self._callbacks)}
        return await super().handle(request)

    def post(self, record: Record, body: dict[str, Any]) -> tuple[int, object]:
        """See Service."""
        transaction = text(body, "transaction")
        if record.op == "reserve":
            return self._reserve(record, transaction, body)
        held = self._reservations.get(transaction)
        if held is None or held.order != record.order:
            return self.write(record, 404), {"error": "no such reservation"}
        record = replace(record, amount=held.amount, currency=held.currency)
        if record.op == "capture":
            return self._capture(record, held, text(body, "callback"))
        if record.op == "release":
            return self._settle(record, held, "released", 200), {}
        raise BadMessage(404, f"payments cannot {record.op}")

    def _reserve(self, record: Record, transaction: str, body: dict[str, Any]) -> tuple[int, object]:
        amount, currency = text(body, "amount"), text(body, "currency")
        if not proper(amount, currency, transaction):
            return self.write(record, 400), {"error": f"not a sum of money: {amount} {currency}"}
        record = replace(record, amount=amount, currency=currency)
        held = self._reservations.get(transaction)
        if held is not None:
            return self.write(record, 200, repeat=True), {}
        if text(body, "card").startswith(REFUSED_CARDS):
            return self.write(record, 402), {"error": f"card {body['card'].partition('_')[0]}"}
        self._reservations[transaction] = Reservation(record.order, amount, currency)
        return self.write(record, 200, effect=True), {}

    def _settle(self, record: Record, held: Reservation, state: str, status: int) -> int:
        if held.state == state:
            return self.write(record, status, repeat=True)
        if held.state != "reserved":
            return self.write(record, 409)
        held.state = state
        return self.write(record, status, effect=True)

    def _capture(self, record: Record, held: Reservation, callback: str) -> tuple[int, object]:
        first = held.state == "reserved"
        status = self._settle(record, held, "captured", 202)
        if first:
            task = asyncio.get_running_loop().create_task(self._call_back(record, callback))
            self._callbacks.add(task)
            task.add_done_callback(self._callbacks.discard)
        return status, {}

    async def _call_back(self, record: Record, url: str) -> None:
        """The order service has acknowledged the captured funds, however long it was away."""
        base, _, path = url.removeprefix("http://").partition("/")
        client = self._clients.get(base) or self._clients.setdefault(base, Client(f"http://{base}"))
        wait = CALLBACK_FIRST_S
        call = Record(op="callback", order=record.order, transaction=record.transaction)
        sum_of_money = {"amount": record.amount, "currency": record.currency}
        message = {"order": record.order, "transaction": record.transaction, **sum_of_money}
        attempt = 1
        await asyncio.sleep(self.weather.draw("callback", record.transaction)[1])
        while True:
            try:
                status = (await client.request("POST", f"/{path}", message)).status
            except (NotSent, NoAnswer):
                status = 0
            self.write(replace(call, attempt=attempt), status, effect=200 <= status < 300)
            if 200 <= status < 300:
                return
            await asyncio.sleep(wait)
            wait, attempt = min(2 * wait, CALLBACK_LAST_S), attempt + 1


def proper(amount: str, currency: str, transaction: str) -> bool:
    """Whether this is a sum of money in this currency, under a transaction id."""
    try:
        value = Decimal(amount)
        UUID(transaction)
    except (InvalidOperation, ValueError):
        return False
    digits = CURRENCIES.get(currency)
    return digits is not None and value.is_finite() and value > 0 and value == round(value, digits)


class Logistics(Service):
    """Ships, once for every time it is told to, and knows what it shipped."""

    name = "logistics"

    def __init__(self, directory: Path, weather: Weather) -> None:
        super().__init__(directory, weather)
        self._shipped: defaultdict[str, list[str]] = defaultdict(list)
        # One thing at a time per order, so that the answer to "did it go out?" counts what is still under way.
        self._busy: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def handle(self, request: Request) -> tuple[int, object]:
        """See Service; also says what went out for an order."""
        if request.method == "GET" and len(request.parts) == 2 and request.parts[0] == "shipments":
            order = request.parts[1]
            async with self._busy[order]:
                shipped = self._shipped.get(order, [])
                status = 200 if shipped else 404
                record = Record(op="shipments", order=order, tracking="".join(shipped[:1]), **sender(request))
                self.write(record, status)
                return status, {"tracking": shipped[0] if shipped else None}
        order = text(request.json(), "order") if request.method == "POST" else ""
        async with self._busy[order]:
            return await super().handle(request)

    def post(self, record: Record, body: dict[str, Any]) -> tuple[int, object]:
        """See Service."""
        lines = body.get("lines")
        if record.op != "ship" or not isinstance(lines, dict):
            raise BadMessage(400, "not something to ship")
        quantities: dict[str, int] = lines  # pyright: ignore[reportUnknownVariableType]
        unknown = [product for product in quantities if not product.startswith("P-")]
        if unknown:
            return self.write(record, 422), {"error": f"no such product: {', '.join(unknown)}"}
        shipped = self._shipped[record.order]
        tracking = f"TT-{record.order}-{len(shipped) + 1}"
        record = replace(record, tracking=tracking, units=sum(quantities.values()))
        self.write(record, 200, effect=True, repeat=bool(shipped))
        shipped.append(tracking)
        return 200, {"tracking": tracking}


class Email(Service):
    """Sends a confirmation once per idempotency key."""

    name = "email"

    def __init__(self, directory: Path, weather: Weather) -> None:
        super().__init__(directory, weather)
        self._sent: set[str] = set()

    def post(self, record: Record, body: dict[str, Any]) -> tuple[int, object]:
        """See Service."""
        if record.op != "confirm":
            raise BadMessage(404, f"email cannot {record.op}")
        record = replace(record, tracking=text(body, "tracking"))
        if "@" not in text(body, "to") or text(body, "name") not in text(body, "text"):
            return self.write(record, 400), {"error": "nobody to write to"}
        repeat = record.key in self._sent
        self._sent.add(record.key)
        return self.write(record, 200, effect=not repeat, repeat=repeat), {}


async def main(directory: Path, seed: int) -> None:
    """The three services answer until told to stop, or until nobody is left to tell them."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    lifetime.end_with_parent(stop.set)
    weather = Weather(seed)
    services = [Payments(directory, weather), Logistics(directory, weather), Email(directory, weather)]
    servers = [Server(service.handle) for service in services]
    for server in servers:
        await server.listen(bound())
    lifetime.say_ready(
        **{service.name: f"http://127.0.0.1:{server.port}" for service, server in zip(services, servers, strict=True)}
    )
    await stop.wait()
    for server in servers:
        await server.aclose()
    for service in services:
        service.ledger.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, required=True, help="where the ledgers are")
    parser.add_argument("--seed", type=int, default=1, help="of delays and faults")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    asyncio.run(main(options.directory, options.seed))
