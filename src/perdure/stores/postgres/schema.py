"""The tables of a PostgreSQL store as numbered migrations, and how they are applied."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from perdure.errors import NotOurs, StoreUnavailable
from perdure.stores.postgres.connection import meant, state_of
from perdure.stores.versions import Versions, refused

if TYPE_CHECKING:
    from perdure.stores.postgres.connection import Address, Connection, Texts

# watched: whether somebody was ever to be told of its end. Whoever wants to be writes to the row that the end is written
# to, so that the one waits for the other.
# Text is compared by its bytes. Rows that many flows write to are narrow, and no index holds what every step changes.
_FIRST: Final = """
create table perdure.instance(
    uid bytea not null, run bigint not null, flow text collate "C" not null, id text collate "C" not null,
    lane text collate "C" not null, state text collate "C" not null, owner text collate "C", waiting boolean not null,
    due_at double precision, arguments bytea not null, digest bytea not null, parent bytea, outcome bytea, reason text,
    version text collate "C" not null, created_at double precision not null, ended_at double precision,
    first bytea, edit bytea, edited_seq bigint not null default -1, failed_seq bigint, term bigint not null default 0,
    watched boolean not null default false, primary key (uid)
);
create index instance_due on perdure.instance(lane, due_at) where owner is null and due_at is not null;
create index instance_owner on perdure.instance(owner, uid) where owner is not null;
create index instance_parent on perdure.instance(parent) where parent is not null;
create index instance_ended on perdure.instance(ended_at) where ended_at is not null;
create index instance_failed on perdure.instance(uid) where state = 'failed';
create index instance_cancelled on perdure.instance(uid) where state = 'cancelled';
create index instance_blocked on perdure.instance(uid) where state = 'blocked';

-- What is known of each (flow, id): the life it has; or that its last one (gone) was deleted (gone_at, edit); or its
-- tombstone (state, digest); or that messages wait for it (early). All who create, delete or send early meet in this row.
create table perdure.place(
    flow text collate "C" not null, id text collate "C" not null, uid bytea, early boolean not null default false,
    gone bytea, gone_at double precision, state text collate "C", digest bytea, edit bytea, primary key (flow, id)
);
create index place_edit on perdure.place(edit) where edit is not null;

create table perdure.entry(
    uid bytea not null, run bigint not null, seq bigint not null, key text collate "C" not null,
    kind text collate "C" not null, name text collate "C" not null, arguments bytea, digest bytea not null,
    failed boolean not null, outcome bytea, attempts bigint not null, started_at double precision not null,
    at double precision not null, ref bytea, primary key (uid, run, seq)
);

create table perdure.pending(
    uid bytea not null, run bigint not null, key text collate "C" not null, kind text collate "C" not null,
    name text collate "C" not null, arguments bytea, digest bytea not null, intent boolean not null,
    attempt bigint not null, next_at double precision, error bytea, progress bytea, primary key (uid, run, key)
);

-- nr: the order of arrival. open: 0 taken, 1 neither taken nor seen, 2 seen.
create table perdure.inbox(
    nr bigint generated always as identity, uid bytea not null, mid bytea not null, kind text collate "C" not null,
    key text collate "C", name text collate "C", type text collate "C" not null, body bytea, failed boolean not null,
    run bigint not null, sent_at double precision not null, open bigint not null, primary key (uid, mid)
);
create unique index inbox_key on perdure.inbox(uid, key) where kind = 'message' and key is not null;
create index inbox_untaken on perdure.inbox(uid, nr) where open > 0;
create index inbox_unseen on perdure.inbox(uid) where open = 1;

-- Messages for instances that do not exist yet.
create table perdure.early(
    nr bigint generated always as identity, flow text collate "C" not null, id text collate "C" not null,
    mid bytea not null, kind text collate "C" not null, key text collate "C", name text collate "C",
    type text collate "C" not null, body bytea, failed boolean not null, run bigint not null,
    sent_at double precision not null, primary key (mid)
);
create index early_id on perdure.early(flow, id, nr);
create unique index early_key on perdure.early(flow, id, key) where key is not null;

-- owner and lane are those of the instance ('' for nobody) as the writer saw them.
create table perdure.wakeup(
    uid bytea not null, owner text collate "C" not null, lane text collate "C" not null, at double precision not null,
    cancel boolean not null, primary key (uid)
);
create index wakeup_owner on perdure.wakeup(owner, lane, at);
create index wakeup_cancel on perdure.wakeup(owner, at) where cancel;

-- Kept until the answer is taken, so that a finish that is repeated can tell its answers again.
create table perdure.watch(
    mid bytea not null, asker bytea not null, run bigint not null, key text collate "C" not null,
    target bytea not null, primary key (mid)
);
create index watch_target on perdure.watch(target);
create index watch_asker on perdure.watch(asker);

create table perdure.exposed(
    uid bytea not null, key text collate "C" not null, value bytea not null, primary key (uid, key)
);

-- flows: the identity of the replica's code for each lane that it serves, as a JSON object.
create table perdure.fence(
    replica text collate "C" not null, epoch bigint not null, alive boolean not null, flows text not null,
    primary key (replica)
);

-- server: which life of the server it is in which the replica holds its session lock; null: it holds none.
-- process: which process it is, for who runs on the same machine.
create table perdure.lease(
    replica text collate "C" not null, until double precision not null, server text, process text not null,
    primary key (replica)
);

