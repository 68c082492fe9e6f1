"""The replicas of a round as processes, what is done to them and to the database, and what their logs say."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.servers.processes import ROOT
from tests.soak.faults import Fault
from tests.soak.server import Server

END_S: Final = 60.0
"""So long a process or the server may take to end when it is asked to."""
HEALTH_S: Final = 6.0
TOOK_OVER: Final = re.compile(r"took over the instances of (.*)$", re.MULTILINE)
WRONG: Final = re.compile(r"^\S+ \S+ (?:ERROR|CRITICAL) .*$|^Traceback .*$|^\S*Warning: .*$|^Fatal .*$", re.MULTILINE)
LEASE_LOST: Final = "the lease was lost"
OF_WHO_WAS_STOPPED: Final = (LEASE_LOST, "the event loop has been blocked")
"""Errors that a process may log which was stopped meanwhile."""
OF_THE_DRIVER: Final = "unexpected connection_lost() call"
"""asyncpg's: a connection that was being made, and given up, is lost. Nobody waits for it, and asyncio says so."""


@dataclass
class Process:
    """One life of a replica."""

    popen: subprocess.Popen[bytes]
    log: Path
    name: str
    stopped: float = 0.0
    """The longest time for which it was stopped."""

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")


@dataclass
class Slot:
    """One replica, in whichever process."""

    options: dict[str, Any]
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    process: Process | None = None


