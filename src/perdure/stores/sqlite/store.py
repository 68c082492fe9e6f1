"""`SqliteStore`: the contract on one SQLite file, for any number of processes of one machine."""

from __future__ import annotations

import os
import signal
from functools import partial
from typing import TYPE_CHECKING

from perdure.errors import EngineClosed, ForkedEngine, LeaseLost, NotOurs, StoreUnavailable
from perdure.stores.contract import BUDGET, Hung, Reaped
from perdure.stores.folding import Folded
from perdure.stores.leases import Lease
from perdure.stores.sqlite import editing, forks, owning, reading, schema, transacting, writing
from perdure.stores.sqlite.replicas import ReplicaFile, Turnstile, replicas_in, write_lock_holder
from perdure.stores.sqlite.writer import BUSY_MS, Writer, mapped
from perdure.system import System

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path
    from typing import Any

    from perdure.model.records import Entry, Instance, Loaded, Message, State
    from perdure.model.tx import Tx
    from perdure.model.writes import Answer, Batch, Edit, Edited, Outdated, OwnedBy
    from perdure.stores.contract import Store
    from perdure.stores.moving import Reading, Restore
    from perdure.stores.sqlite.connection import Database
    from perdure.stores.versions import Versions

_HUNG_WAIT_MS = 1000
_FEW = 8
"""A batch of so many writes is committed where it is asked for, if that needs no waiting."""


class _Member:
    """A replica that joined through this object."""

    __slots__ = ("file", "lease")

    def __init__(self, file: ReplicaFile, lease: Lease) -> None:
        self.file = file
        self.lease = lease


