"""What a failure says: the point, both sides, lines with advice, and two timelines that can be read."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from perdure import OutcomeUnknown, capture, current, delay, flow, receive, step
from perdure.testing.crashing import PromiseBroken, crash_everywhere
from perdure.testing.plays import Event
from perdure.testing.report import LINES, line_in, plain, side_by_side

done: list[str] = []


@step
async def note(text: str) -> str:
    done.append(text)
    return text


def line(function: Any, offset: int) -> str:
    code = getattr(function, "fn", function).__code__
    return f"tests/testing/crashing/test_reports.py:{code.co_firstlineno + offset}"


async def broken(flow: Any, *args: Any, **options: Any) -> PromiseBroken:
    with pytest.raises(PromiseBroken) as raised:
        await crash_everywhere(flow, *args, **options)
    return raised.value


@flow
async def notes() -> str:
    await note("a")
    return await note("b")


async def test_a_step_that_ran_twice() -> None:
    error = await broken(notes, effects=done)
    head, then, calm, _, at, *_ = str(error).splitlines()
    assert head == "notes, killed before commit 2 (step note): its effects are others"
    assert then == "  then:            ['a', 'a', 'b']"
    assert calm == "  without a crash: ['a', 'b']"
    assert at == f"  {line(note, 2)}"
    assert error.lines == [line(note, 2)]
    assert error.point == "killed before commit 2 (step note)"
    assert "let the other side know it by current().key" in " ".join(str(error).split())


@flow
async def gathers() -> None:
    await asyncio.gather(note("a"), note("b"))


async def test_steps_of_tasks_that_no_line_of_the_user_waits_in() -> None:
    error = await broken(gathers, effects=done)
    assert f"step note runs  test_reports.py:{gathers.fn.__code__.co_firstlineno + 2}" in str(error)


@flow
async def by_builtin() -> None:
    await capture(done.append, "a")


async def test_a_captured_function_of_a_library() -> None:
    """No line of the program's own has changed anything: it is the one that asked."""
    error = await broken(by_builtin, effects=done)
    assert error.lines == [line(by_builtin, 2)]
    assert "Step list.append did this twice, and once without a crash" in " ".join(str(error).split())


@step(at_most_once=True)
async def once(text: str) -> None:
    done.append(text)


@flow
async def gives_up() -> str:
    try:
        await once("a")
    except OutcomeUnknown:
        return "unknown"
    await note("after")
    return "known"


async def test_an_unknown_outcome() -> None:
    error = await broken(gives_up, effects=())
    assert error.lines[0] == line(gives_up, 3)
    text = " ".join(str(error).split())
    assert "The outcome of step once got lost, and the flow was told so by OutcomeUnknown" in text
    assert "say so by check=" in text
    assert f"{line(gives_up, 6)} Here the flow asks for step note without a crash; after the crash it did not." in text


@flow
async def other_arguments() -> None:
    await note(f"{current().restarted}")


async def test_a_step_that_runs_again_with_other_arguments() -> None:
    error = await broken(other_arguments, effects=())
    assert "step note ran again with other arguments" in str(error)
    assert "  then:     ('True',)\n  at first: ('False',)" in str(error)
    assert error.lines == [line(other_arguments, 2)]


@flow
async def other_steps() -> None:
    await note("a")
    if current().restarted:
        await delay(1)
    await note("b")
    await note("c")


async def test_a_replay_that_asks_for_something_else() -> None:
    error = await broken(other_steps, check=lambda end: None)
    assert "it does not end any more" in str(error)
    assert "NonDeterminismError" in str(error)
    assert error.lines[0] in (line(other_steps, 4), line(other_steps, 5))


@flow
async def answers() -> str:
    return await capture(lambda: f"{len(done)}", name="count") + await note("x")


async def test_a_step_that_gives_another_answer() -> None:
    error = await broken(answers, effects=(lambda: None, lambda: None))
    assert "its result is another" in str(error)
    assert error.lines[0] == line(answers, 2)
    assert "say so by same= or check=" in " ".join(str(error).split())
    done.clear()


@flow
async def long(n: int) -> None:
    for number in range(n):
        await capture(int, number, name="count")
    await note("end")
    for number in range(n):
        await capture(int, number, name="count")


async def test_of_long_timelines_the_part_around_the_first_difference_is_shown() -> None:
    error = await broken(long, 20, effects=done)
    lines = str(error).splitlines()
    assert any("lines alike" in line for line in lines)
    assert any("more lines" in line for line in lines)
    assert any("killed before" in line and "│" in line for line in lines[10:])
    assert len(lines) < LINES + 15


def events(*texts: str) -> list[Event]:
    return [Event(float(number), 1, text, "folder/x.py:1") for number, text in enumerate(texts)]


def test_what_is_the_same_stands_side_by_side() -> None:
    rows = side_by_side(events("a", "b", "c"), events("a", "x", "b", "c", "d"), "left", "right")
    texts = [[part.strip().split("  ")[0].partition(" ")[2] for part in row.split("│")] for row in rows[1:]]
    assert texts == [["a", "a"], ["", "x"], ["b", "b"], ["c", "c"], ["", "d"]]
    assert side_by_side([], [], "left", "right") == [f"  {'left':<62} │ right"]


def test_lines_are_cut_before_their_place_is() -> None:
    _, row = side_by_side(events("a" * 100), events("b" * 100), "left", "right")
    assert len(row) <= 130
    assert row.count("…  x.py:1") == 2


def test_the_line_in_a_reason() -> None:
    assert (
        line_in("the code asks for step charge with other arguments at /some where/shop.py:12")
        == "/some where/shop.py:12"
    )
    assert line_in("it asks for a at b, at /x/shop.py:3") == "/x/shop.py:3"
    assert line_in("something else") == ""


def test_names_of_functions_in_functions() -> None:
    assert plain("step test_x.<locals>.other.<locals>.put runs") == "step put runs"


@flow
async def parallel() -> list[str]:
    async def one(text: str) -> None:
        await receive(str, name=text, timeout=5)

    try:
        await asyncio.gather(one("a"), one("b"))
    except TimeoutError:
        return [await note("timeout")]
    return []


async def test_the_timeline_shows_time_and_waits() -> None:
    error = await broken(parallel, effects=done)
    assert "0:00:05 commit" in str(error)
    assert "(timer" in str(error)
