"""What this store uses of asyncpg, typed; how a connection is made; and what an error of the database means.

The SQL of this package is written for the schema `perdure`; a `Session` puts the real name in. It knows no table.
"""

from __future__ import annotations

import asyncio
import logging
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Protocol, cast
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from perdure.errors import NotSupported, PerdureError, StoreCorrupt, StoreFull, StoreRefused, StoreUnavailable

try:
    import asyncpg  # pyright: ignore[reportMissingTypeStubs]
except ImportError as missing:  # pragma: no cover
    raise NotSupported("postgresql:// needs asyncpg: install perdure[postgres]") from missing

if TYPE_CHECKING:
    from collections.abc import Callable

Row = Any
"""What a query gives for a row: its values by number, by name, or all in turn."""

_connect: Any = cast("Any", asyncpg).connect

logger = logging.getLogger("perdure")


class Connection(Protocol):
    """A connection of asyncpg."""

    async def fetch(self, query: str, *args: object, timeout: float | None = None) -> list[Row]: ...
    async def execute(self, query: str, *args: object, timeout: float | None = None) -> str: ...
    async def close(self, *, timeout: float | None = None) -> None: ...
    async def add_listener(self, channel: str, callback: Callable[[Any, int, str, str], object]) -> None: ...
    def add_termination_listener(self, callback: Callable[[Any], object]) -> None: ...
    def get_server_pid(self) -> int: ...
    def is_closed(self) -> bool: ...
    def is_in_transaction(self) -> bool: ...
    def terminate(self) -> None: ...


@dataclass(frozen=True)
class Address:
    """Where the database is, and how it is to be used."""

    url: str
    """As asyncpg takes it."""
    shown: str
    """Without a password, for people."""
    schema: str = "perdure"
    notify: bool = True
    """Whether others are told of changes by LISTEN and NOTIFY; else by polling alone."""
    pooler: bool = False
    """Whether a pooler in transaction mode is in between: nothing may then outlive a transaction."""
    told: bool = False
    """Whether the URL tells that; else it is found out when the store is opened."""
    migrate: bool = True
    """Whether opening the store brings its tables to the version known here."""
    read_only: bool = False
    """Whether the server is to refuse every write."""


_SCHEMA: Final = re.compile(r"[a-z_][a-z0-9_]{0,47}")
_SWITCHES: Final = {"on": True, "off": False}


def parse(url: str) -> Address:
    """The address that the URL means; `schema`, `notify`, `pooler` and `migrate` of its query are ours, the rest is asyncpg's.

    Raises:
        ValueError: an option has no such value.
    """
    parts = urlsplit(url)
    ours: dict[str, str] = {}
    theirs: list[tuple[str, str]] = []
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name in ("schema", "notify", "pooler", "migrate"):
            ours[name] = value
        else:
            theirs.append((name, value))
    schema = ours.get("schema", "perdure")
    if not _SCHEMA.fullmatch(schema):
        raise ValueError(f"schema={schema!r}: use up to 48 small letters, digits and underscores, a letter first")
    for name in ("notify", "pooler", "migrate"):
        if ours.get(name, "on") not in _SWITCHES:
            raise ValueError(f"{name}={ours[name]!r}: say on or off")
    pooler = _SWITCHES[ours.get("pooler", "off")]
    notify = _SWITCHES[ours.get("notify", "off" if pooler else "on")]
    if pooler and notify:
        raise ValueError("notify=on: behind a pooler in transaction mode nothing can be heard; leave it out")
    host = parts.netloc.rpartition("@")[2]
    user = parts.username or ""
    return Address(
        url=urlunsplit(parts._replace(query=urlencode(theirs))),
        shown=urlunsplit(("postgresql", f"{user}@{host}" if user else host, parts.path, "", "")),
        schema=schema,
        notify=notify,
        pooler=pooler,
        migrate=_SWITCHES[ours.get("migrate", "on")],
        told="pooler" in ours,
    )


# What is asked for here is found by an index, always. Left to itself the server plans with the size that a table had
# when it was empty, and then reads all of it for as long as the plan is kept. Not `jit = off`: asyncpg asks for types in
# our transaction, with that switch off, and leaves the session as it has found it there.
_PLANNING: Final = (
    "jit_above_cost = -1",
    "enable_seqscan = off",
    "enable_hashjoin = off",
    "enable_mergejoin = off",
    "plan_cache_mode = force_generic_plan",
)
_READING: Final = ("default_transaction_read_only = on",)