class SqliteStore:
    """A SQLite file. Writes go through one thread; reads are done where they are asked for, on the event loop.

    Reads have no thread: a thread gives up the GIL for every row, and beside a busy loop each row then costs up to a
    switch interval (500 µs a row where the loop itself takes 1).
    """

    transactions: bool = True
    poll = 1.0

    def __init__(self, path: str | Path, system: System | None = None, *, migrate: bool = True) -> None:
        self.path: str = os.path.abspath(path)
        self._migrate = migrate
        self.system = system or System()
        self._pid = os.getpid()
        self._folder = self.path + "-replicas"
        self._members: dict[str, _Member] = {}
        self._notify: list[Callable[[], None]] = []
        self._writer: Writer | None = None
        self._db: Database | None = None
        self._opened = forks.NOTHING

    async def open(self) -> None:
        """See Store."""
        self._here()
        if self._writer is not None:
            return
        forks.refuse_inherited(self.path)
        writer = Writer(self.path, Turnstile(self._folder), self.system.clock, self._tell, migrate=self._migrate)
        try:
            await writer.start()
            with mapped(self.path):
                os.makedirs(self._folder, exist_ok=True)
                self._db = schema.connect(self.path)
                schema.settle(self._db)
        except BaseException:
            await writer.stop()
            raise
        self._writer = writer
        self._opened = forks.opened(self.path)

    async def close(self) -> None:
        """See Store."""
        self._here()
        writer, self._writer = self._writer, None
        db, self._db = self._db, None
        if db is not None:
            db.close()
            forks.closed(self._opened)
        if writer is not None:
            await writer.stop()
        for member in self._members.values():
            member.file.close()
        self._members.clear()

    # -- membership

    async def join(self, replica: str, lease: float, flows: Mapping[str, str] | None = None) -> int:
        """See Store."""
        writer = self._open_writer()
        if replica not in self._members:
            with mapped(self.path):
                file = ReplicaFile(self._folder, replica)
                if not file.hold():
                    raise LeaseLost(f"another process holds the file of replica {replica}, or takes it over")
            self._members[replica] = _Member(file, Lease(self.system.clock.boot(), lease))
        self.renew(replica, lease)
        epoch, alive = await writer.write(lambda db: owning.join(db, replica, flows or {}))
        if not alive:
            raise LeaseLost(f"replica {replica} was taken over; join under a new id")
        return epoch

    def renew(self, replica: str, lease: float) -> float:
        """See Store; needs neither the database nor the turnstile."""
        self._here()
        now, boot = self.system.clock.wall(), self.system.clock.boot()
        member = self._members.get(replica)
        with mapped(self.path):
            if member is None or not member.file.write(now + lease, boot + lease):
                raise LeaseLost(f"replica {replica} was taken over, or never joined")
        member.lease.renewed(boot, lease)
        return now

    async def raise_epoch(self, replica: str, epoch: int) -> int:
        """See Store."""
        raised = await self._open_writer().write(lambda db: owning.raise_epoch(db, replica, epoch))
        if raised is None:
            raise LeaseLost(f"replica {replica} was taken over")
        return raised

    async def leave(self, replica: str) -> None:
        """See Store."""
        writer = self._open_writer()
        await writer.do(partial(self._take_over, writer, replica, 1000))
        member = self._members.pop(replica, None)
        if member is not None:
            member.file.remove()

    async def reap(self, me: str, *, kill_hung: bool, limit: int = 1000) -> Reaped:
        """See Store."""
        writer, db = self._open_writer(), self._reader()
        with mapped(self.path):
            fences = dict(db.execute("select replica, alive from fence").fetchall())
            names = sorted({*fences, *replicas_in(self._folder)} - {me})
        taken: list[str] = []
        hung: list[Hung] = []
        for replica in names:
            found = await writer.do(partial(self._look_at, writer, replica, me, kill_hung, limit))
            if isinstance(found, Hung):
                hung.append(found)
            elif found:
                taken.append(replica)
        if taken:
            self._changed()
        return Reaped(tuple(taken), tuple(hung))

    # -- writing

    async def commit(self, batch: Batch) -> list[Answer]:
        """See Store."""
        writer = self._open_writer()
        fold = Folded(batch.writes)  # here, because beside a busy loop the thread would wait for the GIL to do it
        write = writer.write_quickly if len(batch.writes) <= _FEW else writer.write
        try:
            answers = await write(lambda db: writing.write(db, batch, fold))
        except NotOurs as newer:
            if batch.replica is None:
                raise
            raise LeaseLost(f"replica {batch.replica} was barred: {newer}") from newer
        self._changed()
        return answers

    async def edit(self, replica: str | None, epoch: int, edit: Edit) -> Edited | OwnedBy | Outdated:
        """See Store."""
        answer = await self._open_writer().write(lambda db: editing.edit(db, replica, epoch, edit))
        self._changed()
        return answer

    async def retire(self, replica: str, epoch: int, *, before: float, now: float, limit: int) -> int:
        """See Store; takes the write lock only if there is something to retire."""
        writer, db = self._open_writer(), self._reader()
        with mapped(self.path):
            if not editing.old(db, before, 1):
                writing.fenced(db, replica, epoch)
                return 0
        count = await writer.write(lambda db: editing.retire(db, replica, epoch, before, now, limit))
        self._changed()
        return count

    async def forget(self, flow: str, id: str) -> bool:
        """See Store."""
        return await self._open_writer().write(lambda db: editing.forget(db, flow, id))

    async def transact(
        self, replica: str, epoch: int, work: Callable[[Tx], Coroutine[Any, Any, Entry]], *, limit: float
    ) -> Entry:
        """See Store; the work runs on the thread that writes, in the context of this call.

        Raises:
            NotDurable: the work awaited something else than the transaction.
            PermissionError: its SQL reached for the store's own tables or indexes, beyond the transaction (transaction
                statements, savepoints, attach, pragma, analyze), or for something temporary.
            apsw.Error: what is wrong with its SQL, as SQLite says it.
        """
        transaction = transacting.Transaction(self.system.clock, replica, epoch, work, limit)
        try:
            entry = await self._open_writer().write(transaction.run)
        except transacting.Theirs as theirs:
            failure = theirs.error
        else:
            self._changed()
            return entry
        try:
            raise failure  # out here, so that it has no context but its own
        finally:
            del failure

    async def claim(
        self,
        replica: str,
        epoch: int,
        *,
        flows: Mapping[str, str],
        now: float,
        limit: int,
        thorough: bool = False,
    ) -> tuple[list[Instance], float | None]:
        """See Store; takes the write lock only if there is something to claim."""
        writer, db = self._open_writer(), self._reader()
        with mapped(self.path):
            others = owning.others(db, replica)
            pins = owning.pinned(others, flows)
            rows = owning.candidates(db, pins, owning.elsewhere(others, flows), now, limit, thorough)
            if not rows:
                writing.fenced(db, replica, epoch)
        if rows:
            found = rows
            rows = await writer.write(lambda db: owning.claim(db, replica, epoch, flows, found))
            self._changed()
        with mapped(self.path):
            return rows, owning.next_due(self._reader(), pins)

    async def claim_blocked(
        self, replica: str, epoch: int, *, flows: Mapping[str, str], process: str, after: bytes, limit: int
    ) -> tuple[list[Instance], bytes]:
        """See Store; takes the write lock only if there is something to claim."""
        writer, db = self._open_writer(), self._reader()
        with mapped(self.path):
            rows, last = owning.blocked(db, flows, process, after, limit)
            if not rows:
                writing.fenced(db, replica, epoch)
                return [], last
        claim = partial(
            owning.claim_blocked, replica=replica, epoch=epoch, flows=flows, process=process, after=after, limit=limit,
        )  # fmt: skip
        found = await writer.write(claim)
        self._changed()
        return found

    async def wakeups(self, replica: str, epoch: int) -> list[bytes]:
        """See Store; takes the write lock only if there is one."""
        writer, db = self._open_writer(), self._reader()
        with mapped(self.path):
            rows: list[tuple[bytes]] = db.execute(owning.CALLS, (replica,)).fetchall()
        if rows:
            await writer.write(lambda db: owning.called(db, replica, epoch, rows))
        return [row[0] for row in rows]

    # -- reading

    async def load(self, uids: Sequence[bytes], *, budget: int = BUDGET) -> list[Loaded]:
        """See Store."""
        with mapped(self.path):
            return reading.load(self._reader(), uids, budget)

    async def entries(self, uid: bytes, run: int, after: int, *, budget: int = BUDGET) -> tuple[list[Entry], bool]:
        """See Store."""
        with mapped(self.path):
            return reading.entries(self._reader(), uid, run, after, budget)

    async def inbox(self, uids: Sequence[bytes]) -> dict[bytes, list[Message]]:
        """See Store."""
        with mapped(self.path):
            return reading.inbox(self._reader(), uids)

    async def instance(self, flow: str, id: str) -> Instance | None:
        """See Store."""
        with mapped(self.path):
            return reading.instance(self._reader(), flow, id)

    async def instances(self, uids: Sequence[bytes]) -> list[Instance]:
        """See Store."""
        with mapped(self.path):
            return reading.instances(self._reader(), uids)

    async def results(self, uids: Sequence[bytes]) -> dict[bytes, Instance | None]:
        """See Store."""
        with mapped(self.path):
            return reading.results(self._reader(), uids)

    async def exposed(self, uid: bytes) -> Mapping[str, bytes]:
        """See Store."""
        with mapped(self.path):
            return reading.exposed(self._reader(), uid)

    async def find(
        self, *, flow: str | None, states: Sequence[State] | None, since: float | None, after: bytes | None, limit: int
    ) -> list[Instance]:
        """See Store."""
        with mapped(self.path):
            return reading.find(self._reader(), flow, states, since, after, limit)

    # -- noticing

    def on_change(self, notify: Callable[[], None]) -> None:
        """See Store."""
        self._notify.append(notify)

    async def check(self) -> None:
        """See Store; writes a row, because a full disk shows in nothing else."""
        writer, now = self._open_writer(), self.system.clock.wall()
        writer.look_again()
        text = "insert into checked(one, at) values (1, ?) on conflict(one) do update set at = excluded.at"
        await writer.write(lambda db: db.execute(text, (now,)).fetchall())

    # -- apart from running: see perdure.stores.versions and perdure.stores.moving

    async def versions(self) -> Versions:
        """See Migrating."""
        from perdure.stores.sqlite import readonly

        return readonly.versions(self.path)

    async def migrate(self) -> Versions:
        """See Migrating."""
        found = await self.versions()
        made = SqliteStore(self.path, self.system)
        await made.open()
        await made.close()
        return found

    def read_only(self) -> Store:
        """The same file, to be opened for reading alone."""
        from perdure.stores.sqlite.readonly import ReadOnlySqliteStore

        return ReadOnlySqliteStore(self.path, self.system)

    def dump(self) -> AbstractAsyncContextManager[Reading]:
        """See Moving."""
        from perdure.stores.sqlite import moving

        return moving.dump(self.path)

    def restore(self) -> AbstractAsyncContextManager[Restore]:
        """See Moving."""
        from perdure.stores.sqlite import moving

        return moving.restore(self.path)

    # -- inside

    def _here(self) -> None:
        if os.getpid() != self._pid:
            raise ForkedEngine(
                "this process was forked after the store was made; fork first, and open the engine in the child"
            )

    def _open_writer(self) -> Writer:
        self._here()
        if self._writer is None:
            raise EngineClosed(f"the store {self.path} is not open")
        return self._writer

    def _reader(self) -> Database:
        self._here()
        if self._db is None:
            raise EngineClosed(f"the store {self.path} is not open")
        return self._db

    def _tell(self) -> None:
        for notify in tuple(self._notify):
            notify()

    def _changed(self) -> None:
        # SQLite tells of other connections only; engines that share this object are told here, whoever of them it was.
        if len(self._notify) > 1:
            self._tell()

    # -- on the writer's thread

    def _take_over(
        self, writer: Writer, replica: str, limit: int, db: Database, wait_ms: int = BUSY_MS
    ) -> None:  # fmt: skip
        """The replica can write no more, owns nothing, and its row is gone."""

        def bar(db: Database) -> None:
            db.execute("update fence set alive = 0, epoch = epoch + 1 where replica = ?", (replica,))

        def free(db: Database) -> bool:
            more = owning.free(db, replica, limit, self.system.clock.wall()) == limit
            if not more:
                db.execute("delete from fence where replica = ?", (replica,))
            return more

        writer.transaction(db, bar, wait_ms)
        ReplicaFile(self._folder, replica).mark_dead()
        while writer.transaction(db, free):
            pass

    def _look_at(
        self, writer: Writer, replica: str, me: str, kill_hung: bool, limit: int, db: Database
    ) -> Hung | bool:  # fmt: skip
        """Whether the replica was taken over now; or that it hangs and holds the database."""
        file = ReplicaFile(self._folder, replica)
        if file.hold():  # its process is gone, whatever its lease says
            try:
                self._take_over(writer, replica, limit, db)
                file.remove()
            finally:
                file.close()
            return True
        barred = db.execute("select alive from fence where replica = ?", (replica,)).get == 0
        if not barred and not self._hangs(file, me):
            return False
        try:
            self._take_over(writer, replica, limit, db, _HUNG_WAIT_MS)
        except StoreUnavailable:
            return self._holds_up(writer, file, me, kill_hung, limit, db)
        file.remove()
        return True

    def _hangs(self, file: ReplicaFile, me: str) -> bool:
        now = self.system.clock.boot()
        member = self._members.get(me)
        return member is not None and member.lease.may_judge(now) and now > file.read()[2]

    def _holds_up(
        self, writer: Writer, file: ReplicaFile, me: str, kill_hung: bool, limit: int, db: Database
    ) -> Hung | bool:  # fmt: skip
        pid, since, _ = file.read()
        try:
            process = os.pidfd_open(pid)  # before the look: the number cannot become somebody else's in between
        except OSError:
            return False  # it has just ended
        try:
            if write_lock_holder(self.path) != pid or pid == os.getpid() or not self._hangs(file, me):
                return False  # somebody else is in the way: the others are looked at, and this one again next time
            if not kill_hung:
                return Hung(file.replica, pid, since)
            signal.pidfd_send_signal(process, signal.SIGKILL)
        finally:
            os.close(process)
        self._take_over(writer, file.replica, limit, db)
        file.remove()
        return True
