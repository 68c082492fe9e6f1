"""Operations: what a flow has asked for and not yet got, one class per kind. An operation decides nothing about order.

Life: ASKED (its entry may be recorded, or it is live) → DELIVERED (its outcome went to the flow, an entry holds it) or
DROPPED (the flow does not want it any more: no entry).
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from contextvars import Context
from types import UnionType
from typing import TYPE_CHECKING, Any, Final, Union, cast, get_args, get_origin

import msgspec

from perdure import codec
from perdure.api.scope import Started
from perdure.engine.loop import IDLE_TURNS, FlowTimer
from perdure.errors import (
    AlreadyStarted,
    DoesNotFit,
    FlowCancelled,
    InstanceNotFound,
    PayloadTooLarge,
    StepFailed,
    UnknownType,
)
from perdure.model.lanes import queue_of
from perdure.model.records import Entry, Kind, Message, MessageKind, State
from perdure.model.writes import Send, Take, Unwatch, Watch
from perdure.stores.contract import cancel_mid

if TYPE_CHECKING:
    from perdure.engine.execution import Execution
    from perdure.engine.payloads import Payloads

ADDRESS: Final = 8
"""So many bytes of the digest of a start or a send are of whom it is for; the rest are of what is given."""

ASKED: Final = 0
DELIVERED: Final = 1
DROPPED: Final = 2


class Op:
    """What all operations have in common."""

    __slots__ = (
        "arguments",
        "at_least",
        "digest",
        "expired",
        "failed",
        "future",
        "key",
        "name",
        "outcome",
        "ref",
        "refused",
        "run",
        "state",
    )
    kind: str = ""

    def __init__(self, run: Execution, name: str, arguments: bytes | None, digest: bytes) -> None:
        self.run = run
        self.name = name
        self.arguments = arguments
        self.digest = digest
        self.key = ""
        self.state = ASKED
        self.future: asyncio.Future[Any] = asyncio.Future(loop=run.loop)
        self.failed = False
        self.outcome: bytes | None = None
        self.ref: bytes | None = None
        self.expired = False
        """Whether its time limit was over before it."""
        self.refused: PayloadTooLarge | None = None
        """Why it will not be done; it was, if an earlier life had another limit."""
        self.at_least = 0.0
        """Flow time of its delivery is at least this."""

    def abandon(self) -> None:
        """See `api.scope.Operation`."""
        if self.state == ASKED:
            self.run.drop(self)

    def refuse(self, error: PayloadTooLarge) -> None:
        """It is not done and fails with the error when its turn comes, and its arguments are not kept."""
        self.refused, self.arguments = error, None

    def begin(self) -> None:
        """The journal is used up and does not hold it: it begins for real, unless it is refused, which is recorded."""
        if self.refused is None:
            self.activate()
        else:
            self.failed, self.outcome = True, self.run.payloads.encode_error(self.refused, self.name)
            self.run.complete(self)

    def activate(self) -> None:
        """The journal is used up and does not hold it: it begins for real."""
        raise NotImplementedError

    def record(self) -> bool:
        """The live outcome has its place in the order: it is written and given to the flow. False: nobody wants it."""
        if self.state != ASKED:
            return False
        self.run.append(self, 1, self.run.loop.now)
        self.give()
        return True

    def restore(self, entry: Entry) -> None:
        """The recorded outcome is given to the flow."""
        self.state = DELIVERED
        self.failed = entry.failed
        self.outcome = entry.outcome
        self.ref = entry.ref
        self.give()

    def digest_today(self, recorded: bytes, digest: bytes) -> bytes | None:
        """The digest that the recorded arguments, which had that digest, would have if they were written with today's
        types; None: they cannot be.
        """
        return codec.digest(recorded)

    def give(self) -> None:
        """The waiting task gets the outcome; may raise UnknownType or DoesNotFit."""
        if self.future.done():
            return
        if self.failed:
            error = raisable(self.run.payloads.decode_error(self.outcome or b""))
            mark(error, self.run.seq - 1)
            self.future.set_exception(error)
        else:
            self.future.set_result(self.value())

    def value(self) -> Any:
        """The outcome as the flow gets it."""
        return None if self.outcome is None else self.run.payloads.decode(self.outcome)

    def dropped(self) -> None:
        """The flow dropped it while it was live."""

    def why_outstanding(self) -> str:
        """For people: what is awaited."""
        return f"{self.kind} {self.name} ({self.key})"


@functools.lru_cache(maxsize=64)
def begun(version: str) -> bytes:
    """What entry 0 says: whose code began, and by which count of turns its loop counts as idle."""
    return codec.encode({"version": version, "idle_turns": IDLE_TURNS})


@functools.lru_cache(maxsize=64)
def begun_with(arguments: bytes) -> int:
    """The count of turns in entry 0."""
    return codec.decode(arguments)["idle_turns"]


def raisable(error: BaseException) -> BaseException:
    """The error, or a StepFailed for what a future cannot carry."""
    if isinstance(error, StopIteration | asyncio.CancelledError | KeyboardInterrupt | SystemExit | GeneratorExit):
        return StepFailed(type(error).__qualname__, str(error))
    return error


_SEQ: Final = "_perdure_seq"


def mark(error: BaseException | None, seq: int) -> None:
    """The error remembers which entry it came from."""
    try:
        setattr(error, _SEQ, seq)
    except (AttributeError, TypeError):
        pass  # one with slots: if it escapes, a restart starts from the end


def escaped(error: BaseException) -> int | None:
    """The seq of the entry whose exception this is, was raised from, or holds (the first one, of a group)."""
    found: list[int] = []
    seen: set[int] = set()
    left: list[BaseException | None] = [error]
    while left:
        one = left.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        seq = getattr(one, _SEQ, None)
        if isinstance(seq, int):
            found.append(seq)
            continue
        if isinstance(one, BaseExceptionGroup):
            left += cast("BaseExceptionGroup[BaseException]", one).exceptions
        left.append(one.__cause__ or (None if one.__suppress_context__ else one.__context__))
    return min(found, default=None)


class TimerOp(Op):
    """A durable timer: `asyncio.sleep`, `delay`, every deadline."""

    __slots__ = ("handle",)
    kind = Kind.TIMER

    def __init__(self, run: Execution, handle: FlowTimer) -> None:
        arguments = codec.encode(handle.when())
        super().__init__(run, "timer", arguments, codec.digest(arguments))
        self.handle = handle
        self.at_least = handle.when()

    def activate(self) -> None:
        self.run.arm(self.handle.when(), self)

    def give(self) -> None:
        self.run.loop.ready(self.handle)


def _described(forms: tuple[Any, ...], wanted: str | None) -> tuple[str, bytes, bytes]:
    """Name, arguments and digest of a receive; thousands of flows that wait for the same share them."""
    try:
        return _description(forms, wanted)
    except TypeError:  # not hashable
        return _description.__wrapped__(forms, wanted)


@functools.lru_cache(maxsize=1024)
def _description(forms: tuple[Any, ...], wanted: str | None) -> tuple[str, bytes, bytes]:
    label = " | ".join(map(_label, forms))
    arguments = codec.encode([label, wanted])
    return label if wanted is None else f"{label} {wanted!r}", arguments, codec.digest(arguments)


def _label(form: Any) -> str:
    """A type by the name under which its values are stored: the same when a class is renamed or moved."""
    arguments = get_args(form)
    if not arguments:
        return codec.tag_of_class(form).rpartition(":")[2] if isinstance(form, type) else str(form)
    origin = get_origin(form)
    if origin is Union or origin is UnionType:
        return " | ".join(map(_label, arguments))
    return f"{_label(origin)}[{', '.join(map(_label, arguments))}]"


class ReceiveOp(Op):
    """Waits for a message and takes it."""

    __slots__ = ("context", "forms", "taken", "value_taken", "wanted", "where")
    kind = Kind.RECEIVE

    def __init__(
        self,
        run: Execution,
        forms: tuple[Any, ...],
        wanted: str | None,
        where: Callable[[Any], bool] | None,
        context: Context | None,
    ) -> None:
        super().__init__(run, *_described(forms, wanted))
        self.forms = forms
        self.wanted = wanted
        self.where = where
        self.context = context
        self.taken: Message | None = None
        self.value_taken: Any = None

    def activate(self) -> None:
        self.run.mailbox.wait(self)

    def record(self) -> bool:
        if self.state != ASKED:
            return False
        run, taken = self.run, self.taken
        run.append(self, 1, run.loop.now)
        if taken is not None:
            run.write(Take(run.uid, taken.mid))
            run.mailbox.take(taken)
        else:
            run.mailbox.forget(self)
        self.give()
        return True

    def restore(self, entry: Entry) -> None:
        if entry.ref is not None:  # first, as in `record`: who reads a stream wakes before who takes
            self.run.mailbox.restore_taken(entry.ref, self.wanted, entry.outcome)
        super().restore(entry)

    def value(self) -> Any:
        if self.taken is not None:
            return self.value_taken
        return super().value()

    def dropped(self) -> None:
        self.run.mailbox.leave(self)


class StartOp(Op):
    """Another instance is asked for; it exists when the entry is durable."""

    __slots__ = ("child_arguments", "detached", "flow", "id", "queue", "wanted_digest")
    kind = Kind.START

    def __init__(
        self, run: Execution, flow: str, id: str, arguments: bytes, digest: bytes, *, detached: bool, queue: str | None
    ) -> None:
        super().__init__(run, flow, arguments, codec.digest(codec.encode([id, detached])) + digest)
        self.flow = flow
        self.id = id
        self.child_arguments = arguments
        self.wanted_digest = digest
        self.detached = detached
        self.queue = queue_of(run.instance.lane) if queue is None else queue
        """Not compared at replay: who was started keeps the queue that it was started on."""

    def digest_today(self, recorded: bytes, digest: bytes) -> bytes | None:
        today = self.run.payloads.today(recorded)
        return None if today is None else digest[:ADDRESS] + today

    def restore(self, entry: Entry) -> None:
        if entry.digest != self.digest and entry.arguments is not None:
            self.wanted_digest = self.run.payloads.digest_of(
                entry.arguments
            )  # what it was started with, by older types
        super().restore(entry)

    def activate(self) -> None:
        self.run.complete(self)

    def record(self) -> bool:
        if self.state != ASKED or self.failed:
            return super().record()
        run, host = self.run, self.run.host
        self.ref = host.new_uid()
        run.append(self, 1, run.loop.now)
        run.write(
            host.new_instance(
                self.ref,
                self.flow,
                self.id,
                self.queue,
                self.child_arguments,
                self.wanted_digest,
                None if self.detached else run.uid,
            )
        )
        self.give()
        return True

    def give(self) -> None:
        if self.failed:
            super().give()
            return
        if not self.detached:
            self.run.has_children = True
        if not self.future.done():
            self.future.set_result(Started(self.flow, self.id, self.wanted_digest, self.ref))


class WaitOp(Op):
    """Waits for another instance to end."""

    __slots__ = ("child", "message", "target")
    kind = Kind.WAIT

    def __init__(self, run: Execution, target: Started, *, child: bool) -> None:
        arguments = codec.encode([target.flow, target.id])
        super().__init__(run, target.flow, arguments, codec.digest(arguments))
        self.target = target
        self.child = child
        self.message: Message | None = None

    def activate(self) -> None:
        run = self.run
        run.mailbox.waits[self.key] = self
        if not run.mailbox.answer_for(self, self.key):
            run.write(Watch(run.uid, run.number, self.key, self.target.flow, self.target.id, self.target.digest))

    def answered(self, message: Message) -> None:
        """The answer is there: the outcome is known."""
        self.message = message
        self.ref = message.type.encode()
        self.failed = message.failed
        self.outcome = told(self.run.payloads, message, self.target.flow, self.target.id, self.name)
        self.run.complete(self)

    @property
    def own_failure(self) -> bool:
        """Whether the other instance ended with an exception of its own."""
        return (
            self.state == DELIVERED and self.ref == State.FAILED.value.encode()
        )  # an answer may be dropped on its way

    def record(self) -> bool:
        if self.state != ASKED:
            return False
        run = self.run
        run.append(self, 1, run.loop.now)
        run.mailbox.waits.pop(self.key, None)
        if self.message is not None:
            run.write(Take(run.uid, self.message.mid))
        self.give()
        return True

    def dropped(self) -> None:
        run = self.run
        run.mailbox.waits.pop(self.key, None)
        run.write(Unwatch(run.uid, run.number, self.key))
        if self.child:
            run.write(ask_to_end(run, self.target.flow, self.target.id, self.target.uid))


def told(payloads: Payloads, message: Message, flow: str, id: str, name: str) -> bytes | None:
    """The outcome of whoever waited for (flow, id), by the answer that tells how it ended."""
    if message.type in (State.SUCCEEDED.value, State.FAILED.value):
        return message.body
    if message.type == State.CANCELLED.value:
        try:
            reason = payloads.decode(message.body) if message.body else None
        except (UnknownType, DoesNotFit):
            reason = None
        return payloads.encode_error(FlowCancelled(flow, id, reason), name)
    if message.type == "already-started":
        return payloads.encode_error(AlreadyStarted(flow, id), name)
    return payloads.encode_error(InstanceNotFound(flow, id), name)


def ask_to_end(run: Execution, flow: str, id: str, uid: bytes | None) -> Send:
    """The row by which a child that nobody waits for any more is asked to end; `uid`: of the life that was started here."""
    request = cancel_request(run, flow, id, "the wait for it was cancelled")
    if uid is None:
        return request
    # The same request as that of a parent that ends: a second would cut off the child's cleanup. And to the life that was
    # started here alone: one that existed before is not ours to end.
    message = msgspec.structs.replace(request.message, mid=cancel_mid(run.uid, uid))
    return msgspec.structs.replace(request, message=message, uid=uid)


class SendOp(Op):
    """A message or cancel request for another instance; it is there when the entry is durable."""

    __slots__ = ("to",)
    kind = Kind.SEND

    def __init__(self, run: Execution, send: Send, digest: bytes) -> None:
        address = codec.encode([send.id, send.message.key, send.message.name])
        super().__init__(run, send.flow, send.message.body, codec.digest(address) + digest)
        self.to = send

    def digest_today(self, recorded: bytes, digest: bytes) -> bytes | None:
        today = self.run.payloads.today(recorded)
        return None if today is None else digest[:ADDRESS] + today

    def activate(self) -> None:
        self.run.complete(self)

    def record(self) -> bool:
        if not super().record():
            return False
        if not self.failed:
            self.run.write(self.to)
        return True

    def value(self) -> Any:
        return None


class CancelOp(SendOp):
    """A cancel request for another instance."""

    __slots__ = ()
    kind = Kind.CANCEL_OTHER


class ReadOp(Op):
    """What only the store knows of another instance: its state, what it exposes. Read when all before it is durable."""

    __slots__ = ("flow", "id", "key_wanted", "what")
    kind = Kind.READ

    def __init__(self, run: Execution, what: str, flow: str, id: str, key_wanted: str | None) -> None:
        arguments = codec.encode([what, flow, id, key_wanted])
        super().__init__(run, f"{what} of {flow}", arguments, codec.digest(arguments))
        self.what = what
        self.flow = flow
        self.id = id
        self.key_wanted = key_wanted

    def activate(self) -> None:
        self.run.to_go.append(self)


class Pushed:
    """What comes without being asked for: an arrival while a stream is open, a cancel request."""

    __slots__ = ("kind", "message", "run", "state")

    def __init__(self, run: Execution, kind: str, message: Message) -> None:
        self.run = run
        self.kind = kind
        self.message = message
        self.state = ASKED

    def record(self) -> bool:
        """It has its place in the order: it is written and told to the flow.

        False: it is a request to cancel what has returned already. It stays in the inbox, for the next run if there is one.
        """
        run, message = self.run, self.message
        if self.kind == Kind.CANCEL and run.main is not None and run.main.done():
            return False
        arguments = codec.encode(message.name) if self.kind == Kind.ARRIVAL else message.body
        run.append_pushed(self.kind, message.type, arguments, message)
        if self.kind == Kind.ARRIVAL:
            run.mailbox.arrive(message.mid, message.name, message.body)
        else:
            run.write(Take(run.uid, message.mid))
            run.mailbox.take(message)
            run.cancel_main(run.payloads.decode(message.body) if message.body else None)
        return True


def cancel_request(run: Execution, flow: str, id: str, reason: str | None) -> Send:
    """The row by which a flow asks another instance to end."""
    body = None if reason is None else run.payloads.encode(reason, "reason")
    return Send(flow, id, cancel_message(run.host.new_uid(), body, run.loop.now))


def new_message(mid: bytes, type: str, body: bytes | None, key: str | None, name: str | None, at: float) -> Message:
    """A message for an inbox."""
    return Message(mid, MessageKind.MESSAGE, key, name, type, body, False, -1, at)


def cancel_message(mid: bytes, body: bytes | None, at: float) -> Message:
    """A cancel request for an inbox."""
    return Message(mid, MessageKind.CANCEL, None, None, MessageKind.CANCEL, body, False, -1, at)
