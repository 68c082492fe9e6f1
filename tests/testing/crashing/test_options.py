"""What `crash_everywhere` takes, gives and refuses."""

from __future__ import annotations

import asyncio
import functools
import itertools
import uuid
from dataclasses import dataclass
from typing import Any

import pytest

from perdure import Handle, Outgoing, capture, current, delay, expose, flow, receive, send, start, step
from perdure.model.records import State
from perdure.testing.crashing import PromiseBroken, Stuck, crash_everywhere
from perdure.testing.plays import Ending

done: dict[str, object] = {}
log: list[str] = []
places: set[str] = set()


@step
async def put(value: object) -> object:
    done[current().key] = value
    return value


@flow
async def sums(a: int, b: int = 2, *, by: str = "") -> str:
    return f"{await put(a)} {await put(b)}{by}"


@flow
async def adds(a: int, b: int) -> str:
    return f"{await put(a)} {await put(b)}"


async def test_the_result_of_the_run_without_a_crash() -> None:
    assert await crash_everywhere(adds, 1, 2) == "1 2"
    assert await crash_everywhere(functools.partial(adds, b=3), 1, effects=done) == "1 3"


async def test_what_is_refused() -> None:
    with pytest.raises(TypeError, match="not a flow"):
        await crash_everywhere(put, 1)
    with pytest.raises(TypeError, match="needs the flow itself, not its name 'adds'"):
        await crash_everywhere("adds", 1, 2)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="missing a required argument: 'b'"):
        await crash_everywhere(adds, 1)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="crashes=3: 1 or 2"):
        await crash_everywhere(adds, 1, 2, crashes=3)
    with pytest.raises(ValueError, match="not both"):
        await crash_everywhere(adds, 1, 2, same=lambda a, b: True, check=print)
    with pytest.raises(TypeError, match="effects=7 cannot be emptied"):
        await crash_everywhere(adds, 1, 2, effects=7)


# ------------------------------------------------------------ effects


@step
async def note(text: str) -> None:
    if text not in log:
        log.append(text)
    places.add(text)
    done[text] = True


@flow
async def notes() -> None:
    await asyncio.gather(note("a"), note("b"), note("c"))


@pytest.mark.parametrize(
    "effects",
    [log, places, done, (log, places, done), (log.clear, lambda: sorted(log)), (lambda: log.clear(), lambda: len(log))],
)
async def test_forms_of_effects(effects: Any) -> None:
    log.clear()
    await crash_everywhere(notes, effects=effects)


async def test_lists_are_compared_without_regard_to_order() -> None:
    order = itertools.cycle(["ab", "ba"])
    written: list[str] = []

    @step
    async def write() -> None:
        written[:] = next(order)

    @flow
    async def writes() -> None:
        await write()

    await crash_everywhere(writes, effects=written)
    with pytest.raises(PromiseBroken, match="its effects are others"):
        await crash_everywhere(writes, effects=(written.clear, lambda: "".join(written)))


async def test_so_are_lists_in_a_dict() -> None:
    by_name: dict[str, list[str]] = {}
    order = itertools.cycle(["ab", "ba"])

    @step
    async def write() -> None:
        by_name["x"] = list(next(order))

    @flow
    async def writes() -> None:
        await write()

    await crash_everywhere(writes, effects=by_name)


# ------------------------------------------------------------ what is compared


@flow
async def draws() -> dict[str, str]:
    return {"id": await capture(lambda: str(uuid.uuid4())), "total": "7"}


async def test_results_that_differ_by_chance_need_same() -> None:
    with pytest.raises(PromiseBroken, match="run once more without any crash: its result is another") as broken:
        await crash_everywhere(draws)
    assert "same=" in str(broken.value)
    result = await crash_everywhere(draws, same=lambda a, b: a["total"] == b["total"] and len(a["id"]) == len(b["id"]))
    assert result["total"] == "7"


@dataclass(eq=False)
class Receipt:
    id: str


class Strange:
    def __eq__(self, other: object) -> bool:
        raise ValueError("ambiguous")

    __hash__ = None  # type: ignore[assignment]


