"""For all tests: what they lack on this machine is told at the end, and is a failure with PERDURE_TEST_REQUIRE set."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from tests.support import required


def pytest_configure(config: pytest.Config) -> None:
    """A service that is not known is told before any test runs."""
    required.named()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """See pytest."""
    return required.noted(item, (yield))


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """The run has failed if no test ran on a service that must be tested."""
    if session.exitstatus == pytest.ExitCode.OK and _untested(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Generator[None]:
    """The last lines say what could not be tested."""
    yield
    for line in required.lacked(_reports(terminalreporter.config)):
        terminalreporter.write_line(line, yellow=True)
    for name in _untested(terminalreporter.config):
        terminalreporter.write_line(f"PERDURE_TEST_REQUIRE names {name}, and no test ran on it", red=True)


def _untested(config: pytest.Config) -> list[str]:
    """The services that must be tested, and no test ran on them. A worker cannot say: it has a part of the tests."""
    if hasattr(config, "workerinput") or config.option.collectonly:
        return []
    return sorted(required.named() - required.used(_reports(config)))


def _reports(config: pytest.Config) -> list[object]:
    reporter: pytest.TerminalReporter | None = config.pluginmanager.get_plugin("terminalreporter")
    return [report for reports in reporter.stats.values() for report in reports] if reporter else []