-- What code could not go on with a blocked instance: which, in which process, and how long the journal was.
create table perdure.tried(
    uid bytea not null, version text collate "C" not null, process text collate "C" not null, length bigint not null,
    primary key (uid, version, process)
);

create table perdure.checked(one bigint not null, at double precision not null, primary key (one));
"""

MIGRATIONS: Final = (_FIRST,)
"""Each brings the tables from the version that is its place here to the next one. What was released stays as it is."""
VERSION: Final = len(MIGRATIONS)

ALONE: Final = "lock table perdure.migration in access exclusive mode"
"""No transaction that began with `known` is under way, until this one ends."""
BAR: Final = "update perdure.fence set alive = false, epoch = epoch + 1 where alive"
"""No replica that has joined commits anything from now on."""

_MADE_BY_OTHERS: Final = frozenset({"23505", "42P06", "42P07", "40001", "40P01", "XX000"})
_FOUND: Final = "select max(version) from perdure.migration"
_TRIES: Final = 20
_WAIT_SECONDS: Final = 60
"""So long one waits who finds another process at it."""
_LONG: Final = 24 * 3600.0
"""So many seconds one version may take."""


def known() -> str:
    """What a transaction asks first that writes: it fails if there is a newer version. The table that it reads stays locked
    until its end, in every isolation level, and a migration waits for that.
    """
    return f"select 1 / case when max(version) > {VERSION} then 0 else 1 end from perdure.migration"


async def prepare(db: Connection, texts: Texts, address: Address) -> Versions:
    """The tables are there, in the version that is known here; gives which they had.

    Raises:
        NotOurs: they are of a newer version, or another program's; or an older one, and are not to be changed.
        StoreUnavailable: they cannot be made.
    """
    if address.migrate:
        return await migrate(db, texts, address)
    versions = await look(db, texts, address)
    if versions.found < VERSION:
        raise refused(where(address), versions)
    return versions


async def look(db: Connection, texts: Texts, address: Address) -> Versions:
    """Which version the tables have; nothing is written.

    Raises:
        NotOurs: a newer one, or they are another program's.
    """
    try:
        await _patient(db, address)
        return Versions(await _found(db, texts, address), VERSION)
    except Exception as error:
        raise _told(error, address) from error


async def migrate(db: Connection, texts: Texts, address: Address) -> Versions:
    """As `prepare`, whatever the address says."""
    for number in range(_TRIES):
        try:
            await _patient(db, address)
            found = await _found(db, texts, address)
            if found < VERSION:
                await _migrate(db, texts, address)
            return Versions(found, VERSION)
        except Exception as error:
            await _rolled_back(db)
            again = state_of(error) in _MADE_BY_OTHERS and number < _TRIES - 1
            if not again:
                raise _told(error, address) from error
        await asyncio.sleep(0.01 * (number + 1))  # another process makes them right now
    raise AssertionError


async def _patient(db: Connection, address: Address) -> None:
    if not address.pooler:
        await db.execute(f"set lock_timeout = '{_WAIT_SECONDS}s'")


async def _rolled_back(db: Connection) -> None:
    if not db.is_closed() and db.is_in_transaction():
        await db.execute("rollback")


def _told(error: Exception, address: Address) -> Exception:
    state = state_of(error)
    if state == "42501":
        return StoreUnavailable(
            f"the tables in schema {address.schema} of {address.shown} cannot be made or changed ({error}); call "
            "`perdure migrate` as a user who may"
        )
    if state.startswith("42"):
        return _foreign(address, str(error))
    return meant(error, address)


def where(address: Address) -> str:
    """The store, for people."""
    return f"schema {address.schema} of {address.shown}"


def _foreign(address: Address, why: str) -> NotOurs:
    return NotOurs(
        f"{where(address)} holds another program's tables ({why}); give Perdure one of its own with ?schema="
    )


async def _found(db: Connection, texts: Texts, address: Address) -> int:
    """The version that the tables have, which is none that is newer than what is known here."""
    found = await version_of(db, texts, address)
    if found > VERSION:
        raise refused(where(address), Versions(found, VERSION))
    return found


async def version_of(db: Connection, texts: Texts, address: Address) -> int:
    """The version that the tables have, whatever it is; 0: there are none."""
    try:
        found = (await db.fetch(texts[_FOUND], timeout=2.0 * _WAIT_SECONDS))[0][0]
    except Exception as error:
        if state_of(error) in ("42P01", "3F000"):
            return 0
        raise
    if not isinstance(found, int | None):
        raise _foreign(address, "its table migration is another one")
    return found or 0


async def _migrate(db: Connection, texts: Texts, address: Address) -> None:
    """What is missing is applied, in one transaction for each version, by one process at a time: the others wait."""
    await db.execute(f'create schema if not exists "{address.schema}"')
    await db.execute(
        texts["create table if not exists perdure.migration(version bigint primary key, at timestamptz not null)"]
    )
    await db.execute(texts["insert into perdure.migration values (0, now()) on conflict do nothing"])
    for version, migration in enumerate(MIGRATIONS, 1):
        await db.execute("begin isolation level read committed")
        await db.execute(texts[ALONE], timeout=2.0 * _WAIT_SECONDS)
        if await _found(db, texts, address) < version:
            await db.execute(texts[migration], timeout=_LONG)
            if version > 1:
                await db.execute(texts[BAR], timeout=_LONG)
            await db.execute(texts["insert into perdure.migration values ($1, now())"], version)
        await db.execute("commit", timeout=_LONG)
