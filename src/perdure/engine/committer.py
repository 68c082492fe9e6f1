"""Group commit: all writes of a replica go through here, in batches of one transaction each.

While a commit is under way the next batch gathers; it is taken at the end of the loop's turn, after the flows ran to
idle.
It knows the store and nothing of flows: who wants to know when a write is durable is told by number.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from perdure.errors import CommitUnknown, LeaseLost, StoreFull, StoreRefused, StoreUnavailable
from perdure.model.records import Entry
from perdure.model.writes import (
    Answer,
    Batch,
    Continue,
    Create,
    Expose,
    Finish,
    PendingDrop,
    PendingPut,
    Release,
    Send,
    Take,
    Unwatch,
    Update,
    Watch,
    Write,
)
from perdure.stores.contract import Store

logger = logging.getLogger("perdure")

BATCH_WRITES: Final = 20_000
"""A batch takes at most so many writes, in the order in which they came (so that of each instance it takes a prefix).
"""
BATCH_BYTES: Final = 32 * 1024 * 1024
RETRY_SECONDS: Final = (0.05, 0.1, 0.2, 0.5, 1.0)
"""Between tries while the store is away or full; the last one repeats."""

Told = Callable[[Answer, BaseException | None], None]
Outcome = Answer | StoreRefused
"""Of one write: the store's answer, or that it will never be made."""


class CommitterHost(Protocol):
    """What the committer tells the engine."""

    def now(self) -> float: ...
    def large_bytes(self) -> int:
        """How many bytes of large payloads may be among the writes of the next batch."""
        ...

    def committed(self, writes: list[Write], answers: Sequence[Outcome]) -> None:
        """These are durable; called in the real loop, once per batch, before anybody else is told."""
        ...

    def holding_changed(self, reason: str | None) -> None:
        """The store takes no commits now, for this reason; None: it does again."""
        ...

    def refused(self, writes: list[Write], error: StoreRefused) -> list[list[Write]]:
        """The store will never take the data of these writes, which are one instance's or one outsider's: gives what
        to write instead, or if that is refused too, and so on.
        """
        ...

    def lost(self, error: LeaseLost) -> None:
        """The fence does not hold; nothing of this replica is written any more."""
        ...


