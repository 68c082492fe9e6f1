"""What this store uses of asyncmy, typed; how a connection is made; and what an error of the database means.

It knows no table.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from perdure.errors import NotSupported, PerdureError, StoreCorrupt, StoreFull, StoreRefused, StoreUnavailable
from perdure.stores.mysql.literals import Name, Refused, literal, literals

try:
    import asyncmy  # pyright: ignore[reportMissingTypeStubs]
    from asyncmy import converters, cursors  # pyright: ignore[reportMissingTypeStubs]
    from asyncmy.constants import FIELD_TYPE  # pyright: ignore[reportMissingTypeStubs]
    from asyncmy.constants.CLIENT import FOUND_ROWS  # pyright: ignore[reportMissingTypeStubs]
    from asyncmy.errors import MySQLError  # pyright: ignore[reportMissingTypeStubs]
except ImportError as missing:  # pragma: no cover
    raise NotSupported("mysql:// needs asyncmy: install perdure[mysql]") from missing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from perdure.stores.mysql.literals import Texts

Row = Any
"""What a query gives for a row: a tuple."""


@dataclass(frozen=True)
class Address:
    """Where the database is, and how it is to be used."""

    host: str
    port: int
    user: str
    password: str
    database: str
    shown: str
    """The URL without a password, for people."""
    prefix: str = "perdure_"
    """What the names of the store's tables begin with."""
    notify: bool = True
    """Whether changes by others are looked for often; else once a second."""
    migrate: bool = True
    """Whether opening the store brings its tables to the version known here."""
    read_only: bool = False
    """Whether the server is to refuse every write."""
    tls: str = "off"
    ca: str | None = None
    """The file of the authority that the server's certificate must come from; None: those that the system knows."""
    socket: str | None = None
    """The server's socket on this machine, instead of host and port."""

    def __repr__(self) -> str:
        return f"Address({self.shown!r})"


_PREFIX: Final = re.compile(r"[a-z_][a-z0-9_]{0,31}")
_CHOICES: Final = {"notify": ("on", "off"), "migrate": ("on", "off"), "tls": ("off", "on", "verify")}
_OPTIONS: Final = ("prefix", "notify", "migrate", "tls", "ca", "socket")


def parse(url: str) -> Address:
    """The address that the URL means.

    Raises:
        ValueError: no database is named, or an option is unknown or has no such value.
    """
    parts = urlsplit(url)
    options: dict[str, str] = {}
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in _OPTIONS:
            raise ValueError(f"{name}= is no option of a mysql:// URL; known are {', '.join(_OPTIONS)}")
        options[name] = value
    prefix = options.get("prefix", "perdure_")
    if not _PREFIX.fullmatch(prefix):
        raise ValueError(f"prefix={prefix!r}: use up to 32 small letters, digits and underscores, no digit first")
    for name, known in _CHOICES.items():
        if options.get(name, known[0]) not in known:
            raise ValueError(f"{name}={options[name]!r}: say {' or '.join(known)}")
    for name in ("ca", "socket"):
        if options.get(name) == "":
            raise ValueError(f"{name}= names no file")
    database = unquote(parts.path.removeprefix("/"))
    if not database or "/" in database:
        raise ValueError(
            f"a mysql:// URL ends with the name of a database, mysql://user@host/database, not {parts.path!r}"
        )
    user, host, port = unquote(parts.username or ""), parts.hostname or "localhost", parts.port or 3306
    name = f"[{host}]" if ":" in host else host
    return Address(
        host=host,
        port=port,
        user=user,
        password=unquote(parts.password or ""),
        database=database,
        shown=f"mysql://{quote(user)}{'@' if user else ''}{name}:{port}/{quote(database)}",
        prefix=prefix,
        notify=options.get("notify", "on") == "on",
        migrate=options.get("migrate", "on") == "on",
        tls=options.get("tls", "verify" if "ca" in options else "off"),
        ca=options.get("ca"),
        socket=options.get("socket"),
    )


def _tls(address: Address) -> ssl.SSLContext | None:
    if address.tls == "off":
        return None
    context = ssl.create_default_context(cafile=address.ca)
    if address.tls == "on":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


