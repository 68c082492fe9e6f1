"""The tables of a SQLite store as numbered migrations, and the look at a file before anything is written to it."""

from __future__ import annotations

import os
import re
import time
from typing import TYPE_CHECKING, Final, cast

import apsw

from perdure.errors import NotOurs, StoreCorrupt, StoreUnavailable
from perdure.stores.versions import Versions, refused

if TYPE_CHECKING:
    from perdure.stores.sqlite.connection import Database

APPLICATION_ID: Final = 0x50455244  # "PERD"

_TABLES: Final = """
create table instance(
    uid blob primary key not null, run integer not null, flow text not null, id text not null, lane text not null,
    state text not null, owner text, waiting integer not null, due_at real, arguments blob not null, digest blob not null, parent blob,
    outcome blob, reason text, version text not null, created_at real not null, ended_at real,
    first blob, edit blob, edited_seq integer not null default -1, failed_seq integer,
    term integer not null default 0
) strict;
create unique index instance_id on instance(flow, id);
create index instance_due on instance(lane, due_at) where owner is null and due_at is not null;
create index instance_owner on instance(owner) where owner is not null;
create index instance_parent on instance(parent) where parent is not null;
create index instance_ended on instance(ended_at) where ended_at is not null;
-- The states that people look for and few are in. A query must name its state as a literal.
create index instance_state on instance(state, uid) where state = 'failed' or state = 'cancelled' or state = 'blocked';

create table entry(
    uid blob not null, run integer not null, seq integer not null, key text not null, kind text not null,
    name text not null, arguments blob, digest blob not null, failed integer not null, outcome blob,
    attempts integer not null, started_at real not null, at real not null, ref blob
) strict;
create unique index entry_seq on entry(uid, run, seq);

create table pending(
    uid blob not null, run integer not null, key text not null, kind text not null, name text not null,
    arguments blob, digest blob not null, intent integer not null, attempt integer not null, next_at real, error blob,
    progress blob, primary key (uid, run, key)
) strict;

-- The rowid is the order of arrival. open: 0 taken, 1 neither taken nor seen, 2 seen. A mid is one message's for one life.
create table inbox(
    uid blob not null, mid blob not null, kind text not null, key text, name text, type text not null, body blob,
    failed integer not null, run integer not null, sent_at real not null, open integer not null
) strict;
create unique index inbox_mid on inbox(uid, mid);
create unique index inbox_key on inbox(uid, key) where kind = 'message' and key is not null;
create index inbox_untaken on inbox(uid) where open > 0;
create index inbox_unseen on inbox(uid) where open = 1;

-- Messages for instances that do not exist yet.
create table early(
    flow text not null, id text not null, mid blob not null, kind text not null, key text, name text,
    type text not null, body blob, failed integer not null, run integer not null, sent_at real not null
) strict;
create unique index early_mid on early(mid);
create index early_id on early(flow, id);
create unique index early_key on early(flow, id, key) where key is not null;

-- owner and lane are those of the instance ('' for nobody), so that a claim and an owner find theirs without a scan.
create table wakeup(
    uid blob primary key not null, owner text not null, lane text not null, at real not null, cancel integer not null
) strict, without rowid;
create index wakeup_owner on wakeup(owner, lane, at);
create index wakeup_cancel on wakeup(owner, at) where cancel;

-- Kept until the answer is taken, so that a finish that is repeated can tell its answers again.
create table watch(
    mid blob primary key not null, asker blob not null, run integer not null, key text not null, target blob not null
) strict, without rowid;
create index watch_target on watch(target);
create index watch_asker on watch(asker);

create table exposed(
    uid blob not null, key text not null, value blob not null, primary key (uid, key)
) strict;

-- flows: the identity of the replica's code for each lane that it serves, as a JSON object.
create table fence(
    replica text primary key not null, epoch integer not null, alive integer not null, flows text not null
) strict, without rowid;

-- What code could not go on with a blocked instance: which, in which process, and how long the journal was.
create table tried(
    uid blob not null, version text not null, process text not null, length integer not null,
    primary key (uid, version, process)
) strict, without rowid;

-- Instances that are gone: the last life of each (flow, id). With a state: a tombstone, no new life begins; without:
-- deleted, by which edit.
create table gone(
    flow text not null, id text not null, at real not null, uid blob not null, state text, digest blob, edit blob,
    primary key (flow, id)
) strict, without rowid;
create index gone_edit on gone(edit) where edit is not null;

create table checked(one integer primary key, at real not null) strict;
"""

MIGRATIONS: Final = (_TABLES,)
"""Each brings the tables from the version that is its place here to the next one. What was released stays as it is."""
VERSION: Final = len(MIGRATIONS)
OWN: Final = frozenset(re.findall(r"^create (?:unique )?(?:table|index) (\w+)", "".join(MIGRATIONS), re.MULTILINE))
"""The names of the store's tables and indexes."""

BAR: Final = "update fence set alive = 0, epoch = epoch + 1 where alive"
"""No replica that has joined commits anything from now on."""
BUSY_MS: Final = 2000
_CHECK_SECONDS: Final = 2.0
_MIGRATION_MS: Final = 60_000
"""So long one waits who finds another process at it."""


