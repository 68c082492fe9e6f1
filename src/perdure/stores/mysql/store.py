"""`MysqlStore`: the contract on one MariaDB or MySQL database, for any number of processes of any number of machines."""

from __future__ import annotations

import logging
import os
from functools import partial
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from perdure.clock import Clock
from perdure.errors import CommitUnknown, EngineClosed, ForkedEngine, StoreUnavailable
from perdure.model.writes import Sent
from perdure.stores.contract import BUDGET, Reaped
from perdure.stores.folding import Folded
from perdure.stores.leases import Lease
from perdure.stores.mysql import editing, owning, quick, reading, schema, sending, transacting, writing
from perdure.stores.mysql.bell import EVERYBODY, Bell
from perdure.stores.mysql.beside import LIFE, PART, Beside
from perdure.stores.mysql.connection import After, Session, connect, parse
from perdure.stores.mysql.literals import Texts, literal
from perdure.stores.mysql.pool import Pool, closed
from perdure.stores.processes import has_ended
from perdure.system import System

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager
    from typing import Any, TypeVar

    from perdure.model.records import Entry, Instance, Loaded, Message, State
    from perdure.model.tx import Tx
    from perdure.model.writes import Answer, Batch, Edit, Edited, Outdated, OwnedBy
    from perdure.stores.contract import Store
    from perdure.stores.moving import Reading, Restore
    from perdure.stores.mysql.connection import Address, Connection
    from perdure.stores.versions import Versions

    T = TypeVar("T")

logger = logging.getLogger("perdure")

TIMEOUT: Final = 4.0
"""Seconds that anything may wait, as long as no replica with a shorter lease joins."""
CHECKED: Final = "insert into perdure_checked(one, at) values (1, %s) on duplicate key update at = %s"
POLL_SECONDS: Final = (1.0, 5.0)
"""Without the bell, and with it: what is lost then is the word of a process that died between its commit and the telling."""
LOOK_SECONDS: Final = 0.5
"""Between two looks at the other replicas, as long as all seem well."""
SUSPECT_SECONDS: Final = 1.0
"""So long a replica has to take its session lock again whose connection was cut off."""
_LOOKS: Final = 5
_STRANDED: Final = 1000


class _Member:
    """A replica that joined through this object."""

    __slots__ = ("lease", "look_at", "outages")

    def __init__(self, lease: Lease, outages: int) -> None:
        self.lease = lease
        self.look_at = 0.0
        self.outages = outages