def settings(timeout: float) -> tuple[str, ...]:
    """What is set so that nobody waits for a transaction of ours for longer than `timeout` seconds."""
    ms = max(1, int(timeout * 1000))
    return (f"lock_timeout = {ms}", f"idle_in_transaction_session_timeout = {ms}")


async def connect(address: Address, timeout: float, *, planned: bool = True) -> Connection:
    """A connection on the running loop, which waits for nothing longer than `timeout` seconds.

    Args:
        address: where.
        timeout: seconds.
        planned: whether only our own statements run on it.

    Raises:
        StoreUnavailable: there is none now; the message says why.
    """
    try:
        made: Connection = await _connect(
            address.url,
            timeout=timeout,
            command_timeout=timeout,
            statement_cache_size=0 if address.pooler else 400,
            max_cached_statement_lifetime=0,
            max_cacheable_statement_size=0,
        )
    except Exception as error:
        raise meant(error, address) from error
    if not address.pooler:
        wanted = (*settings(timeout), *(_PLANNING if planned else ()), *(_READING if address.read_only else ()))
        try:
            await made.execute(";".join(f"set {each}" for each in wanted))
        except BaseException as error:
            made.terminate()
            if isinstance(error, Exception):
                raise meant(error, address) from error
            raise
    return made


async def settled(address: Address, timeout: float) -> Address:
    """The address with a pooler that the URL does not tell of: it gives a session another number than the server does."""
    if address.told:
        return address
    # As behind a pooler: what is set or prepared in a session of the server would meet the next client that gets it.
    connection = await connect(replace(address, pooler=True), timeout)
    try:
        direct = connection.get_server_pid() == (await connection.fetch("select pg_backend_pid()"))[0][0]
    except Exception as error:
        raise meant(error, address) from error
    finally:
        connection.terminate()
    if direct:
        return address
    logger.warning(
        "a pooler is in front of %s, and is used as with pooler=on; put that into the URL, or pooler=off if each client "
        "of it keeps its session of the server (session mode)",
        address.shown,
    )
    return replace(address, pooler=True, notify=False)


STANDBY: Final = "standby"
# A server that does not wait for its disk may lose its last commits with every restart.
_TIMELINE: Final = (
    f"select case when pg_is_in_recovery() then '{STANDBY}' else substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) end"
    " || case when current_setting('synchronous_commit') = 'off' then ' of ' || pg_postmaster_start_time() else '' end"
)


async def timeline_of(connection: Connection) -> str:
    """The history that the server writes on, in which nothing that was committed is lost; another one begins when a standby
    is promoted or a backup is restored. `STANDBY`: it follows another server; empty: it knows nothing of the kind.
    """
    try:
        timeline: str = (await connection.fetch(_TIMELINE))[0][0]
    except Exception as error:
        if state_of(error) in ("42883", "42501", "0A000"):
            return ""
        raise
    return STANDBY if timeline.startswith(STANDBY) else timeline


def beginning(address: Address, timeout: float, *, planned: bool = True) -> str:
    """The statement that begins a transaction."""
    if not address.pooler:
        return "begin"
    wanted = (*settings(timeout), *(_PLANNING if planned else ()))
    return ";".join(["begin read only" if address.read_only else "begin", *(f"set local {each}" for each in wanted)])


class Again(PerdureError):
    """The database asks for the transaction to be made again: it met another one."""


class Lost(StoreUnavailable):
    """The connection is gone, or the server says that it will be."""


_REFUSED: Final = ("22", "23", "54")
_AGAIN: Final = frozenset({"40001", "40P01"})
_REASONS: Final = {
    "25006": "it takes no writes (it is read-only or a standby); connect to the primary",
    "28": "the user or its password is refused",
    "3D": "there is no such database",
    "3F": "its schema is gone",
    "42P01": "its tables are gone",
    "42501": "the user may not do that; grant it the rights on the schema",
    "53300": "it has no connection left",
    "55P03": "another transaction holds what is needed for too long",
}


