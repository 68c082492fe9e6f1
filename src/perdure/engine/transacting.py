"""A transaction as an operation: the user's work on the flow's own database commits together with its entry."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context
from typing import TYPE_CHECKING, Any, Final

from perdure.engine.operations import ASKED, DELIVERED, Op
from perdure.errors import CommitUnknown, LeaseLost, StepFailed, StoreRefused, StoreUnavailable
from perdure.model.records import Entry, Kind
from perdure.model.tx import Tx

if TYPE_CHECKING:
    from perdure.engine.committer import Committer
    from perdure.engine.execution import Execution
    from perdure.stores.contract import Store

logger = logging.getLogger("perdure")

RETRY_SECONDS: Final = 0.2
"""So soon a transaction is tried again when the store was away."""


class TransactionOp(Op):
    """See the module. While it runs its instance delivers nothing, so that the next seq is the transaction's own."""

    __slots__ = ("args", "context", "opaque", "own_error", "work", "written")
    kind = Kind.TRANSACTION

    def __init__(
        self,
        run: Execution,
        name: str,
        work: Callable[..., Awaitable[Any]],
        args: tuple[Any, ...],
        encoded: tuple[bytes, bytes, frozenset[int | str]],
        context: Context,
    ) -> None:
        arguments, digest, self.opaque = encoded
        super().__init__(run, name, arguments, digest)
        self.context = context
        """The flow's, in which the work runs: a durable call there finds that it is not in the flow's loop."""
        self.work = work
        self.args = args
        self.written: Entry | None = None
        """The entry, once it is on disk."""
        self.own_error: BaseException | None = None
        """What the work raised last: not the store's, even if it is of the store's classes."""

    def digest_today(self, recorded: bytes, digest: bytes) -> bytes | None:
        return self.run.payloads.today(recorded, self.opaque)

    def activate(self) -> None:
        self.run.to_go.append(self)

    def body(self) -> Callable[[Tx], Coroutine[Any, Any, Entry]]:
        """What runs in the transaction, on whatever thread: the work, and the entry that its result makes."""
        run, seq = self.run, self.run.seq
        started_at = run.host.now()
        at = max(run.loop.now, started_at)

        async def work(tx: Tx) -> Entry:
            self.own_error = None
            args, _ = run.payloads.copies(self.arguments or b"", self.args, {}, self.opaque)
            try:
                value = await self.work(tx, *args)
            except (Exception, GeneratorExit) as error:  # the latter closes a work that awaited something else
                self.own_error = error
                raise
            except BaseException as error:
                if _asked_to_end():
                    raise
                # the work's own: it asks neither this task nor this program to end
                raise StepFailed(type(error).__name__, str(error), traceback.format_exc()) from error
            outcome, _ = run.payloads.round_trip(value, self.name)
            return Entry(
                run.uid, run.number, seq, self.key, self.kind, self.name, self.arguments, self.digest, False, outcome,
                1, started_at, at,
            )  # fmt: skip

        return work

    def committed(self, entry: Entry) -> None:
        """The entry is on disk: it is delivered before anything else."""
        self.written, self.outcome = entry, entry.outcome
        self._ended()

    def raised(self, error: BaseException) -> None:
        """The work raised, and nothing was written: that is the outcome."""
        self.failed, self.outcome = True, self.run.payloads.encode_error(error, self.name)
        self._ended()

    def _ended(self) -> None:
        run = self.run
        run.running.pop(self, None)
        if run.stopped:
            return
        run.completed.insert(0, self)
        run.loop.wake()

    def record(self) -> bool:
        run, entry = self.run, self.written
        run.transaction = None
        if entry is None:
            return super().record()
        run.seq = entry.seq + 1
        run.loop.now = max(run.loop.now, entry.at)
        if self.state != ASKED:
            return False
        del run.ops[self.key]
        self.state = DELIVERED
        self.give()
        return True


def _asked_to_end() -> bool:
    """Whether it is cut off from outside: its time is over, or the engine's. SQLite's thread runs it in no task."""
    try:
        task = asyncio.current_task()
    except RuntimeError:
        return False
    return task is not None and task.cancelling() > 0


async def transact(op: TransactionOp, store: Store, committer: Committer, replica: str, limit: float) -> Entry:
    """The entry of the transaction, which is on disk with all that its work wrote.

    Raises:
        LeaseLost: this replica may write no more, or does not run the instance any more.
        Exception: what the work raised.
    """
    work = op.body()
    while True:
        if op.run.stopped:
            raise LeaseLost(f"{op.run!r} is not run here any more")
        epoch = committer.epoch
        try:
            return await store.transact(replica, epoch, work, limit=limit)
        except CommitUnknown as error:
            if error is op.own_error:
                raise
            found = await _written(op, store)
            if found is not None:
                return found
        except StoreRefused as error:
            found = None if error is op.own_error else await _written(op, store)
            if found is None:
                raise
            return found  # what was thought lost came true after all
        except LeaseLost as error:
            if error is op.own_error:
                raise
            if epoch == committer.epoch and not op.run.stopped:
                committer.lost(error)
                raise
        except StoreUnavailable as error:
            if error is op.own_error:
                raise
            logger.warning("%r: a transaction waits for the store: %s", op.run, error)
            await asyncio.sleep(RETRY_SECONDS)


async def _written(op: TransactionOp, store: Store) -> Entry | None:
    """The transaction's entry, if it is on disk."""
    while True:
        try:
            found, _ = await store.entries(op.run.uid, op.run.number, op.run.seq - 1)
        except StoreUnavailable:
            await asyncio.sleep(RETRY_SECONDS)
        else:
            return found[0] if found and found[0].key == op.key else None