# Text is kept as VARBINARY, which asyncmy gives as bytes; bytes are kept as BINARY and as blobs, which have other types.
_OURS: Final[dict[Any, Any]] = {
    **cast("Any", converters).conversions,
    FIELD_TYPE.VAR_STRING: bytes.decode,
    FIELD_TYPE.TINY: {"0": False, "1": True}.__getitem__,
}


OLDEST: Final = {"MariaDB": (10, 6, 0), "MySQL": (8, 0, 20)}
_VERSION: Final = re.compile(r"(?:5\.5\.5-)?(\d+)\.(\d+)\.(\d+)")


def too_old(info: str) -> str | None:
    """What is said of a server that calls itself so and lacks what the statements need."""
    kind = "MariaDB" if "mariadb" in info.lower() else "MySQL"
    found = _VERSION.match(info)
    if found is None or tuple(map(int, found.groups())) >= OLDEST[kind]:
        return None
    return f"{kind} {'.'.join(found.groups())} lacks what is needed; take {'.'.join(map(str, OLDEST[kind]))} or newer"


class Connection:
    """A connection of asyncmy, on the loop on which it was made."""

    def __init__(self, made: Any) -> None:
        self._made = made
        self.info = str(made.get_server_info())
        self.mariadb = "mariadb" in self.info.lower()
        self.packet = 1 << 20
        """Bytes that the server takes at once."""
        self.idle = IDLE_SECONDS
        """Seconds after which the server closes it if it says nothing."""
        self.used = 0.0
        """When it was given back, in the time of its loop."""

    @property
    def mark(self) -> bytes:
        """See `Texts.mark`."""
        return b"" if self.mariadb else b"row"

    def takes(self, text: bytes) -> bool:
        """Whether the text is not too long for one message."""
        return len(text) < self.packet  # a byte of the protocol's goes before it

    @property
    def id(self) -> int:
        """The server's number for it."""
        return int(self._made.thread_id())

    @property
    def closed(self) -> bool:
        """Whether nothing can be asked any more, as far as is known here."""
        return not self._made.connected or bool(self._made._stream_broken)  # noqa: SLF001

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction was open after the last answer that was no error."""
        return bool(self._made.get_transaction_status())

    async def ask(self, text: bytes) -> list[tuple[list[Row], int]]:
        """Of each statement in the text, which are separated by semicolons, its rows and how many it has changed.

        After one that fails no other is done.
        """
        made = self._made
        await made.query(text)
        found: list[tuple[list[Row], int]] = []
        while True:
            result = made._result  # noqa: SLF001  a cursor would ask for warnings, one by one
            found.append((result.rows or [], result.affected_rows))
            if not result.has_next:
                return found
            await made.next_result()

    async def select(self, text: str, args: Sequence[Any]) -> list[dict[str, Any]]:
        """The rows that one statement of a user's gives, by the names of their columns."""
        cursor = self._made.cursor()
        await cursor.execute(text, tuple(args) if args else None)
        names = [column[0] for column in cursor.description or ()]
        return [dict(zip(names, row, strict=True)) for row in (await cursor.fetchall() if names else ())]

    def streaming(self) -> Any:
        """A cursor whose rows stay with the server until they are fetched; nothing else can be asked meanwhile."""
        return self._made.cursor(cursors.SSCursor)

    async def one_at_a_time(self) -> None:
        """A text with several statements is refused from now on."""
        await self._made._execute_command(_SET_OPTION, _MULTI_OFF)  # noqa: SLF001
        await self._made.read_packet()

    async def several_at_a_time(self) -> None:
        """A text may have several statements again."""
        await self._made._execute_command(_SET_OPTION, _MULTI_ON)  # noqa: SLF001
        await self._made.read_packet()

    def terminate(self) -> None:
        """It is closed, at once; the server is not told."""
        self._made.close()

    async def close(self) -> None:
        """It is closed, and the server knows."""
        await self._made.ensure_closed()


_SET_OPTION: Final = 0x1B
_MULTI_ON: Final = b"\0\0"
_MULTI_OFF: Final = b"\1\0"

