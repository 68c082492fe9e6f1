"""A process that has imported everything and started nothing; each run is a fork of it, which costs milliseconds.

As a program it is that process: a request per line on stdin, the end of the run per line on stdout. `Forks` is the
other side.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import json
import os
import subprocess
import sys
import traceback
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from perdure import Engine, StoreUnavailable
from perdure.errors import CommitUnknown
from perdure.stores.sqlite import SqliteStore
from tests.crash.cases import CASES, Case, Session
from tests.crash.edits import EDIT_CASES
from tests.crash.flows import LEDGER
from tests.crash.runs import RUN_CASES
from tests.support.faults import Faults, Mode, faulty

ROOT = Path(__file__).parents[2]
FAILURES = (StoreUnavailable, CommitUnknown)
HANGS = 20.0
"""A run that takes so many seconds is ended, with its stacks in the log."""


class Run:
    """How one forked process ended."""

    def __init__(self, folder: Path, number: int, status: int) -> None:
        self.killed = os.WIFSIGNALED(status)
        self.code = os.waitstatus_to_exitcode(status)
        self._files = {name: folder / f"{number}.{name}" for name in ("fault", "outcome", "log")}
        self.fault = self._read("fault") or None
        """Which call failed, and how; None: the run had no such call."""

    def _read(self, name: str) -> str:
        file = self._files[name]
        return file.read_text() if file.exists() else ""

    @property
    def outcome(self) -> Any:
        """What the drive returned."""
        return json.loads(self._read("outcome"))

    @property
    def log(self) -> str:
        return self._read("log")


class Forks:
    """The process whose forks are the runs, with its own hash seed."""

    def __init__(self, seed: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.forks"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONHASHSEED": str(seed)},
        )

    def run(self, case: Case, folder: Path, n: int | None = None, mode: Mode = "before") -> Run:
        """The case was driven in a process of its own, over the database in the folder, until it was killed or done."""
        number = len(list(folder.glob("*.log")))
        request = {"case": case.name, "folder": str(folder), "number": number, "n": n, "mode": mode}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the process that forks is gone"
        return Run(folder, number, int(line))

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


# ---------------------------------------------------------------- the forked process


async def _drive(case: Case, path: str, faults: Faults) -> Any:
    @asynccontextmanager
    async def client() -> AsyncGenerator[Engine]:
        async with Engine(faulty(SqliteStore(path), faults), execute=False) as engine:
            yield engine

    async def once() -> Any:
        async with Engine(faulty(SqliteStore(path), faults), flows=case.flows, **case.options) as engine:
            session = Session(engine, path, client)
            try:
                return await case.drive(session)
            except FAILURES:  # told to the caller, who does it again
                if faults.happened is None:
                    raise
                return await case.drive(session)

    try:
        return await once()
    except FAILURES:  # the engine could not be entered
        if faults.happened is None:
            raise
        return await once()


def _child(request: dict[str, Any]) -> None:
    folder = Path(request["folder"])
    prefix = f"{folder}/{request['number']}"
    log = os.open(prefix + ".log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    faulthandler.dump_traceback_later(HANGS, exit=True, file=2)
    os.environ[LEDGER] = str(folder / "ledger")
    case = next(case for case in [*CASES, *EDIT_CASES, *RUN_CASES] if case.name == request["case"])
    faults = Faults(request["n"], request["mode"], tell=Path(prefix + ".fault").write_text)
    outcome = asyncio.run(_drive(case, str(folder / "flows.db"), faults))
    Path(prefix + ".outcome").write_text(json.dumps(outcome))


def _serve() -> None:
    gc.freeze()
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            try:
                _child(json.loads(line))
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
                os._exit(1)
            os._exit(0)
        print(os.waitpid(pid, 0)[1], flush=True)


if __name__ == "__main__":
    _serve()
