"""A step on a queue, as the caller sees it: an operation whose attempts are those of a child on that queue.

In the journal it is a step like any other: its entry holds the child's outcome. The child is made when the step begins,
and its pending row says which one it is: whoever goes on with the caller waits for the same one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from msgspec.structs import replace

from perdure.api.queued import flow_name
from perdure.engine.names import check_queue
from perdure.engine.operations import ask_to_end, told
from perdure.engine.stepping import StepOp
from perdure.errors import DoesNotFit, NotSupported, OutcomeUnknown, UnknownType
from perdure.model.records import State
from perdure.model.writes import PendingDrop, Take, Unwatch, Watch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from perdure.api.step import StepSpec
    from perdure.engine.payloads import Payloads
    from perdure.model.records import Message, Pending

_ENDS: Final = (State.SUCCEEDED.value, State.FAILED.value)


def check_sendable(spec: StepSpec, args: tuple[Any, ...], kwargs: Mapping[str, Any], payloads: Payloads) -> None:
    """The call means the same on another replica.

    Raises:
        NotSupported: it was given another policy for this call than the one it is registered with.
        NotEncodable: an argument cannot be kept.
        ValueError, TypeError: the queue's name is none.
    """
    check_queue(spec.queue)
    if not spec.as_registered:
        raise NotSupported(
            f"step {spec.name} on queue {spec.queue!r} runs as it is registered there: retry=, at_most_once=, timeout= and "
            "returns= cannot be given for one call; give them to @step"
        )
    payloads.encode([list(args), dict(kwargs)], f"arguments of {spec.name}", limited=False)


class QueuedStepOp(StepOp):
    """See the module."""

    __slots__ = ("child", "message")

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.child: bytes | None = None
        """The uid of the instance that runs it; its id is the same as text."""
        self.message: Message | None = None

    def resume(self, row: Pending) -> None:
        super().resume(row)
        self.child = _child(self.run.payloads, row.progress)
        if self.child is not None:
            self.intent = False  # how it ends is known there

    def activate(self) -> None:
        if self.intent:  # of an attempt that was begun here, when the step had no queue
            super().activate()
            return
        run, host = self.run, self.run.host
        known = self.child is not None
        uid = self.child or host.new_uid()
        id, flow = uid.hex(), flow_name(self.spec.registered)
        if not known:
            self.child, self.next_at = uid, None
            self.progress = run.payloads.encode({"perdure.step": id}, self.name)  # see `_child`
            self.put_row(intent=self.spec.at_most_once)  # before the child: it is never there unknown
        run.mailbox.waits[id] = self
        run.has_children = True
        if run.mailbox.answer_for(self, id):
            return
        self.started_at = host.now()
        args, kwargs = run.payloads.copies(self.arguments or b"", self.args, self.kwargs, self.opaque)
        given = [self.idempotency_key, args, dict(kwargs)]
        data = run.payloads.encode(given, f"arguments of {self.name}", limited=False)
        digest = run.payloads.digest(given, self.name)
        create = host.new_instance(uid, flow, id, self.spec.queue or "", data, digest, run.uid)
        if known and create.owned:  # it may be there since, and another's
            create = replace(create, owned=False, due_at=host.now(), version="", begun=None)
        run.write(create)
        run.write(Watch(run.uid, run.number, id, flow, id, None))

    def answered(self, message: Message) -> None:
        """The child has ended: the outcome is known."""
        self.message = message
        self.failed = message.failed
        if message.type not in _ENDS and self.spec.at_most_once:
            error = OutcomeUnknown(self.name, f"where it ran it ended as {message.type}")
            self.outcome = self.run.payloads.encode_error(error, self.name)
        else:
            flow = flow_name(self.spec.registered)
            self.outcome = told(self.run.payloads, message, flow, message.key or "", self.name)
        self.run.complete(self)

    def record(self) -> bool:
        if not super().record():
            return False
        self._wait_no_more()
        if self.message is not None:
            self.run.write(Take(self.run.uid, self.message.mid))
            self.run.mailbox.take(self.message)
        return True

    def dropped(self) -> None:
        run = self.run
        self._wait_no_more()
        if self.child is not None:
            id = self.child.hex()
            run.write(Unwatch(run.uid, run.number, id))
            run.write(ask_to_end(run, flow_name(self.spec.registered), id, self.child))
        if self.row:
            run.write(PendingDrop(run.uid, run.number, self.key))
            self.row = False

    def _wait_no_more(self) -> None:
        if self.child is not None:
            self.run.mailbox.waits.pop(self.child.hex(), None)


def _child(payloads: Payloads, progress: bytes | None) -> bytes | None:
    """The uid of the child in a pending row's progress; None: it is what the step itself has said."""
    try:
        value: Any = None if progress is None else payloads.decode(progress)
    except (UnknownType, DoesNotFit):
        return None
    match value:
        case {"perdure.step": str(id)}:
            return bytes.fromhex(id)
        case _:
            return None
