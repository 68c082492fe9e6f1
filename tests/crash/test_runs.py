"""As `test_crash`, for flows that go through several runs and for transactions on the flow's own database."""

from pathlib import Path

import pytest

from tests.crash import test_crash as crash
from tests.crash.cases import Case
from tests.crash.checks import Seen
from tests.crash.forks import Forks
from tests.crash.runs import RUN_CASES
from tests.crash.test_crash import plain as plain
from tests.support.faults import Mode

runs = pytest.mark.parametrize("case", RUN_CASES, ids=lambda case: case.name)

TWICE = ("runs", "runs-with-children", "transactions")
twice = pytest.mark.parametrize("case", [c for c in RUN_CASES if c.name in TWICE], ids=lambda case: case.name)


@pytest.mark.fault(1)
@pytest.mark.peer(28)
@runs
@pytest.mark.parametrize("mode", ["before", "after"])
def test_killed_at_any_store_call_it_ends_the_same(
    case: Case, mode: Mode, plain: Seen, first: Forks, second: Forks, ground: Path, tmp_path: Path
) -> None:
    crash.test_killed_at_any_store_call_it_ends_the_same(case, mode, plain, first, second, ground, tmp_path)


@runs
def test_a_call_that_is_done_and_reported_failed_changes_nothing(
    case: Case, plain: Seen, first: Forks, ground: Path, tmp_path: Path
) -> None:
    crash.test_a_call_that_is_done_and_reported_failed_changes_nothing(case, plain, first, ground, tmp_path)


@twice
@pytest.mark.parametrize("mode", ["before", "after", "failed", "unknown"])
def test_a_fault_at_any_store_call_of_the_recovery_changes_nothing(
    case: Case, mode: Mode, plain: Seen, first: Forks, second: Forks, ground: Path, tmp_path: Path
) -> None:
    crash.test_a_fault_at_any_store_call_of_the_recovery_changes_nothing(
        case, mode, plain, first, second, ground, tmp_path
    )
