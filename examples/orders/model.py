"""What an order is, what the services say of it, and the file of orders with what is expected of each."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Final
from uuid import UUID

ORDERS_FILE: Final = Path(__file__).with_name("orders.jsonl")

# Digits after the point of each currency that the business takes.
CURRENCIES: Final[Mapping[str, int]] = {
    "EUR": 2, "USD": 2, "GBP": 2, "JPY": 0, "KRW": 0, "KWD": 3, "BHD": 3, "INR": 2, "CHF": 2, "BRL": 2, "PLN": 2,
    "SEK": 2,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Line:
    """One product of an order."""

    product: str
    name: str
    quantity: int
    price: Decimal


@dataclass(frozen=True, slots=True)
class Order:
    """What a customer ordered; `id` is the shop's."""

    id: str
    customer: UUID
    name: str
    email: str
    currency: str
    card: str
    lines: tuple[Line, ...]

    @property
    def total(self) -> Decimal:
        """The sum of all lines."""
        return sum((line.quantity * line.price for line in self.lines), Decimal(0))

    @property
    def units(self) -> int:
        """How many things are in the parcel."""
        return sum(line.quantity for line in self.lines)


@dataclass(frozen=True, slots=True)
class FundsCaptured:
    """The payment service's word that the money has moved."""

    order: str
    transaction: UUID
    amount: Decimal
    currency: str


class Declined(Exception):
    """The payment service will not reserve the money; nothing is reserved."""


class UnknownProduct(Exception):
    """The logistics service has no such product; nothing was shipped."""


@dataclass(frozen=True, slots=True)
class Case:
    """An order and how its flow must end: `succeeded`, or the name of the error it fails with."""

    order: Order
    expect: str


def order_from_json(value: Mapping[str, Any]) -> Order:
    """The order in a JSON object.

    Raises:
        ValueError: a field is missing or does not fit.
    """
    try:
        order = Order(
            id=str(value["id"]), customer=UUID(value["customer"]), name=str(value["name"]), email=str(value["email"]),
            currency=str(value["currency"]), card=str(value["card"]),
            lines=tuple(
                Line(str(line["product"]), str(line["name"]), int(line["quantity"]), Decimal(line["price"]))
                for line in value["lines"]
            ),
        )  # fmt: skip
    except (KeyError, TypeError, ArithmeticError, AttributeError) as error:
        raise ValueError(f"not an order: {error!r}") from error
    if order.currency not in CURRENCIES:
        raise ValueError(f"no such currency here: {order.currency!r}")
    if not order.id or not order.lines or any(line.quantity < 1 or not line.price.is_finite() for line in order.lines):
        raise ValueError("an order has an id and lines, and a line a quantity and a price")
    return order


def order_to_json(order: Order) -> dict[str, Any]:
    """The order as a JSON object; amounts are strings."""
    return {
        "id": order.id, "customer": str(order.customer), "name": order.name, "email": order.email,
        "currency": order.currency, "card": order.card,
        "lines": [
            {"product": line.product, "name": line.name, "quantity": line.quantity, "price": str(line.price)}
            for line in order.lines
        ],
    }  # fmt: skip


def load_cases(path: Path = ORDERS_FILE) -> list[Case]:
    """The cases of a file of orders, in its order."""
    with path.open(encoding="utf-8") as lines:
        return [case_from_json(json.loads(line)) for line in lines]


def save_cases(cases: Iterable[Case], path: Path = ORDERS_FILE) -> None:
    """The file holds these cases, one line each."""
    with path.open("w", encoding="utf-8") as file:
        for case in cases:
            record = {"expect": case.expect, "order": order_to_json(case.order)}
            file.write(json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n")


def case_from_json(value: Mapping[str, Any]) -> Case:
    """The case in one line of the file."""
    return Case(order_from_json(value["order"]), str(value["expect"]))
