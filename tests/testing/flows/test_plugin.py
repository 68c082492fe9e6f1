"""The plugin, in programs of their own: with each plugin for async tests, and without any; and what failures show."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from importlib.metadata import entry_points
from pathlib import Path

import pytest

HERE = {"pytest_perdure", "perdure.testing.plugin"}
INSTALLED = any(entry.value in HERE for entry in entry_points(group="pytest11"))

FLOWS = """
import asyncio, math, pytest
from datetime import timedelta
from perdure import flow, step, delay, receive
from perdure.testing import Flows, Stuck

@step(name="reserve")
async def reserve(what: str) -> str:
    return what

@flow(name="order")
async def order(what: str) -> str:
    await reserve(what)
    await delay(timedelta(days=7))
    return f"{what} sent"
"""

PASSING = """
async def test_a_function(flows):
    assert await flows.run(order, "tea", id="o") == "tea sent"

@pytest.mark.parametrize("what", ["tea", "milk"])
async def test_a_function_with_parameters(tmp_path, what, flows):
    assert await flows.run(order, what, id=tmp_path.name) == f"{what} sent"

class TestMethods:
    @pytest.fixture
    def stubbed(self, flows):
        flows.stub(reserve, returns="")
        return flows

    async def test_a_method(self, stubbed, flows):
        assert stubbed is flows
        assert await flows.run(order, "tea", id="o") == "tea sent"

    @staticmethod
    async def test_a_static_method(flows):
        assert await flows.run(order, "tea", id="o") == "tea sent"

def test_one_that_has_nothing_to_do_with_it():
    pass
