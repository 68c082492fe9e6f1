"""The soak itself, five hundred programs of it; and that it would notice what may go wrong."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from perdure import Engine
from tests.servers.own import need_binaries
from tests.servers.processes import ROOT
from tests.soak import checks, ledger
from tests.soak.faults import plan
from tests.soak.ledger import Ledger
from tests.soak.making import Effect, Maker, Round, fits, unfitting
from tests.soak.programs import COMMANDS
from tests.soak.round import Setting, played
from tests.soak.soaking import Options, prepared, soak, table

needs_postgres = pytest.mark.usefixtures("binaries")


@pytest.fixture
def binaries() -> None:
    need_binaries()


@needs_postgres
@pytest.mark.timeout(240)
async def test_five_hundred_programs_end_as_foretold_whatever_dies() -> None:
    said: list[str] = []
    report = await soak(Options(programs=500, per_round=170, at_once=170, seed=500), said.append)
    assert not report.wrong, "\n".join(said)
    assert report.programs == 500, table(report)
    assert {"kill", "stop", "drain", "fast"} <= set(report.faults), table(report)
    assert set(COMMANDS) == set(report.kinds)


async def test_it_runs_on_a_file_too(tmp_path: Path) -> None:
    said: list[str] = []
    options = Options(
        programs=20, at_once=20, seed=20, url=f"sqlite:///{tmp_path}/soak.db", faults="processes", lease=2.0
    )
    report = await soak(options, said.append)
    assert not report.wrong, "\n".join(said)


async def test_what_goes_on_no_more_is_noticed_and_shown(tmp_path: Path) -> None:
    """No replica runs the programs."""
    url = f"sqlite:///{tmp_path}/soak.db"
    await prepared(url)
    report = await played(
        Setting(
            seed="1", prefix="stuck.", mode="none", programs=2, at_once=2, url=url, server=None, folder=tmp_path / "round",
            replicas=0, calm_s=0.5, stuck_s=0.5,
        )
    )  # fmt: skip
    (told,) = report.wrong
    assert told.startswith("Stuck: nothing has gone on for 0.5 s without faults; 2 instances have not ended")
    assert "soak.walk 'stuck.p0'" in told


async def test_the_client_is_told_of_no_instance_that_is_not_there(tmp_path: Path) -> None:
    async with Engine(f"sqlite:///{tmp_path}/soak.db", execute=False) as client:
        known = Ledger(tmp_path / "ledger")
        assert await checks.journals(client, known, "r0.") == (0, [])


@pytest.fixture
def place() -> Iterator[str]:
    """A folder for the server, which may be another user's, with a short path: its socket is in it."""
    with tempfile.TemporaryDirectory(prefix="soak") as folder:
        Path(folder).chmod(0o755)
        yield folder


@needs_postgres
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's end")
def test_no_process_outlives_a_soak_that_is_killed(tmp_path: Path, place: str) -> None:
    with (tmp_path / "out").open("w") as out:
        soaking = subprocess.Popen(
            [sys.executable, "-m", "tests.soak", "--programs", "50"], cwd=ROOT, stdout=out, stderr=out,
            env=os.environ | {"TMPDIR": place},
        )  # fmt: skip
    try:
        eventually(lambda: len(children(soaking.pid)) == 4)  # the server and three replicas
        all_of_them = children(soaking.pid)
    finally:
        soaking.kill()
        soaking.wait()
    eventually(lambda: not any(map(runs, all_of_them)))


def children(pid: int) -> list[int]:
    found = Path("/proc").glob("[0-9]*/stat")
    return [int(path.parent.name) for path in found if _stat(path)[1:2] == [str(pid)]]


def runs(pid: int) -> bool:
    """Whether it has not ended; whether anybody has asked how is another matter."""
    return _stat(Path(f"/proc/{pid}/stat"))[:1] not in ([], ["Z"])


def _stat(path: Path) -> list[str]:
    """State, parent and so on; nothing if the process is gone."""
    try:
        return path.read_text().rpartition(")")[2].split()
    except OSError:
        return []


def eventually(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.05)


# ---------------------------------------------------------------- functions of the seed


def test_programs_and_faults_are_functions_of_the_seed() -> None:
    def made(seed: str) -> Round:
        return Maker(seed, "r0.", programs=50, transactions=True).made()

    def faults(seed: str) -> list[object]:
        return list(itertools.islice(plan(seed, "everything", replicas=3, lease=2.0, server=True), 100))

    assert made("1/0") == made("1/0") != made("1/1")
    assert faults("1/0") == faults("1/0") != faults("1/1")


