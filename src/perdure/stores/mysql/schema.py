"""The tables of a MariaDB or MySQL store as numbered migrations, and how they are applied."""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING, Final

from perdure.errors import NotOurs, StoreUnavailable
from perdure.stores.mysql.connection import code_of, meant
from perdure.stores.mysql.literals import literal
from perdure.stores.versions import Versions, refused

if TYPE_CHECKING:
    from perdure.stores.mysql.connection import Address, Connection, Row
    from perdure.stores.mysql.literals import Texts

_ENGINE: Final = "engine = InnoDB row_format = dynamic character set binary"

# Text is VARBINARY: compared by its bytes. Bytes of a known length are BINARY, all others blobs. What only some rows are
# looked up by has a column that is null in the others, for there are no partial indexes; so no index holds what every step
# changes.
_FIRST: Final = (
    # watched: whether somebody was ever to be told of its end. Whoever wants to be writes to the row that the end is
    # written to, so that the one waits for the other.
    f"""create table if not exists perdure_instance(
    uid binary(16) not null, run bigint not null, flow varbinary(512) not null, id varbinary(512) not null,
    lane varbinary(1024) not null, state varbinary(16) not null, owner varbinary(255), waiting tinyint not null,
    due_at double, arguments longblob not null, digest tinyblob not null, parent binary(16), outcome longblob,
    reason longblob, version varbinary(512) not null, created_at double not null, ended_at double, first longblob,
    edit binary(16), edited_seq bigint not null default -1, failed_seq bigint, term bigint not null default 0,
    watched tinyint not null default 0,
    free_at double generated always as (case when owner is null then due_at end) stored,
    rare varbinary(16) generated always as
        (case when state in (_binary'failed', _binary'cancelled', _binary'blocked') then state end) stored,
    primary key (uid), key due (lane, free_at), key owner (owner, uid), key parent (parent), key ended (ended_at),
    key rare (rare, uid)) {_ENGINE}""",
    # What is known of each (flow, id): the life it has; or that its last one (gone) was deleted (gone_at, edit); or its
    # tombstone (state, digest); or that messages wait for it (early). All who create, delete or send early meet here.
    f"""create table if not exists perdure_place(
    flow varbinary(512) not null, id varbinary(512) not null, uid binary(16), early tinyint not null default 0,
    gone binary(16), gone_at double, state varbinary(16), digest tinyblob, edit binary(16),
    primary key (flow, id), key edit (edit)) {_ENGINE}""",
    f"""create table if not exists perdure_entry(
    uid binary(16) not null, run bigint not null, seq bigint not null, `key` varbinary(1024) not null,
    kind varbinary(32) not null, name varbinary(1024) not null, arguments longblob, digest tinyblob not null,
    failed tinyint not null, outcome longblob, attempts bigint not null, started_at double not null, at double not null,
    ref tinyblob,
    size bigint generated always as
        (coalesce(octet_length(arguments), 0) + coalesce(octet_length(outcome), 0)) stored,
    primary key (uid, run, seq)) {_ENGINE}""",
    f"""create table if not exists perdure_pending(
    uid binary(16) not null, run bigint not null, `key` varbinary(1024) not null, kind varbinary(32) not null,
    name varbinary(1024) not null, arguments longblob, digest tinyblob not null, intent tinyint not null,
    attempt bigint not null, next_at double, error longblob, progress longblob, primary key (uid, run, `key`)) {_ENGINE}""",
    # nr: the order of arrival. open: 0 taken, 1 neither taken nor seen, 2 seen.
    f"""create table if not exists perdure_inbox(
    nr bigint not null auto_increment, uid binary(16) not null, mid binary(16) not null, kind varbinary(32) not null,
    `key` varbinary(1024), name varbinary(1024), type varbinary(4096) not null, body longblob, failed tinyint not null,
    run bigint not null, sent_at double not null, open smallint not null,
    once varbinary(1024) generated always as (case when kind = _binary'message' then `key` end) stored,
    primary key (uid, mid), unique key nr (nr), unique key once (uid, once), key open (open, uid)) {_ENGINE}""",
    # Messages for instances that do not exist yet.
    f"""create table if not exists perdure_early(
    nr bigint not null auto_increment, flow varbinary(512) not null, id varbinary(512) not null, mid binary(16) not null,
    kind varbinary(32) not null, `key` varbinary(1024), name varbinary(1024), type varbinary(4096) not null,
    body longblob, failed tinyint not null, run bigint not null, sent_at double not null, primary key (mid),
    unique key nr (nr), unique key once (flow, id, `key`)) {_ENGINE}""",
    # owner and lane are those of the instance ('' for nobody) as the writer saw them.
    f"""create table if not exists perdure_wakeup(
    uid binary(16) not null, owner varbinary(255) not null, lane varbinary(1024) not null, at double not null,
    cancel tinyint not null, primary key (uid), key owner (owner, lane, at), key cancel (cancel, owner, at)) {_ENGINE}""",
    # Kept until the answer is taken, so that a finish that is repeated can tell its answers again.
    f"""create table if not exists perdure_watch(
    mid binary(16) not null, asker binary(16) not null, run bigint not null, `key` varbinary(1024) not null,
    target binary(16) not null, primary key (mid), key target (target, mid), key asker (asker)) {_ENGINE}""",
    f"""create table if not exists perdure_exposed(
    uid binary(16) not null, `key` varbinary(1024) not null, value longblob not null, primary key (uid, `key`)) {_ENGINE}""",
    # flows: the identity of the replica's code for each lane that it serves, as a JSON object.
    f"""create table if not exists perdure_fence(
    replica varbinary(255) not null, epoch bigint not null, alive tinyint not null, flows longblob not null,
    primary key (replica)) {_ENGINE}""",
    # server: which life of the server it is in which the replica holds its session lock; null: it holds none.
    # process: which process it is, for who runs on the same machine.
    f"""create table if not exists perdure_lease(
    replica varbinary(255) not null, until double not null, server varbinary(512), process varbinary(512) not null,
    primary key (replica)) {_ENGINE}""",
    # What code could not go on with a blocked instance: which, in which process, and how long the journal was.
    f"""create table if not exists perdure_tried(
    uid binary(16) not null, version varbinary(512) not null, process varbinary(512) not null, length bigint not null,
    primary key (uid, version, process)) {_ENGINE}""",
    f"create table if not exists perdure_checked(one bigint not null, at double not null, primary key (one)) {_ENGINE}",
    # What replicas tell each other, and nothing that has to last: it is empty after each start of the server.
    """create table if not exists perdure_bell(
    name varbinary(255) not null, n bigint not null, primary key (name)) engine = Memory character set binary""",
)

