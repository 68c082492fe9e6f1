"""What a test may write, and what a checker must refuse: there an ignore is needed, and one too many is an error."""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from collections.abc import Callable, Coroutine
from datetime import datetime, timedelta
from functools import partial
from typing import Any, assert_type
from unittest.mock import AsyncMock, Mock

from perdure import Handle, capture, flow, step
from perdure.testing import Flows, Stuck


@step
async def charge(order: str, amount: int = 1, *, currency: str = "EUR") -> list[str]: ...


@step
def sync_charge(order: str) -> bytes: ...


class Shop:
    @step
    async def sell(self, what: str) -> int: ...


def fetch(url: str) -> str: ...


class Fetcher:
    def fetch(self, url: str) -> str: ...


@flow
async def order(what: str) -> int:
    return len(await capture(fetch, what))


async def test_accepted(flows: Flows) -> None:
    flows.stub(charge, returns=["receipt"])
    flows.stub(charge, raises=ConnectionError)
    flows.stub(charge, raises=ConnectionError("down"))
    flows.stub(charge, fake=lambda order, amount=1, *, currency="EUR": [order])
    flows.stub(charge, fake=charge)
    flows.stub(charge, fake=AsyncMock(side_effect=[OSError, []]))
    flows.stub(sync_charge, returns=b"")
    flows.stub(sync_charge, fake=Mock(return_value=b""))
    flows.stub(Shop().sell, returns=3)
    flows.stub("charge", returns=object())
    flows.stub("charge", raises=OSError)
    flows.stub("charge", fake=lambda *_: flows.sleep(1))
    flows.stub(fetch, returns="page")
    flows.stub(fetch, raises=OSError)
    flows.stub(fetch, fake=fetch)
    flows.stub(Fetcher().fetch, returns="page")
    flows.stub(partial(fetch, "url"), returns="page")

    assert_type(await flows.advance(days=1, hours=2.5, minutes=3, seconds=4), None)
    assert_type(await flows.sleep(timedelta(1)), None)
    assert_type(flows.now(), datetime)
    assert_type(flows.steps("id"), list[str])
    assert_type(flows.steps("id", flow=order), list[str])
    assert_type(flows.timeline("id"), str)
    flows.patience = 0.5
    flows.register(order)
    assert_type(await flows.start(order, "tea", id="1"), Handle[int])
    assert_type(await flows.run(order, "tea", id="1"), int)
    try:
        await flows.handle(order, "1").result(timeout=60)
    except Stuck:
        pass


async def asynchronous(order: str, amount: int = 1, *, currency: str = "EUR") -> list[str]: ...


async def test_fakes(flows: Flows, other: Callable[[int], Coroutine[Any, Any, list[str]]]) -> None:
    flows.stub(charge, fake=asynchronous)
    flows.stub(charge, fake=other)  # pyright: ignore[reportCallIssue, reportArgumentType]


async def test_refused(flows: Flows) -> None:
    flows.stub(charge, returns="receipt")  # pyright: ignore[reportCallIssue, reportArgumentType]
    flows.stub(charge, fake=lambda order, amount=1, *, currency="EUR": order)  # pyright: ignore
    flows.stub(charge, raises="down")  # pyright: ignore[reportCallIssue, reportArgumentType]
    flows.stub(charge, returns=[""], raises=OSError)  # pyright: ignore[reportArgumentType]
    flows.stub(charge)  # pyright: ignore[reportArgumentType]
    flows.stub(Shop.sell, returns="")  # pyright: ignore[reportCallIssue, reportArgumentType]
    flows.stub(3, returns=3)  # pyright: ignore[reportCallIssue, reportArgumentType]
    await flows.advance(1)  # pyright: ignore[reportCallIssue]
    await flows.advance(weeks=1)  # pyright: ignore[reportCallIssue]
    await flows.run(order, 3, id="1")  # pyright: ignore[reportCallIssue, reportArgumentType]