class MysqlStore:
    """The tables with one prefix in a MariaDB or MySQL database.

    Its time is the database's; with a clock that is not the machine's own (tests, simulation) it is that one's.
    """

    transactions: bool = True

    def __init__(self, url: str | Address, system: System | None = None) -> None:
        self.address = parse(url) if isinstance(url, str) else url
        self.system = system or System()
        self._pid = os.getpid()
        self._texts = Texts(self.address.prefix)
        self._timeout = TIMEOUT
        self._members: dict[str, _Member] = {}
        self._notify: list[Callable[[], None]] = []
        self._pool: Pool | None = None
        self._work_pool: Pool | None = None
        """For the users' own SQL."""
        self._beside: Beside | None = None
        self._bell: Bell | None = None
        self._suspected: dict[str, float] = {}
        """Since when the session locks of other replicas are seen to be free, on the clock that counts suspended time."""
        self._owed = After()
        """What could not be looked at again after a commit."""

    async def open(self) -> None:
        """See Store."""
        self._here()
        if self._pool is not None:
            return
        await self._alone(schema.prepare)
        self._pool = Pool(self.address, self._texts, TIMEOUT, known=self._texts.filled(schema.known()))
        self._work_pool = Pool(self.address, self._texts, TIMEOUT, ours=False)
        self._beside = Beside(self.address, self._texts, int.from_bytes(self.system.random_bytes(6), "big"))
        if self.address.notify:
            self._bell = Bell(self.address, self._texts, TIMEOUT, self._mine, self._tell)
            self._bell.start()

    async def close(self) -> None:
        """See Store."""
        self._here()
        pool, self._pool = self._pool, None
        work_pool, self._work_pool = self._work_pool, None
        beside, self._beside = self._beside, None
        bell, self._bell = self._bell, None
        self._members.clear()
        if bell is not None:
            await bell.stop()
        if beside is not None:
            await beside.stop()
        for each in (pool, work_pool):
            if each is not None:
                await each.close()

    @property
    def poll(self) -> float:
        """See Store."""
        return POLL_SECONDS[self._bell is not None and self._bell.hears]

    # -- membership

    async def join(self, replica: str, lease: float, flows: Mapping[str, str] | None = None) -> int:
        """See Store."""
        pool, beside = self._open(), self._lease_keeper()
        self._timeout = min(self._timeout, lease * PART)
        pool.limit(self._timeout)
        self._plain_pool().limit(self._timeout)
        await beside.ready(replica, self._timeout)
        boot = self.system.clock.boot()
        epoch, _ = await pool.write(lambda s: owning.join(s, replica, flows or {}, lease, self._time()))
        if replica not in self._members:
            self._members[replica] = _Member(Lease(boot, lease), beside.outages)
        self._members[replica].lease.renewed(boot, lease)
        return epoch

    def renew(self, replica: str, lease: float) -> float:
        """See Store."""
        self._here()
        beside = self._lease_keeper()
        boot = self.system.clock.boot()
        at = beside.renew(replica, lease, self._time())
        member = self._members.get(replica)
        if member is not None:
            if member.outages != beside.outages:  # the others had none to renew theirs with either
                member.outages = beside.outages
                member.lease = Lease(boot, lease)
            member.lease.renewed(boot, lease)
        return at

    async def raise_epoch(self, replica: str, epoch: int) -> int:
        """See Store."""
        raised, _ = await self._open().write(lambda s: owning.raise_epoch(s, replica, epoch))
        return raised

    async def leave(self, replica: str) -> None:
        """See Store."""
        await self._take_over(replica, 1000, by_lease=False)
        self._members.pop(replica, None)
        if self._beside is not None:
            await self._beside.forget(replica)

    async def reap(self, me: str, *, kill_hung: bool, limit: int = 1000) -> Reaped:
        """See Store; nobody is ever hung here: what a stopped process holds the database gives up by itself."""
        pool = self._open()
        now, member = self.system.clock.boot(), self._members.get(me)
        if member is not None and now < member.look_at and not self._suspected:
            return Reaped()
        others = await pool.read(lambda s: s.rows(owning.OTHERS, self._time(), me))
        free = await pool.read(
            lambda s: _free(s, [(row[0], row[3]) for row in others if row[3] is not None], self.address)
        )
        if member is not None:
            # Whoever looks looks at all others, so that many need not look as often: together about once in that time.
            uneven = 0.75 + self.system.random_bytes(1)[0] / 510
            member.look_at = now + LOOK_SECONDS * max(1, len(others)) * uneven
        may_judge = member is not None and member.lease.may_judge(now)
        self._suspected = {replica: self._suspected.get(replica, now) for replica in free}
        taken: list[str] = []
        for replica, alive, over, _, process in others:
            by_lease = alive and over and may_judge
            died = now - self._suspected.get(replica, now) >= SUSPECT_SECONDS or has_ended(process or "")
            if (by_lease or died or not alive) and await self._take_over(
                replica, limit, by_lease=by_lease and not died
            ):
                taken.append(replica)
        return Reaped(tuple(taken))

    # -- writing

    async def commit(self, batch: Batch) -> list[Answer]:
        """See Store."""
        pool = self._open()
        plain = quick.plain(batch)
        if plain is not None and await quick.write(pool, batch, plain):
            await self._settled(plain.after)
            return plain.answers
        answers, after = await pool.write(
            lambda s: writing.write(s, batch, Folded(batch.writes)), fenced=batch.replica is not None
        )
        moved = await self._settled(after)
        if moved:
            answers = [_called(answer, moved) for answer in answers]
        return answers

    async def edit(self, replica: str | None, epoch: int, edit: Edit) -> Edited | OwnedBy | Outdated:
        """See Store."""
        return await self._written(lambda s: editing.edit(s, replica, epoch, edit))

    async def retire(self, replica: str, epoch: int, *, before: float, now: float, limit: int) -> int:
        """See Store."""
        return await self._written(lambda s: editing.retire(s, replica, epoch, before, now, limit))

    async def forget(self, flow: str, id: str) -> bool:
        """See Store."""
        return await self._written(lambda s: editing.forget(s, flow, id))

    async def transact(
        self, replica: str, epoch: int, work: Callable[[Tx], Coroutine[Any, Any, Entry]], *, limit: float
    ) -> Entry:
        """See Store; the work runs in this task, on a connection of its own, and may await what it likes.

        Raises:
            PermissionError: its SQL ended the transaction.
            asyncmy.errors.MySQLError: what is wrong with its SQL, as the server says it.
        """
        self._open()
        entry = await transacting.transact(self._plain_pool(), (replica, epoch), work, limit)
        self._changed()
        return entry

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
        """See Store."""
        pool = self._open()
        if thorough:
            if await pool.read(lambda s: s.rows(owning.STRANDED, 1)):
                await self._written(lambda s: owning.unstranded(s, _STRANDED, now))
            await self._settled(After(), tell=False)

        async def look(s: Session) -> tuple[owning.Pins, list[Instance], float | None]:
            pins, elsewhere = await owning.left_to_others(s, replica, epoch, flows)
            found = await owning.candidates(s, flows, pins, elsewhere, now, limit, thorough=thorough)
            return pins, found, None if found else await owning.next_due(s, flows, pins)

        pins, rows, due = await pool.read(look)
        if not rows:
            return [], due
        found = rows
        rows = await self._written(lambda s: owning.claim(s, replica, epoch, flows, found))
        return rows, await pool.read(lambda s: owning.next_due(s, flows, pins))

    async def claim_blocked(
        self, replica: str, epoch: int, *, flows: Mapping[str, str], process: str, after: bytes, limit: int
    ) -> tuple[list[Instance], bytes]:
        """See Store."""

        found, last = await self._open().read(lambda s: owning.blocked(s, flows, process, after, limit))
        if not found:
            return [], last
        return await self._written(lambda s: owning.claim(s, replica, epoch, flows, found)), last

    async def wakeups(self, replica: str, epoch: int) -> list[bytes]:
        """See Store."""
        pool = self._open()
        if not await pool.read(lambda s: s.rows(owning.CALLED, replica)):
            return []
        return await self._written(lambda s: owning.wakeups(s, replica, epoch, self.system.clock.wall()), tell=False)

    # -- reading

    async def load(self, uids: Sequence[bytes], *, budget: int = BUDGET) -> list[Loaded]:
        """See Store."""
        return await self._open().snapshot(lambda s: reading.load(s, uids, budget))

    async def entries(self, uid: bytes, run: int, after: int, *, budget: int = BUDGET) -> tuple[list[Entry], bool]:
        """See Store."""
        return await self._open().read(lambda s: reading.entries(s, uid, run, after, budget))

    async def inbox(self, uids: Sequence[bytes]) -> dict[bytes, list[Message]]:
        """See Store."""
        return await self._open().read(lambda s: reading.inbox(s, uids))

    async def instance(self, flow: str, id: str) -> Instance | None:
        """See Store."""
        return await self._open().read(lambda s: reading.instance(s, flow, id))

    async def instances(self, uids: Sequence[bytes]) -> list[Instance]:
        """See Store."""
        return await self._open().read(lambda s: reading.instances(s, uids))

    async def results(self, uids: Sequence[bytes]) -> dict[bytes, Instance | None]:
        """See Store."""
        return await self._open().read(lambda s: reading.results(s, uids))

    async def exposed(self, uid: bytes) -> Mapping[str, bytes]:
        """See Store."""
        return await self._open().read(lambda s: reading.exposed(s, uid))

    async def find(
        self, *, flow: str | None, states: Sequence[State] | None, since: float | None, after: bytes | None, limit: int
    ) -> list[Instance]:
        """See Store."""
        return await self._open().read(lambda s: reading.find(s, flow, states, since, after, limit))

    # -- noticing

    def on_change(self, notify: Callable[[], None]) -> None:
        """See Store."""
        self._notify.append(notify)

    async def check(self) -> None:
        """See Store; writes a row, because a full disk shows in nothing else."""
        now = self.system.clock.wall()
        await self._open().write(lambda s: s.run(CHECKED, now, now))

    # -- apart from running: see perdure.stores.versions and perdure.stores.moving

    async def versions(self) -> Versions:
        """See Migrating."""
        return await self._alone(schema.look)

    async def migrate(self) -> Versions:
        """See Migrating."""
        found = await self.versions()
        await self._alone(schema.migrate)
        return found

    def read_only(self) -> Store:
        """The same database, to be opened for reading alone."""
        from perdure.stores.mysql.readonly import ReadOnlyMysqlStore

        return ReadOnlyMysqlStore(self.address, self.system)

    def dump(self) -> AbstractAsyncContextManager[Reading]:
        """See Moving."""
        from perdure.stores.mysql import moving

        return moving.dump(self.address, self._texts)

    def restore(self) -> AbstractAsyncContextManager[Restore]:
        """See Moving."""
        from perdure.stores.mysql import moving

        return moving.restore(self.address, self._texts)

    # -- inside

    async def _alone(self, work: Callable[[Connection, Texts, Address], Awaitable[T]]) -> T:
        """What the work gives, on a connection of its own."""
        self._here()
        connection = await connect(self.address, TIMEOUT)
        try:
            self._texts.mark = connection.mark
            return await work(connection, self._texts, self.address)
        finally:
            await closed(connection)

    def _here(self) -> None:
        if os.getpid() != self._pid:
            raise ForkedEngine(
                "this process was forked after the store was made; fork first, and open the engine in the child"
            )

    def _open(self) -> Pool:
        self._here()
        if self._pool is None:
            raise EngineClosed(f"the store {self.address.shown} is not open")
        return self._pool

    def _plain_pool(self) -> Pool:
        if self._work_pool is None:
            raise EngineClosed(f"the store {self.address.shown} is not open")
        return self._work_pool

    def _lease_keeper(self) -> Beside:
        if self._beside is None:
            raise EngineClosed(f"the store {self.address.shown} is not open")
        return self._beside

    def _time(self) -> float | None:
        """The time to be used instead of the database's; None: that."""
        clock = self.system.clock
        return None if type(clock) is Clock else clock.wall()

    async def _written(self, work: Callable[[Session], Awaitable[T]], *, tell: bool = True) -> T:
        found, after = await self._open().write(work)
        await self._settled(after, tell=tell)
        return found

    async def _settled(self, after: After, *, tell: bool = True) -> dict[bytes, str]:
        """What others have committed at the same time is taken into account, and they are told; gives whose instances
        have another owner than the transaction knew.
        """
        moved: dict[bytes, str] = {}
        if after.doubtful or self._owed.doubtful:
            after.add(self._owed)
            self._owed = After()
            try:
                await self._looked_again(after, moved)
            except (StoreUnavailable, CommitUnknown) as error:
                logger.debug("wake-ups are looked at later: %s", error)
                self._owed = after
        if tell:
            self._changed()
        if self._bell is not None:
            self._bell.ring((EVERYBODY,) if after.anybody else after.told - self._members.keys())
        return moved

    async def _looked_again(self, after: After, moved: dict[bytes, str]) -> None:
        pool, now = self._open(), self.system.clock.wall()
        for _ in range(_LOOKS):
            uids = await pool.read(lambda s: sending.stale(s, after))
            if not uids:
                return
            owners, again = await pool.write(partial(_mended, uids=uids, now=now))
            moved.update(owners)
            after.add(again)
        logger.warning("wake-ups of %d instances change too often to be kept right; they are polled", len(moved))

    async def _take_over(self, replica: str, limit: int, *, by_lease: bool) -> bool:
        """The replica can write no more, owns nothing, and its rows are gone; False: it lives after all."""
        if not await self._written(lambda s: owning.bar(s, replica, self._time(), by_lease=by_lease)):
            return False
        now = self.system.clock.wall()
        while not await self._written(lambda s: owning.free(s, replica, limit, now)):
            pass
        if self._bell is not None:
            await self._bell.forget(replica)
        return True

    def _mine(self) -> frozenset[str]:
        return frozenset(self._members)

    def _tell(self) -> None:
        for notify in tuple(self._notify):
            notify()

    def _changed(self) -> None:
        # The server tells of other processes only; engines that share this object are told here, whoever of them it was.
        if len(self._notify) > 1:
            self._tell()


async def _free(s: Session, replicas: Sequence[tuple[str, str]], address: Address) -> list[str]:
    """Those of the replicas (each with the life of the server in which it held its session lock) whose session is gone."""
    if not replicas:
        return []
    life = await s.row(LIFE)
    now = None if life is None else life[0].decode() if isinstance(life[0], bytes) else life[0]
    asked = [(replica, literal(schema.lock_name(address, replica))) for replica, server in replicas if server == now]
    if not asked:
        return []
    row = (await s.all(b"select " + b",".join(b"is_free_lock(%s)" % name for _, name in asked)))[0]
    return [replica for (replica, _), free in zip(asked, row, strict=True) if free]


async def _mended(s: Session, uids: Sequence[bytes], now: float) -> dict[bytes, str]:
    return await sending.mended(s, uids, now)


def _called(answer: Answer, moved: Mapping[bytes, str]) -> Answer:
    """The answer, with the owner that has been called in the end."""
    owner = moved.get(answer.uid) if isinstance(answer, Sent) and answer.uid is not None and answer.new else None
    return replace(answer, owner=owner) if isinstance(answer, Sent) and owner is not None else answer