MIGRATIONS: Final = (_FIRST,)
"""Each brings the tables from the version that is its place here to the next one, statement by statement; what stands
already is left as it is, because the server cannot take a statement back. What was released stays as it is.
"""
VERSION: Final = len(MIGRATIONS)

# Its row 0 is the first thing that is made: where it is, the other tables are ours, however far their making came.
_MIGRATION: Final = (
    "create table if not exists perdure_migration(version bigint not null, steps bigint not null, done tinyint not null,"
    f" primary key (version)) {_ENGINE}"
)
_COLUMNS: Final = (
    "select column_name from information_schema.columns where table_schema = database() and table_name = %s"
    " order by ordinal_position"
)
_OTHERS: Final = "select table_name from information_schema.tables where table_schema = database() and table_name in %s"
_BAR: Final = "update perdure_fence set alive = 0, epoch = epoch + 1 where alive = 1"
"""No replica that has joined commits anything from now on."""
_MADE_BEFORE: Final = frozenset({1050, 1060, 1061, 1091})
"""A statement of a migration that was done, before the one who did it could note that."""
_PATIENCE: Final = 30.0
"""Seconds for which one waits for another who makes the tables."""


def lock_name(address: Address, of: str) -> str:
    """The name of a lock of the server's, which all databases share: of this store, for `of`."""
    whole = f"{address.database}\0{address.prefix}\0{of}".encode()
    return f"perdure:{hashlib.blake2b(whole, digest_size=20).hexdigest()}"


def known() -> str:
    """What a transaction begins with that writes: it fails if there is a newer version. The table that it reads stays locked
    until its end, and a migration waits for that.
    """
    return f"select case when max(version) > {VERSION} then (select 1 union all select 2) end from perdure_migration;"


async def prepare(db: Connection, texts: Texts, address: Address) -> None:
    """The tables are there, in the version that is known here.

    Raises:
        NotOurs: they are of a newer version, or another program's; or an older one, and are not to be changed.
        StoreUnavailable: they cannot be made.
    """
    if address.migrate:
        await migrate(db, texts, address)
        return
    versions = await look(db, texts, address)
    if versions.found < VERSION:
        raise refused(where(address), versions)


async def migrate(db: Connection, texts: Texts, address: Address) -> None:
    """As `prepare`, whatever the address says."""
    try:
        if await _version(db, texts, address) == VERSION:
            return
        lock = literal(lock_name(address, "migrate"))
        ((held,),) = await _asked(db, b"select get_lock(%s, %d)" % (lock, int(_PATIENCE)))
        if held != 1:
            raise StoreUnavailable(
                f"another process makes the tables of {address.shown} for longer than {_PATIENCE:g} s"
            )
        try:
            await _migrate(db, texts, address)
        finally:
            if not db.closed:
                await _asked(db, b"select release_lock(%s)" % lock)
    except Exception as error:
        told = _told(error, address)
        if told is error:
            raise
        raise told from error


