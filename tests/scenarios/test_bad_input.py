"""Bad input gets an error of its own class, or a state with a reason; it says what to do, and nothing is lost."""

import asyncio
import contextvars
import socket
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, make_dataclass
from typing import Any

import pytest

from perdure import (
    DoesNotFit,
    Engine,
    FlowFailed,
    NotEncodable,
    NotInFlow,
    NotRegistered,
    Outgoing,
    PayloadTooLarge,
    cancel,
    capture,
    current,
    delay,
    expose,
    exposed,
    flow,
    handle,
    messages,
    new_uuid,
    now,
    receive,
    rng,
    send,
    start,
    step,
    type_name,
)
from perdure.codec import register
from tests.support.world import World


@flow(name="takes")
async def takes(value: Any = None) -> Any:
    return await receive(object)


async def why(engine: Engine, body: Any, *args: Any) -> BaseException:
    """The flow's own error."""
    with pytest.raises(FlowFailed) as failed:
        await engine.run(body, *args, id="why", timeout=10)
    assert failed.value.__cause__ is not None
    return failed.value.__cause__


# ---------------------------------------------------------------- values


@dataclass
class Line:
    price: Any


class Text(str):
    __slots__ = ()


NOT_VALUES: list[tuple[str, Any]] = [
    ("a socket", socket.socket),
    ("a lambda", lambda: None),
    ("a lock", threading.Lock()),
    ("a str that would lose its class", Text("x")),
    ("a dict that would lose its class", OrderedDict(a=1)),
    ("a lone surrogate", "\ud800"),
]


@pytest.mark.fault(43)
@pytest.mark.parametrize("value", [v for _, v in NOT_VALUES], ids=[name for name, _ in NOT_VALUES])
async def test_a_value_that_cannot_be_encoded_is_named_with_its_place(world: World, value: Any) -> None:
    @step(name="makes")
    async def makes() -> Any:
        return {"lines": [Line(1), Line(value)]}

    @flow
    async def steps() -> Any:
        return await makes()

    @flow
    async def ends() -> Any:
        return [value]

    @flow
    async def shows() -> None:
        expose("shown", value)

    @flow
    async def sends() -> None:
        await send(takes, "1", value)

    @flow
    async def starts() -> None:
        await start(takes, value)

    engine = await world.engine(steps, ends, shows, sends, starts, takes)
    error = await why(engine, steps)
    assert isinstance(error, NotEncodable)
    assert error.where == "makes"
    assert error.path == "['lines'][1].price"
    for body in (ends, shows, sends, starts):
        error = await why(engine, body)
        assert isinstance(error, NotEncodable), body
        assert error.where
    with pytest.raises(NotEncodable, match="arguments of takes"):
        await engine.start(takes, value, id="x")
    parked = await engine.start(takes, id="p")
    with pytest.raises(NotEncodable, match="message to takes 'p'"):
        await parked.send(value)
    with pytest.raises(NotEncodable):
        await engine.send_many(takes, [Outgoing("p", "good"), Outgoing("p", value)])
    await parked.send("fine")
    assert await parked.result(timeout=10) == "fine"  # of a send_many that was refused nothing was sent


@pytest.mark.fault(44)
async def test_a_value_that_does_not_come_back_as_it_was(world: World) -> None:
    odd = make_dataclass("Odd", [("items", list)])  # says list, and will hold a str
    cycle: list[Any] = []
    cycle.append(cycle)

    @flow
    async def loops() -> Any:
        return await capture(lambda: cycle, name="cyclic")

    @flow
    async def fits_not() -> Any:
        return await capture(lambda: odd("not a list"), name="odd")

    engine = await world.engine(loops, fits_not)
    for body, name in ((loops, "cyclic"), (fits_not, "odd")):
        error = await why(engine, body)
        assert isinstance(error, NotEncodable), error
        assert error.where == name


@pytest.mark.parametrize("bad", ["x" * 256, "é" * 128, ""])
async def test_ids_keys_and_names_have_1_to_255_bytes(world: World, bad: str) -> None:
    engine = await world.engine(takes)
    good = await engine.start(takes, id="y" * 255)
    for call in (
        lambda: engine.start(takes, id=bad),
        lambda: engine.start_many(takes, [("fine", None), (bad, None)]),
        lambda: engine.send(takes, bad, 1),
        lambda: good.send(1, key=bad),
        lambda: good.send(1, name=bad),
        lambda: engine.send_many(takes, [Outgoing("fine", 1), Outgoing(bad, 1)]),
        lambda: engine.cancel(takes, bad),
    ):
        with pytest.raises(ValueError, match="1 to 255"):
            await call()
    with pytest.raises(ValueError, match="1 to 255"):
        engine.handle(takes, bad)
    assert [i.id async for i in engine.find()] == ["y" * 255]
    assert await world.inbox(good) == []
    await good.send("fine", key="k" * 255)
    assert await good.result(timeout=10) == "fine"


@pytest.mark.parametrize(
    "call",
    [
        lambda bad: start(takes, id=bad),
        lambda bad: send(takes, bad, 1),
        lambda bad: send(takes, "x", 1, key=bad),
        lambda bad: send(takes, "x", 1, name=bad),
        lambda bad: cancel(takes, bad),
        lambda bad: handle(takes, bad).result(),
        lambda bad: capture(int, id=bad),
        lambda bad: receive(str, name=bad),
    ],
)
async def test_the_same_in_a_flow(world: World, call: Callable[[str], Any]) -> None:
    @flow
    async def tries() -> None:
        await call("x" * 256)

    engine = await world.engine(tries, takes)
    error = await why(engine, tries)
    assert isinstance(error, ValueError)
    assert "1 to 255" in str(error)


