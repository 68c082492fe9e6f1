"""A PostgreSQL server of the soak's own, in a folder of its own, which is stopped and started again.

It is a child of this process (no daemon), and ends with it.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final, cast

import asyncpg  # pyright: ignore[reportMissingTypeStubs]

from tests.servers.processes import BINARIES, ROOT, free_port, servant_of

connect = cast("Any", asyncpg).connect
START_S: Final = 60.0
MODES: Final = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT}


def found() -> bool:
    """Whether PostgreSQL's programs are there."""
    return (BINARIES / "initdb").exists()


class Server:
    """See the module."""

    def __init__(self, *, fsync: bool = False) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="perdure-soak-pg-"))
        self._fsync = fsync
        self._process: subprocess.Popen[bytes] | None = None
        servant = servant_of(self.folder)
        self._who = f"{servant['user']}:{servant['group']}" if servant else "-"
        self._port = free_port()
        self.url = f"postgresql://postgres@127.0.0.1:{self._port}/postgres"
        made = self._spawn("initdb", "-A", "trust", "-U", "postgres", "-N", "-D", str(self.folder / "data"))
        if made.wait() != 0:
            raise RuntimeError(f"initdb has failed:\n{self.said()}")

    def begin(self) -> None:
        """The server's process is there; it takes connections soon."""
        options = {"listen_addresses": "127.0.0.1", "fsync": "on" if self._fsync else "off", "max_connections": "200"}
        given = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        self._process = self._spawn(
            "postgres", "-D", str(self.folder / "data"), "-p", str(self._port), "-k", str(self.folder), *given
        )

    async def answers(self) -> None:
        """It takes connections."""
        until = time.monotonic() + START_S
        while True:
            try:
                connection = await connect(self.url, timeout=5)
            except Exception as error:
                if time.monotonic() > until:
                    raise RuntimeError(f"the server does not answer ({error}):\n{self.said()}") from error
                await asyncio.sleep(0.02)
            else:
                await connection.close()
                return

    def ask_to_stop(self, mode: str) -> subprocess.Popen[bytes]:
        """As `pg_ctl stop -m MODE`; gives the process, which ends soon."""
        assert self._process is not None
        self._process.send_signal(MODES[mode])
        return self._process

    async def cut(self, part: int, of: int) -> int:
        """Connections were ended by the server, one in `of` of all; gives how many."""
        connection = await connect(self.url, timeout=5)
        try:
            return len(
                await connection.fetch(
                    "select pg_terminate_backend(pid) from pg_stat_activity"
                    " where backend_type = 'client backend' and pid <> pg_backend_pid() and pid % $1 = $2",
                    of,
                    part,
                )
            )
        finally:
            await connection.close()

    def remove(self) -> None:
        """Nothing of it is left."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGQUIT)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def said(self, lines: int = 40) -> str:
        """The end of its log."""
        log = self.folder / "log"
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else ""

    def _spawn(self, program: str, *args: str) -> subprocess.Popen[bytes]:
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "tests.soak.leash", str(os.getpid()), self._who, "SIGQUIT",
                 str(BINARIES / program), *args],
                cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