SQL_MODE: Final = (
    "set sql_mode = 'STRICT_ALL_TABLES,NO_ZERO_DATE,NO_ZERO_IN_DATE,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION'"
)
IDLE_SECONDS: Final = 20
"""After which the server closes a connection that says nothing, if it can end an idle transaction sooner than that."""


def settings(timeout: float, *, mariadb: bool, statement: float, idle: int) -> bytes:
    """What is set so that the session does what is expected, whatever the server's defaults.

    Args:
        timeout: seconds that others wait for it at most, or a whole one more.
        mariadb: which server it is.
        statement: seconds that a statement may take, as far as the server can tell.
        idle: seconds after which the server closes a connection that says nothing.
    """
    wait = max(1, int(timeout))
    wanted = ["time_zone = '+00:00'", "autocommit = 1", f"innodb_lock_wait_timeout = {wait}", f"wait_timeout = {idle}"]
    if mariadb:
        wanted += [f"idle_transaction_timeout = {ceil(timeout)}", "in_predicate_conversion_threshold = 0"]
        wanted.append(f"max_statement_time = {statement:f}")
    else:
        wanted.append(f"max_execution_time = {max(1, int(statement * 1000))}")
    return f"{SQL_MODE};set {', '.join(wanted)};set session transaction isolation level read committed".encode()


def idle_after(timeout: float, *, mariadb: bool) -> int:
    """Seconds after which the server may close a connection of a pool: so long a process that was stopped in the middle of
    a transaction holds what it has locked, if the server cannot end that alone.
    """
    return IDLE_SECONDS if mariadb else max(2, ceil(timeout))


async def connect(address: Address, timeout: float, *, ours: bool = True, idle: int = 0) -> Connection:
    """A connection on the running loop, which waits for nothing longer than `timeout` seconds.

    Args:
        address: where.
        timeout: seconds.
        ours: whether only our own statements run on it.
        idle: seconds for which it may say nothing; 0: as long as one of a pool.

    Raises:
        StoreUnavailable: there is none now; the message says why.
    """
    made: Connection | None = None
    try:
        async with asyncio.timeout(timeout):
            made = Connection(
                await cast("Any", asyncmy).connect(
                    host=address.host,
                    port=address.port,
                    unix_socket=address.socket,
                    user=address.user or None,
                    password=address.password.encode(),
                    database=address.database,
                    autocommit=None,
                    client_flag=FOUND_ROWS,
                    connect_timeout=timeout,
                    program_name="perdure",
                    ssl=_tls(address),
                    **({"conv": _OURS} if ours else {}),
                )
            )
            if why := too_old(made.info):
                raise StoreUnavailable(f"the database {address.shown} cannot be used: {why}")
            made.idle = idle or idle_after(timeout, mariadb=made.mariadb)
            wanted = settings(timeout, mariadb=made.mariadb, statement=timeout, idle=made.idle)
            names = b"set names binary" if ours else b"set names utf8mb4"
            reading = b";set session transaction read only" if address.read_only else b""
            found = await made.ask(b"%s;%s%s;select @@max_allowed_packet" % (wanted, names, reading))
            made.packet = int(found[-1][0][0][0])
    except BaseException as error:
        if made is not None:
            made.terminate()
        if isinstance(error, Exception):
            raise meant(error, address) from error
        raise
    return made


class Again(PerdureError):
    """The database asks for the transaction to be made again: it met another one."""


class Lost(StoreUnavailable):
    """The connection is gone, or the server says that it will be."""


