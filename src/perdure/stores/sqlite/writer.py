"""The one thread that writes: its connection, its queue, transactions, and what it watches while it is idle."""

from __future__ import annotations

import logging
import os
import queue
import threading
from asyncio import Future, get_running_loop
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

import apsw

from perdure.errors import (
    CommitUnknown,
    PerdureError,
    StoreCorrupt,
    StoreFull,
    StoreRefused,
    StoreUnavailable,
)
from perdure.stores.sqlite import schema
from perdure.stores.sqlite.replicas import Turnstile, write_lock_holder
from perdure.stores.sqlite.schema import BUSY_MS
from perdure.threads import settle

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable, Generator

    from perdure.clock import Clock
    from perdure.stores.sqlite.connection import Database

logger = logging.getLogger("perdure")

T = TypeVar("T")
Job = tuple["Callable[[Any], Any]", "AbstractEventLoop", "Future[Any]"]

IDLE_S: Final = 0.02
PRESENCE_S: Final = 1.0
CHECKPOINT_PAGES: Final = 1000
"""4 MB of log, moved to the database after a commit has been answered, not in it."""
LARGE_LOG_PAGES: Final = 25_000
"""100 MB: a log that cannot be emptied is warned of when it is so large, and again when it is twice as large."""
QUICK_S: Final = 0.003
SLOW_PAUSE_S: Final = 1.0
"""After a commit on the event loop that took longer than this, commits go through the thread for so long."""
LOG_BYTES: Final = CHECKPOINT_PAGES * 4200

_REFUSED: Final = (apsw.TooBigError, apsw.ConstraintError, apsw.MismatchError)


@contextmanager
def mapped(path: str) -> Generator[None]:
    """What the database says is one of our errors; the transaction that it was said in is rolled back."""
    try:
        yield
    except (PerdureError, apsw.SQLError):  # the latter is a fault of ours, not of the database
        raise
    except apsw.BusyError as error:
        holder = write_lock_holder(path)
        who = f"process {holder} holds its write lock" if holder else "another process holds its write lock"
        raise StoreUnavailable(f"{path}: {who} for longer than {BUSY_MS / 1000:g} s; it is tried again") from error
    except apsw.FullError as error:
        raise StoreFull(f"the disk that holds {path} is full; nothing was written, make room") from error
    except (apsw.CorruptError, apsw.NotADBError) as error:
        raise StoreCorrupt(f"the database file {path} is damaged ({error}); restore a copy") from error
    except (*_REFUSED, UnicodeError, OverflowError, TypeError) as error:
        raise StoreRefused(f"the database does not take this data: {error}") from error
    except (apsw.Error, OSError) as error:
        raise StoreUnavailable(f"the database {path} cannot be used now: {error}") from error


