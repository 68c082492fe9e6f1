"""Programs that are deployed one after the other: each is a process of its own, with modules of its own.

As `python -m tests.deploys.programs` it is a process that has imported the libraries; each program is a fork of it.
"""
# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import faulthandler
import gc
import importlib
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any, cast

import pydantic

import perdure
from perdure import AnyFlow, Engine, FlowFunction, State
from perdure.model.records import Loaded
from tests.support.world import eventually

ROOT = Path(__file__).parents[2]
HANGS = 10.0
ANOTHER = "another version for each program"

HEAD = f"""
import asyncio, os
from collections import namedtuple
from dataclasses import dataclass, field
from enum import Enum, Flag, IntEnum, StrEnum
from typing import Any, NamedTuple, TypedDict
import msgspec, pydantic
from perdure import {", ".join(perdure.__all__)}

def ran(what):
    ledger = os.open(os.environ["PERDURE_TEST_LEDGER"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(ledger, f"{{what}}\\n".encode())
    os.close(ledger)
"""


class Programs:
    """The process whose forks are the programs."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.deploys.programs"], cwd=ROOT, text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip

    def run(self, request: dict[str, Any]) -> Any:
        """What the program answered."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None  # noqa: PT018
        stdin.write(json.dumps(request) + "\n")
        stdin.flush()
        status = int(stdout.readline())
        folder = Path(request["folder"])
        assert status == 0, (folder / "log").read_text()
        return json.loads((folder / "answers").read_text())

    def close(self) -> None:
        """The process has ended."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None  # noqa: PT018
        stdin.close()
        self._process.wait(10)
        stdout.close()


class Deploys:
    """One database, and one program after the other on it."""

    def __init__(self, programs: Programs, folder: Path) -> None:
        self._programs = programs
        self._folder = folder
        self._count = 0

    def deploy(
        self,
        *doing: list[str],
        version: str | None = ANOTHER,
        execute: bool = True,
        modules: dict[str, str] | None = None,
        **more_modules: str,
    ) -> list[Any]:
        """A program of these modules has done this and died, as by SIGKILL: see `_do`; gives the answers."""
        sources = (modules or {}) | more_modules
        self._count += 1
        place = self._folder / f"program{self._count}"
        place.mkdir()
        for name, source in sources.items():
            (place / f"{name}.py").write_text(HEAD + source)
        if version == ANOTHER:
            version = f"{ANOTHER}: {self._count}"
        return self._programs.run(
            {
                "folder": str(self._folder), "place": str(place), "modules": list(sources), "doing": doing,
                "version": version, "execute": execute,
            }
        )  # fmt: skip

    def ran(self) -> list[str]:
        """What the steps of all programs have done, in order."""
        ledger = self._folder / "ledger"
        return ledger.read_text().splitlines() if ledger.exists() else []


# ---------------------------------------------------------------- the program


async def _live(request: dict[str, Any]) -> None:
    folder = Path(request["folder"])
    sys.path.insert(0, request["place"])
    space: dict[str, Any] = {}
    for name in request["modules"]:
        space |= vars(importlib.import_module(name))
    flows = list[AnyFlow]()
    for value in space.values():
        if isinstance(value, FlowFunction) and value not in flows:
            flows.append(cast("AnyFlow", value))
    store = f"sqlite:///{folder / 'flows.db'}"
    async with Engine(store, flows=flows, version=request["version"], execute=request["execute"], drain=0) as engine:
        answers = [await _do(engine, space, *doing) for doing in request["doing"]]
        (folder / "answers").write_text(json.dumps(answers))
        os._exit(0)


async def _do(engine: Engine, space: dict[str, Any], what: str, *args: str) -> Any:
    """One thing done; values are given as expressions of the program, and answered as their repr."""
    if what == "find":
        return sorted([f"{info.flow} {info.id}" async for info in engine.find(state=State(args[0]))])
    if what == "start":
        await engine.start("order", *(eval(a, space) for a in args), id="1")
        return None
    handle = engine.handle("order", "1")
    match what:
        case "send":
            return await handle.send(eval(args[0], space))
        case "cancel":
            return await handle.cancel()
        case "result":

            async def known() -> bool:
                state = await handle.state()
                return state.ended or (
                    state is State.BLOCKED and (await engine.health()).blocked > 0
                )  # by this program

            await eventually(known, seconds=HANGS)
            if await handle.state() is State.BLOCKED:
                return f"blocked: {(await _loaded(engine)).instance.reason}"
            try:
                return repr(await handle.result())
            except (perdure.FlowFailed, perdure.FlowCancelled) as error:
                return f"{type(error).__name__}: {error.__cause__!r}"
        case "exposed":
            return repr(await handle.exposed())
        case "is":
            await eventually(handle.state, lambda state: state is State(args[0]), seconds=HANGS)
            return (await _loaded(engine)).instance.reason
        case "recorded":

            async def recorded() -> bool:
                loaded = await _loaded(engine)
                progress = any(row.progress is not None for row in loaded.pending)
                return progress if args[0] == "progress" else _last(loaded) == args[0]

            return await eventually(recorded, seconds=HANGS)
        case "ran":
            ledger = Path(os.environ["PERDURE_TEST_LEDGER"])

            async def ran() -> bool:
                return ledger.exists() and args[0] in ledger.read_text().splitlines()

            return await eventually(ran, seconds=HANGS)
        case _:
            raise ValueError(what)


async def _loaded(engine: Engine) -> Loaded:
    row = await engine._store.instance("order", "1")
    assert row is not None
    return (await engine._store.load([row.uid]))[0]


def _last(loaded: Loaded) -> str:
    """What was recorded last, but for the beginning: kind and name."""
    return "; ".join(f"{entry.kind} {entry.name}" for entry in loaded.entries[-1:])


def _child(request: dict[str, Any]) -> None:
    folder = Path(request["folder"])
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    faulthandler.dump_traceback_later(HANGS, exit=True)
    os.environ["PERDURE_TEST_LEDGER"] = str(folder / "ledger")
    asyncio.run(_live(request))


def main() -> None:
    assert pydantic.BaseModel  # loaded once, for all forks
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
        print(os.waitpid(pid, 0)[1], flush=True)


if __name__ == "__main__":
    main()
