"""A process is killed before and after each store call of each canonical flow; restarted, it ends as if nothing had been.

A third way: the call is done and reported failed, and the same process goes on.
"""

import shutil
from pathlib import Path

import pytest

from tests.crash.cases import CASES, Case
from tests.crash.checks import Seen, check_effects, check_end, see
from tests.crash.forks import Forks, Run

MOST_CALLS = 150

cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


class Place:
    """Where one crash happens: a folder of its own, removed when all is well."""

    def __init__(self, folder: Path, case: Case) -> None:
        self.folder = folder
        self.case = case
        folder.mkdir()

    def done(self, run: Run) -> None:
        assert run.code == 0, run.log
        outcome = run.outcome
        assert outcome == self.case.expected or self.case.may_end(outcome), outcome

    def remove(self) -> None:
        shutil.rmtree(self.folder)


@pytest.fixture
def plain(case: Case, first: Forks, tmp_path: Path) -> Seen:
    """The run without a crash."""
    place = Place(tmp_path / "plain", case)
    run = first.run(case, place.folder)
    place.done(run)
    assert run.outcome == case.expected
    seen = see(place.folder)
    check_end(seen, seen, same_journal=True)
    place.remove()
    return seen


@cases
@pytest.mark.parametrize("mode", ["before", "after"])
def test_killed_at_any_store_call_it_ends_the_same(
    case: Case, mode: str, plain: Seen, first: Forks, second: Forks, tmp_path: Path
) -> None:
    for n in range(1, MOST_CALLS):
        place = Place(tmp_path / f"{n}", case)
        killed = first.run(case, place.folder, n, mode)
        assert killed.killed == (killed.fault is not None), killed.log
        if not killed.killed:
            place.done(killed)
            place.remove()
            return
        crash = see(place.folder)
        try:
            place.done(second.run(case, place.folder))
            end = see(place.folder)
            check_end(end, plain, same_journal=case.same_journal)
            check_effects([crash], end, plain)
        except AssertionError as error:
            error.add_note(f"killed {killed.fault} (store call {n}); the files are in {place.folder}")
            raise
        place.remove()
    pytest.fail(f"more than {MOST_CALLS} store calls")


@cases
def test_a_call_that_is_done_and_reported_failed_changes_nothing(
    case: Case, plain: Seen, first: Forks, tmp_path: Path
) -> None:
    for n in range(1, MOST_CALLS):
        place = Place(tmp_path / f"{n}", case)
        run = first.run(case, place.folder, n, "failed")
        try:
            place.done(run)
            end = see(place.folder)
            check_end(end, plain, same_journal=case.same_journal)
            usual, done = plain.done(), end.done()
            twice = {label: count for label, count in done.items() if count > usual[label] and not label.startswith("maybe ")}
            assert not twice, f"these happened more than once: {twice}"
        except AssertionError as error:
            error.add_note(f"{run.fault} (store call {n}); the files are in {place.folder}")
            raise
        place.remove()
        if run.fault is None:
            return
    pytest.fail(f"more than {MOST_CALLS} store calls")


@pytest.mark.parametrize("case", [c for c in CASES if c.name in ("fan-out", "children", "cancellation")], ids=lambda c: c.name)
def test_killed_twice_it_ends_the_same(case: Case, plain: Seen, first: Forks, second: Forks, tmp_path: Path) -> None:
    """The second kill hits the recovery from the first: its joining, taking over, claiming, replaying."""
    pairs = [(n, m, mode) for n in (8, 12, 17) for m, mode in ((3, "after"), (4, "after"), (6, "after"), (7, "before"), (9, "after"), (13, "before"))]
    for n, m, mode in pairs:
        place = Place(tmp_path / f"{n}-{m}-{mode}", case)
        crashes: list[Seen] = []
        faults: list[str | None] = []
        for forks, at in ((first, n), (second, m)):
            run = forks.run(case, place.folder, at, mode)
            faults.append(run.fault)
            if not run.killed:
                place.done(run)
            crashes.append(see(place.folder))
        try:
            place.done(first.run(case, place.folder))
            end = see(place.folder)
            check_end(end, plain, same_journal=case.same_journal)
            check_effects(crashes, end, plain)
        except AssertionError as error:
            error.add_note(f"killed {' and '.join(str(f) for f in faults)} (store calls {n} and {m}); the files are in {place.folder}")
            raise
        place.remove()
