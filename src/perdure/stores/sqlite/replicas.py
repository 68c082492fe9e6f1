"""Locks of the operating system beside the database: one file per replica, held for its life, and the turnstile.

A `flock` belongs to the open file, not to the process: it ends with the process however that ends, another engine in
the same process is seen like a stranger, and a forked child must close what it inherited or it would keep it alive.
"""

from __future__ import annotations

import fcntl
import os
import struct
import threading
import weakref
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote

if TYPE_CHECKING:
    from collections.abc import Iterator

_SUFFIX: Final = ".replica"
_RECORD: Final = struct.Struct("<qdd")  # pid, end of the lease on the wall clock (for people), and on the boot clock
_TEXT_SIZE: Final = 128
_DEAD_AT: Final = 127
"""A byte that only a taker writes, apart from the record that only the owner writes: neither can undo the other."""

_held: weakref.WeakSet[_Fd] = weakref.WeakSet()


class _Fd:
    """An open file, closed in forked children."""

    __slots__ = ("__weakref__", "fd")

    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        _held.add(self)

    def close(self) -> None:
        """The file is closed, and with it the lock gone."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            _held.discard(self)
            os.close(fd)

    def lock(self, *, wait: bool = False) -> bool:
        """Whether the lock is ours now."""
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        return True


def _after_fork() -> None:
    for file in list(_held):
        file.close()


os.register_at_fork(after_in_child=_after_fork)


class ReplicaFile:
    """The file of one replica: who holds its lock is that replica, or is taking it over."""

    def __init__(self, folder: str, replica: str) -> None:
        self.replica = replica
        self.path = os.path.join(folder, quote(replica, safe="") + _SUFFIX)
        self._file: _Fd | None = None

    def hold(self) -> bool:
        """The file exists and its lock is ours; False if somebody else holds it."""
        while True:
            file = _Fd(self.path)
            if not file.lock():
                file.close()
                return False
            try:
                same = os.path.samestat(os.fstat(file.fd), os.stat(self.path))
            except FileNotFoundError:
                same = False
            if same:
                self._file = file
                return True
            file.close()  # removed between open and lock: make it again

    def write(self, until_wall: float, until_boot: float) -> bool:
        """The record says so; False if the replica was taken over."""
        file = self._file
        if file is None:
            return False
        text = f"pid {os.getpid()} until {until_wall:.3f}".encode().ljust(_TEXT_SIZE - _RECORD.size - 2)
        os.pwrite(file.fd, _RECORD.pack(os.getpid(), until_wall, until_boot) + text + b"\n", 0)
        return os.fstat(file.fd).st_nlink > 0 and os.pread(file.fd, 1, _DEAD_AT) in (b"", b"\0")

    def mark_dead(self) -> None:
        """The replica learns at its next renewal that it was taken over, without the database."""
        try:
            fd = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            os.pwrite(fd, b"D", _DEAD_AT)
        finally:
            os.close(fd)

    def read(self) -> tuple[int, float, float]:
        """The pid, and the end of the lease on the wall clock and on the boot clock."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return 0, 0.0, 0.0
        try:
            record = os.pread(fd, _RECORD.size, 0)
        finally:
            os.close(fd)
        if len(record) < _RECORD.size:
            return 0, 0.0, float("inf")  # it has just been made; its owner is about to write
        return _RECORD.unpack(record)

    def close(self) -> None:
        """The lock is gone; the file stays."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def remove(self) -> None:
        """The file is gone, and the lock with it."""
        try:
            os.unlink(self.path)
        except FileNotFoundError:
            pass
        self.close()


def replicas_in(folder: str) -> Iterator[str]:
    """The replicas that have a file."""
    for name in sorted(os.listdir(folder)):
        if name.endswith(_SUFFIX):
            yield unquote(name[: -len(_SUFFIX)])


class Turnstile:
    """Where the writers of all processes queue: SQLite itself lets one that commits back to back starve the others.

    For fairness only: after `patience` seconds a writer goes on without it.
    """

    def __init__(self, folder: str, patience: float = 0.5) -> None:
        self._path = os.path.join(folder, "turnstile")
        self._patience = patience
        self._file: _Fd | None = None
        self._inside: _Fd | None = None
        self._stuck = False
        """Patience ended once, and nobody has passed since: whoever stands in it may be stopped for good."""

    def enter(self) -> None:
        """It is this writer's turn, or it has waited long enough."""
        file = self._file
        if file is None:
            file = self._file = _Fd(self._path)
        if file.lock():
            self._stuck = False
            self._inside = file
        elif not self._stuck:
            self._inside = self._queue()
            self._stuck = self._inside is None

    def try_enter(self) -> bool:
        """It is this writer's turn at once; False: somebody else stands in it."""
        file = self._file
        if file is None:
            file = self._file = _Fd(self._path)
        if not file.lock():
            return False
        self._stuck = False
        self._inside = file
        return True

    def leave(self) -> None:
        """The next one may go."""
        file, self._inside = self._inside, None
        if file is None:
            return
        if file is self._file:
            fcntl.flock(file.fd, fcntl.LOCK_UN)
        else:
            file.close()

    def close(self) -> None:
        """The file is closed."""
        self.leave()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _queue(self) -> _Fd | None:
        # The kernel queues those who block, and a thread of its own can be left behind when patience ends.
        file = _Fd(self._path)
        guard = threading.Lock()
        got = threading.Event()
        given_up = False

        def wait() -> None:
            try:
                file.lock(wait=True)
            except OSError:
                return
            with guard:
                if given_up:
                    file.close()
                got.set()

        threading.Thread(target=wait, name="perdure-turnstile", daemon=True).start()
        if got.wait(self._patience):
            return file
        with guard:
            if got.is_set():
                return file
            given_up = True
        return None


def write_lock_holder(database: str) -> int | None:
    """The pid of the process that holds SQLite's write lock on the database, if the system tells."""
    try:
        shm = os.stat(database + "-shm")
        with open("/proc/locks") as lines:
            rows = [line.split() for line in lines]
    except OSError:
        return None
    # e.g. `1: POSIX  ADVISORY  WRITE 123 fd:01:4711 120 120`; a waiting one has `->` in second place
    place = f"{os.major(shm.st_dev):02x}:{os.minor(shm.st_dev):02x}:{shm.st_ino}"
    for row in rows:
        if len(row) == 8 and row[1] == "POSIX" and row[3] == "WRITE" and row[5] == place:
            first, last = int(row[6]), (1 << 62) if row[7] == "EOF" else int(row[7])
            if first <= 120 <= last:
                return int(row[4])
    return None
