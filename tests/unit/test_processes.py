"""Of which processes it is known that they have ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from perdure.stores.processes import has_ended, this_process

TELL = "from perdure.stores.processes import this_process; print(this_process(), flush=True); input()"


@pytest.fixture
def other() -> subprocess.Popen[str]:
    """A process that has said which it is, and waits."""
    return subprocess.Popen([sys.executable, "-c", TELL], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_process_that_runs_or_is_stopped_has_not_ended(other: subprocess.Popen[str]) -> None:
    name = said(other)
    assert not has_ended(name)
    other.send_signal(signal.SIGSTOP)
    assert not has_ended(name)
    other.send_signal(signal.SIGCONT)
    other.communicate("")
    assert has_ended(name)
    assert not has_ended(this_process())


def test_a_process_that_was_killed_has_ended_before_anybody_has_waited_for_it(other: subprocess.Popen[str]) -> None:
    name = said(other)
    other.kill()
    os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)  # it is a zombie now
    assert has_ended(name)
    other.communicate()
    assert has_ended(name)


def test_a_pid_that_is_another_s_now_does_not_deceive() -> None:
    boot, namespace, pid, started = this_process().split(" ")
    assert has_ended(f"{boot} {namespace} {pid} {int(started) - 1}")


@pytest.mark.parametrize("part", [0, 1])
def test_nothing_is_said_of_other_machines_and_containers(other: subprocess.Popen[str], part: int) -> None:
    name = said(other).split(" ")
    other.communicate("")
    name[part] = "another"
    assert not has_ended(" ".join(name))


@pytest.mark.parametrize("name", ["", "x", "a b c d e", "a b -1 1", "a b c d"])
def test_nothing_is_said_of_what_is_no_process(name: str) -> None:
    assert not has_ended(name)
    boot, namespace, *_ = this_process().split(" ")
    assert not has_ended(f"{boot} {namespace} {name}")