class Writer:
    """A thread with the only connection that writes. Jobs are done in the order given, each on its own."""

    def __init__(
        self, path: str, turnstile: Turnstile, clock: Clock, changed: Callable[[], None], *, migrate: bool = True
    ) -> None:
        self._path = path
        self._migrate = migrate
        self._turnstile = turnstile
        self._clock = clock
        self._changed = changed
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="perdure-sqlite", daemon=True)
        self._db: Database | None = None
        self._files: list[tuple[str, int, int]] = []
        self._looked = 0.0
        self._gone: StoreUnavailable | None = None
        self._data_version = 0
        self._log_pages = 0
        self._large = LARGE_LOG_PAGES
        self._using = threading.Lock()
        """Held by whoever uses the connection."""
        self._slow_until = 0.0

    async def start(self) -> None:
        """The database is open and whole, the thread takes jobs."""
        self._thread.start()
        await self.do(self._open)

    async def stop(self) -> None:
        """What was asked for is done, the connection closed, the thread gone."""
        try:
            await self.do(self._close)
        finally:
            self._jobs.put(None)
            self._thread.join()
            self._turnstile.close()

    def do(self, job: Callable[[Any], T]) -> Future[T]:
        """The job's result, once the thread has done it; it is done even if nobody waits any more."""
        loop = get_running_loop()
        future: Future[T] = loop.create_future()
        self._jobs.put((job, loop, future))
        return future

    def write(self, work: Callable[[Database], T]) -> Future[T]:
        """The work's result, once it is on disk as a transaction of its own."""
        return self.do(lambda db: self.transaction(db, work))

    def write_quickly(self, work: Callable[[Database], T]) -> Future[T]:
        """As `write`, for a few rows: done here and now if nobody else wants to write and the disk is quick, else by
        the thread.

        The way to the thread and back takes as long as the commit itself: 245 µs together, 150 without it.
        """
        began = self._clock.monotonic()
        if began >= self._slow_until and self._jobs.empty() and self._using.acquire(blocking=False):
            try:
                future: Future[T] = get_running_loop().create_future()
                if self._at_once(work, future):
                    return future
            finally:
                self._using.release()
                if self._clock.monotonic() - began > QUICK_S:
                    self._slow_until = began + SLOW_PAUSE_S
        return self.write(work)

    def _at_once(self, work: Callable[[Database], T], future: Future[T]) -> bool:
        """The transaction's outcome is in the future; False: it would have to wait, and was not begun."""
        db = self._db
        if db is None or not self._turnstile.try_enter():
            return False
        try:
            with mapped(self._path):
                self._present()
                db.set_busy_timeout(0)
                try:
                    db.execute("begin immediate")
                except apsw.BusyError:
                    return False
                finally:
                    db.set_busy_timeout(BUSY_MS)
                future.set_result(self._finish(db, work))
        except Exception as error:
            future.set_exception(error)
        finally:
            self._turnstile.leave()
        return True

    def _finish(self, db: Database, work: Callable[[Database], T]) -> T:
        """The work is done and committed in the transaction that was begun, or that is rolled back."""
        try:
            schema.known(db.execute("pragma user_version").get, self._path)  # another process may have migrated it
            result = work(db)
            self._commit(db)
        except BaseException:
            if db.in_transaction:
                db.execute("rollback")
            raise
        return result

    def transaction(self, db: Database, work: Callable[[Database], T], wait_ms: int = BUSY_MS) -> T:
        """The work is on disk, or nothing of it is.

        Raises:
            CommitUnknown: the disk failed in the commit itself.
        """
        self._present()
        self._turnstile.enter()
        try:
            with mapped(self._path):
                if wait_ms != BUSY_MS:
                    db.set_busy_timeout(wait_ms)
                try:
                    db.execute("begin immediate")
                finally:
                    if wait_ms != BUSY_MS:
                        db.set_busy_timeout(BUSY_MS)
                return self._finish(db, work)
        finally:
            self._turnstile.leave()

    def look_again(self) -> None:
        """The next transaction looks first whether the file at the path is still the one that is open."""
        self._looked = 0.0

    # -- on the thread

    def _run(self) -> None:
        while True:
            try:
                job = self._jobs.get(timeout=IDLE_S)
            except queue.Empty:
                self._idle()
                continue
            if job is None:
                return
            work, loop, future = job
            result: Any = None
            failure: BaseException | None = None
            try:
                with self._using, mapped(self._path):
                    result = work(self._db)
            except BaseException as error:
                failure = error
            try:
                loop.call_soon_threadsafe(settle, future, result, failure)
            except RuntimeError:
                pass  # that loop has ended, and with it whoever waited
            del job, work, loop, future, result, failure
            with self._using:
                if self._jobs.empty():
                    self._checkpoint()
                self._look_at_others()

    def _open(self, _: Database | None) -> None:
        db = schema.connect(self._path)
        try:
            schema.prepare(db, self._path, migrate=self._migrate)
            db.set_wal_hook(self._logged)
            db.execute("select count(*) from sqlite_schema").fetchall()
            self._data_version = db.pragma("data_version")
            db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0)
        except BaseException:
            db.close()
            raise
        self._lengthen_log(db)
        self._db = db
        for path in (self._path, self._path + "-wal"):
            stat = os.stat(path)
            self._files.append((path, stat.st_dev, stat.st_ino))

    def _lengthen_log(self, db: Database) -> None:
        """The log file has its usual size from the start: a commit that must extend it takes 210 µs instead of 130.

        Behind the last frame a log may hold anything: its end is where checksums end. Nobody else writes meanwhile.
        """
        fd = os.open(self._path + "-wal", os.O_WRONLY | os.O_CLOEXEC)  # the one file of the three that holds no locks
        try:
            db.execute("begin immediate")
            size = os.fstat(fd).st_size
            if size < LOG_BYTES and not _extended(fd, size, LOG_BYTES):
                os.ftruncate(fd, size)
        except (apsw.Error, OSError):
            pass  # busy: then it grows as it is used
        finally:
            os.close(fd)
            if db.in_transaction:
                db.execute("rollback")

    def _close(self, _: Database | None) -> None:
        db, self._db = self._db, None
        if db is None:
            return
        if self._gone is not None:
            db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        else:
            try:
                db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
            except apsw.Error:
                pass  # others read or write; the log stays for them
        db.close()

    def _commit(self, db: Database) -> None:
        try:
            db.execute("commit")
        except apsw.IOError as error:
            raise CommitUnknown(f"the disk failed while {self._path} was committed: {error}") from error

    def _present(self) -> None:
        """Without this look, writes to a file that was deleted go on succeeding into nothing."""
        if self._gone is not None:
            raise self._gone
        now = self._clock.monotonic()
        if now - self._looked < PRESENCE_S and self._looked:
            return
        for path, device, inode in self._files:
            try:
                stat = os.stat(path)
                same = stat.st_ino == inode and stat.st_dev == device
            except FileNotFoundError:
                same = False
            except OSError:
                continue  # the directory cannot be read now: nothing is known, and the commit will tell
            if not same:
                self._gone = StoreUnavailable(
                    f"the database file {path} was deleted or replaced while open; what was acknowledged is in the "
                    "old file: put it back and restart"
                )
                raise self._gone
        self._looked = now

    def _idle(self) -> None:
        with self._using:
            try:
                self._present()
            except StoreUnavailable:
                return
            self._checkpoint()
            self._look_at_others()

    def _look_at_others(self) -> None:
        db = self._db
        if db is None:
            return
        try:
            version = db.pragma("data_version")
        except apsw.Error:
            return
        if version != self._data_version:
            self._data_version = version
            self._changed()

    def _logged(self, _db: object, _name: str, pages: int) -> int:
        self._log_pages = pages
        return apsw.SQLITE_OK

    def _checkpoint(self) -> None:
        if self._log_pages < CHECKPOINT_PAGES or self._db is None or self._gone is not None:
            return
        self._log_pages = 0
        try:
            pages, emptied = self._db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        except apsw.Error:
            return  # the log only grows; the next commit says what is wrong
        if pages >= self._large and emptied < pages:
            self._large = 2 * pages
            logger.warning(
                "the log %s-wal has grown to %.0f MB and cannot be emptied: a transaction that only reads has been open "
                "for long, here or in another process; end it", self._path, pages * 4096 / 1e6,
            )  # fmt: skip


def _extended(fd: int, size: int, wanted: int) -> bool:
    """Whether there was room for zeros up to the wanted size."""
    try:
        done = os.pwrite(fd, bytes(wanted - size), size) == wanted - size
        os.fsync(fd)
    except OSError:
        return False
    return done
