"""Stubs stand for steps, captures and transactions; the rules of the step hold all the same."""

from __future__ import annotations

import asyncio
import functools
from datetime import timedelta
from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest

from perdure import (
    FlowFailed,
    NotEncodable,
    NotSupported,
    OutcomeUnknown,
    Retry,
    StepFailed,
    Tx,
    capture,
    current,
    flow,
    step,
    transaction,
)
from perdure.testing import Flows


class Declined(Exception):
    """The card was declined."""


@step(name="charge", retry=Retry(attempts=3, initial=60, give_up_on=(Declined,)))
async def charge(order: str, amount: int = 1, *, currency: str = "EUR") -> list[str]:
    raise AssertionError("the real step ran")


@step
def print_label(order: str) -> str:
    raise AssertionError("the real step ran")


@step(name="once", at_most_once=True)
async def once() -> str:
    raise AssertionError("the real step ran")


def fetch(url: str, *, limit: int = 10) -> str:
    raise AssertionError("the real function ran")


@flow
async def buys(order: str) -> list[str]:
    return await charge(order, 5, currency="USD")


@flow
async def labels(order: str) -> str:
    return await print_label(order)


@flow
async def fetches() -> str:
    return await capture(functools.partial(fetch, limit=3), "https://example.org")


async def test_returns_is_the_result(flows: Flows) -> None:
    flows.stub(charge, returns=["receipt"])
    assert await flows.run(buys, "o", id="b") == ["receipt"]
    assert flows.steps("b") == ["charge"]


async def test_each_call_gets_a_fresh_copy(flows: Flows) -> None:
    @flow
    async def buys_twice() -> list[list[str]]:
        first = await charge("a")
        first.append("changed")
        return [first, await charge("b")]

    flows.stub(charge, returns=["receipt"])
    assert await flows.run(buys_twice, id="b") == [["receipt", "changed"], ["receipt"]]


async def test_raises_goes_through_the_steps_retry_rule(flows: Flows) -> None:
    begun = flows.now()
    flows.stub(charge, raises=ConnectionError("down"))
    with pytest.raises(FlowFailed, match="down"):
        await flows.run(buys, "o", id="b")
    assert flows.now() - begun == timedelta(seconds=60 + 120)
    assert "(attempt 3)" in flows.timeline("b")


async def test_raises_takes_a_class_as_well(flows: Flows) -> None:
    flows.stub(charge, raises=Declined)
    with pytest.raises(FlowFailed) as failed:
        await flows.run(buys, "o", id="b")
    assert type(failed.value.__cause__) is Declined
    assert "(attempt" not in flows.timeline("b")


async def test_an_error_that_is_raised_often_does_not_grow(flows: Flows) -> None:
    error = ConnectionError("down")
    flows.stub(charge, raises=error)
    with pytest.raises(FlowFailed):
        await flows.run(buys, "o", id="b")
    depth, frame = 0, error.__traceback__
    while frame is not None:
        depth, frame = depth + 1, frame.tb_next
    assert depth < 10


async def test_a_fake_gets_the_arguments_keywords_included(flows: Flows) -> None:
    def fake(order: str, amount: int = 1, *, currency: str = "EUR") -> list[str]:
        return [order, str(amount), currency]

    flows.stub(charge, fake=fake)
    assert await flows.run(buys, "o", id="b") == ["o", "5", "USD"]


async def test_a_fake_gets_copies_of_the_arguments(flows: Flows) -> None:
    @step(name="spoils")
    async def spoils(a: list[int], *, b: list[int]) -> None: ...

    @flow
    async def shows() -> list[list[int]]:
        a, b = [1], [2]
        await spoils(a, b=b)
        return [a, b]

    def fake(a: list[int], *, b: list[int]) -> None:
        a.append(0)
        b.append(0)

    flows.stub(spoils, fake=fake)
    assert await flows.run(shows, id="s") == [[1], [2]]


async def test_a_fake_gets_what_cannot_be_encoded_as_it_is(flows: Flows) -> None:
    client = object()
    seen: list[Any] = []

    @step(name="uses")
    async def uses(client: object, *, other: object) -> None: ...

    @flow
    async def gives() -> None:
        await uses(client, other=client)

    flows.stub(uses, fake=lambda client, *, other: seen.extend([client, other]))
    await flows.run(gives, id="g")
    assert seen == [client, client]


async def test_a_fake_is_sync_or_async_and_runs_on_the_loop(flows: Flows) -> None:
    loops: list[asyncio.AbstractEventLoop] = []

    async def slow(order: str) -> str:
        await asyncio.sleep(0)
        loops.append(asyncio.get_running_loop())
        return "slow"

    def quick(order: str) -> str:
        loops.append(asyncio.get_running_loop())
        return f"quick, for {current().id}"

    flows.stub(print_label, fake=slow)
    assert await flows.run(labels, "o", id="slow") == "slow"
    flows.stub(print_label, fake=quick)
    assert await flows.run(labels, "o", id="quick") == "quick, for quick"
    assert loops == [asyncio.get_running_loop()] * 2


async def test_a_mock_is_a_fake_that_counts_and_has_several_outcomes(flows: Flows) -> None:
    outcomes = Mock(side_effect=[ConnectionError, ConnectionError, ["receipt"]])
    flows.stub(charge, fake=outcomes)
    assert await flows.run(buys, "o", id="b") == ["receipt"]
    assert outcomes.call_count == 3
    outcomes.assert_called_with("o", 5, currency="USD")

    label = AsyncMock(return_value="label")
    flows.stub(print_label, fake=label)
    assert await flows.run(labels, "o", id="l") == "label"
    label.assert_awaited_once_with("o")


