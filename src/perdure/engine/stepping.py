"""Steps as operations: what is known of one between its being asked for and its outcome, attempts and intents
included.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextvars import Context
from typing import TYPE_CHECKING, Any, Final

from perdure.engine.operations import ASKED, Op
from perdure.errors import NotEncodable, OutcomeUnknown, PayloadTooLarge
from perdure.model.records import Kind, Pending
from perdure.model.writes import PendingDrop, PendingPut

if TYPE_CHECKING:
    from perdure.api.step import StepSpec
    from perdure.engine.execution import Execution

logger = logging.getLogger("perdure")

_NOTHING: Final = object()


class StepOp(Op):
    """A step: attempts run outside the flow, by the step runner."""

    __slots__ = (
        "args", "context", "copy", "error", "failures", "intent", "kwargs", "next_at", "opaque", "progress", "row",
        "running", "spec", "started_at",
    )  # fmt: skip
    kind = Kind.STEP

    def __init__(
        self,
        run: Execution,
        spec: StepSpec,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        encoded: tuple[bytes, bytes, frozenset[int | str]],
        context: Context,
    ) -> None:
        arguments, digest, self.opaque = encoded
        super().__init__(run, spec.name, arguments, digest)
        self.spec = spec
        self.args = args
        self.kwargs = kwargs
        self.context: Context | None = context
        self.failures = 0
        """Attempts that have failed so far."""
        self.next_at: float | None = None
        self.error: bytes | None = None
        self.progress: bytes | None = None
        self.row = False
        """Whether the store has a pending row of it."""
        self.intent = False
        """Whether an at-most-once attempt may have begun (in an earlier life of this execution)."""
        self.running: Any = None
        """The attempt that runs now."""
        self.copy: Any = _NOTHING
        self.started_at = 0.0
        """When the last attempt began."""

    @property
    def idempotency_key(self) -> str:
        """The same for every attempt, wherever it runs."""
        return f"{self.run.uid.hex()}.{self.run.number}.{self.key}"

    def digest_today(self, recorded: bytes, digest: bytes) -> bytes | None:
        return self.run.payloads.today(recorded, self.opaque)

    def activate(self) -> None:
        run = self.run
        if self.intent:
            self.unknown("the process that began it is gone")
        elif self.next_at is not None:
            run.arm(self.next_at, self)
        else:
            if self.spec.at_most_once:
                self.put_row(intent=True)
            run.to_go.append(self)

    def record(self) -> bool:
        if self.state != ASKED:
            return False
        run = self.run
        run.append(self, self.failures + 1, self.started_at)
        if self.row:
            run.write(PendingDrop(run.uid, run.number, self.key))
        self.context = None  # it leads back here through the attempt: no cycle is left to the collector
        if self.copy is not _NOTHING and not self.future.done():
            self.future.set_result(self.copy)  # the decoded copy that was made when it was recorded
            self.copy = _NOTHING
        else:
            self.give()
        return True

    def dropped(self) -> None:
        run = self.run
        if self.row:
            run.write(PendingDrop(run.uid, run.number, self.key))
            self.row = False
        if self.running is not None:
            run.to_cancel.append(self)

    def resume(self, row: Pending) -> None:
        """What an earlier life left of it."""
        self.row, self.intent, self.failures = True, row.intent, row.attempt
        self.next_at, self.error, self.progress = row.next_at, row.error, row.progress

    def put_row(self, *, intent: bool = False) -> None:
        """The store knows what it must of an operation that is not in the journal."""
        run = self.run
        self.row = True
        row = Pending(
            run.uid, run.number, self.key, self.kind, self.name, self.arguments, self.digest, intent, self.failures,
            self.next_at, self.error, self.progress,
        )  # fmt: skip
        run.write(PendingPut(row))

    # ------------------------------------------------------------ how an attempt ended (called by the step runner)

    def returned(self, data: bytes, copy: Any) -> None:
        """The attempt returned."""
        if self._ended():
            self.outcome, self.copy = data, copy
            self.run.complete(self)

    def raised(self, error: BaseException) -> None:
        """The attempt raised: it is tried again by the step's rule, or that is the outcome."""
        if not self._ended():
            return
        run = self.run
        delay = self._next_delay(error)
        if delay is None:
            self._fails(error)
            return
        self.failures += 1
        self.error = run.payloads.encode_error(error, self.name)
        self.next_at = run.host.now() + delay
        self.put_row()
        run.arm(self.next_at, self)
        run.look()

    def gone(self) -> None:
        """A dropped attempt has ended; what waited for that may go on."""
        self._ended()

    def interrupted(self) -> None:
        """The attempt was cut off by the end of the process: it begins again, or never if that is not allowed."""
        if not self._ended():
            return
        if self.spec.at_most_once:
            self._fails(OutcomeUnknown(self.name, "it was interrupted"))
        else:
            self.run.to_go.append(self)

    def unknown(self, why: str) -> None:
        """The at-most-once attempt was begun, and how it ended will never be known."""
        self.run.running.pop(self, None)
        self.running = None
        self._fails(OutcomeUnknown(self.name, why))

    def again(self) -> None:
        """It is time for the next attempt."""
        self.next_at = None
        if self.spec.at_most_once:
            self.put_row(intent=True)  # as for the first attempt: this one may be lost as well
        self.run.to_go.append(self)

    def _ended(self) -> bool:
        """The attempt does not run any more; whether the flow still wants its outcome."""
        run = self.run
        run.running.pop(self, None)
        self.running = None
        if self.state == ASKED:
            return True
        if not run.stopped:
            run.loop.wake()  # it may have been the last thing that the end waited for
        return False

    def _fails(self, error: BaseException) -> None:
        self.failed, self.outcome = True, self.run.payloads.encode_error(error, self.name)
        self.run.complete(self)

    def _next_delay(self, error: BaseException) -> float | None:
        rule, host = self.spec.retry, self.run.host
        if rule is None and not self.spec.at_most_once:
            rule = host.default_retry()
        if rule is None or isinstance(error, NotEncodable | PayloadTooLarge | OutcomeUnknown):
            return None
        try:
            return rule.delay(self.failures + 1, error, host.random)
        except Exception as broken:
            broken.add_note(f"raised by retry_on of step {self.name}, asked about {error!r}")
            logger.exception("%r: step %s: the retry rule itself raised", self.run, self.name)
            return None
