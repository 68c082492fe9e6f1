"""A process that edits an instance is killed before and after each store call: the edit is whole or not there.

Then the edit is made again by whoever wanted it, or it is not; nothing is stuck either way.
"""

import asyncio
import shutil
from collections import Counter
from pathlib import Path

import pytest

from perdure import Engine
from tests.crash.cases import Case
from tests.crash.checks import Seen, check_end, see
from tests.crash.edits import EDITS, ONLY_EDITS, Edit, until_suspended, waiting
from tests.crash.flows import LEDGER, Note
from tests.crash.forks import Forks, Run
from tests.support.faults import Mode

MOST_CALLS = 150
EDITED, UNEDITED = EDITS[0].edited, EDITS[0].unedited

edits = pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.name)


class Plain:
    """An edit without a fault: what was there before it, and what comes of it if it is made and if it is not."""

    def __init__(self, edit: Edit, forks: Forks, ground: Path) -> None:
        self.before = ground / "before"
        self.before.mkdir()
        if edit.prepare is not None:
            went(forks.run(edit.case("prepare"), self.before))
        self.edited = self._end(edit, edit.case("again"), edit.edited, forks, ground)
        self.unedited = self._end(edit, edit.case("alone"), edit.unedited, forks, ground)

    def _end(self, edit: Edit, case: Case, expected: object, forks: Forks, ground: Path) -> Seen:
        folder = ground / case.name.replace("/", "-")
        shutil.copytree(self.before, folder)
        assert went(forks.run(case, folder)).outcome == expected
        end = see(folder)
        check_end(end, end, same_journal=True)
        shutil.rmtree(folder)
        return end


def went(run: Run) -> Run:
    """It was not killed, and nothing went wrong."""
    assert not run.killed, run.log
    assert run.code == 0, run.log
    return run


@pytest.fixture
def plain(edit: Edit, first: Forks, ground: Path) -> Plain:
    return Plain(edit, first, ground)


def check(edit: Edit, run: Run, folder: Path, plain: Plain, crash: Seen | None, *, whole: bool) -> None:
    """All is as after the edit, or, unless it must be `whole`, as if nobody had thought of it."""
    outcome, end = run.outcome, see(folder)
    if whole:
        assert outcome == edit.edited
    assert outcome in (edit.edited, edit.unedited)
    usual = plain.edited if outcome == edit.edited else plain.unedited
    check_end(end, usual, same_journal=True)
    done = end.done()
    for label, count in usual.done().items():
        more = 0 if crash is None else 1  # what was cut off runs again
        assert count <= done[label] <= count + more, f"{label} ran {done[label]} times, {count} are usual"
    for key, count in end.effects.items():
        if crash is not None and key in crash.recorded and end.labels[key] not in edit.again:
            assert count == crash.effects[key], f"{end.labels[key]} was recorded and ran again"


@pytest.mark.fault(1)
@edits
@pytest.mark.parametrize("mode", ["before", "after"])
def test_killed_at_any_store_call_the_edit_is_whole_or_not_there(
    edit: Edit, mode: Mode, plain: Plain, first: Forks, second: Forks, ground: Path, tmp_path: Path
) -> None:
    for n in range(1, MOST_CALLS):
        folder, other = ground / f"{n}", ground / f"{n}-alone"
        shutil.copytree(plain.before, folder)
        killed = first.run(edit.case("again"), folder, n, mode)
        if not killed.killed:
            return
        shutil.copytree(folder, other)
        crash = see(folder)
        try:
            check(edit, went(second.run(edit.case("again"), folder)), folder, plain, crash, whole=True)
            check(edit, went(second.run(edit.case("alone"), other)), other, plain, crash, whole=False)
        except AssertionError as error:
            shutil.copytree(ground, tmp_path / "failed")
            error.add_note(f"{edit.name}: {killed.fault} (call {n}); the files are in {tmp_path / 'failed'}")
            raise
        shutil.rmtree(folder)
        shutil.rmtree(other)
    pytest.fail(f"more than {MOST_CALLS} store calls")


@edits
@pytest.mark.parametrize("again", [True, False])
@pytest.mark.parametrize("mode", ["failed", "unknown"])
def test_a_call_that_is_done_and_reported_failed_leaves_the_edit_whole_or_not_there(
    edit: Edit, mode: Mode, again: bool, plain: Plain, first: Forks, ground: Path, tmp_path: Path
) -> None:
    for n in range(1, MOST_CALLS):
        folder = ground / f"{n}"
        shutil.copytree(plain.before, folder)
        run = first.run(edit.case("again" if again else "once"), folder, n, mode)
        try:
            check(edit, went(run), folder, plain, None, whole=again)
        except AssertionError as error:
            shutil.copytree(ground, tmp_path / "failed")
            error.add_note(f"{edit.name}: {run.fault} (call {n}); the files are in {tmp_path / 'failed'}")
            raise
        shutil.rmtree(folder)
        if run.fault is None:
            return
    pytest.fail(f"more than {MOST_CALLS} store calls")


@pytest.mark.parametrize("mode", ["before", "after"])
async def test_if_only_the_editor_is_killed_who_ran_the_instance_goes_on(
    mode: Mode, first: Forks, ground: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The instance may be the dead editor's own just then."""
    outcomes: list[object] = []
    for n in range(1, MOST_CALLS):
        folder = ground / f"{n}"
        folder.mkdir()
        monkeypatch.setenv(LEDGER, str(folder / "ledger"))
        async with Engine(f"sqlite:///{folder}/flows.db", flows=[waiting]) as engine:
            handle = await engine.start(waiting, "ann", id="it")
            await until_suspended(engine, (waiting, "it"))
            killed = await asyncio.to_thread(first.run, ONLY_EDITS, folder, n, mode)
            await handle.send(Note("go on"))
            outcomes.append(await handle.result(timeout=20))
        async with Engine(f"sqlite:///{folder}/flows.db"):
            pass  # who comes next clears up after the dead
        end = see(folder)
        assert not any(end.left.values()), f"rows are left over after {killed.fault}: {end.left}"
        assert end.done() == Counter(a=2 if outcomes[-1] == EDITED else 1, b=1)
        if not killed.killed:
            break
    assert outcomes[-1] == EDITED
    assert [outcome == EDITED for outcome in outcomes] == sorted(outcome == EDITED for outcome in outcomes)
    assert outcomes.count(UNEDITED) == len(outcomes) - outcomes.count(EDITED) > 5