_AGAIN: Final = frozenset({1213, 1205, 1020, 1637, 3101, 3572})
_LOST: Final = frozenset({
    0, 1053, 1077, 1079, 1080, 1152, 1153, 1154, 1155, 1156, 1157, 1158, 1159, 1160, 1161, 1184, 1927, 2002, 2003, 2006,
    2012, 2013, 2014, 2026, 2027, 2055, 4031,
})  # fmt: skip
_FULL: Final = frozenset({1021, 1114})
_CORRUPT: Final = frozenset({1034, 1035, 1194, 1195, 1712, 1815, 1877})
_LATE: Final = frozenset({1317, 1969, 3024})
_REASONS: Final = {
    **dict.fromkeys((1290, 1792, 1836), "it takes no writes (it is read-only); connect to the primary"),
    **dict.fromkeys((1044, 1045, 1698), "the user or its password is refused"),
    **dict.fromkeys((1142, 1143, 1227, 1370), "the user may not do that; grant it the rights on the tables"),
    **dict.fromkeys((1040, 1203, 1226), "it has no connection left"),
    **dict.fromkeys(_LATE, "it took too long"),
    1049: "there is no such database",
    1146: "its tables are gone",
    1665: "its binary log must not be by statement: set binlog_format to row or mixed",
}
DUPLICATE: Final = 1062
_DATA: Final = frozenset({DUPLICATE, 1048, 1264, 1301, 1366, 1406, 1118, 1138, 1265, 1292, 3140})


def code_of(error: BaseException) -> int:
    """The server's number for the error; -1: it is none of the server's."""
    if not isinstance(error, MySQLError):
        return -1
    args: tuple[Any, ...] = cast("Any", error).args
    return args[0] if args and isinstance(args[0], int) else -1


def is_lost(error: BaseException) -> bool:
    """Whether the error says that nothing more can be asked by the connection that it came from."""
    return isinstance(error, OSError | asyncio.TimeoutError | EOFError) or code_of(error) in _LOST


def meant(error: Exception, address: Address) -> Exception:
    """Our error for what the database or asyncmy raised; or the error itself, if it is a fault of ours."""
    if isinstance(error, PerdureError):
        return error
    code, where, said = code_of(error), address.shown, _said(error)
    if code in _AGAIN:
        return Again(said)
    if code in _FULL or (code in (1030, 1026, 3) and "28" in said):
        return StoreFull(f"the disk of {where} is full; nothing was written, make room")
    if code in _CORRUPT:
        return StoreCorrupt(f"the database {where} is damaged ({said}); restore a copy")
    if code in _REASONS:
        return StoreUnavailable(f"the database {where} cannot be used: {_REASONS[code]} ({said})")
    if code in _DATA or isinstance(error, Refused | UnicodeError | OverflowError):
        return StoreRefused(f"the database does not take this data: {said}")
    if is_lost(error):
        return Lost(f"the database {where} cannot be reached now: {said}")
    if code > 0 and code not in _FAULTS:
        return StoreUnavailable(f"the database {where} cannot be used now: {said}")
    if code < 0 and isinstance(error, MySQLError | AssertionError):  # the driver does not understand what it is told
        return Lost(f"the database {where} does not answer as it should: {said}")
    return error


_FAULTS: Final = frozenset({1054, 1064, 1065, 1136, 1149, 1210, 1222, 1242})
"""Of the SQL itself."""


def _said(error: Exception) -> str:
    args: tuple[Any, ...] = cast("Any", error).args
    if code_of(error) >= 0 and len(args) > 1:
        return f"{args[1]} ({args[0]})"
    return str(error) or type(error).__name__