@pytest.mark.fault(42)
async def test_a_payload_over_the_limit(world: World) -> None:
    big = "x" * 50_000

    @flow
    async def steps() -> Any:
        return await capture(lambda: big, name="makes")

    @flow
    async def ends() -> Any:
        return big

    @flow
    async def shows() -> None:
        expose("shown", big)

    @flow
    async def asks() -> Any:
        return await capture(len, big, name="asks")

    @flow
    async def fails() -> None:
        await capture(_fail, name="fails")

    def _fail() -> None:
        raise ValueError(big)

    engine = await world.engine(steps, ends, shows, asks, fails, takes, payload_limit=20_000)
    for body, where in (
        (steps, "makes"),
        (asks, "asks"),
        (shows, "exposed 'shown'"),
        (ends, f"result of {ends.name}"),
        (fails, "fails"),
    ):
        error = await why(engine, body)
        assert isinstance(error, PayloadTooLarge), error
        assert where in error.where
        assert error.limit == 20_000
        assert error.size > 50_000
    with pytest.raises(PayloadTooLarge, match="limit is 20,000"):
        await engine.start(takes, big, id="1")
    with pytest.raises(PayloadTooLarge):
        await engine.send(takes, "1", big)


async def test_a_result_that_is_not_of_the_type_asked_for(world: World) -> None:
    @flow
    async def asks() -> int:
        return await capture(lambda: "not a number", name="number", returns=int)

    engine = await world.engine(asks)
    error = await why(engine, asks)
    assert isinstance(error, DoesNotFit)
    assert "number" in str(error)


@pytest.mark.fault(45)
async def test_a_recorded_result_that_no_longer_fits_its_type_blocks(world: World) -> None:
    old = type_name("bad.Order")(make_dataclass("Order", [("id", str)]))

    @flow(name="keeps")
    async def keeps() -> str:
        order = await capture(lambda: old("a"), name="order")
        return order.id + await receive(str)

    @flow(name="ends")
    async def ends() -> Any:
        return old("b")

    engine = await world.engine(keeps, ends)
    parked = await engine.start(keeps, id="1")
    await world.parked(parked)
    await engine.run(ends, id="1", timeout=10)
    new = make_dataclass("Order", [("id", str), ("needed", int)])
    new.__qualname__, new.__module__ = old.__qualname__, old.__module__
    register(type_name("bad.Order")(new))
    engine = await world.restart(engine)
    await engine.send(keeps, "1", "go")
    reason = await world.blocked(parked := engine.handle(keeps, "1"))
    assert reason.startswith("DoesNotFit")
    assert "needed" in reason
    assert len(await world.journal(parked)) == 2
    assert len(await world.inbox(parked)) == 1
    with pytest.raises(DoesNotFit, match="needed"):
        await engine.handle(ends, "1").result(timeout=10)


async def test_an_unknown_flow_name(world: World) -> None:
    engine = await world.engine(takes)
    with pytest.raises(NotRegistered, match=r"'nobody'.*registered are: takes"):
        await engine.start("nobody", id="1")
    with pytest.raises(NotRegistered):
        await engine.run("nobody", id="1")
    with pytest.raises(TypeError, match="not a flow"):
        await engine.start(why, id="1")  # type: ignore[arg-type]
    assert [i async for i in engine.find()] == []


# ---------------------------------------------------------------- calls at the wrong place

CALLS: dict[str, Callable[[], Any]] = {
    "capture": lambda: capture(int),
    "receive": lambda: receive(int),
    "messages": lambda: messages(int).first(),
    "delay": lambda: delay(1),
    "start": lambda: start(takes),
    "child": lambda: takes(),
    "send": lambda: send(takes, "1", 1),
    "cancel": lambda: cancel(takes, "1"),
    "now": now,
    "new_uuid": new_uuid,
    "rng": rng,
    "expose": lambda: expose("k", 1),
    "exposed": lambda: exposed("k"),
    "handle": lambda: handle(takes, "1"),
}


async def call_it(name: str) -> str:
    try:
        result = CALLS[name]()
        if asyncio.iscoroutine(result):
            await result
    except NotInFlow as error:
        return str(error)
    return "no error"


@pytest.mark.parametrize("name", list(CALLS))
async def test_a_durable_call_outside_a_flow(name: str) -> None:
    assert "outside a flow" in await call_it(name)


async def test_a_durable_call_inside_a_step_or_in_a_thread_with_a_flows_context(world: World) -> None:
    @step
    async def within() -> list[str]:
        return [await call_it(name) for name in CALLS]

    @flow
    async def tries() -> list[list[str]]:
        context = contextvars.copy_context()
        in_thread = await capture(lambda: [context.run(asyncio.run, call_it(name)) for name in CALLS])
        return [await within(), in_thread]

    engine = await world.engine(tries, takes)
    in_step, in_thread = await engine.run(tries, id="1", timeout=10)
    assert all("inside a step" in text for text in in_step), in_step
    assert all("outside its loop" in text for text in in_thread), in_thread
    with pytest.raises(NotInFlow):
        current()


async def test_a_flow_is_not_called_plainly() -> None:
    with pytest.raises(NotInFlow, match="the flow takes"):
        await takes()
    with pytest.raises(TypeError, match="async"):
        flow(lambda: None)  # type: ignore[arg-type,return-value]