def test_without_a_server_of_its_own_only_processes_are_hit() -> None:
    found = itertools.islice(plan("1", "everything", replicas=3, lease=2.0, server=False), 200)
    assert {fault.kind for fault in found} == {"kill", "stop", "drain"}
    assert list(plan("1", "database", replicas=3, lease=2.0, server=False)) == []


# ---------------------------------------------------------------- what must be noticed


class Ran:
    """A ledger in which steps are noted by hand."""

    def __init__(self, folder: Path) -> None:
        self.ledger = Ledger(folder / "ledger")
        self.made = Round([], {}, {}, {}, {}, {}, {})  # type: ignore[arg-type]
        ledger.write_to(self.ledger.path)

    def wrong(self, effect: Effect) -> str:
        self.ledger.read()
        self.made.effects["r0.p0/1"] = effect
        return "; ".join(checks.effects(self.made, self.ledger, "r0.", set()))


@pytest.fixture
def ran(tmp_path: Path) -> Ran:
    return Ran(tmp_path)


def test_a_step_that_ran_twice_under_one_key_is_right(ran: Ran) -> None:
    ledger.note("r0.p0/1", "key", 1, "x")
    ledger.note("r0.p0/1", "key", 1, "x")
    assert ran.wrong(Effect("work", sure=True)) == ""


def test_a_step_under_two_keys_is_wrong(ran: Ran) -> None:
    ledger.note("r0.p0/1", "key", 1, "x")
    ledger.note("r0.p0/1", "another", 1, "x")
    assert ran.wrong(Effect("work", sure=False)) == "work at r0.p0/1: it ran as 2 operations: key, another"


def test_a_lost_step_is_wrong_where_it_is_sure(ran: Ran) -> None:
    assert ran.wrong(Effect("work", sure=True)) == "work at r0.p0/1: it did not run"
    assert ran.wrong(Effect("work", sure=False)) == ""


def test_an_at_most_once_step_that_ran_twice_is_wrong(ran: Ran) -> None:
    ledger.note("r0.p0/1", "key", 1, "")
    assert ran.wrong(Effect("once", sure=True)) == ""
    ledger.note("r0.p0/1", "key", 1, "")
    assert ran.wrong(Effect("once", sure=True)) == "once at r0.p0/1: an at-most-once step ran 2 times"


def test_other_arguments_under_one_key_are_wrong(ran: Ran) -> None:
    ledger.note("r0.p0/1", "key", 1, "x")
    ledger.note("r0.p0/1", "key", 1, "y")
    assert "one operation ran with different arguments" in ran.wrong(Effect("draw", sure=True))


def test_attempts_that_were_left_out_are_wrong(ran: Ran) -> None:
    ledger.note("r0.p0/1", "key", 1, "")
    ledger.note("r0.p0/1", "key", 3, "")
    wrong = ran.wrong(Effect("flaky", sure=True, attempts={1, 2, 3}))
    assert wrong == "flaky at r0.p0/1: its attempts were [1, 3], not [1, 2, 3]"


def test_a_step_of_no_program_is_wrong(ran: Ran) -> None:
    ledger.note("r0.p0/1", "key", 1, "")
    ledger.note("r0.p0/2", "key 2", 1, "")
    assert "r0.p0/2: a step ran that is in no program" in ran.wrong(Effect("work", sure=True))


@pytest.mark.parametrize("rows", [[], [("r0.p0/1", 5), ("r0.p0/1", 5)], [("r0.p0/1", 6)]])
def test_a_transaction_that_was_made_twice_or_not_is_wrong(ran: Ran, rows: list[tuple[str, int]]) -> None:
    ran.made.rows["r0.p0/1"] = (5, True)
    assert list(checks.written(ran.made, [("r0.p0/1", 5)])) == []
    assert len(list(checks.written(ran.made, rows))) == 1


def test_other_outcomes_than_foretold_are_wrong() -> None:
    node = {"do": "race", "at": "a/1", "parts": [{"do": "receive", "value": 3}, {"do": "delay"}]}
    assert fits(node, [0, 3])
    assert fits(node, [1, "late enough"])
    assert not fits(node, [0, 4])
    assert list(unfitting([node], [])) == [({"do": "all of it", "commands": 1}, [])]
