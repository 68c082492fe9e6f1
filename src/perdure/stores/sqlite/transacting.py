"""The user's work in a transaction of the store: driven on the thread that writes, watched, and kept off our tables."""

from __future__ import annotations

import threading
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Final

import apsw

from perdure.errors import LeaseLost, NotDurable, PerdureError, StoreRefused
from perdure.stores.sqlite.schema import OWN
from perdure.stores.sqlite.writing import fenced, record

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from perdure.clock import Clock
    from perdure.model.records import Entry
    from perdure.model.tx import Tx
    from perdure.stores.sqlite.connection import Database, Value

RUNS: Final = "select 1 from instance where uid = ? and run = ? and +owner = ?"

STEPS: Final = 10_000
"""Of SQLite's machine between two looks at the clock: a few milliseconds."""

_AWAITS: Final = (
    "a transaction's function awaited something else than the transaction; it may await only tx.execute and tx.fetch: "
    "do the rest before or after, in a step"
)
_OVER: Final = "the transaction is over, or this is another thread; use it only in the function that it was given to"

_STORES: Final = (
    apsw.FullError, apsw.CorruptError, apsw.NotADBError, apsw.IOError, apsw.CantOpenError, apsw.ReadOnlyError,
    apsw.BusyError, apsw.ProtocolError,
)  # fmt: skip
"""What is wrong with the database and not with the SQL: the transaction is over, whatever the work makes of it."""

_NEVER: Final = {
    apsw.SQLITE_ATTACH: "attach databases",
    apsw.SQLITE_DETACH: "detach databases",
    apsw.SQLITE_TRANSACTION: "begin or end a transaction",
    apsw.SQLITE_SAVEPOINT: "use savepoints",
    apsw.SQLITE_ANALYZE: "analyze tables",
    apsw.SQLITE_CREATE_TEMP_INDEX: "make anything temporary",
    apsw.SQLITE_CREATE_TEMP_TABLE: "make anything temporary",
    apsw.SQLITE_CREATE_TEMP_TRIGGER: "make anything temporary",
    apsw.SQLITE_CREATE_TEMP_VIEW: "make anything temporary",
}
_MAKES: Final = {apsw.SQLITE_CREATE_TABLE, apsw.SQLITE_CREATE_INDEX, apsw.SQLITE_CREATE_TRIGGER,
                 apsw.SQLITE_CREATE_VIEW, apsw.SQLITE_CREATE_VTABLE}  # fmt: skip
# Where SQLite tells the name of a table or index. Elsewhere it tells columns, which may be called as they like.
_NAMED_FIRST: Final = _MAKES | {
    apsw.SQLITE_READ, apsw.SQLITE_INSERT, apsw.SQLITE_UPDATE, apsw.SQLITE_DELETE, apsw.SQLITE_REINDEX,
    apsw.SQLITE_DROP_TABLE, apsw.SQLITE_DROP_INDEX, apsw.SQLITE_DROP_TRIGGER, apsw.SQLITE_DROP_VIEW,
    apsw.SQLITE_DROP_VTABLE,
}  # fmt: skip
_NAMED_SECOND: Final = {
    apsw.SQLITE_CREATE_INDEX, apsw.SQLITE_CREATE_TRIGGER, apsw.SQLITE_DROP_INDEX, apsw.SQLITE_DROP_TRIGGER,
    apsw.SQLITE_ALTER_TABLE,
}  # fmt: skip
_AUTOINDEXES: Final = tuple(f"sqlite_autoindex_{name}_" for name in OWN)
_HARMLESS_PRAGMAS: Final = {"data_version", "page_size"}
"""SQLite's own full-text tables ask for them."""


def refusal(action: int, first: str | None, second: str | None, schema: str | None) -> str | None:
    """What the user's SQL would do and may not."""
    if action in _NEVER:
        return _NEVER[action]
    if action in _MAKES and schema == "temp":  # it would stand before a table of the same name, and outlive this
        return _NEVER[apsw.SQLITE_CREATE_TEMP_TABLE]
    if action == apsw.SQLITE_PRAGMA and (first not in _HARMLESS_PRAGMAS or second is not None):
        return f"use pragma {first}"
    for name, named in ((first, _NAMED_FIRST), (second, _NAMED_SECOND)):
        if action in named and name is not None and (name.lower() in OWN or name.lower().startswith(_AUTOINDEXES)):
            return f"touch {name}, which is Perdure's own"
    if action in (apsw.SQLITE_INSERT, apsw.SQLITE_UPDATE) and first is not None and first.startswith("sqlite_stat"):
        return _NEVER[apsw.SQLITE_ANALYZE]
    return None