class Cluster:
    """See the module."""

    def __init__(
        self, folder: Path, url: str, ledger: Path, *, lease: float, replicas: int, seed: object, server: Server | None
    ) -> None:
        chance = random.Random(f"replicas {seed}")
        self.done: Counter[str] = Counter()
        """Faults by kind."""
        self.wrong: list[str] = []
        self.active = 0
        """Faults that are not over."""
        self.lease = lease
        self._folder = folder
        self._url = url
        self._ledger = ledger
        self._server = server
        self._database = asyncio.Lock()
        self._slots = [Slot(_options(chance)) for _ in range(replicas)]
        self._all: list[Process] = []

    def start(self) -> None:
        """All replicas are started."""
        for i in range(len(self._slots)):
            self._start(i)

    def _start(self, i: int) -> None:
        slot = self._slots[i]
        name = f"replica {i}, process {len(self._all)}"
        path = self._folder / f"{name.replace(', ', '-').replace(' ', '')}.log"
        with path.open("wb") as log:
            popen = subprocess.Popen(
                [sys.executable, "-m", "tests.soak.replica", str(os.getpid()), self._url, str(self._ledger), str(self.lease),
                 json.dumps(slot.options)],
                cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env=os.environ | {"PYTHONHASHSEED": "random"},
            )  # fmt: skip
        slot.process = Process(popen, path, name)
        self._all.append(slot.process)

    # -- faults

    async def do(self, fault: Fault) -> None:
        """The fault has been, and is over."""
        self.active += 1
        try:
            await (self._to_database(fault) if fault.kind in ("immediate", "fast", "cut") else self._to_replica(fault))
            self.done[fault.kind] += 1
        except Exception as error:
            self.wrong.append(f"{fault}: {type(error).__name__}: {error}")
        finally:
            self.active -= 1

    async def _to_database(self, fault: Fault) -> None:
        assert self._server is not None
        async with self._database:
            if fault.kind == "cut":
                part, of = (0, 1) if fault.replica == 3 else (fault.replica, 3)
                self.done["connections cut"] += await self._server.cut(part, of)
                return
            await _ended(self._server.ask_to_stop(fault.kind), "the server")
            await asyncio.sleep(fault.lasts)
            self._server.begin()
            await self._server.answers()

    async def _to_replica(self, fault: Fault) -> None:
        slot = self._slots[fault.replica]
        async with slot.lock:
            process = slot.process
            assert process is not None
            if fault.kind == "stop":
                await _stopped(process, fault.lasts)
                return
            process.popen.send_signal(signal.SIGKILL if fault.kind == "kill" else signal.SIGTERM)
            await self._gone(process, killed=fault.kind == "kill")
            await asyncio.sleep(fault.lasts)
            self._start(fault.replica)

    async def _gone(self, process: Process, *, killed: bool) -> None:
        code = await _ended(process.popen, process.name)
        # Before it handles signals SIGTERM ends it as any process.
        expected = [-signal.SIGKILL] if killed else [0] if " ready" in process.said else [0, -signal.SIGTERM]
        if code not in expected:
            self.wrong.append(f"{process.name} ended with {code}, not {expected[0]}")

    def fallen(self) -> list[str]:
        """Replicas that have ended and were not made to."""
        return [
            f"{slot.process.name} has ended by itself with {slot.process.popen.returncode}"
            for slot in self._slots
            if slot.process is not None and not slot.lock.locked() and slot.process.popen.poll() is not None
        ]

    # -- the end

    async def stop(self) -> None:
        """All have drained and ended."""
        for slot in self._slots:
            if slot.process is not None and slot.process.popen.poll() is None:
                slot.process.popen.send_signal(signal.SIGTERM)
        for slot in self._slots:
            if slot.process is not None:
                await self._gone(slot.process, killed=False)

    def kill(self) -> None:
        """No process is left, whatever happened."""
        for process in self._all:
            if process.popen.poll() is None:
                process.popen.kill()
            process.popen.wait()

    # -- what they said

    @property
    def takeovers(self) -> int:
        """How many replicas of these were taken over. Several may say so of one; an earlier round's do not count."""
        ours = {str(process.popen.pid) for process in self._all}
        named = {
            name for process in self._all for match in TOOK_OVER.finditer(process.said) for name in match[1].split(", ")
        }
        return sum(name.partition("-")[0] in ours for name in named)

    @property
    def leases_lost(self) -> int:
        return sum(process.said.count(LEASE_LOST) for process in self._all)

    def errors(self) -> Iterator[str]:
        """What a log says that it should not."""
        for process in self._all:
            for match in WRONG.finditer(process.said):
                around = _around(process.said, match.start())
                if process.stopped and any(part in match[0] for part in OF_WHO_WAS_STOPPED):
                    continue
                if OF_THE_DRIVER not in "\n".join(around[:3]):
                    yield f"{process.name} logs: {chr(10).join(around)}"

    async def told(self) -> str:
        """The health of all that run, and the ends of their logs."""
        running = [slot.process for slot in self._slots if slot.process and slot.process.popen.poll() is None]
        for process in running:
            process.popen.send_signal(signal.SIGUSR1)
        await asyncio.sleep(HEALTH_S)
        return "\n".join(f"--- {p.name} (pid {p.popen.pid}):\n{_tail(p.said, 15)}" for p in running)


def _options(chance: random.Random) -> dict[str, Any]:
    """Replicas differ in what they keep in memory."""
    return {"max_resident": chance.choice((0, 20, 20_000)), "unload_after": chance.choice((None, 0.5))}


async def _stopped(process: Process, seconds: float) -> None:
    process.popen.send_signal(signal.SIGSTOP)
    process.stopped = max(process.stopped, seconds)
    try:
        await asyncio.sleep(seconds)
    finally:
        process.popen.send_signal(signal.SIGCONT)


async def _ended(popen: subprocess.Popen[bytes], name: str) -> int:
    until = time.monotonic() + END_S
    while (code := popen.poll()) is None:
        if time.monotonic() > until:
            raise TimeoutError(f"{name} has not ended within {END_S:g} s")
        await asyncio.sleep(0.01)
    return code


def _tail(text: str, lines: int) -> str:
    return "\n".join(text.splitlines()[-lines:])


def _around(text: str, at: int) -> list[str]:
    return text[at : at + 4000].splitlines()[:12]
