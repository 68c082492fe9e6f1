# pyright: reportUnknownMemberType=false, reportMissingTypeStubs=false, reportUnknownVariableType=false
# (asyncpg is untyped)
"""Where the stores of a run are: SQLite files in a directory, or schemas of a server. Each is fresh, and gone afterwards.

`python -m benchmarks.stores URL PREFIX` is the leash: the schemas are dropped when its standard input ends, and that is
also when the run was killed.
"""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import asyncpg

OPTIONS = ("schema", "notify", "pooler", "migrate")  # Perdure's own; no driver knows them
SETTINGS = ("fsync", "synchronous_commit", "autovacuum", "shared_buffers")


class Stores(Protocol):
    """Where a run's stores are."""

    def fresh(self) -> AbstractContextManager[str]: ...
    def cpu_s(self) -> float: ...


@contextmanager
def scratch(parent: Path) -> Generator[Path, None, None]:
    """A fresh directory, gone afterwards."""
    path = Path(tempfile.mkdtemp(prefix="run-", dir=parent))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


class Files:
    """SQLite files, each in a directory of its own."""

    def __init__(self, parent: Path) -> None:
        self.parent = parent

    @contextmanager
    def fresh(self) -> Generator[str, None, None]:
        """The URL of a file that is not there yet; its directory is gone afterwards."""
        with scratch(self.parent) as directory:
            yield f"sqlite:///{directory / 'bench.db'}"

    def cpu_s(self) -> float:
        """Processor seconds that the store used outside the processes that we run: none."""
        return 0.0


class Schemas:
    """Schemas of a PostgreSQL database, all with a prefix that is this run's. Use it as a context manager."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.facts = asyncio.run(facts(url))
        self._prefix = f"perdure_bench_{os.getpid()}_"
        self._made = 0
        self._server = server_of(self.facts)

    def __enter__(self) -> "Schemas":
        self._leash = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.stores", self.url, self._prefix],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._leash.communicate()

    @contextmanager
    def fresh(self) -> Generator[str, None, None]:
        """The URL of a schema that is not there yet; it, and those whose names begin with its name, are gone afterwards."""
        self._made += 1
        name = f"{self._prefix}{self._made:04}"
        try:
            yield with_schema(self.url, name)
        finally:
            asyncio.run(drop(self.url, name))

    def cpu_s(self) -> float:
        """Processor seconds that the server has used, if it runs on this machine."""
        return family_cpu_s(self._server) if self._server else 0.0


def with_schema(url: str, schema: str) -> str:
    """The URL, of a store in this schema."""
    parts = urlsplit(url)
    options = [pair for pair in parse_qsl(parts.query, keep_blank_values=True) if pair[0] != "schema"]
    return urlunsplit(parts._replace(query=urlencode([*options, ("schema", schema)])))


def schema_of(url: str) -> str:
    """The schema that the URL names."""
    return dict(parse_qsl(urlsplit(url).query)).get("schema", "perdure")


def plain(url: str) -> str:
    """The URL as drivers take it."""
    parts = urlsplit(url)
    options = [pair for pair in parse_qsl(parts.query, keep_blank_values=True) if pair[0] not in OPTIONS]
    return urlunsplit(parts._replace(query=urlencode(options)))


async def connect(url: str) -> Any:
    """A connection of asyncpg to the URL's database."""
    return await asyncpg.connect(plain(url))


async def facts(url: str) -> dict[str, Any]:
    """What is to be known of the server: its version, the settings that count, and its process beside this one."""
    db = await connect(url)
    try:
        found: dict[str, Any] = {name: await db.fetchval(f"show {name}") for name in ("server_version", *SETTINGS)}
        found["backend"] = await db.fetchval("select pg_backend_pid()")
        found["parent"] = parent_of(found["backend"])
    finally:
        await db.close()
    return found | {"host": urlsplit(url).netloc.rpartition("@")[2]}


def parent_of(backend: int) -> int | None:
    """The server's first process, if `backend` is a process of PostgreSQL on this machine."""
    try:
        name, _, rest = Path(f"/proc/{backend}/stat").read_text(encoding="utf-8").rpartition(") ")
    except OSError:
        return None
    return int(rest.split()[1]) if "postgres" in name else None


def server_of(found: dict[str, Any]) -> int | None:
    """The server's first process, if it runs on this machine."""
    return found["parent"]


def family_cpu_s(parent: int) -> float:
    """Processor seconds of a process, its children, and those of its children that have ended."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text(encoding="utf-8").rpartition(") ")[2].split()
        except OSError:
            continue  # it has just ended
        if path.parent.name == str(parent):
            ticks += sum(map(int, fields[11:15]))
        elif int(fields[1]) == parent:
            ticks += sum(map(int, fields[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


async def drop(url: str, prefix: str) -> None:
    """No schema is there whose name begins with the prefix."""
    db = await connect(url)
    try:
        for name in await db.fetch("select nspname from pg_namespace where starts_with(nspname, $1)", prefix):
            tables = await db.fetch("select tablename from pg_tables where schemaname = $1", name[0])
            for table in tables:  # one by one: a transaction has only so many locks
                await db.execute(f'drop table if exists "{name[0]}"."{table[0]}" cascade')
            await db.execute(f'drop schema "{name[0]}" cascade')
    finally:
        await db.close()


def main() -> None:
    """The leash: waits until its standard input ends, and drops the schemas with the prefix."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    url, prefix = sys.argv[1:]
    sys.stdin.read()
    asyncio.run(drop(url, prefix))


if __name__ == "__main__":
    main()
