# pyright: reportUnknownMemberType=false, reportMissingTypeStubs=false, reportUnknownVariableType=false
# (asyncpg and asyncmy are untyped)
"""Where the stores of a run are: SQLite files in a directory, schemas of a PostgreSQL, databases of a MariaDB or MySQL.

Each is fresh, and gone afterwards. `python -m benchmarks.stores URL PREFIX` is the leash: what has the prefix is dropped
when its standard input ends, and that is also when the run was killed.
"""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

OPTIONS = ("schema", "notify", "pooler", "migrate")  # Perdure's own; no driver of PostgreSQL knows them
LIKE_NAMES = "select schema_name from information_schema.schemata where left(schema_name, %s) = %s"


class Stores(Protocol):
    """Where a run's stores are."""

    def fresh(self) -> AbstractContextManager[str]: ...
    def cpu_s(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Facts:
    """What is to be known of a server."""

    name: str
    host: str
    settings: dict[str, str]
    warnings: tuple[str, ...]
    pid: int | None
    """Its first process, if it runs on this machine."""


@dataclass(frozen=True, slots=True)
class Kind:
    """How one kind of server is asked for what a run needs."""

    facts: Callable[[str], Coroutine[Any, Any, Facts]]
    named: Callable[[str, str], str]
    """The URL, of a store of this name."""
    make: Callable[[str, str], Coroutine[Any, Any, None]]
    """What the engine does not make itself is there, for a store of this name."""
    drop: Callable[[str, str], Coroutine[Any, Any, None]]
    """No store is there whose name begins so."""


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


class Server:
    """Stores on a server, all with a prefix that is this run's. Use it as a context manager."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.kind = kind_of(url)
        try:
            self.facts = asyncio.run(self.kind.facts(url))
        except Exception as problem:
            raise SystemExit(f"{host_of(url)} cannot be used: {problem}") from problem
        self._prefix = f"perdure_bench_{os.getpid()}_"
        self._made = 0

    def __enter__(self) -> "Server":
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
        """The URL of a store that is not there yet; it, and those whose names begin with its name, are gone afterwards."""
        self._made += 1
        name = f"{self._prefix}{self._made:04}"
        try:
            asyncio.run(self.kind.make(self.url, name))
            yield self.kind.named(self.url, name)
        finally:
            asyncio.run(self.kind.drop(self.url, name))

    def cpu_s(self) -> float:
        """Processor seconds that the server has used, if it runs on this machine."""
        return family_cpu_s(self.facts.pid) if self.facts.pid else 0.0


# ------------------------------------------------------------ PostgreSQL


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
    import asyncpg

    return await asyncpg.connect(plain(url))


async def postgres_facts(url: str) -> Facts:
    """See `Facts`."""
    db = await connect(url)
    try:
        names = ("fsync", "synchronous_commit", "autovacuum", "shared_buffers")
        settings: dict[str, str] = {name: await db.fetchval(f"show {name}") for name in names}
        version: str = await db.fetchval("show server_version")
        backend = process_of(await db.fetchval("select pg_backend_pid()"), "postgres")
    finally:
        await db.close()
    unsafe = tuple(f"{name} is off" for name in names[:2] if settings[name] == "off")
    return Facts(f"PostgreSQL {version}", host_of(url), settings, unsafe, int(backend[1]) if backend else None)


async def nothing(url: str, name: str) -> None:
    """The engine makes its schema itself."""


async def postgres_drop(url: str, prefix: str) -> None:
    """No schema is there whose name begins with the prefix."""
    db = await connect(url)
    try:
        for (name,) in await db.fetch("select nspname from pg_namespace where starts_with(nspname, $1)", prefix):
            for (table,) in await db.fetch("select tablename from pg_tables where schemaname = $1", name):
                await db.execute(
                    f'drop table if exists "{name}"."{table}" cascade'
                )  # a transaction has only so many locks
            await db.execute(f'drop schema if exists "{name}" cascade')
    finally:
        await db.close()


# ------------------------------------------------------------ MariaDB, MySQL


def with_database(url: str, name: str) -> str:
    """The URL, of a store in this database."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


@asynccontextmanager
async def mysql(url: str) -> AsyncGenerator[Any, None]:
    """A cursor of asyncmy on a connection of its own, in which each statement commits."""
    import asyncmy

    parts = urlsplit(url)
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    connection: Any = await asyncmy.connect(
        host=parts.hostname, port=parts.port or 3306, user=user, password=password, autocommit=True
    )
    try:
        async with connection.cursor() as cursor:
            yield cursor
    finally:
        connection.close()


async def mysql_facts(url: str) -> Facts:
    """See `Facts`."""
    names = ("innodb_flush_log_at_trx_commit", "log_bin", "sync_binlog", "innodb_buffer_pool_size")
    async with mysql(url) as cursor:
        await cursor.execute(f"select version(), @@pid_file, {', '.join(f'@@{name}' for name in names)}")
        version, pid_file, *found = await cursor.fetchone()
    settings = {name: str(value) for name, value in zip(names, found, strict=True)}
    flush = settings[names[0]]
    unsafe = () if flush == "1" else (f"{names[0]} is {flush}",)
    try:
        pid = int(Path(pid_file).read_text(encoding="ascii"))
    except (OSError, ValueError):
        pid = 0
    return Facts(
        version, host_of(url), settings, unsafe, pid if pid and process_of(pid, "mariadbd", "mysqld") else None
    )


async def mysql_make(url: str, name: str) -> None:
    """The database is there."""
    async with mysql(url) as cursor:
        await cursor.execute(f"create database `{name}`")


async def mysql_drop(url: str, prefix: str) -> None:
    """No database is there whose name begins with the prefix."""
    async with mysql(url) as cursor:
        await cursor.execute(LIKE_NAMES, (len(prefix), prefix))
        for (name,) in await cursor.fetchall():
            await cursor.execute(f"drop database if exists `{name}`")


# ------------------------------------------------------------ both

POSTGRES = Kind(postgres_facts, with_schema, nothing, postgres_drop)
MYSQL = Kind(mysql_facts, with_database, mysql_make, mysql_drop)


def is_mysql(url: str) -> bool:
    """Whether a MariaDB or MySQL is meant."""
    return urlsplit(url).scheme in ("mysql", "mariadb")


def kind_of(url: str) -> Kind:
    """The kind of server that the URL means.

    Raises:
        SystemExit: none that is known.
    """
    if is_mysql(url):
        return MYSQL
    if urlsplit(url).scheme in ("postgresql", "postgres"):
        return POSTGRES
    raise SystemExit(f"{url!r}: give --url postgresql://user@host/database or mysql://user@host/database")


def host_of(url: str) -> str:
    """Host and port, without a password."""
    return urlsplit(url).netloc.rpartition("@")[2]


def process_of(pid: int, *names: str) -> list[str] | None:
    """What /proc says of a process of this machine after its name, if it has one of these names."""
    try:
        name, _, rest = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(") ")
    except OSError:
        return None
    return rest.split() if name.partition("(")[2] in names else None


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


def main() -> None:
    """The leash: waits until its standard input ends, and drops what has the prefix."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    url, prefix = sys.argv[1:]
    sys.stdin.read()
    asyncio.run(kind_of(url).drop(url, prefix))


if __name__ == "__main__":
    main()
