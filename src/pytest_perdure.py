"""The pytest plugin: the fixture `flows`, and what a failing test shows of it.

pytest imports this file in every run of whoever has Perdure installed. So it lies outside the package, and imports that
only where a test uses the fixture.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Awaitable, Callable, Generator
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from perdure.testing.flows import Flows, Steps

_FLOWS: Final = "perdure.testing.flows"
_STORY: Final = pytest.StashKey[str]()
_TITLE: Final = "flows"


@pytest.fixture
def flows() -> Flows:
    """Runs flows in memory, in a time that skips to the next timer while the test waits; the test must be `async`."""
    from perdure.testing.flows import Flows

    return Flows()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """The test runs while its `flows` do: they live in the test's own loop, whoever makes that."""
    used = _used_by(item)
    if not used or not isinstance(item, pytest.Function):
        return (yield)
    test = item.obj
    if not inspect.iscoroutinefunction(test):
        pytest.fail(
            f"{item.name} uses flows, and must be an async test: `async def {item.name}(flows)`; a test that hypothesis calls many "
            "times makes them itself: `async with Flows() as flows`",
            pytrace=False,
        )
    item.obj = _within(test, used, item)
    try:
        return (yield)
    finally:
        item.obj = test


@pytest.hookimpl
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> object | None:
    """An async test that uses flows runs, also if no plugin for async tests takes it."""
    if not _used_by(pyfuncitem) or not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    import asyncio

    names = pyfuncitem._fixtureinfo.argnames  # pyright: ignore[reportPrivateUsage]  # noqa: SLF001
    with asyncio.Runner() as runner:
        runner.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test's report tells what had happened to its instances."""
    report = yield
    story = item.stash.get(_STORY, "")
    if report.failed and report.when == "call" and story and _TITLE not in dict(report.sections):
        report.sections.append((_TITLE, story))
    return report


def pytest_assertrepr_compare(op: str, left: object, right: object) -> list[str] | None:
    """Where the steps that ran and the expected ones differ, and the timeline of the instance."""
    if op != "==" or _FLOWS not in sys.modules:
        return None
    from perdure.testing.flows import Steps

    steps, other = (left, right) if isinstance(left, Steps) else (right, left)
    if not isinstance(steps, Steps):
        return None
    return [f"steps {list(steps)!r} == {other!r}", *_differences(steps, other), *steps.timeline()]


def _differences(steps: Steps, expected: object) -> list[str]:
    if not isinstance(expected, list):
        return []
    from difflib import SequenceMatcher

    wanted = [str(name) for name in expected]  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    lines: list[str] = []
    for tag, a, b, c, d in SequenceMatcher(None, wanted, steps, autojunk=False).get_opcodes():
        if tag != "equal":
            lines += [f"- {name} is missing (index {a + i})" for i, name in enumerate(wanted[a:b])]
            lines += [f"+ {name} was not expected (index {c + i})" for i, name in enumerate(steps[c:d])]
    return lines


def _used_by(item: pytest.Item) -> list[Flows]:
    if _FLOWS not in sys.modules:
        return []
    from perdure.testing.flows import Flows

    found = {id(value): value for value in getattr(item, "funcargs", {}).values() if isinstance(value, Flows)}
    return list(found.values())


def _within(test: Callable[..., Awaitable[Any]], used: list[Flows], item: pytest.Item) -> Callable[..., Awaitable[Any]]:
    """The test, with all these flows running meanwhile."""

    @functools.wraps(test)
    async def within(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        async with AsyncExitStack() as stack:
            for flows in used:
                await stack.enter_async_context(flows)
            try:
                return await test(*args, **kwargs)
            except BaseException:
                stories = [flows.timelines() for flows in used]  # before they end: what each instance waits for
                item.stash[_STORY] = "\n\n".join(filter(None, stories))
                raise

    return within
