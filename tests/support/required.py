"""What tests need of the machine: who lacks it is skipped, the end of the run names it, and where it is required it fails.

`PERDURE_TEST_REQUIRE` set to anything: no test may skip because something is missing. Set to names of services: on each
of them at least one test must have run, too.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NoReturn

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable

SERVICES = ("postgresql", "mysql", "pgbouncer")
"""Services by their names; a test uses one if it has a fixture of that name."""

_NOT_HERE = "not tested here: "
_USED, _LACKED = "service used", "service lacked"


def not_here(what: str, why: str) -> NoReturn:
    """The test is skipped: what it needs is not on this machine."""
    pytest.skip(f"{_NOT_HERE}{what} ({why})")


def named() -> set[str]:
    """The services on which tests must run.

    Raises:
        pytest.UsageError: there is no service of a name.
    """
    text = os.environ.get("PERDURE_TEST_REQUIRE", "")
    found = {name.strip() for name in text.split(",")} - {"", "1"}
    if unknown := found - set(SERVICES):
        raise pytest.UsageError(
            f"PERDURE_TEST_REQUIRE={text}: there is no service {', '.join(sorted(unknown))}; name some of "
            f"{', '.join(SERVICES)}, or say 1 for none in particular"
        )
    return found


def noted(item: pytest.Item, report: pytest.TestReport) -> pytest.TestReport:
    """The report says what the test has used or lacked; lacking it is a failure where that is required."""
    if not report.skipped:
        if report.when == "call":
            report.user_properties.extend(
                (_USED, name) for name in SERVICES if name in getattr(item, "fixturenames", ())
            )
        return report
    said = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if _NOT_HERE in said:
        line = said[said.index(_NOT_HERE) :]
        report.user_properties.append((_LACKED, line))
        report.longrepr = (__file__, 0, line)  # of one place, so that pytest tells it once and not for each test
    of_no_use = "declares no" in said  # what a store says that it cannot do is no missing service
    if os.environ.get("PERDURE_TEST_REQUIRE") and not hasattr(report, "wasxfail") and not of_no_use:
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, and PERDURE_TEST_REQUIRE is set: {said}"
    return report


def used(reports: Iterable[object]) -> set[str]:
    """The services that tests have run on."""
    return set(_told(reports, _USED))


def lacked(reports: Iterable[object]) -> list[str]:
    """What was not here, and why: a line for each."""
    return sorted(set(_told(reports, _LACKED)))


def _told(reports: Iterable[object], what: str) -> list[str]:
    found = (pair for report in reports if isinstance(report, pytest.TestReport) for pair in report.user_properties)
    return [str(value) for name, value in found if name == what]