def connect(path: str) -> Database:
    """A connection to the file, which is made if it is not there; nothing is read yet.

    Raises:
        StoreUnavailable: the file or its directory is not there or not writable.
    """
    try:
        db = cast("Database", apsw.Connection(path, statementcachesize=256))
    except apsw.CantOpenError as error:
        folder = os.path.dirname(path)
        why = "its directory does not exist; make it" if not os.path.isdir(folder) else "check its permissions"
        raise StoreUnavailable(f"the database file {path} cannot be opened: {why}") from error
    db.set_busy_timeout(BUSY_MS)
    if db.readonly("main"):
        db.close()
        raise StoreUnavailable(f"the database file {path} is read-only; give this process the right to write it")
    # A file that turns out to be damaged or foreign must be left as it is, its log included.
    db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    return db


def settle(db: Database) -> None:
    """Every commit of the connection waits for the disk; the file is in WAL mode."""
    db.pragma("synchronous", "full")
    db.pragma("temp_store", "memory")
    db.pragma("cache_size", -32_000)
    # Else an update from a list of rows walks over all that the replica owns, to look each up in the list.
    db.pragma("automatic_index", 0)


def prepare(db: Database, path: str, *, migrate: bool = True) -> None:
    """The file is a whole Perdure store of this version, in WAL mode; made so if it was empty or older, if that is wished.

    Raises:
        NotOurs: it holds something else, or another version.
        StoreCorrupt: it is damaged.
    """
    try:
        found = found_in(db, path)
        if not migrate and found < VERSION:
            raise refused(path, Versions(found, VERSION))
        if found:
            _check(db, path)
        _to_wal(db, path)
        settle(db)
        if found < VERSION:
            _migrate(db, path)
    except apsw.NotADBError as error:
        raise NotOurs(f"{path} is not a SQLite database; give another path") from error
    except apsw.CorruptError as error:
        raise StoreCorrupt(f"the database file {path} is damaged ({error}); restore a copy") from error
    except (apsw.ReadOnlyError, apsw.CantOpenError) as error:
        raise StoreUnavailable(
            f"the database file {path} cannot be written ({error}); give this process the right to write "
            "the file and its directory"
        ) from error
    except apsw.BusyError as error:
        raise StoreUnavailable(f"the database file {path} is locked by another process") from error


def found_in(db: Database, path: str) -> int:
    """The version of the tables; 0: the file is empty.

    Raises:
        NotOurs: it holds something else, or a newer version.
    """
    db.execute("begin")  # one snapshot: another process may be making the file right now
    try:
        return _found(db, path)
    finally:
        if db.in_transaction:
            db.execute("rollback")


def _found(db: Database, path: str) -> int:
    application, version = db.pragma("application_id"), db.pragma("user_version")
    if application == APPLICATION_ID:
        return known(version, path)
    table: str | None = db.execute("select name from sqlite_schema limit 1").get
    if table is not None or application != 0:
        raise NotOurs(f"{path} holds another program's database (its first table: {table}); give a path of its own")
    return 0


def known(version: int, path: str) -> int:
    """The version, which is none that is newer than what is known here.

    Raises:
        NotOurs: it is.
    """
    if version > VERSION:
        raise refused(path, Versions(version, VERSION))
    return version


def _check(db: Database, path: str) -> None:
    # Bounded: a check of a very large file would hold up every start; what it did not reach shows when it is read.
    end = time.perf_counter() + _CHECK_SECONDS
    db.set_progress_handler(lambda: time.perf_counter() > end, 100_000)
    try:
        found = db.pragma("quick_check", 1)
    except apsw.InterruptError:
        return
    finally:
        db.set_progress_handler(None)
    if found != "ok":
        raise StoreCorrupt(f"the database file {path} is damaged ({found}); restore a copy")


def _to_wal(db: Database, path: str) -> None:
    # The busy handler does not cover this change of mode when several processes open a new file at once.
    end = time.perf_counter() + 5
    while True:
        try:
            mode = db.pragma("journal_mode", "wal")
            break
        except apsw.BusyError:
            if time.perf_counter() > end:
                raise
    if mode != "wal":
        raise StoreUnavailable(f"{path}: this file system cannot hold a SQLite database in WAL mode ({mode})")


def _migrate(db: Database, path: str) -> None:
    """What is missing is applied, one transaction for each version; those who come meanwhile wait."""
    db.set_busy_timeout(_MIGRATION_MS)
    for version, migration in enumerate(MIGRATIONS, 1):
        db.execute("begin immediate")
        try:
            if _found(db, path) < version:
                for statement in migration.split(";\n"):
                    db.execute(statement)
                if version > 1:
                    db.execute(BAR)
                db.pragma("application_id", APPLICATION_ID)
                db.pragma("user_version", version)
            db.execute("commit")
        except BaseException:
            if db.in_transaction:
                db.execute("rollback")
            raise
    db.set_busy_timeout(BUSY_MS)