"""


def pytest_on(folder: Path, *sources: str, args: tuple[str, ...] = ()) -> tuple[str, int]:
    """What pytest says of a file of tests, warnings being errors; and how it ended."""
    (folder / "test_it.py").write_text("".join(textwrap.dedent(source) for source in sources), encoding="utf-8")
    (folder / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n", encoding="utf-8")
    ours = () if INSTALLED else ("-p", "pytest_perdure")
    if "no:asyncio" not in args:
        args = ("-o", "asyncio_default_fixture_loop_scope=function", *args)
    less = ("-p", "no:cacheprovider", "-p", "no:langsmith_plugin", "-p", "no:xdist")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-c", "pytest.ini", *ours, *less, *args, "test_it.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    return done.stdout + done.stderr, done.returncode


MODES = {
    "asyncio, auto": ("", ("-o", "asyncio_mode=auto", "-p", "no:anyio")),
    "asyncio, strict": ("pytestmark = pytest.mark.asyncio\n", ("-o", "asyncio_mode=strict", "-p", "no:anyio")),
    "asyncio, strict and not asked": ("", ("-o", "asyncio_mode=strict", "-p", "no:anyio")),
    "asyncio, one loop for all": (
        "pytestmark = pytest.mark.asyncio(loop_scope='module')\n",
        ("-o", "asyncio_mode=auto", "-p", "no:anyio"),
    ),
    "anyio": (
        "pytestmark = pytest.mark.anyio\n@pytest.fixture\ndef anyio_backend(): return 'asyncio'\n",
        ("-p", "no:asyncio"),
    ),
    "both": ("", ("-o", "asyncio_mode=auto")),
    "none": ("", ("-p", "no:asyncio", "-p", "no:anyio")),
}


@pytest.mark.parametrize("mode", MODES)
def test_it_goes_with_every_plugin_and_without(mode: str, tmp_path: Path) -> None:
    marks, args = MODES[mode]
    passing = PASSING
    if "strict" in mode or "one loop" in mode:  # a mark on a sync test is that plugin's warning
        passing = PASSING.partition("def test_one_that")[0]
    output, code = pytest_on(tmp_path, FLOWS, marks, passing, args=args)
    assert code == 0, output
    assert f"{6 if passing is PASSING else 5} passed" in output


def test_it_lives_in_the_loop_of_the_tests_other_fixtures(tmp_path: Path) -> None:
    source = """
    import pytest_asyncio

    @pytest_asyncio.fixture
    async def loop():
        yield asyncio.get_running_loop()

    async def test_it(flows, loop):
        assert asyncio.get_running_loop() is loop
        assert await flows.run(order, "tea", id="o") == "tea sent"
    """
    output, code = pytest_on(tmp_path, FLOWS, source, args=("-o", "asyncio_mode=auto"))
    assert code == 0, output


def test_a_fixture_of_ones_own_gives_flows_with_options(tmp_path: Path) -> None:
    source = """
    from perdure import Retry

    @pytest.fixture
    def flows():
        return Flows(retry=Retry(attempts=2))

    @pytest.fixture
    def others():
        return Flows()

    async def test_it(flows, others):
        attempts = []
        def fails(what):
            attempts.append(what)
            raise OSError
        flows.stub(reserve, fake=fails)
        with pytest.raises(Exception):
            await flows.run(order, "tea", id="o")
        assert len(attempts) == 2
        assert await others.run(order, "tea", id="o") == "tea sent"
    """
    output, code = pytest_on(tmp_path, FLOWS, source)
    assert code == 0, output


def test_a_failure_shows_what_the_flows_did(tmp_path: Path) -> None:
    source = """
    @flow(name="waiting")
    async def waiting():
        await receive(str)

    async def test_wrong_steps(flows):
        await flows.run(order, "tea", id="o-1")
        assert flows.steps("o-1") == ["reserve", "send"]

    async def test_wrong_steps_the_other_way_round(flows):
        await flows.run(order, "tea", id="o-2")
        assert ["charge"] == flows.steps("o-2")

    async def test_something_else(flows):
        flows.stub("chrage", returns=1)
        await flows.start(waiting, id="w")
        await flows.advance()
        raise LookupError("in the middle")

    async def test_stuck(flows):
        flows.patience = 0.05
        await flows.run(waiting, id="w")

    async def test_that_passes(flows):
        await flows.run(order, "nothing of this is shown", id="passes")
    """
    output, code = pytest_on(tmp_path, FLOWS, source, args=("-vv", "-o", "asyncio_mode=auto"))
    assert code == 1, output
    assert "4 failed, 1 passed" in output
    assert "E       AssertionError: assert steps ['reserve'] == ['reserve', 'send']" in output
    assert "- send is missing (index 1)" in output
    assert "- charge is missing (index 0)" in output
    assert "+ reserve was not expected (index 0)" in output
    assert "E           +7d 00:00:00  ✓ 1 timer" in output
    assert output.count("--- flows ---") == 4
    assert "stubs that no step has used: chrage" in output
    assert (
        f"… waits for receive str (0), at {tmp_path / 'test_it.py'}:" in output
    )  # and not of an engine that has ended
    assert "Stuck: waiting 'w' waits for receive str (0)" in output
    assert "nothing of this is shown" not in output
    assert "pytest_perdure.py" not in output, "the traceback begins with the test"


def test_a_sync_test_and_one_of_hypothesis_are_told_what_to_do(tmp_path: Path) -> None:
    source = """
    from hypothesis import given, settings, HealthCheck, strategies as some

    def test_sync(flows):
        raise AssertionError("it ran")

    @given(some.integers())
    @settings(suppress_health_check=list(HealthCheck))
    async def test_given(flows, n):
        raise AssertionError("it ran")
    """
    output, code = pytest_on(tmp_path, FLOWS, source, args=("-o", "asyncio_mode=auto"))
    assert code == 1, output
    assert "test_sync uses flows, and must be an async test: `async def test_sync(flows)`" in output
    assert "it ran" not in output.replace('AssertionError("it ran")', "")
    assert "2 failed" in output


def test_an_async_fixture_that_starts_flows_is_told_what_to_do(tmp_path: Path) -> None:
    source = """
    @pytest.fixture
    async def started(flows):
        return await flows.start(order, "tea", id="o")

    async def test_it(started):
        pass
    """
    output, code = pytest_on(tmp_path, FLOWS, source, args=("-o", "asyncio_mode=auto"))
    assert code == 1, output
    assert "the flows begin with the test itself: start, send and wait in the test, not in a fixture" in output


def test_whatever_is_under_way_a_failing_test_leaves_nothing(tmp_path: Path) -> None:
    source = """
    import gc, time

    @step
    async def stays():
        await asyncio.Event().wait()

    @step
    def blocks():
        time.sleep(0.1)

    @flow
    async def busy():
        await asyncio.gather(stays(), blocks())

    @flow
    async def swallows():
        while True:
            try:
                await delay(60)
            except asyncio.CancelledError:
                pass

    @pytest.mark.parametrize("n", range(2))
    async def test_fails(flows, n):
        await flows.start(busy, id="b")
        await flows.start(swallows, id="s")
        await asyncio.sleep(0.01)
        waiting = asyncio.create_task(flows.handle(busy, "b").result())
        await asyncio.sleep(0)
        raise LookupError("in the middle")

    def test_afterwards():
        gc.collect()
    """
    for args in (("-o", "asyncio_mode=auto"), ("-p", "no:asyncio")):
        output, code = pytest_on(tmp_path, FLOWS, source, args=args)
        assert code == 1, output
        assert "2 failed, 1 passed" in output, output
        assert "Warning" not in output
        assert "never retrieved" not in output
        assert "was destroyed" not in output


def test_who_does_not_use_it_does_not_pay_for_it(tmp_path: Path) -> None:
    source = """
    import sys

    def test_it():
        assert not [name for name in sys.modules if name.partition(".")[0] == "perdure"]
        assert "pytest_perdure" in sys.modules

    def test_a_failure():
        assert [1] == [2]
    """
    output, code = pytest_on(tmp_path, source)
    assert code == 1, output
    assert "1 failed, 1 passed" in output
