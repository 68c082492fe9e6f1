"""A transaction as an operation: the user's work on the flow's own database commits together with its entry."""

from __future__ import annotations

import traceback
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context
from typing import TYPE_CHECKING, Any, Final

from perdure.engine.operations import ASKED, DELIVERED, Op
from perdure.errors import StepFailed
from perdure.model.records import Entry, Kind
from perdure.model.tx import Tx

if TYPE_CHECKING:
    from perdure.engine.execution import Execution

_NOTHING: Final = object()


class TransactionOp(Op):
    """See the module. While it runs its instance delivers nothing, so that the next seq is the transaction's own."""

    __slots__ = ("_value", "args", "context", "opaque", "work", "written")
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
        self._value: Any = _NOTHING

    def digest_today(self, recorded: bytes) -> bytes | None:
        return self.run.payloads.today(recorded, self.opaque)

    def activate(self) -> None:
        self.run.to_go.append(self)

    def body(self) -> Callable[[Tx], Coroutine[Any, Any, Entry]]:
        """What runs in the transaction, on whatever thread: the work, and the entry that its result makes."""
        run, seq = self.run, self.run.seq
        started_at = run.host.now()
        at = max(run.loop.now, started_at)

        async def work(tx: Tx) -> Entry:
            args, _ = run.payloads.copies(self.arguments or b"", self.args, {}, self.opaque)
            try:
                value = await self.work(tx, *args)
            except (Exception, GeneratorExit):  # the latter closes a work that awaited something else
                raise
            except BaseException as error:  # the work's own: it asks neither this task nor this program to end
                raise StepFailed(type(error).__name__, str(error), traceback.format_exc()) from error
            outcome, self._value = run.payloads.round_trip(value, self.name)
            return Entry(
                run.uid, run.number, seq, self.key, self.kind, self.name, self.arguments, self.digest, False, outcome,
                1, started_at, at,
            )  # fmt: skip

        return work

    def committed(self, entry: Entry) -> None:
        """The entry is on disk: it is delivered before anything else."""
        self.written = entry
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
        if not self.future.done():
            self.future.set_result(self._value)
        return True