async def test_stubbing_again_replaces(flows: Flows) -> None:
    flows.stub(print_label, returns="one")
    assert await flows.run(labels, "o", id="1") == "one"
    flows.stub(print_label, returns="two")
    assert await flows.run(labels, "o", id="2") == "two"


async def test_by_name_by_step_and_by_the_function_that_is_captured(flows: Flows) -> None:
    flows.stub("charge", returns=["by name"])
    flows.stub(fetch, returns="by function")
    assert await flows.run(buys, "o", id="b") == ["by name"]
    assert await flows.run(fetches, id="f") == "by function"
    flows.stub(functools.partial(fetch, limit=2), fake=lambda url, *, limit: f"{url} {limit}")
    assert await flows.run(fetches, id="g") == "https://example.org 3"
    assert flows.steps("g") == ["fetch"]


async def test_a_method_is_stubbed_on_its_class_and_on_an_object(flows: Flows) -> None:
    class Shop:
        @step(name="Shop.sell")
        async def sell(self, what: str) -> str:
            raise AssertionError("the real step ran")

    shop = Shop()

    @flow
    async def sells(what: str) -> str:
        return await shop.sell(what)

    flows.stub(Shop.sell, fake=lambda what: f"sold {what}")  # type: ignore
    assert await flows.run(sells, "tea", id="1") == "sold tea"
    flows.stub(shop.sell, returns="sold out")
    assert await flows.run(sells, "tea", id="2") == "sold out"


async def test_options_of_a_step_are_the_same_step(flows: Flows) -> None:
    @flow
    async def buys_once(order: str) -> list[str]:
        return await charge.options(retry=Retry(attempts=1), id="pay")(order)

    flows.stub(charge, returns=["receipt"])
    assert await flows.run(buys_once, "o", id="b") == ["receipt"]


async def test_what_is_not_stubbed_runs(flows: Flows) -> None:
    @step(name="real")
    def real(a: int, *, b: int) -> int:
        return a + b

    @flow
    async def adds() -> int:
        return await real(1, b=2)

    flows.stub(charge, returns=[])
    assert await flows.run(adds, id="a") == 3


async def test_at_most_once_with_an_unknown_outcome(flows: Flows) -> None:
    @flow
    async def calls_once() -> str:
        try:
            return await once.options(timeout=30)()
        except OutcomeUnknown:
            return "unknown"

    flows.stub(once, fake=lambda: flows.sleep(60))  # type: ignore
    assert await flows.run(calls_once, id="c") == "unknown"


async def test_a_result_that_cannot_be_kept_fails_the_step(flows: Flows) -> None:
    flows.stub(print_label, returns=object())  # type: ignore
    with pytest.raises(FlowFailed) as failed:
        await flows.run(labels, "o", id="l")
    assert type(failed.value.__cause__) in (NotEncodable, StepFailed)


async def test_the_programs_own_middleware_is_around_the_stub() -> None:
    async def shouts(info: Any, args: Any, next: Any) -> Any:
        return (await next(*args)).upper()

    async with Flows(step_middleware=[shouts]) as flows:
        flows.stub(print_label, returns="label")
        assert await flows.run(labels, "o", id="l") == "LABEL"


async def test_the_programs_own_retry_rule_holds() -> None:
    async with Flows(retry=Retry(attempts=2, initial=10)) as flows:
        label = Mock(side_effect=[OSError, "label"])
        flows.stub(print_label, fake=label)
        assert await flows.run(labels, "o", id="l") == "label"
        assert flows.now().second == 10


@pytest.mark.parametrize("given", [{}, {"returns": 1, "fake": print}, {"raises": OSError, "returns": None}])
async def test_exactly_one_outcome_is_given(flows: Flows, given: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="takes one of returns=, raises= and fake="):
        flows.stub("charge", **given)


async def test_what_is_no_step_is_refused(flows: Flows) -> None:
    with pytest.raises(TypeError, match="3 is none of these"):
        flows.stub(3, returns=1)  # type: ignore


async def test_none_can_be_returned(flows: Flows) -> None:
    @step(name="nothing")
    async def nothing() -> None:
        raise AssertionError("the real step ran")

    @flow
    async def does_nothing() -> None:
        await nothing()

    flows.stub(nothing, returns=None)
    await flows.run(does_nothing, id="n")


# ---------------------------------------------------------------- transactions


async def book(tx: Tx, seat: str) -> str:
    await tx.execute("INSERT INTO seats VALUES (?)", seat)
    return f"booked {seat}"


@flow
async def books(seat: str) -> str:
    return await transaction(book, seat)


async def test_the_work_of_a_transaction_is_stubbed(flows: Flows) -> None:
    flows.stub(book, fake=lambda tx, seat: f"as if {seat}")
    assert await flows.run(books, "1A", id="b") == "as if 1A"
    assert flows.steps("b") == ["book"]
    flows.stub(book, raises=LookupError("taken"))
    with pytest.raises(FlowFailed, match="taken"):
        await flows.run(books, "1A", id="c")


async def test_a_transaction_that_is_not_stubbed_says_so(flows: Flows) -> None:
    with pytest.raises(FlowFailed) as failed:
        await flows.run(books, "1A", id="b")
    assert type(failed.value.__cause__) is NotSupported
    assert "stub it" in str(failed.value.__cause__)


async def test_a_fake_may_bring_a_database_of_its_own(flows: Flows) -> None:
    class Fake:
        seats: list[Any] = []

        async def execute(self, sql: str, /, *args: object) -> None:
            self.seats += args

        async def fetch(self, sql: str, /, *args: object) -> list[dict[str, Any]]:
            return []

    flows.stub(book, fake=lambda tx, seat: book(Fake(), seat))
    assert await flows.run(books, "1A", id="b") == "booked 1A"
    assert Fake.seats == ["1A"]