def _told(error: Exception, address: Address) -> Exception:
    if code_of(error) in (1142, 1044, 1370):
        return StoreUnavailable(
            f"the tables {address.prefix}* of {address.shown} cannot be made or read ({error}); grant the user the right to "
            "create and alter them, or let one who has it open the store once"
        )
    return meant(error, address)


def where(address: Address) -> str:
    """The store, for people."""
    return f"the tables {address.prefix}* of {address.shown}"


async def look(db: Connection, texts: Texts, address: Address) -> Versions:
    """Which version the tables have; nothing is written.

    Raises:
        NotOurs: a newer one, or they are another program's.
    """
    try:
        return Versions(await _version(db, texts, address), VERSION)
    except Exception as error:
        told = _told(error, address)
        if told is error:
            raise
        raise told from error


async def newest(db: Connection, texts: Texts, address: Address) -> int:
    """The newest version that the tables have or were to have, whatever it is; 0: there are none."""
    if not await _asked(db, texts.filled(_COLUMNS, [literal(f"{address.prefix}migration")])):
        return 0
    ((found,),) = await _asked(db, texts.filled("select max(version) from perdure_migration"))
    return int(found or 0)


async def _asked(db: Connection, text: bytes) -> list[Row]:
    async with asyncio.timeout(_PATIENCE * 2):
        return (await db.ask(text))[-1][0]


def _foreign(address: Address, why: str) -> NotOurs:
    return NotOurs(
        f"the tables {address.prefix}* of {address.shown} are another program's ({why}); give Perdure names of its own "
        "with ?prefix="
    )


async def _version(db: Connection, texts: Texts, address: Address) -> int:
    """The version that the tables have; 0: there are none, or not all."""
    name = f"{address.prefix}migration"
    columns = [row[0] for row in await _asked(db, texts.filled(_COLUMNS, [literal(name)]))]
    if not columns:
        await _nothing_foreign(db, texts, address)
        return 0
    if [column.decode() if isinstance(column, bytes) else column for column in columns] != ["version", "steps", "done"]:
        raise _foreign(address, f"its table {name} is another one")
    rows = await _asked(db, texts.filled("select version, done from perdure_migration where version > 0"))
    newest = max((int(version) for version, _ in rows), default=0)
    if newest > VERSION:
        raise refused(where(address), Versions(newest, VERSION))
    return max((int(version) for version, done in rows if done), default=0)


async def _nothing_foreign(db: Connection, texts: Texts, address: Address) -> None:
    names = [f"{address.prefix}{name}" for name in TABLES]
    there = await _asked(db, texts.filled(_OTHERS, [literal(names)]))
    if there:
        raise _foreign(address, f"{there[0][0]} is there, and {address.prefix}migration is not")


async def _migrate(db: Connection, texts: Texts, address: Address) -> None:
    """What is missing is made, also of what another one began; each step is noted when it is done."""
    done = await _version(db, texts, address)
    await _asked(db, texts.filled(_MIGRATION))
    for version, steps in enumerate(MIGRATIONS, 1):
        if version <= done:
            continue
        number = literal(version)
        noted = await _asked(db, texts.filled("select steps from perdure_migration where version = %s", [number]))
        if not noted:
            await _begun(db, texts, version)
        for step, text in list(enumerate(steps, 1))[noted[0][0] if noted else 0 :]:
            await _step(db, texts.filled(text))
            await _asked(
                db,
                texts.filled("update perdure_migration set steps = %s where version = %s", [literal(step), number]),
            )
        await _asked(db, texts.filled("update perdure_migration set done = 1 where version = %s", [number]))


async def _begun(db: Connection, texts: Texts, version: int) -> None:
    """The version is noted as begun, so that nobody writes any more who does not know it; who did has ended."""
    bar = b";" + texts.filled(_BAR) if version > 1 else b""
    noted = texts.filled("insert into perdure_migration values (%s, 0, 0)", [literal(version)])
    await _asked(db, b"begin;" + noted + bar + b";commit")
    # Only an altering waits for transactions that have read the table.
    await _asked(db, texts.filled("alter table perdure_migration comment = %s", [b"'version %d'" % version]))


async def _step(db: Connection, text: bytes) -> None:
    """The statement is done, however long it takes."""
    try:
        await db.ask((b"set max_statement_time = 0;" if db.mariadb else b"") + text)
    except Exception as error:
        if code_of(error) not in _MADE_BEFORE:
            raise


TABLES: Final = (
    "instance", "place", "entry", "pending", "inbox", "early", "wakeup", "watch", "exposed", "fence", "lease", "tried",
    "checked", "bell",
)  # fmt: skip
"""Of all versions; `migration` aside."""
