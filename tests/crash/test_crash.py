"""A process is killed before and after each store call of each canonical flow; restarted, it ends as if nothing was.

A third way: the call is done and reported failed, and the same process goes on.
"""

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.crash.cases import CASES, Case
from tests.crash.checks import MAYBE, Seen, check_effects, check_end, see, untaken
from tests.crash.forks import Forks, Run
from tests.support.faults import Mode

MOST_CALLS = 150
Fault = tuple[int, Mode]

cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


class Scene:
    """Where one case is run until it has ended: a folder of its own, and what failed in it so far."""

    def __init__(self, folder: Path, case: Case) -> None:
        self.folder = folder
        self.case = case
        self.story: list[str] = []

    def run(self, forks: Forks, fault: Fault | None = None) -> Run:
        """A process has worked here, until the fault or the end."""
        n, mode = fault or (None, "before")
        run = forks.run(self.case, self.folder, n, mode)
        if run.fault is not None:
            self.story.append(f"{run.fault} (call {n})")
        if not run.killed:
            assert run.code == 0, run.log
            outcome = run.outcome
            assert outcome == self.case.expected or self.case.may_end(outcome), outcome
        return run


@contextmanager
def scene(folder: Path, case: Case, kept: Path) -> Generator[Scene]:
    """The folder is gone when all went well, else moved to where failures are kept."""
    folder.mkdir()
    scene = Scene(folder, case)
    try:
        yield scene
    except AssertionError as error:
        shutil.move(folder, kept / "failed")
        error.add_note(f"{case.name}: {', then '.join(scene.story) or 'no fault'}; the files are in {kept / 'failed'}")
        raise
    shutil.rmtree(folder)


@pytest.fixture
def plain(case: Case, first: Forks, ground: Path, tmp_path: Path) -> Seen:
    """The run without a fault."""
    with scene(ground / "plain", case, tmp_path) as it:
        assert it.run(first).outcome == case.expected
        seen = see(it.folder)
        check_end(seen, seen, same_journal=True)
        assert untaken(seen) == case.untaken
    return seen


@pytest.mark.fault(1)
@cases
@pytest.mark.parametrize("mode", ["before", "after"])
def test_killed_at_any_store_call_it_ends_the_same(
    case: Case, mode: Mode, plain: Seen, first: Forks, second: Forks, ground: Path, tmp_path: Path
) -> None:
    for n in range(1, MOST_CALLS):
        with scene(ground / f"{n}", case, tmp_path) as it:
            killed = it.run(first, (n, mode))
            if not killed.killed:
                return
            crash = see(it.folder)
            it.run(second)
            end = see(it.folder)
            check_end(end, plain, same_journal=case.same_journal)
            check_effects([crash], end, plain, parallel=case.parallel)
    pytest.fail(f"more than {MOST_CALLS} store calls")


@pytest.mark.fault(14)
@cases
def test_a_call_that_is_done_and_reported_failed_changes_nothing(
    case: Case, plain: Seen, first: Forks, ground: Path, tmp_path: Path
) -> None:
    usual = plain.done()
    for n in range(1, MOST_CALLS):
        with scene(ground / f"{n}", case, tmp_path) as it:
            run = it.run(first, (n, "failed"))
            end = see(it.folder)
            check_end(end, plain, same_journal=True)
            twice = {what for what, count in end.done().items() if count > usual[what] and not what.startswith(MAYBE)}
            assert not twice, f"these happened more than once: {twice}"
            assert run.outcome == case.expected
        if run.fault is None:
            return
    pytest.fail(f"more than {MOST_CALLS} store calls")


TWICE = ("children", "cancellation", "timers")
MIDDLE = 11
twice = pytest.mark.parametrize("case", [c for c in CASES if c.name in TWICE], ids=lambda case: case.name)


@twice
@pytest.mark.parametrize("mode", ["before", "after", "failed", "unknown"])
def test_a_fault_at_any_store_call_of_the_recovery_changes_nothing(
    case: Case, mode: Mode, plain: Seen, first: Forks, second: Forks, ground: Path, tmp_path: Path
) -> None:
    """Killed in the middle of the run, then hit again: while it joins, takes over, claims, replays."""
    for m in range(1, MOST_CALLS):
        with scene(ground / f"{m}", case, tmp_path) as it:
            if not fails_twice(it, (MIDDLE, "after"), (m, mode), plain, first, second):
                return
    pytest.fail(f"more than {MOST_CALLS} store calls")


@pytest.mark.fault(1)
@twice
@pytest.mark.parametrize("mode", ["before", "after"])
@pytest.mark.parametrize(("n", "m"), [(6, 8), (8, 4), (9, 7), (13, 12), (15, 5)])
def test_killed_twice_it_ends_the_same(
    case: Case, n: int, m: int, mode: Mode, plain: Seen, first: Forks, second: Forks, ground: Path, tmp_path: Path
) -> None:
    with scene(ground / "it", case, tmp_path) as it:
        fails_twice(it, (n, mode), (m, "before"), plain, first, second)


def fails_twice(it: Scene, one: Fault, two: Fault, plain: Seen, first: Forks, second: Forks) -> bool:
    """It ended as if nothing was. Gives whether the second fault happened."""
    it.run(first, one)
    crashes = [see(it.folder)]
    again = it.run(second, two)
    if again.killed:
        crashes.append(see(it.folder))
        it.run(first)
    end = see(it.folder)
    check_end(end, plain, same_journal=it.case.same_journal)
    check_effects(crashes, end, plain, parallel=it.case.parallel)
    return again.fault is not None
