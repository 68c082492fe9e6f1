"""Engines in processes of their own on one database, and a server of the test's own that can be stopped."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from perdure import Engine, Handle
from perdure.model.records import Entry, Kind

ROOT = Path(__file__).parents[2]
BINARIES = Path(os.environ.get("PERDURE_TEST_POSTGRES_BIN", "/usr/lib/postgresql/15/bin"))


class Processes:
    """See the module."""

    def __init__(self, folder: Path, url: str) -> None:
        self.url = url
        self._folder = folder
        self._all: list[subprocess.Popen[str]] = []

    def start(self, lease: float) -> subprocess.Popen[str]:
        """The engine runs."""
        log = (self._folder / f"log{len(self._all)}").open("w")
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.servers.worker", self.url, self._folder / "ledger", str(lease)],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip
        log.close()
        self._all.append(process)
        assert process.stdout is not None
        assert process.stdout.readline().strip() == str(process.pid), self.log(process)
        return process

    def log(self, process: subprocess.Popen[str]) -> str:
        return (self._folder / f"log{self._all.index(process)}").read_text()

    @property
    def logs(self) -> str:
        return "".join(map(self.log, self._all))

    @property
    def done(self) -> list[str]:
        """The steps that were run: process, key, what."""
        ledger = self._folder / "ledger"
        return ledger.read_text().splitlines() if ledger.exists() else []

    def by(self, process: subprocess.Popen[str]) -> int:
        """How many steps the process ran."""
        return sum(line.startswith(f"{process.pid} ") for line in self.done)

    def end(self) -> None:
        for process in self._all:
            if process.poll() is None:
                process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


async def journal(client: Engine, handle: Handle[Any]) -> list[Entry]:
    store = client._store
    row = await store.instance(handle.flow, handle.id)
    assert row is not None
    (loaded,) = await store.load([row.uid])
    return loaded.entries


async def whole(client: Engine, handles: list[Handle[Any]], steps: int) -> None:
    """Every journal has every entry once."""
    for handle in handles:
        entries = await journal(client, handle)
        assert [e.seq for e in entries] == list(range(len(entries)))
        assert sum(e.kind == Kind.STEP for e in entries) == steps


class Server:
    """A PostgreSQL of the test's own."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="perdure-pg-"))
        self._as: dict[str, Any] = {}
        if os.geteuid() == 0:  # it does not run as root
            user = pwd.getpwnam("postgres")
            os.chown(self._folder, user.pw_uid, user.pw_gid)
            self._as = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port: int = free.getsockname()[1]
        self._run("initdb", "-A", "trust", "-U", "postgres", "-N", "-D", self._folder / "data")
        self.url = f"postgresql://postgres@127.0.0.1:{self._port}/postgres"

    def start(self) -> None:
        options = f"-p {self._port} -k {self._folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        self._run("pg_ctl", "-D", self._folder / "data", "-w", "-o", options, "-l", self._folder / "log", "start")

    def stop(self, mode: str) -> None:
        self._run("pg_ctl", "-D", self._folder / "data", "-w", "-m", mode, "stop")

    def remove(self) -> None:
        subprocess.run(
            [BINARIES / "pg_ctl", "-D", self._folder / "data", "-m", "immediate", "stop"],
            check=False, capture_output=True, cwd="/", **self._as,
        )  # fmt: skip
        shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self, program: str, *args: object) -> None:
        # Not to a pipe: the server would hold it open.
        with (self._folder / "said").open("a") as said:
            subprocess.run(
                [BINARIES / program, *map(str, args)], check=True, cwd="/", stdout=said, stderr=said, **self._as
            )  # fmt: skip