class Committer:
    """See the module. `durable` is the number of writes, in the order of `write`, that are on disk."""

    def __init__(
        self,
        store: Store,
        host: CommitterHost,
        real: asyncio.AbstractEventLoop,
        replica: str | None = None,
        epoch: int = 0,
    ) -> None:
        self._store = store
        self._host = host
        self._real = real
        self.replica = replica
        """Who proves its fence with each batch; None is a client, which needs none."""
        self.epoch = epoch
        self.durable = 0
        self.position = 0
        self.batches = 0
        self._writes: list[Write] = []
        self._told: list[tuple[int, Told]] = []
        self._task: asyncio.Task[None] | None = None
        self._scheduled = False
        self._closed: BaseException | None = None
        self._halted = False
        self._cut = False
        """Whether the last batch left writes behind that may be large."""
        self._outside: set[int] = set()
        """The `id` of each write under way that an outsider waits for."""
        self._unsettled: list[asyncio.Future[None]] = []
        """Who waits until nothing that was sent can come late."""
        self._idle: asyncio.Event = asyncio.Event()
        self._idle.set()

    def write(self, write: Write) -> int:
        """The write is in the next batch; gives its number, to be compared with `durable`."""
        self._writes.append(write)
        self.position += 1
        if not self._scheduled:
            self._wake()
        return self.position

    def _wake(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._real.call_soon(self._flush)

    def write_and_tell(self, write: Write, told: Told) -> int:
        """As `write`; `told` is called with the answer when it is durable, or with the error if it never will be."""
        if self._closed is not None:
            told(None, self._closed)
            return self.position
        number = self.write(write)
        self._told.append((number, told))
        return number

    async def ask(self, write: Write) -> Any:
        """The answer to the write, when it is durable. Cancelling the wait does not take the write back."""
        future: asyncio.Future[Answer] = self._real.create_future()

        def told(answer: Answer, error: BaseException | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(answer)
            else:
                future.set_exception(error)

        self.write_and_tell(write, told)
        return await future

    async def ask_all(self, writes: Sequence[Write]) -> list[Answer]:
        """The answers to the writes, in their order, when all are durable; or the first error."""
        answers: list[Answer] = [None] * len(writes)
        done: asyncio.Future[None] = self._real.create_future()
        left = len(writes)

        def teller(i: int) -> Told:
            def told(answer: Answer, error: BaseException | None) -> None:
                nonlocal left
                left -= 1
                answers[i] = answer
                if not done.done():
                    if error is not None:
                        done.set_exception(error)
                    elif left == 0:
                        done.set_result(None)

            return told

        for i, write in enumerate(writes):
            self.write_and_tell(write, teller(i))
        if writes:
            await done
        return answers

    async def settle(self) -> None:
        """Whatever this replica has sent with its epoch until now is done, or can never be."""
        settled: asyncio.Future[None] = self._real.create_future()
        self._unsettled.append(settled)
        self._wake()
        await settled

    def discard(self, uid: bytes) -> None:
        """What was written of this instance and is in no batch yet is not made."""
        first = self.position - len(self._writes) + 1
        outside = {id(self._writes[number - first]) for number, _ in self._told if number >= first}
        for i, owner in enumerate(_owners(self._writes, outside)):
            if owner == uid:
                self._writes[i] = _NOTHING

    def withdraw(self, write: Write) -> bool:
        """The write is not made, unless it is in a batch already: then False."""
        for i in range(len(self._writes) - 1, -1, -1):
            if self._writes[i] is write:
                self._writes[i] = _NOTHING
                return True
        return False

    def lost(self, error: LeaseLost) -> None:
        """The fence does not hold, as something else than a batch has found out."""
        self._host.lost(error)

    async def drained(self, patience: float) -> None:
        """Everything that was written before is durable; or nothing more became so within `patience` seconds."""
        while (self._writes or self._task is not None) and not self._halted and self._closed is None:
            before = self.durable
            self._idle.clear()
            try:
                async with asyncio.timeout(patience):
                    await self._idle.wait()
            except TimeoutError:
                if self.durable == before:
                    return

    def stop(self, error: BaseException) -> None:
        """No more batches; who waits is told the error."""
        self._closed = error
        for _, told in self.take_outside():
            told(None, error)

    def halt(self) -> None:
        """No batch is taken any more: what outsiders write is kept for `take_outside`."""
        self._halted = True
        self._idle.set()

    async def give_up(self) -> None:
        """As `halt`, and the batch under way, whose outcome is unknown then, is among what is left to write."""
        self.halt()
        await asyncio.sleep(0)  # a task that is cancelled before its first turn would not put its batch back
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def take_outside(self) -> list[tuple[Write, Told]]:
        """Nothing is left to write; gives what outsiders wait for, which another committer may make good."""
        outside = [(self._writes[number - self.durable - 1], told) for number, told in self._told]
        self._writes, self._told = [], []
        self._idle.set()
        return outside

    # ------------------------------------------------------------ the batches

    def _flush(self) -> None:
        if not (self._writes or self._unsettled) or self._closed is not None or self._halted:
            self._scheduled = False
            self._idle.set()
            return
        self._task = asyncio.Task(self._commit(self._take()), loop=self._real)  # `_scheduled` stays until it is done

    def _take(self) -> list[Write]:
        writes = self._writes
        n = min(len(writes), BATCH_WRITES)
        if self._host.large_bytes() > BATCH_BYTES or self._cut:  # only then can it be too much
            n = _prefix_of_bytes(writes, n)
        if n < len(writes):
            n = self._whole(n)
        self._cut = n < len(writes)
        self._writes = writes[n:]
        return writes if n == len(writes) else writes[:n]

    def _whole(self, n: int) -> int:
        """The first place from `n` on where no entry is parted from what it does: before an entry, or what an
        outsider waits for.
        """
        writes = self._writes
        outside = {number for number, _ in self._told}
        while n < len(writes) and type(writes[n]) is not Entry and self.durable + n + 1 not in outside:
            n += 1
        return n

    async def _commit(self, writes: list[Write]) -> None:
        end = self.durable + len(writes)
        self._outside = {id(writes[number - self.durable - 1]) for number, _ in self._told if number <= end}
        try:
            if self._unsettled:
                await self._settle_for_others()
            answers = await self._until_done(writes)
        except LeaseLost as error:
            self._task = None
            self._writes = writes + self._writes
            self._host.lost(error)
            return
        except asyncio.CancelledError:
            self._task = None
            self._writes = writes + self._writes
            raise
        except Exception as error:
            if self.replica is None:
                self._refuse(writes, error)
                return
            self._writes = writes + self._writes
            self._failed(error)
            return
        first = self.durable
        self.durable += len(writes)
        self.batches += 1
        self._task = None
        try:
            self._host.committed(writes, answers)
        except Exception as error:
            self._failed(error)
        self._tell(first, answers)
        self._real.call_soon(self._flush)

    def _refuse(self, writes: list[Write], error: Exception) -> None:
        """A client has nothing to begin anew: who asked for these writes gets the error."""
        self._task = None
        self.durable += len(writes)
        while self._told and self._told[0][0] <= self.durable:
            self._told.pop(0)[1](None, error)
        self._real.call_soon(self._flush)

    def _failed(self, error: Exception) -> None:
        """A fault of ours: nothing more is written under this lease, and everything is begun anew from the store."""
        self._task = None
        logger.critical(
            "the committer failed; all flows of this replica are loaded again from the store", exc_info=error
        )
        self._host.lost(LeaseLost(f"the committer failed: {error!r}"))

    def _tell(self, first: int, answers: Sequence[Outcome]) -> None:
        told, self._told = self._told, []
        for i, (number, call) in enumerate(told):
            if number > self.durable:
                self._told = told[i:] + self._told
                break
            answer = answers[number - first - 1]
            if isinstance(answer, StoreRefused):
                call(None, answer)
            else:
                call(answer, None)

    async def _until_done(self, writes: list[Write], *, split: bool = True) -> Sequence[Outcome]:
        """The batch is durable: repeated while the store is away, settled when the answer was lost, split when
        refused.
        """
        tries = 0
        held = False
        while True:
            real = [w for w in writes if w is not _NOTHING] if _NOTHING in writes else writes
            try:
                batch = Batch(self.replica, self.epoch, real, self._host.now())
                answers = await self._store.commit(batch) if real else []
                if held:
                    self._host.holding_changed(None)
                return answers if real is writes else _aligned(writes, answers)
            except CommitUnknown as error:
                held = True
                self._host.holding_changed(f"the outcome of a commit is unknown: {error}")
                await self._settle()
                writes = await self._without_what_has_left(writes)
            except StoreUnavailable as error:
                held = True
                self._host.holding_changed("disk full" if isinstance(error, StoreFull) else f"store away: {error}")
                if tries in (0, 20, 200):
                    logger.warning("the store takes no writes now, tried again until it does: %s", error)
                await asyncio.sleep(RETRY_SECONDS[min(tries, len(RETRY_SECONDS) - 1)])
                tries += 1
            except StoreRefused as error:
                if not split:
                    raise
                return await self._split(writes, error)

    async def _settle(self) -> None:
        """After a lost answer: my own epoch is raised, so that the lost batch either is done or can never be."""
        if self.replica is None:
            return
        tries = 0
        while True:
            try:
                self.epoch = await self._store.raise_epoch(self.replica, self.epoch)
                return
            except (StoreUnavailable, CommitUnknown) as error:
                logger.warning("the store cannot settle a commit now, tried again: %s", error)
                await asyncio.sleep(RETRY_SECONDS[min(tries, len(RETRY_SECONDS) - 1)])
                tries += 1

    async def _without_what_has_left(self, writes: list[Write]) -> list[Write]:
        """What is to be sent again: nothing that an instance writes that the batch has given away or ended. If it is
        another's by now, or nobody's, or gone, or was claimed here once more, that is done, and whoever has it next has
        gone on from there.
        """
        terms = {w.uid: w.term for w in writes if isinstance(w, Release | Finish)}
        if not terms:
            return writes
        tries = 0
        while True:
            try:
                rows = await self._store.instances(list(terms))
                break
            except StoreUnavailable as error:
                logger.warning("the store cannot settle a commit now, tried again: %s", error)
                await asyncio.sleep(RETRY_SECONDS[min(tries, len(RETRY_SECONDS) - 1)])
                tries += 1
        unborn = {w.uid for w in writes if isinstance(w, Create)} - {row.uid for row in rows}
        here = {row.uid for row in rows if (row.owner, row.term) == (self.replica, terms[row.uid])}
        again = {row.uid for row in rows if row.owner == self.replica} - here
        left = terms.keys() - here - unborn
        return [
            _NOTHING
            if (isinstance(w, _INNER) and whose(w) in left) or (isinstance(w, Finish) and w.uid in again)
            else w
            for w in writes
        ]

    async def _settle_for_others(self) -> None:
        await self._settle()
        settled, self._unsettled = self._unsettled, []
        for each in settled:
            if not each.done():
                each.set_result(None)

    async def _split(self, writes: list[Write], error: StoreRefused) -> Sequence[Outcome]:
        """Halved by instance, in whole transactions, until the culprit is alone; that is replaced by what the host
        says.
        """
        groups = _by_instance(writes, self._outside)
        if len(groups) == 1:
            return await self._refused(writes, error)
        answers: dict[int, Outcome] = {}
        middle = len(groups) // 2
        for half in (groups[:middle], groups[middle:]):
            part = sorted(i for group in half for i in group)
            answers |= dict(zip(part, await self._until_done([writes[i] for i in part]), strict=True))
        return [answers[i] for i in range(len(writes))]

    async def _refused(self, writes: list[Write], error: StoreRefused) -> Sequence[Outcome]:
        """One instance's writes, or an outsider's: halved between entries until the culprit is alone. What the instance
        wrote after it was written in vain.
        """
        entries = [i for i, write in enumerate(writes) if i and isinstance(write, _BEGINS)]
        if not entries:
            for instead in self._host.refused(writes, error):
                try:
                    self._host.committed(instead, await self._until_done(instead, split=False))
                    break
                except StoreRefused as again:
                    logger.error("what was to be written instead is refused too: %s", again)
            return [error] * len(writes)
        middle = entries[len(entries) // 2]
        answers = list(await self._until_done(writes[:middle]))
        if any(isinstance(answer, StoreRefused) for answer in answers):
            return [*answers, *[error] * (len(writes) - middle)]
        return [*answers, *await self._until_done(writes[middle:])]


_NOTHING: Final[Any] = None
_INNER: Final = (Entry, PendingPut, PendingDrop, Take, Expose, Watch, Unwatch, Update, Release)
"""What only the owner of an instance writes, and what may follow a release no more."""
_BEGINS: Final = (Entry, PendingPut, Expose, Finish, Continue)
"""What the store may refuse by itself; other writes of an instance follow from the one before them."""


def _aligned(writes: list[Write], answers: list[Answer]) -> list[Answer]:
    given = iter(answers)
    return [None if w is _NOTHING else next(given) for w in writes]


def _size(write: Any) -> int:
    size = 0
    for name in ("arguments", "outcome", "value", "body"):
        data = getattr(write, name, None)
        size += len(data) if data else 0
    message = getattr(write, "message", None)
    return size + (len(message.body) if message is not None and message.body else 0)


def _prefix_of_bytes(writes: list[Write], n: int) -> int:
    total = 0
    for i in range(n):
        total += _size(writes[i])
        if total > BATCH_BYTES and i:
            return i
    return n


def whose(write: Write) -> bytes | str:
    """The uid of the instance that a write belongs to; what comes from outside is its own group."""
    uid = getattr(write, "uid", None) or getattr(write, "asker", None)
    pending = getattr(write, "pending", None)
    return pending.uid if pending is not None else (uid if uid is not None else f"outside {id(write)}")


def _owners(writes: list[Write], outside: set[int]) -> list[bytes | str]:
    """Whose each write is. What an instance does to others stands behind the entry that says so."""
    owners: list[bytes | str] = []
    for write in writes:
        follows = isinstance(write, Send | Create) and id(write) not in outside and owners
        owners.append(owners[-1] if follows else "" if write is _NOTHING else whose(write))
    return owners


def _by_instance(writes: list[Write], outside: set[int]) -> list[list[int]]:
    groups: dict[bytes | str, list[int]] = {}
    for i, owner in enumerate(_owners(writes, outside)):
        groups.setdefault(owner, []).append(i)
    return list(groups.values())