class Theirs(PerdureError):
    """What the user's work raised, on its way to the user: the database's errors have other names there."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.error = error


class Transaction:
    """One call of `Store.transact`."""

    def __init__(
        self, clock: Clock, replica: str, epoch: int, work: Callable[[Tx], Coroutine[Any, Any, Entry]], limit: float
    ) -> None:
        self._clock = clock
        self._replica = replica
        self._epoch = epoch
        self._work = work
        self._limit = limit
        self._context = copy_context()

    def run(self, db: Database) -> Entry:
        """The work is done in the transaction that is open, and its entry is in the journal.

        Raises:
            LeaseLost: the fence does not hold, or the replica gave the instance up while this was on its way.
            Theirs: the work raised, awaited something else, touched what is ours (PermissionError), or took too long
                (TimeoutError).
        """
        fenced(db, self._replica, self._epoch)
        tx = _SqliteTx(db, self._clock, self._limit)
        entry = tx.guarded(lambda: self._context.run(_driven, self._work, tx))
        if db.execute(RUNS, (entry.uid, entry.run, self._replica)).get is None:
            raise LeaseLost(f"replica {self._replica} does not run this instance any more; nothing was written")
        if record(db, [entry]) == 0:
            raise StoreRefused(f"entry {entry.seq} is in the journal already; the transaction was not done again")
        return entry


def _driven(work: Callable[[Tx], Coroutine[Any, Any, Entry]], tx: Tx) -> Entry:
    """What the coroutine returns. It has nothing to wait for: all that it may await is done at once."""
    coroutine = work(tx)
    try:
        coroutine.send(None)
    except StopIteration as done:
        entry: Entry = done.value
        return entry
    except RuntimeError as error:
        if str(error) == "no running event loop":
            raise NotDurable(_AWAITS) from error
        raise
    try:
        coroutine.close()
    except BaseException as error:
        raise NotDurable(_AWAITS) from error
    raise NotDurable(_AWAITS)


class _SqliteTx:
    """See `Tx`. Its coroutines never suspend."""

    def __init__(self, db: Database, clock: Clock, limit: float) -> None:
        self._db = db
        self._clock = clock
        self._limit = limit
        self._end = clock.monotonic() + limit
        self._thread: int | None = threading.get_ident()
        self._refused: str | None = None
        self._failed: BaseException | None = None
        """Why nothing can be written any more, even if the work went on."""

    async def execute(self, sql: str, /, *args: Any) -> None:
        """See Tx."""
        self._rows(sql, args)

    async def fetch(self, sql: str, /, *args: Any) -> list[dict[str, Any]]:
        """See Tx."""
        return self._rows(sql, args)

    def guarded(self, work: Callable[[], Entry]) -> Entry:
        """What the work gives; meanwhile SQL is authorized and timed on this connection, and afterwards it is not."""
        db = self._db
        raised: BaseException | None = None
        entry: Entry | None = None
        try:
            # This makes SQLite prepare all statements anew, so that none of ours is done for theirs unseen.
            db.set_authorizer(self._authorize)
            db.set_progress_handler(self._late, STEPS)
            entry = work()
        except BaseException as error:
            raised = error
        finally:
            self._thread = None
            db.set_progress_handler(None)
            db.set_authorizer(None)
        if self._failed is None and raised is None and self._late():
            self._too_late()
        stores = isinstance(self._failed, _STORES)
        raised, self._failed = self._failed or raised, None
        try:
            if stores and raised is not None:
                raise raised
            if raised is not None or entry is None:
                raise Theirs(raised or TypeError("a transaction's work gave no entry"))
            return entry
        finally:
            del raised  # it knows this frame by its traceback, and would be freed by the collector alone

    def _rows(self, sql: str, args: tuple[Value, ...]) -> list[dict[str, Any]]:
        if threading.get_ident() != self._thread:
            raise NotDurable(_OVER)
        if self._failed is None and self._late():
            self._too_late()
        if self._failed is not None:
            raise self._failed
        self._refused = None
        try:
            cursor = self._db.execute(sql, args or None, can_cache=False)
            return [dict(zip((name for name, _ in cursor.get_description()), row, strict=True)) for row in cursor]
        except apsw.InterruptError as error:
            raise self._too_late() from error
        except BaseException as error:
            if isinstance(error, _STORES) or not self._db.in_transaction:  # as by `or rollback`
                self._failed = error
            if self._refused is not None:
                what = f"a transaction's SQL may not {self._refused}; it is for tables of your own"
                raise PermissionError(what) from error
            raise

    def _too_late(self) -> TimeoutError:
        self._failed = late = TimeoutError(f"the transaction took longer than {self._limit:g} s; nothing was written")
        return late

    def _late(self) -> bool:
        return self._clock.monotonic() > self._end

    def _authorize(self, action: int, first: str | None, second: str | None, schema: str | None, _: str | None) -> int:
        why = refusal(action, first, second, schema)
        if why is None:
            return apsw.SQLITE_OK
        self._refused = why
        return apsw.SQLITE_DENY
