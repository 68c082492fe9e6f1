"""The messages of one resident instance: which wait, who takes which, and the sequence that streams read.

Decides only; what is written and in which order is the execution's.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

from perdure import codec
from perdure.engine.operations import ASKED, Pushed, ReceiveOp, WaitOp
from perdure.engine.rereading import Rereading
from perdure.errors import DoesNotFit, UnknownType
from perdure.model.records import Kind, Message, MessageKind

if TYPE_CHECKING:
    from perdure.engine.execution import Execution
    from perdure.engine.queued import QueuedStepOp

logger = logging.getLogger("perdure")

KEPT_BYTES: Final = 64 * 1024
"""So much of what was taken is kept, for a stream that may be opened later and reads from the run's beginning. Beyond
that nothing is, and who opens one waits until the journal was read again: a flow that only takes messages, as most do,
needs none of them twice. Replay counts alike and waits at the same place, so journals depend on this number.
"""
PLACE_BYTES: Final = 100
"""So much a message counts beside its body."""


class Held:
    """A message that nobody has taken yet."""

    __slots__ = ("_decoded", "_value", "message", "reserved")

    def __init__(self, message: Message) -> None:
        self.message = message
        self.reserved = False
        """A receive will get it as soon as its turn in the order comes."""
        self._decoded = False
        self._value: Any = None

    def value(self, run: Execution) -> Any:
        """The decoded body; `UNREADABLE` if its type is not loaded here or it does not fit."""
        if not self._decoded:
            self._decoded = True
            body = self.message.body
            try:
                self._value = None if body is None else run.payloads.decode(body)
            except (UnknownType, DoesNotFit) as error:
                self._value = UNREADABLE
                logger.warning("%r: a message of type %s stays in the inbox: %s", run, self.message.type, error)
        return self._value

    def forget(self) -> None:
        """The body is decoded anew when it is asked for."""
        self._decoded = False
        self._value = None


UNREADABLE: Any = object()


class Mailbox:
    """See the module. Messages come in by `admit` once the execution is live, before that they wait in order."""

    __slots__ = ("_held", "_named", "_receivers", "_run", "_stream_waiters", "_taken", "_waits", "open", "sequence")

    def __init__(self, run: Execution, messages: list[Message]) -> None:
        self._run = run
        self._held: dict[bytes, Held] = _NONE_HELD
        if messages:
            self._held = {m.mid: Held(m) for m in messages if m.kind != MessageKind.EVICT}
        self._named: set[bytes] | None = None  # mids that entries name: not admitted again
        self._receivers: dict[ReceiveOp, None] = _NO_RECEIVERS
        self._waits: dict[str, WaitOp | QueuedStepOp] | None = None
        self.open = False
        """Whether a stream was opened: from then on every message is an arrival."""
        self.sequence: list[tuple[str | None, bytes | None]] = _NOTHING
        """(name, body) of every message that an entry names, in the order of the entries: what streams read. Empty
        if it is too much and no stream was opened.
        """
        self._taken = 0
        """How many bytes the sequence would have, until a stream is opened."""
        self._stream_waiters: list[asyncio.Future[None]] | None = None

    # ------------------------------------------------------------ coming in

    def admit(self, message: Message) -> None:
        """The message is in the inbox for good; a message known already is not admitted twice."""
        if message.mid in self._held or (self._named is not None and message.mid in self._named):
            return
        if message.kind == MessageKind.EVICT:
            if message.name is not None:
                self._run.host.hand_over(self._run, message.name)
            return
        if self._held is _NONE_HELD:
            self._held = {}
        held = self._held[message.mid] = Held(message)
        if self._run.live or message.kind == MessageKind.ANSWER:  # which may be for a step that runs again
            self._offer(held)

    def go_live(self) -> None:
        """The journal is used up: cancel requests first, then messages in their order, are offered to those who wait."""
        if not self._held:
            return
        for held in self._held.values():
            if held.message.kind == MessageKind.CANCEL:
                self._offer(held)
        for held in list(self._held.values()):
            if held.message.kind != MessageKind.CANCEL:
                self._offer(held)

    def _offer(self, held: Held) -> None:
        message = held.message
        run = self._run
        if message.kind == MessageKind.CANCEL:
            run.complete(Pushed(run, Kind.CANCEL, message))
        elif message.kind == MessageKind.ANSWER:
            self._answer(held)
        else:
            if self.open and not self._is_named(message.mid):
                run.complete(Pushed(run, Kind.ARRIVAL, message))
            for receiver in self._receivers:
                if self._matches(receiver, held):
                    self._reserve(receiver, held)
                    return

    @property
    def waits(self) -> dict[str, WaitOp | QueuedStepOp]:
        """Who waits for the answers of other instances, by the key of the answer."""
        if self._waits is None:
            self._waits = {}
        return self._waits

    def _answer(self, held: Held) -> None:
        message = held.message
        op = None if self._waits is None else self._waits.get(message.key or "")
        if op is not None and message.run == self._run.number and op.message is None and op.state == ASKED:
            op.answered(message)

    def answer_for(self, op: WaitOp | QueuedStepOp, key: str) -> bool:
        """Whether the answer under this key is in the inbox already; then it is used."""
        for held in self._held.values():
            message = held.message
            if message.kind == MessageKind.ANSWER and message.key == key and message.run == self._run.number:
                op.answered(message)
                return True
        return False

    # ------------------------------------------------------------ receives

    def wait(self, op: ReceiveOp) -> None:
        """The receive gets the first message that fits, now or later."""
        for held in self._held.values():
            if not held.reserved and held.message.kind == MessageKind.MESSAGE and self._matches(op, held):
                self._reserve(op, held, waiting=False)
                return
            if op.failed:
                return
        if self._receivers is _NO_RECEIVERS:
            self._receivers = {}
        self._receivers[op] = None

    def _matches(self, op: ReceiveOp, held: Held) -> bool:
        if held.reserved or op.wanted != held.message.name or op.failed:
            return False
        value = held.value(self._run)
        if value is UNREADABLE or not any(codec.fits(value, form) for form in op.forms):
            return False
        if op.where is None or op.context is None:
            return True
        try:
            return bool(op.context.run(op.where, value))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            op.failed = True
            op.outcome = self._run.payloads.encode_error(error, op.name)
            self._run.complete(op)
            return False
        finally:
            held.forget()  # it may have changed the message, and who gets it gets what decoding gives

    def _reserve(self, op: ReceiveOp, held: Held, *, waiting: bool = True) -> None:
        if waiting:
            del self._receivers[op]
        held.reserved = True
        op.taken = held.message
        op.value_taken = held.value(self._run)
        op.outcome = held.message.body
        op.ref = held.message.mid
        self._run.complete(op)

    def leave(self, op: ReceiveOp) -> None:
        """The receive does not want a message any more; one reserved for it goes to the next."""
        self._receivers.pop(op, None)
        if op.taken is not None:
            held = self._held.get(op.taken.mid)
            op.taken = None
            if held is not None:
                held.reserved = False
                for receiver in self._receivers:
                    if self._matches(receiver, held):
                        self._reserve(receiver, held)
                        return

    def forget(self, op: ReceiveOp) -> None:
        """The receive has its outcome."""
        self._receivers.pop(op, None)

    def take(self, message: Message) -> None:
        """An entry holds the message now."""
        self._held.pop(message.mid, None)
        if message.kind == MessageKind.MESSAGE:
            self._name(message.mid, message.name, message.body)
        else:
            self._remember(message.mid)

    def forget_request(self, mid: bytes) -> None:
        """A cancel request is in the journal; at replay."""
        self._held.pop(mid, None)
        self._remember(mid)

    def restore_taken(self, mid: bytes, name: str | None, body: bytes | None) -> None:
        """The same, at replay."""
        self._held.pop(mid, None)
        self._name(mid, name, body)

    # ------------------------------------------------------------ streams

    def open_stream(self) -> None:
        """From now on every message of the run is an arrival; those in the inbox that no entry names come first."""
        if self.open:
            return
        self.open = True
        if self._taken > KEPT_BYTES:
            self._run.rereading = Rereading(self._run.seq)
        if self._run.live:
            for held in list(self._held.values()):
                if held.message.kind == MessageKind.MESSAGE and not self._is_named(held.message.mid):
                    self._run.complete(Pushed(self._run, Kind.ARRIVAL, held.message))

    def read_again(self, sequence: list[tuple[str | None, bytes | None]]) -> None:
        """What was not kept is there again, for the stream that was opened after it."""
        self.sequence = sequence
        self._tell_readers()

    def arrive(self, mid: bytes, name: str | None, body: bytes | None) -> None:
        """An arrival entry names the message; it stays for receives."""
        self._name(mid, name, body)

    def arrived(self) -> asyncio.Future[None]:
        """A future that is done when the sequence grows."""
        future: asyncio.Future[None] = asyncio.Future(loop=self._run.loop)
        if self._stream_waiters is None:
            self._stream_waiters = []
        self._stream_waiters.append(future)
        return future

    @property
    def listening(self) -> bool:
        """Whether a stream waits for the next message."""
        return bool(self._stream_waiters) and any(not f.done() for f in self._stream_waiters or ())

    def _is_named(self, mid: bytes) -> bool:
        return self._named is not None and mid in self._named

    def _remember(self, mid: bytes) -> None:
        if self._named is None:
            self._named = set()
        self._named.add(mid)

    def _name(self, mid: bytes, name: str | None, body: bytes | None) -> None:
        if self._is_named(mid):
            return
        self._remember(mid)
        if not self.open:
            self._taken += PLACE_BYTES + len(body or b"")
            if self._taken > KEPT_BYTES:
                self.sequence = _NOTHING
                return
        if self.sequence is _NOTHING:
            self.sequence = []
        self.sequence.append((name, body))
        self._tell_readers()

    def _tell_readers(self) -> None:
        if self._stream_waiters:
            waiters, self._stream_waiters = self._stream_waiters, None
            for future in waiters:
                if not future.done():
                    future.set_result(None)

    # ------------------------------------------------------------ for the row

    def untaken(self) -> tuple[bytes, ...]:
        """The mids of all messages that were looked at and not taken."""
        return tuple(self._held)

    def count(self) -> int:
        """How many messages nobody took."""
        return sum(1 for held in self._held.values() if held.message.kind == MessageKind.MESSAGE)


# What most flows have none of, shared and never changed: each would be 60 bytes a flow.
_NONE_HELD: Final[dict[bytes, Held]] = {}
_NO_RECEIVERS: Final[dict[ReceiveOp, None]] = {}
_NOTHING: Final[list[tuple[str | None, bytes | None]]] = []