class Session:
    """Statements on one connection, in one transaction or each on its own."""

    __slots__ = ("_before", "_connection", "_spilt", "_texts", "_timeout", "after")

    def __init__(self, connection: Connection, texts: Texts, timeout: float, before: bytes = b"") -> None:
        self._connection = connection
        self._texts = texts
        self._timeout = timeout
        self._before = before
        """What is sent with the first statement, in front of it."""
        self._spilt = 0
        self.after = After()

    # -- texts

    def fill(self, sql: str, *args: object) -> bytes:
        """The statement with these values."""
        return self._texts.filled(sql, literals(args))

    # -- one statement

    async def all(self, text: bytes) -> list[Row]:
        """The rows that the statement gives."""
        return (await self._sent(text))[-1][0]

    async def rows(self, sql: str, *args: object) -> list[Row]:
        """The rows that the statement gives."""
        return await self.all(self.fill(sql, *args))

    async def row(self, sql: str, *args: object) -> Row | None:
        """The first row that the statement gives."""
        found = await self.rows(sql, *args)
        return found[0] if found else None

    async def run(self, sql: str, *args: object) -> int:
        """The statement is done; gives how many rows it has inserted, deleted or found to update."""
        return (await self._sent(self._texts.filled(sql, await self._small(args))))[-1][1]

    # -- statements for many rows, as few as the server's limits allow

    async def listed(self, sql: str, values: Sequence[object], *args: object) -> list[Row]:
        """The rows that the statement gives for a list of values, its first `%s`; the others have these values."""
        found: list[Row] = []
        for start in range(0, len(values), LISTED):
            found += await self.rows(sql, list(values[start : start + LISTED]), *args)
        return found

    async def over(self, sql: str, values: Sequence[object], *args: object) -> int:
        """The statement is done for a list of values, its first `%s`; gives how many rows it has changed."""
        count = 0
        for start in range(0, len(values), LISTED):
            count += await self.run(sql, list(values[start : start + LISTED]), *args)
        return count

    async def insert(self, sql: str, rows: Sequence[Sequence[object]]) -> int:
        """The statement is done with the rows as its `%s`: `(...),(...)`; gives how many it has inserted or found."""
        count = 0
        for part in await self._parts(rows):
            text = b",".join([b"(%s)" % b",".join(row) for row in part])
            count += (await self._sent(self._texts.filled(sql, [text])))[-1][1]
        return count

    async def each(self, sql: str, columns: str, rows: Sequence[Sequence[object]], *args: object) -> int:
        """The statement is done with the rows as a table, its first `%s`; gives how many rows it has changed."""
        rest, count = literals(args), 0
        for part in await self._parts(rows):
            text = self._texts.filled(sql, [self._texts.table(columns, part), *rest])
            count += (await self._sent(text))[-1][1]
        return count

    async def join(self, sql: str, columns: str, rows: Sequence[Sequence[object]], *args: object) -> list[Row]:
        """The rows that the statement gives for these rows as a table, its first `%s`."""
        rest = literals(args)
        found: list[Row] = []
        for part in await self._parts(rows):
            found += await self.all(self._texts.filled(sql, [self._texts.table(columns, part), *rest]))
        return found

    # -- inside

    async def _parts(self, rows: Sequence[Sequence[object]]) -> list[list[list[bytes]]]:
        """The rows as literals, in parts none of which is too long for one statement."""
        limit = self._connection.packet // 2
        parts: list[list[list[bytes]]] = []
        size = limit
        for row in rows:
            texts = await self._small(row)
            length = sum(map(len, texts)) + 64
            if size + length > limit or len(parts[-1]) >= TABLE_ROWS:
                parts.append([])
                size = 0
            parts[-1].append(texts)
            size += length
        return parts

    async def _small(self, values: Sequence[object]) -> list[bytes]:
        """The values as literals: what is large goes ahead, in pieces, into variables of the session."""
        found: list[bytes] = []
        large = self._connection.packet // 8
        for value in values:
            text = literal(value)
            if len(text) > large and isinstance(value, bytes):
                text = literal(await self._spill(value, large))
            found.append(text)
        return found

    async def _spill(self, value: bytes, piece: int) -> Name:
        if len(value) > self._connection.packet:
            raise StoreRefused(
                f"the database takes no value of more than {self._connection.packet} bytes, and this one has {len(value)}; "
                "raise max_allowed_packet of the server, or keep less"
            )
        self._spilt += 1
        name = Name(b"@perdure_%d" % self._spilt)
        await self._sent(b"set %s = _binary''" % name)
        for start in range(0, len(value), piece):
            await self._sent(b"set %s = concat(%s, %s)" % (name, name, literal(value[start : start + piece])))
        return name

    async def done(self) -> None:
        """The server has forgotten what was large."""
        if self._spilt:
            names = b",".join(b"@perdure_%d = null" % number for number in range(1, self._spilt + 1))
            self._spilt = 0
            await self._sent(b"set " + names)

    async def _sent(self, text: bytes) -> list[tuple[list[Row], int]]:
        if self._before:
            text, self._before = self._before + text, b""
        if not self._connection.takes(text):
            raise StoreRefused(f"the database takes no statement of {len(text)} bytes; raise its max_allowed_packet")
        async with asyncio.timeout(self._timeout):
            return await self._connection.ask(text)


LISTED: Final = 2000
TABLE_ROWS: Final = 1000


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