def state_of(error: BaseException) -> str:
    """The SQLSTATE that the server gave; empty: it gave none."""
    state: object = getattr(error, "sqlstate", None)
    return state if isinstance(state, str) else ""


def is_lost(error: BaseException) -> bool:
    """Whether the error says that nothing more can be asked by the connection that it came from."""
    state = state_of(error)
    return isinstance(error, OSError | asyncio.TimeoutError | EOFError) or state.startswith(("08", "57P", "25P03"))


def meant(error: Exception, address: Address) -> Exception:
    """Our error for what the database or asyncpg raised; or the error itself, if it is a fault of ours."""
    if isinstance(error, PerdureError):
        return error
    state, where = state_of(error), address.shown
    if state in _AGAIN:
        return Again(str(error))
    if state == "53100":
        return StoreFull(f"the disk of {where} is full; nothing was written, make room")
    if state in ("XX001", "XX002"):
        return StoreCorrupt(f"the database {where} is damaged ({error}); restore a copy")
    if state[:2] in _REFUSED:
        return StoreRefused(f"the database does not take this data: {error}")
    if state == "08P01" and "startup parameter" in str(error):
        return StoreUnavailable(
            f"the database {where} cannot be used: a pooler in between takes no such setting from the URL ({error}); set "
            "it in the database (alter role ... set ...), or let the pooler ignore it (ignore_startup_parameters)"
        )
    for known, reason in _REASONS.items():
        if state.startswith(known):
            return StoreUnavailable(f"the database {where} cannot be used: {reason} ({error})")
    if is_lost(error):
        return Lost(f"the database {where} cannot be reached now: {str(error) or type(error).__name__}")
    if not state and isinstance(error, ValueError | OverflowError | TypeError | UnicodeError):
        return StoreRefused(f"the database does not take this data: {error}")
    if state[:2] in ("53", "55", "57", "58", "XX") or (not state and type(error).__module__.startswith("asyncpg")):
        return StoreUnavailable(f"the database {where} cannot be used now: {error}")
    return error


class Session:
    """Statements on one connection, in one transaction or each on its own."""

    __slots__ = ("_connection", "_texts", "after")

    def __init__(self, connection: Connection, texts: Texts) -> None:
        self._connection = connection
        self._texts = texts
        self.after = After()

    async def rows(self, sql: str, *args: object) -> list[Row]:
        """The rows that the statement gives."""
        return await self._connection.fetch(self._texts[sql], *args)

    async def row(self, sql: str, *args: object) -> Row | None:
        """The first row that the statement gives."""
        found = await self._connection.fetch(self._texts[sql], *args)
        return found[0] if found else None

    async def run(self, sql: str, *args: object) -> int:
        """The statement is done; gives how many rows it has inserted, updated or deleted."""
        return int((await self._connection.execute(self._texts[sql], *args)).rpartition(" ")[2])


class Texts(dict[str, str]):
    """Each statement as it is sent: for the schema that the store is in."""

    def __init__(self, schema: str) -> None:
        super().__init__()
        self._schema = f'"{schema}".'  # it may be a word of SQL

    def __missing__(self, sql: str) -> str:
        text = self[sql] = sql.replace("perdure.", self._schema)
        return text


class After:
    """What is to be done after the commit of a transaction: what it cannot know of others that commit at the same time
    is looked at again, and others are told.
    """

    __slots__ = ("anybody", "called", "freed", "quiet", "told")

    def __init__(self) -> None:
        self.called: dict[bytes, str] = {}
        """Whose instances have a wake-up row now: the owner that it was written for, by uid."""
        self.freed: set[bytes] = set()
        """The instances that nobody owns now, as far as is known here."""
        self.quiet: set[bytes] = set()
        """Those of them that have a new message, and nobody is called for it."""
        self.told: set[str] = set()
        """The replicas that have something to do."""
        self.anybody = False
        """Whether anybody may have."""

    @property
    def doubtful(self) -> bool:
        """Whether others may have committed what makes a difference."""
        return bool(self.called or self.freed)

    def add(self, other: After) -> None:
        """What the other one holds is to be done too."""
        self.called |= other.called
        self.freed |= other.freed
        self.quiet |= other.quiet
        self.told |= other.told
        self.anybody = self.anybody or other.anybody