@dataclass
class Holder:
    id: str

    def __eq__(self, other: object) -> Any:
        return Strange()

    __hash__ = None  # type: ignore[assignment]


@flow
async def gives_receipt() -> Receipt:
    return Receipt("r1")


@flow
async def gives_strange() -> Holder:
    return Holder("h1")


async def test_results_that_cannot_be_compared() -> None:
    with pytest.raises(PromiseBroken, match="its result is another, though it looks alike: give its class an __eq__"):
        await crash_everywhere(gives_receipt)
    assert (await crash_everywhere(gives_receipt, same=lambda a, b: a.id == b.id)).id == "r1"
    Holder.__eq__ = lambda a, b: bool(Strange() == Strange())  # type: ignore[method-assign, assignment]
    with pytest.raises(TypeError, match="results of type Holder cannot be compared by ==: give same= or check="):
        await crash_everywhere(gives_strange)


@flow
async def shows() -> str:
    expose("seen", await put(1))
    expose("restarted", current().restarted)
    return "shown"


async def test_what_is_exposed_is_compared() -> None:
    with pytest.raises(PromiseBroken, match="it exposes something else"):
        await crash_everywhere(shows, effects=done)


@flow
async def fails_after_a_crash() -> str:
    await put(1)
    if current().restarted:
        raise LookupError("restarted")
    return "fine"


async def test_another_end() -> None:
    with pytest.raises(PromiseBroken, match="it ends in another way") as broken:
        await crash_everywhere(fails_after_a_crash, effects=done)
    assert "failed with LookupError('restarted')" in str(broken.value)


@flow
async def fails_always() -> None:
    await put(1)
    raise LookupError(f"restarted: {current().restarted}")


async def test_other_errors() -> None:
    with pytest.raises(PromiseBroken, match="its result is another"):
        await crash_everywhere(fails_always, effects=done)
    with pytest.raises(LookupError, match="restarted: False"):
        await crash_everywhere(fails_always, effects=done, same=lambda a, b: type(a) is type(b))


@flow
async def waits_after_a_crash() -> str:
    await put(1)
    return await receive(str) if current().restarted else "fine"


async def test_a_flow_that_does_not_end_any_more() -> None:
    with pytest.raises(PromiseBroken, match=r"it does not end any more\n +then: .* waits for\s+receive str"):
        await crash_everywhere(waits_after_a_crash, effects=done)


@flow
async def ends_somehow() -> str:
    await put("begun")
    return "restarted" if current().restarted else "at once"


async def test_check_sees_every_end_and_nothing_is_compared() -> None:
    ends: list[Ending] = []
    assert await crash_everywhere(ends_somehow, effects=done, check=ends.append) == "at once"
    assert {end.result for end in ends} == {"at once", "restarted"}
    assert all(end.state is State.SUCCEEDED and end.error is None and len(end.effects) == 1 for end in ends)


async def test_check_that_fails() -> None:
    def right(end: Ending) -> None:
        assert end.result == "at once"

    with pytest.raises(PromiseBroken, match=r"check says: .*at once"):
        await crash_everywhere(ends_somehow, effects=done, check=right)

    def wrong(end: Ending) -> None:
        assert end.result == "never"

    with pytest.raises(AssertionError, match="never") as failed:
        await crash_everywhere(ends_somehow, effects=done, check=wrong)
    assert not isinstance(failed.value, PromiseBroken)


async def test_what_only_a_second_crash_shows() -> None:
    attempts: dict[str, int] = {}

    @step
    async def third_time_lost() -> None:
        attempts[current().key] = attempts.get(current().key, 0) + 1
        if attempts[current().key] == 3:
            log.append("lost")

    @flow
    async def does() -> None:
        await third_time_lost()

    effects = (lambda: (log.clear(), attempts.clear()), lambda: list(log))
    await crash_everywhere(does, effects=effects)
    with pytest.raises(PromiseBroken) as broken:
        await crash_everywhere(does, effects=effects, crashes=2)
    assert broken.value.point.count("killed before commit 2") == 2


# ------------------------------------------------------------ stubs


