"""A process that has imported the libraries and started nothing; each life of an engine is a fork of it."""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from perdure import Engine, State
from perdure.model.records import Entry
from perdure.model.writes import Answer, Batch, Created
from perdure.stores.sqlite import SqliteStore
from tests.support.world import eventually

ROOT = Path(__file__).parents[2]
HANGS = 20.0


class Forks:
    """The process whose forks are the lives, with a hash seed of its own."""

    def __init__(self, seed: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.libraries.forks"], cwd=ROOT, text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, env=os.environ | {"PYTHONHASHSEED": str(seed)},
        )  # fmt: skip

    def live(self, folder: Path, program: str, *, kill_after: int | None = None, ends: bool = True) -> list[str] | None:
        """The result of the flow; None if the process was killed.

        `kill_after`: so many entries are on disk. `ends` False: the flow does not get its last message, and the process
        is killed when the flow waits for that.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None  # noqa: PT018
        request = {"folder": str(folder), "program": program, "kill_after": kill_after, "ends": ends}
        stdin.write(json.dumps(request) + "\n")
        stdin.flush()
        status = int(stdout.readline())
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            return None
        assert status == 0, (folder / "log").read_text()
        return json.loads((folder / "result").read_text())

    def close(self) -> None:
        """The process has ended."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None  # noqa: PT018
        stdin.close()
        self._process.wait(10)
        stdout.close()


class MortalStore(SqliteStore):
    """Kills the process when so many entries are on disk."""

    def __init__(self, path: Path, kill_after: int | None) -> None:
        super().__init__(path)
        self._left = kill_after

    async def commit(self, batch: Batch) -> list[Answer]:
        answers = await super().commit(batch)
        if self._left is not None:
            self._left -= sum(isinstance(write, Entry) for write in batch.writes)
            self._left -= sum(isinstance(answer, Created) for answer in answers)  # each with its first entry
            if self._left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return answers


def _programs() -> ModuleType:
    """The flows; imported only by the process that forks, since the libraries are large."""
    return importlib.import_module("tests.libraries.programs")


async def _live(request: dict[str, Any]) -> list[str]:
    folder = Path(request["folder"])
    program = _programs().PROGRAMS[request["program"]]
    async with Engine(MortalStore(folder / "flows.db", request["kill_after"]), flows=[program]) as engine:
        handle = await engine.start(program, "cats", id="one")
        if not request["ends"]:
            await eventually(handle.state, lambda state: state is not State.RUNNING)
            os.kill(os.getpid(), signal.SIGKILL)
        await handle.send("the end", key="end")
        return await handle.result(timeout=HANGS)


def _child(request: dict[str, Any]) -> None:
    folder = Path(request["folder"])
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    faulthandler.dump_traceback_later(HANGS, exit=True)
    os.environ[_programs().LEDGER] = str(folder / "ledger")
    result = asyncio.run(_live(request))
    (folder / "result").write_text(json.dumps(result))


def _serve() -> None:
    _programs()
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
