"""What the lint finds in a flow's code is told when the process first replays the flow, and stops nothing."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from perdure import Engine, FlowWarning, Handle
from perdure.api.schedule import schedule_flow
from perdure.engine import first_replay
from perdure.engine.first_replay import FirstReplays
from tests.support.clock import until
from tests.support.world import World

TEXT = """\
import time

from perdure import capture, flow, receive


@flow
async def order(n: int) -> str:
    started = time.time()
    await capture(lambda: n, name="first")
    print(n)
    return await receive(str)
"""
CLOCK = "PD101 time.time() tells another time at each replay [order]; use now(), or measure inside a step"
PRINT = "PD601 print() prints again at each replay [order]; use logger or get_logger(name), which are silent then, or a step"

Load = Callable[..., ModuleType]


@pytest.fixture
def load(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Load:
    """A module of that text is loaded from a file of that name, which no other test has."""

    def loading(name: str, text: str = TEXT) -> ModuleType:
        file = tmp_path / f"{name}.py"
        file.write_text(text)
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return loading


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that is replayed has to be left in peace."""
    monkeypatch.setattr(first_replay, "LATER_SECONDS", 0.0)


@pytest.fixture
def caught() -> Iterator[list[warnings.WarningMessage]]:
    """All warnings that are given."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        yield found


async def replayed(world: World, flow: Any, *ids: str) -> tuple[Engine, list[Handle[str]]]:
    """Instances of the flow wait in a process, and then in another one, which has replayed them."""
    engine = await world.engine(flow)
    for id in ids:
        await world.parked(await engine.start(flow, 1, id=id))
    engine = await world.restart(engine)
    handles = [engine.handle(flow, id) for id in ids]
    for handle in handles:
        await handle.send("go on")
        assert await handle.result() == "go on"
    return engine, handles


def texts(found: list[warnings.WarningMessage]) -> list[str]:
    return [str(warning.message) for warning in found]


# ---------------------------------------------------------------- in an engine


async def test_it_is_told_at_the_users_own_lines(
    world: World, load: Load, caught: list[warnings.WarningMessage]
) -> None:
    module = load("told_at_lines")
    engine = await world.engine(module.order)
    await world.parked(await engine.start(module.order, 1, id="first"))
    assert not caught  # there was nothing to replay
    engine = await world.restart(engine)
    await engine.send(module.order, "first", "go on")  # a waiting instance is replayed when it is woken
    await until(lambda: len(caught) == 2)
    assert texts(caught) == [CLOCK, PRINT]
    assert [(w.filename, w.lineno, w.category) for w in caught] == [
        (module.__file__, 8, FlowWarning),
        (module.__file__, 10, FlowWarning),
    ]


async def test_it_is_told_once_in_a_process(world: World, load: Load, caught: list[warnings.WarningMessage]) -> None:
    module = load("told_once")
    engine, _ = await replayed(world, module.order, "one", "two")
    await until(lambda: len(caught) == 2)
    await world.close(engine)
    await replayed(world, module.order, "three")
    other = load("told_once_more", TEXT.replace("order", "other"))
    await replayed(world, other.other, "one")
    await until(lambda: len(caught) == 4)
    assert texts(caught)[2:] == [t.replace("order", "other") for t in (CLOCK, PRINT)]


async def test_what_only_begins_is_no_replay(world: World, load: Load, caught: list[warnings.WarningMessage]) -> None:
    module = load("only_begins", TEXT.replace('    await capture(lambda: n, name="first")\n', ""))
    await replayed(world, module.order, "waits")
    other = load("only_begins_not", TEXT.replace("order", "other"))
    await replayed(world, other.other, "one")
    await until(lambda: caught)
    assert {w.filename for w in caught} == {other.__file__}


@pytest.mark.parametrize("how", [{"message": "PD101"}, {"category": FlowWarning, "lineno": 8}, {"module": "filtered"}])
async def test_pythons_filters_apply(load: Load, tmp_path: Path, how: dict[str, Any]) -> None:
    world = World("memory", tmp_path)
    number = len(first_replay._told)
    module = load("filtered")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", **how)
        await replayed(world, module.order, "one")
        await until(lambda: len(first_replay._told) == number + 2)
    assert texts(caught) == ([] if "module" in how else [PRINT])
    await world.end()


async def test_a_warning_that_is_an_error_reaches_the_loops_handler_and_stops_nothing(world: World, load: Load) -> None:
    module = load("as_errors_" + world.kind)
    seen: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: seen.append(context))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine, _ = await replayed(world, module.order, "one")  # its result is awaited
        await until(lambda: len(seen) == 2)
        assert await engine.run(module.order, 1, id="one") == "go on"
    assert [type(context["exception"]) for context in seen] == [FlowWarning, FlowWarning]
    assert [str(context["exception"]) for context in seen] == [CLOCK, PRINT]
    assert [context["message"] for context in seen] == [
        f"{module.__file__}:{line}: a warning about a flow, which goes on" for line in (8, 10)
    ]


async def test_a_flow_without_a_source_is_replayed_in_silence(
    world: World, load: Load, caught: list[warnings.WarningMessage], caplog: pytest.LogCaptureFixture
) -> None:
    names: dict[str, Any] = {}
    exec(TEXT, names)
    await replayed(world, names["order"], "one")
    other = load("with_source_" + world.kind)
    await replayed(world, other.order, "two")
    await until(lambda: caught)
    assert {w.filename for w in caught} == {other.__file__}
    assert not [r for r in caplog.records if "looked through" in r.message]


async def test_what_cannot_be_looked_at_is_logged_and_the_flow_goes_on(
    world: World, load: Load, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    module = load("bad_settings_" + world.kind)
    (tmp_path / "pyproject.toml").write_text("[tool.perdure.lint]\nselect = ['PD9']\n")
    with caplog.at_level(logging.WARNING, "perdure"):
        await replayed(world, module.order, "one")
        await until(lambda: "PD9" in caplog.text)
    assert f"the flows in {module.__file__} were not looked through for mistakes: 'PD9' is no rule" in caplog.text
    assert "Traceback" not in caplog.text


# ---------------------------------------------------------------- when and how often it looks


class Beside:
    """Runs work when the test says so."""

    def __init__(self) -> None:
        self.asked: list[tuple[asyncio.Future[Any], Callable[[], Any]]] = []
        self._first = FirstReplays(asyncio.get_running_loop(), self.run)

    async def look(self, flow: Any) -> None:
        self._first.look(flow)
        await asyncio.sleep(0.001)

    def run(self, loop: asyncio.AbstractEventLoop, work: Callable[[], Any]) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = loop.create_future()
        self.asked.append((future, work))
        return future

    async def work(self) -> None:
        """What was asked for first is done, and its outcome has been told."""
        future, work = self.asked.pop(0)
        future.set_result(work())
        await asyncio.sleep(0)


async def test_one_file_is_looked_at_at_a_time_and_its_flows_together(
    load: Load, caught: list[warnings.WarningMessage]
) -> None:
    beside = Beside()
    second = TEXT[TEXT.index("@flow") :].replace("order", "second")
    one, two = load("one_file", TEXT), load("two_flows", TEXT + "\n\n" + second)
    for flow in (one.order, two.order, one.order, two.second):
        await beside.look(flow)
    assert len(beside.asked) == 1
    await beside.work()
    assert {w.filename for w in caught} == {one.__file__}
    assert len(beside.asked) == 1
    await beside.work()
    assert [(w.filename, w.lineno) for w in caught[2:]] == [(two.__file__, line) for line in (8, 10, 16, 18)]
    assert beside.asked == []


async def test_a_line_that_two_flows_reach_is_told_once(load: Load, caught: list[warnings.WarningMessage]) -> None:
    beside = Beside()
    text = (
        "import time\nfrom perdure import flow\n\ndef age():\n    return time.time()\n"
        "\n@flow\nasync def one():\n    age()\n\n@flow\nasync def two():\n    age()\n"
    )
    module = load("two_reach", text)
    await beside.look(module.one)
    await beside.look(module.two)
    await beside.work()
    await beside.work()
    assert len(caught) == 1


async def test_two_mistakes_in_one_line_are_two_warnings(load: Load, caught: list[warnings.WarningMessage]) -> None:
    beside = Beside()
    text = (
        "import time\nfrom perdure import flow\n\n@flow\nasync def one():\n    return [time.time(), time.monotonic()]\n"
    )
    await beside.look(load("two_mistakes", text).one)
    await beside.work()
    assert [str(w.message).split()[1] for w in caught] == ["time.time()", "time.monotonic()"]


async def test_what_was_not_done_because_the_engine_closed_is_done_by_the_next(
    load: Load, caught: list[warnings.WarningMessage]
) -> None:
    flow = load("closed_meanwhile").order
    closed = Beside()
    await closed.look(flow)
    closed.asked.pop()[0].set_result(None)  # as closed threads do
    await asyncio.sleep(0)
    assert not caught
    following = Beside()
    await following.look(flow)
    await following.work()
    assert len(caught) == 2
    third = Beside()
    await third.look(flow)
    assert third.asked == []


async def test_a_mistake_of_the_lint_is_logged(load: Load, caplog: pytest.LogCaptureFixture) -> None:
    beside = Beside()
    await beside.look(load("mistake").order)
    beside.asked.pop()[0].set_exception(RecursionError("too deep"))
    await asyncio.sleep(0)
    assert "were not looked through for mistakes: too deep" in caplog.text
    assert "RecursionError" in caplog.text


async def test_perdures_own_flows_are_not_looked_at() -> None:
    beside = Beside()
    await beside.look(schedule_flow)
    assert beside.asked == []


async def test_an_engine_whose_loop_ends_meanwhile_swallows_it(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = load("loop_ends").order
    ended, done = threading.Event(), threading.Event()
    look = first_replay._look

    def looking(*args: Any) -> Any:
        assert ended.wait(10)
        found = look(*args)
        done.set()
        return found

    async def life() -> str:
        world = World("sqlite", tmp_path)
        _, (handle,) = await replayed(world, flow, "one")
        result = await handle.result()
        await world.end()
        return result

    monkeypatch.setattr(first_replay, "_look", looking)
    assert await asyncio.to_thread(asyncio.run, life()) == "go on"
    ended.set()
    assert await asyncio.to_thread(done.wait, 10)  # what a thread raises fails a test