async def test_stubs_by_step_by_name_and_by_function() -> None:
    @flow
    async def uses() -> list[object]:
        return [await put(1), await capture(len, "abc"), await capture(max, 1, 2)]

    async def fake(value: object) -> object:
        return f"fake {value}"

    stubs: dict[Any, Any] = {put: fake, "len": lambda text: 7, max: lambda a, b: 9}
    assert await crash_everywhere(uses, stubs=stubs) == ["fake 1", 7, 9]


async def test_a_stub_of_no_step() -> None:
    with pytest.raises(ValueError, match="stubs for putt: no such step ran; those that did: put"):
        await crash_everywhere(adds, 1, 2, stubs={"putt": print})


# ------------------------------------------------------------ the outside


@flow
async def approved() -> str:
    expose("asked", True)
    answer = await receive(str, timeout=3600)
    await put(answer)
    return answer


async def test_drive_waits_for_what_it_sees_and_is_not_crashed() -> None:
    begun = 0

    async def drive(handle: Handle[str]) -> None:
        nonlocal begun
        begun += 1
        while not (await handle.exposed()).get("asked"):
            await asyncio.sleep(1)
        await asyncio.sleep(3000)
        await handle.send("yes")

    done.clear()
    plays: list[Ending] = []
    assert await crash_everywhere(approved, drive=drive, effects=done, check=plays.append) == "yes"
    assert begun == len(plays)
    assert {end.result for end in plays} == {"yes"}


async def test_drive_may_look_at_the_result_and_what_it_finds_counts() -> None:
    async def drive(handle: Handle[str]) -> None:
        await handle.send("yes")
        assert await handle.result() == "no"

    with pytest.raises(AssertionError, match="no"):
        await crash_everywhere(approved, drive=drive, effects=done)


@flow
async def monthly() -> int:
    for _ in range(3):
        await delay(30 * 86400)
    return 3


async def test_drive_may_wait_long_for_the_result() -> None:
    seen: list[int] = []

    async def drive(handle: Handle[int]) -> None:
        seen.append(await handle.result())

    assert await crash_everywhere(monthly, drive=drive) == 3
    assert set(seen) == {3}


async def test_what_drive_raises_in_a_crashed_run_says_so() -> None:
    count = itertools.count()

    async def drive(handle: Handle[str]) -> None:
        await handle.send("yes")
        if next(count) == 5:
            raise LookupError("the sixth time")

    with pytest.raises(LookupError) as raised:
        await crash_everywhere(approved, drive=drive, effects=done)
    assert "raised in a run with a crash (" in raised.value.__notes__[0]


async def test_messages_with_names_and_keys() -> None:
    @flow
    async def takes() -> list[str]:
        return [await receive(str, name="b"), await receive(str)]

    assert await crash_everywhere(takes, messages=["x", Outgoing("", "y", name="b", key="k")]) == ["y", "x"]


# ------------------------------------------------------------ stuck


@flow
async def waits() -> str:
    return await receive(str)


@flow
async def ticks() -> None:
    while True:
        await delay(1)


@flow
async def waits_for_a_child() -> str:
    return await waits()


@flow
async def starts_by_name() -> str:
    handle: Handle[str] = await start("unheard of", id="x")
    await send("unheard of", "x", "hello")
    return await handle.result()


async def test_stuck_says_what_is_waited_for_and_where() -> None:
    line = waits.fn.__code__.co_firstlineno + 2
    with pytest.raises(
        Stuck, match=rf"waits does not end .*: waits 'crashed' waits for receive str .*test_options.py:{line}"
    ):
        await crash_everywhere(waits)
    with pytest.raises(Stuck, match=rf"waits for receive str .*test_options.py:{line}"):
        await crash_everywhere(waits_for_a_child)
    with pytest.raises(Stuck, match="5001 commits and goes on: let `drive` end it"):
        await crash_everywhere(ticks)
    with pytest.raises(Stuck, match="waits for wait unheard of"):
        await crash_everywhere(starts_by_name)


async def test_stuck_because_of_drive() -> None:
    async def drive(handle: Handle[str]) -> None:
        await handle.send("yes")
        await asyncio.Event().wait()

    with pytest.raises(Stuck, match=r"the flow has ended, and `drive` has not: it waits at .*test_options.py:"):
        await crash_everywhere(waits, drive=drive)
