"""What a test sees of its instances: the names of steps, timelines; and which flows it need not register."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from types import ModuleType

import pytest

from perdure import (
    InitialState,
    NotRegistered,
    Retry,
    capture,
    continue_as_new,
    delay,
    expose,
    flow,
    messages,
    now,
    receive,
    run,
    start,
    step,
)
from perdure.testing import Flows
from perdure.testing.timeline import LINES, cut, since
from tests.support.runs import count


@step(name="reserve")
async def reserve(what: str) -> str:
    return f"reserved {what}"


@step(name="charge", retry=Retry(attempts=2, initial=60))
async def charge() -> None:
    raise OSError("down\x1b[2J\nand out")


@flow(name="order")
async def order(what: str) -> str:
    await reserve(what)
    await delay(timedelta(days=7, minutes=5))
    await capture(len, what)
    try:
        await charge()
    except OSError:
        pass
    return await receive(str, timeout=timedelta(hours=1))


async def test_steps_are_the_names_in_the_journal_failed_ones_and_captures_included(flows: Flows) -> None:
    handle = await flows.start(order, "tea", id="o")
    assert flows.steps("o") == []
    await flows.advance(days=8)
    assert flows.steps("o") == ["reserve", "len", "charge"]
    assert isinstance(flows.steps("o"), list)
    assert handle.id == "o"


async def test_a_timeline_tells_it_all(flows: Flows) -> None:
    handle = await flows.start(order, "tea", id="o")
    await flows.advance(days=7, minutes=5, seconds=30)
    await handle.send(17)
    await flows.advance()
    text = flows.timeline("o")
    line = order.fn.__code__.co_firstlineno + 6
    assert text.splitlines()[:4] == [
        "order 'o': suspended",
        "     +00:00:00  • begun",
        "     +00:00:00  ✓ 0 step reserve → 'reserved tea'",
        "  +7d 00:05:00  ✓ 1 timer",
    ]
    assert "… 3 step charge, failed attempts: 1, last: OSError: down [2J and out, next at +7d 00:06:00" in text
    assert f"… waits for step charge (3), at {__file__}:{line}" in text
    assert "… goes on at +7d 00:06:00" in text
    assert "inbox: int 17" in text
    assert "\x1b" not in text

    await handle.send("done")
    assert await handle.result() == "done"
    text = flows.timeline("o")
    assert "  +7d 00:06:00  ✗ 3 step charge → OSError: down [2J and out (attempt 2)" in text
    assert text.endswith("result 'done'")
    assert text.startswith("order 'o': succeeded")


async def test_a_timeline_of_what_failed_was_cancelled_or_was_put_there(flows: Flows) -> None:
    @flow(name="fails")
    async def fails() -> None:
        raise ValueError("no")

    @flow(name="waits")
    async def waits() -> None:
        await receive(str)

    @flow(name="knows")
    async def knows() -> str:
        return await reserve.options(id="r")("tea")

    with pytest.raises(Exception, match="no"):
        await flows.run(fails, id="f")
    assert flows.timeline("f").endswith("error ValueError: no")
    handle = await flows.start(waits, id="w")
    await handle.cancel("enough")
    await flows.advance()
    assert flows.timeline("w").startswith("waits 'w': cancelled")
    assert flows.timeline("w").endswith("reason 'enough'")
    await flows.run(knows, id="k", initial=InitialState(entries={"r": "known"}))
    assert "put there  ✓ r step → 'known'" in flows.timeline("k")


async def test_after_continue_as_new_it_is_the_journal_of_the_last_run(flows: Flows) -> None:
    await flows.run(count, 0, 3, id="c")
    assert flows.timeline("c").startswith("count 'c': succeeded, run 2")
    assert flows.steps("c") == ["add"]


async def test_an_id_that_is_not_there_lists_those_that_are(flows: Flows) -> None:
    with pytest.raises(LookupError, match="there is no instance 'x'; there are: none"):
        flows.steps("x")
    await flows.start(order, "tea", id="o-1")
    await flows.start(order, "tea", id="o-2")
    with pytest.raises(LookupError, match="there is no instance 'x'; there are: order 'o-1', order 'o-2'"):
        flows.steps("x")
    with pytest.raises(LookupError, match="there is no instance count 'o-1'"):
        flows.timeline("o-1", flow=count)


async def test_of_two_flows_with_one_id_the_flow_is_said(flows: Flows) -> None:
    await flows.start(order, "tea", id="same")
    await flows.run(count, 0, 1, id="same")
    with pytest.raises(LookupError, match=r"'same' is the id of several instances.*: order 'same', count 'same'"):
        flows.steps("same")
    assert flows.steps("same", flow=count) == ["add"]
    assert flows.steps("same", flow="order") == ["reserve"]
    assert flows.timeline("same", flow=count).startswith("count 'same'")


async def test_timelines_are_bounded(flows: Flows) -> None:
    @flow(name="many")
    async def many() -> None:
        for _ in range(200):
            await delay(1)

    @flow(name="empty")
    async def empty() -> None: ...

    await flows.run(many, id="m")
    for n in range(30):
        await flows.start(empty, id=f"e{n}")
    text = flows.timelines()
    assert "… 104 lines are left out …" in text
    assert "… and 11 instances more" in text
    assert len(flows.timeline("m").splitlines()) == 203
    assert len(text.splitlines()) < LINES + 20 * 5


async def test_stubs_that_no_step_has_used_are_named(flows: Flows) -> None:
    flows.stub("chrage", returns=None)
    flows.stub(reserve, returns="r")
    await flows.start(order, "tea", id="o")
    await flows.advance()
    assert flows.timelines().endswith("stubs that no step has used: chrage")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "+00:00:00"),
        (59.9999, "+00:01:00"),
        (0.25, "+00:00:00.250"),
        (86_399, "+23:59:59"),
        (86_400, "+1d 00:00:00"),
        (7 * 86_400 + 300, "+7d 00:05:00"),
        (float("inf"), "never"),
    ],
)
def test_times_since_the_start(seconds: float, text: str) -> None:
    assert since(seconds) == text


def test_long_timelines_lose_their_middle() -> None:
    lines = [str(n) for n in range(LINES)]
    assert cut(lines) == lines
    shorter = cut([*lines, "one more"])
    assert len(shorter) == LINES
    assert (shorter[0], shorter[-1]) == ("0", "one more")
    assert "  … 2 lines are left out …" in shorter


# ---------------------------------------------------------------- which flows are known


@flow(name="leaf")
async def leaf() -> str:
    return "leaf"


@flow(name="branch")
async def branch() -> str:
    return await leaf()


async def by_a_helper() -> str:
    return await branch()


shelf = ModuleType("shelf")
shelf.leaf = leaf  # type: ignore[attr-defined]


async def test_children_are_known_by_the_names_in_the_code(flows: Flows) -> None:
    @flow
    async def by_global() -> str:
        return await branch()

    @flow
    async def by_function() -> str:
        return await by_a_helper()

    @flow
    async def by_module() -> str:
        return await shelf.leaf()

    @flow
    async def by_argument_of_a_verb() -> str:
        handle = await start(branch, id="b")
        return await handle.result() + await run(leaf, id="l")

    @flow
    async def by_closure_in_a_comprehension() -> list[str]:
        return await asyncio.gather(*[by_global() for _ in range(2)])

    assert await flows.run(by_global, id="1") == "leaf"
    assert await flows.run(by_function, id="2") == "leaf"
    assert await flows.run(by_module, id="3") == "leaf"
    assert await flows.run(by_argument_of_a_verb, id="4") == "leafleaf"
    assert await flows.run(by_closure_in_a_comprehension, id="5") == ["leaf", "leaf"]


async def test_a_flow_that_calls_itself_is_known(flows: Flows) -> None:
    @flow
    async def down(n: int) -> int:
        return n if n == 0 else await down(n - 1)

    assert await flows.run(down, 3, id="d") == 0


async def test_start_many_and_schedule_make_a_flow_known(flows: Flows) -> None:
    handles = await flows.start_many(branch, [("a",), ("b",)])
    assert [await handle.result() for handle in handles] == ["leaf", "leaf"]
    await flows.schedule(leaf, 60, id="s")
    await flows.advance(minutes=1)
    assert len([info async for info in flows.find(leaf, since=flows.now())]) == 1


async def test_what_only_a_name_reaches_is_registered(flows: Flows) -> None:
    with pytest.raises(NotRegistered, match="no flow 'branch' is registered"):
        await flows.start("branch", id="b")
    flows.register(branch)
    assert await flows.run("branch", id="b") == "leaf"


def test_flows_can_be_registered_before_they_run() -> None:
    async def test() -> None:
        flows = Flows()
        flows.register(branch)
        flows.register(shelf)
        flows.stub(reserve, returns="")
        async with flows:
            assert await flows.run("branch", id="b") == "leaf"

    asyncio.run(test())


async def test_two_flows_of_one_name_are_refused_with_both_places(flows: Flows) -> None:
    @flow(name="leaf")
    async def other() -> None: ...

    @flow
    async def refers() -> None:
        await other()

    await flows.run(branch, id="b")
    for refused in (other, refers):
        with pytest.raises(NotRegistered, match="two flows are named 'leaf'") as error:
            await flows.start(refused, id="x")
        assert f"{__file__}:{other.fn.__code__.co_firstlineno}" in str(error.value)
        assert f"{__file__}:{leaf.fn.__code__.co_firstlineno}" in str(error.value)
    with pytest.raises(TypeError, match="is not a flow"):
        flows.register(reserve)  # type: ignore[arg-type]


async def test_everything_else_of_an_engine_is_there(flows: Flows) -> None:
    @flow(name="chatty")
    async def chatty() -> list[str]:
        expose("begun", now())
        heard: list[str] = []
        async for message in messages(str):
            heard.append(message)
            if len(heard) == 2:
                break
        return heard

    @flow(name="again")
    async def again(n: int) -> int:
        return n if n == 2 else await continue_as_new(n + 1)

    handle = await flows.start(chatty, id="c")
    await handle.send("one", key="k")
    await flows.send(chatty, "c", "two")
    assert await handle.result() == ["one", "two"]
    assert await handle.exposed("begun") == flows.now()
    assert await flows.run(again, 0, id="a") == 2
    await flows.delete(chatty, "c")
    assert [info.id async for info in flows.find()] == ["a"]
    assert (await flows.health()).paused is None
