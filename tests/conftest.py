"""For all tests: with PERDURE_TEST_REQUIRE set, a test that skips because something is missing fails instead."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What is missing is an error where everything is required (as in CI)."""
    report = yield
    of_no_use = "declares no" in str(report.longrepr)  # what a store says that it cannot do is no missing service
    if report.skipped and os.environ.get("PERDURE_TEST_REQUIRE") and not hasattr(report, "wasxfail") and not of_no_use:
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, and PERDURE_TEST_REQUIRE is set: {report.longrepr}"
    return report
