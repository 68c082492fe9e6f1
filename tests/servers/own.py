"""PostgreSQL servers of the test's own, to be broken: stopped, frozen, filled, damaged, followed by a standby."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from pathlib import Path

import asyncpg

from tests.servers.processes import BINARIES, Server, free_port, servant_of
from tests.support.required import not_here


class OwnServer(Server):
    """A server whose settings and files are the test's."""

    @property
    def data(self) -> Path:
        return self._folder / "data"

    @property
    def log(self) -> str:
        return (self._folder / "log").read_text()

    @property
    def user(self) -> tuple[int, int]:
        """Who the server runs as: user and group."""
        return self._as.get("user", os.geteuid()), self._as.get("group", os.getegid())

    listens_to = "127.0.0.1"

    def start(self) -> None:
        options = f"-p {self._port} -k {self._folder} -c listen_addresses={self.listens_to} -c fsync=off"
        self._run("pg_ctl", "-D", self.data, "-w", "-o", options, "-l", self._folder / "log", "start")

    def configure(self, **settings: object) -> None:
        """These settings hold from the next start on."""
        with (self.data / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())

    async def sql(self, *statements: str) -> list[asyncpg.Record]:
        """The statements are done, by a superuser; gives the rows of the last one."""
        connection = await asyncpg.connect(self.url)
        try:
            found: list[asyncpg.Record] = []
            for statement in statements:
                found = await connection.fetch(statement)
            return found
        finally:
            await connection.close()

    def freeze(self) -> None:
        """No process of the server does anything: connections stay, and the system still accepts new ones."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """It goes on."""
        self._signal(signal.SIGCONT)

    @property
    def pids(self) -> list[int]:
        """The processes of the server, the first one first; none if it does not run."""
        try:
            postmaster = int((self.data / "postmaster.pid").read_text().split()[0])
            children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
        except FileNotFoundError:
            return []
        return [postmaster, *map(int, children)]

    def promote(self) -> None:
        """A standby is a primary."""
        self._run("pg_ctl", "-D", self.data, "-w", "promote")

    def remove(self) -> None:
        self.thaw()
        super().remove()

    def _signal(self, number: signal.Signals) -> None:
        for pid in self.pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass


class Standby(OwnServer):
    """A server that follows another one, asynchronously."""

    def __init__(self, primary: OwnServer) -> None:
        if not (primary._programs / "pg_basebackup").exists():
            not_here("a standby of PostgreSQL", f"no pg_basebackup in {primary._programs}")
        self._programs = primary._programs
        self._folder = Path(tempfile.mkdtemp(prefix="perdure-pg-"))
        self._as = servant_of(self._folder)
        self._port = free_port()
        self._run(
            "pg_basebackup", "-h", "127.0.0.1", "-p", primary._port, "-U", "postgres", "-R", "-N", "-c", "fast",
            "-D", self.data,
        )  # fmt: skip
        self.url = f"postgresql://postgres@127.0.0.1:{self._port}/postgres"


def need_binaries() -> None:
    """The programs of a PostgreSQL server are there; else the test is skipped."""
    if not (BINARIES / "initdb").exists():
        not_here(
            "a PostgreSQL of the test's own", f"no programs in {BINARIES}; PERDURE_TEST_POSTGRES_BIN names the folder"
        )


def small_disk(folder: Path, size: str, owner: tuple[int, int]) -> None:
    """The folder is a disk of that size; the test is skipped if none can be mounted."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        not_here("a small disk", mounted.stderr.strip())
    os.chown(folder, *owner)


def resize(folder: Path, size: str) -> None:
    """The disk has another size."""
    subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)
