"""One resident instance: replays its journal into the flow loop, then gives every live outcome its place in the order.

Decides and does no I/O: what it wants done (writes, steps, timers) it asks of its host. State has one owner: this object
while it lives. The rules are design points of their own:
- Completions queue; only an idle loop takes one, and then it gets its seq and flow time.
- Replay is strict: at idle the lowest entry must be pushed or asked for, else mismatch, here and now.
- Output (starting or cancelling a step, the next attempt, results) waits for `gate`: the latest write is durable.
"""

from __future__ import annotations

import asyncio
import hashlib
import heapq
import itertools
import logging
import random as _random
import sys
import traceback
from collections.abc import Callable, Mapping
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any, Final, Protocol

from perdure import codec
from perdure.api.scope import Place, Started, fresh_context, scope
from perdure.engine.loop import FlowLoop, FlowTask, FlowTimer
from perdure.engine.mailbox import Mailbox
from perdure.engine.operations import (
    ASKED,
    DELIVERED,
    DROPPED,
    CancelOp,
    Op,
    Pushed,
    ReadOp,
    ReceiveOp,
    SendOp,
    StartOp,
    StepOp,
    TimerOp,
    WaitOp,
    cancel_message,
    new_message,
)
from perdure.engine.payloads import Payloads
from perdure.errors import (
    DoesNotFit,
    DuplicateId,
    NonDeterminismError,
    NotEncodable,
    OutcomeUnknown,
    PayloadTooLarge,
    PerdureError,
    Spins,
    UnknownType,
    WaitsForNothing,
)
from perdure.model.records import PUSHED, Entry, Kind, Loaded, Message, Pending, State
from perdure.model.writes import Create, Expose, Finish, PendingDrop, PendingPut, Send, Update, Write

if TYPE_CHECKING:
    from perdure.api.flow import FlowFunction
    from perdure.api.step import StepSpec

logger = logging.getLogger("perdure")

AHEAD_ENTRIES: Final = 1_000
"""An instance that is so many entries ahead of the disk gets no more deliveries."""
UNLOAD_TURNS: Final = 50
"""So often an unloaded flow's tasks are cancelled before what does not end is left alone."""


class Host(Protocol):
    """What an execution asks of the engine. Nothing here waits."""

    real: asyncio.AbstractEventLoop
    base_context: Context
    durable: int
    holding: bool
    """While a commit fails or its outcome is unknown, nothing is delivered."""

    def now(self) -> float: ...
    def schedule(self, loop: FlowLoop, /) -> None: ...
    def write(self, write: Write, /) -> int: ...
    def gate(self, execution: Execution) -> None: ...
    def start_step(self, op: StepOp | ReadOp) -> None: ...
    def cancel_step(self, op: StepOp) -> None: ...
    def arm(self, execution: Execution, when: float) -> None: ...
    def settled(self, execution: Execution) -> None: ...
    def finished(self, execution: Execution, finish: Finish) -> None: ...
    def blocked(self, execution: Execution, error: BaseException) -> None: ...
    def random(self) -> float: ...
    def new_uid(self) -> bytes: ...
    def new_instance(
        self, uid: bytes, flow: str, id: str, arguments: bytes, digest: bytes, parent: bytes | None
    ) -> Create: ...
    def default_retry(self) -> Any: ...


class Execution:
    """See the module. Made from what the store has loaded; runs from plain callbacks of the real loop."""

    __slots__ = (
        "__weakref__",
        "_ahead",
        "_by_key",
        "_cancelled_main",
        "_dropped",
        "_ended_tasks",
        "_ending",
        "_explicit",
        "_exposed",
        "_never",
        "_pending",
        "_position",
        "_recorded",
        "_said",
        "asked",
        "cancel_reason",
        "completed",
        "due_at",
        "flow",
        "frozen",
        "gate",
        "gated",
        "has_children",
        "host",
        "instance",
        "live",
        "loop",
        "mailbox",
        "main",
        "number",
        "ops",
        "parent_name",
        "parked_at",
        "payloads",
        "problem",
        "restarted",
        "root",
        "running",
        "schedule",
        "seq",
        "stopped",
        "timers",
        "to_cancel",
        "to_go",
        "uid",
        "waiting",
    )  # fmt: skip

    def __init__(self, host: Host, payloads: Payloads, flow: FlowFunction[..., Any], loaded: Loaded) -> None:
        instance = loaded.instance
        self.host = host
        self.schedule = host.schedule
        self.payloads = payloads
        self.flow = flow
        self.instance = instance
        self.uid = instance.uid
        self.number = instance.run
        self.loop = FlowLoop(host.real, self, _salt(instance.uid))
        self.root = Place(self, None)
        self.mailbox = Mailbox(self, loaded.inbox)
        self.main: FlowTask | None = None
        self.ops: dict[str, Op] = {}
        """What was asked for and is neither delivered nor dropped, in the order of asking."""
        self.completed: list[Op | Pushed] = []
        """Live outcomes that wait for the loop to be idle."""
        self.to_go: list[StepOp | ReadOp] = []
        """Steps that start when all before them is durable."""
        self.to_cancel: list[StepOp] = []
        self.running: set[StepOp | ReadOp] = set()
        """Steps that run now, those dropped and not yet ended included."""
        self.timers: list[tuple[float, int, Op]] | None = None
        self.seq = 0
        self.asked = 0
        self.gate = 0
        """The number of the latest write that this instance made."""
        self.gated = False
        self.live = False
        self.stopped = False
        """Nothing is delivered any more: frozen, ended, blocked or dead."""
        self.frozen = False
        self.waiting = False
        self.due_at: float | None = None
        self.problem: BaseException | None = None
        self.has_children = False
        self.cancel_reason: str | None = None
        self.parked_at = 0.0
        self.restarted = len(loaded.entries) > 1
        self._cancelled_main = False
        self._ahead = 0
        self._ended_tasks = 0
        self._ending = False
        self._explicit: set[str] | None = None
        self._exposed: dict[str, bytes] | None = None
        self._never: list[Any] | None = None
        self._said: set[str] | None = None
        self._recorded: list[Entry] = loaded.entries
        self._by_key: dict[str, Entry] = {e.key: e for e in loaded.entries if e.kind not in PUSHED}
        self._pending: dict[str, Pending] = {p.key: p for p in loaded.pending}
        self._dropped: set[str] | None = None
        self._position = 0

    def __repr__(self) -> str:
        return f"{self.instance.flow} {self.instance.id!r}"

    # ------------------------------------------------------------ asking (called by the flow's own code, in a turn)

    def _ask(self, op: Op, place: Place, id: str | None = None) -> Op:
        """The operation has its key and is checked against the journal, or begins."""
        if self.stopped:
            return op  # of a dead execution: never returns and never acts
        op.key = key = place.next_key() if id is None else self._explicit_key(id)
        self.asked += 1
        if self.live:
            self.ops[key] = op
            op.activate()
            return op
        entry = self._by_key.pop(key, None)
        if entry is not None:
            if not self._agrees(op, entry.kind, entry.name, entry.digest, entry.arguments):
                self._mismatch(op, f"{entry.kind} {entry.name}", entry.seq)
                return op
        elif self._pending and key in self._pending:
            row = self._pending.pop(key)
            if not self._agrees(op, row.kind, row.name, row.digest, row.arguments):
                self._mismatch(op, f"{row.kind} {row.name} (begun)", None)
                return op
            assert isinstance(op, StepOp)  # noqa: S101  only steps have pending rows, and the kinds agree
            op.row, op.intent, op.failures = True, row.intent, row.attempt
            op.next_at, op.error, op.progress = row.next_at, row.error, row.progress
        self.ops[key] = op
        return op

    def _explicit_key(self, id: str) -> str:
        check_name(id, "id")
        if self._explicit is None:
            self._explicit = set()
        if id in self._explicit:
            raise DuplicateId(f"{self!r}: id={id!r} was used before in this run; an id names one operation")
        self._explicit.add(id)
        return "=" + id

    def _agrees(self, op: Op, kind: str, name: str, digest: bytes, arguments: bytes | None) -> bool:
        if op.kind != kind or op.name != name:
            return False
        if op.digest == digest:
            return True
        return kind == Kind.STEP and arguments is not None and self.payloads.same_today(arguments, op.digest)

    def step(
        self, place: Place, spec: StepSpec, args: tuple[Any, ...], kwargs: Mapping[str, Any], id: str | None
    ) -> StepOp:
        """A step is asked for. Raises NotEncodable and PayloadTooLarge for its arguments, DuplicateId for its id."""
        if kwargs:
            args, kwargs = spec.bind(args, kwargs)
        encoded = self.payloads.arguments(args, kwargs, spec.name)
        op = StepOp(self, spec, args, kwargs, encoded, copy_context())
        self._ask(op, place, id)
        return op

    def receive(
        self,
        place: Place,
        forms: tuple[Any, ...],
        name: str | None,
        where: Callable[[Any], bool] | None,
        timeout: float | None,
    ) -> Op:
        """A message is asked for; with a timeout (seconds) TimeoutError is raised instead when that is over."""
        op = ReceiveOp(self, forms, name, where, copy_context())
        self._ask(op, place)
        if timeout is not None:
            self._limit(op, timeout, f"no message {op.name} within {timeout:g} s")
        return op

    def start(
        self, place: Place, flow: FlowFunction[..., Any] | str, args: tuple[Any, ...], id: str | None, *, detached: bool
    ) -> Op:
        """Another instance is asked for; without an id it gets one made of this run's uid and the operation's key."""
        name = flow if isinstance(flow, str) else flow.name
        data = self.payloads.encode(list(args), f"arguments of {name}")
        if id is None:
            id = f"{self.uid.hex()}.{self.number}.{place.path()}{place.operations}"
        check_name(id, "id")
        op = StartOp(self, name, id, data, self.payloads.digest(list(args), name), detached=detached)
        return self._ask(op, place)

    def wait(self, place: Place, started: Started, *, child: bool, timeout: float | None) -> Op:
        """The end of another instance is asked for."""
        op = WaitOp(self, started, child=child)
        self._ask(op, place)
        if timeout is not None:
            self._limit(op, timeout, f"{started.flow} {started.id!r} has not ended within {timeout:g} s")
        return op

    def send(self, place: Place, flow: str, id: str, message: object, key: str | None, name: str | None) -> Op:
        """A message for another instance is asked for."""
        check_name(id, "id")
        if key is not None:
            check_name(key, "key")
        body = self.payloads.encode(message, f"message to {flow}")
        row = new_message(self.host.new_uid(), codec.tag_of(message), body, key, name, self.loop.now)
        return self._ask(SendOp(self, Send(flow, id, row)), place)

    def cancel(self, place: Place, flow: str, id: str, reason: str | None) -> Op:
        """The end of another instance is requested."""
        return self._ask(CancelOp(self, self.cancel_request(flow, id, reason)), place)

    def cancel_request(self, flow: str, id: str, reason: str | None) -> Send:
        """The row that asks another instance to end."""
        body = None if reason is None else self.payloads.encode(reason, "reason")
        return Send(flow, id, cancel_message(self.host.new_uid(), body, self.loop.now))

    def read(self, place: Place, what: str, flow: str, id: str, key: str | None) -> Op:
        """What only the store knows of another instance is asked for."""
        return self._ask(ReadOp(self, what, flow, id, key), place)

    def _limit(self, op: Op, timeout: float, message: str) -> None:
        """The operation fails with TimeoutError after so many seconds of flow time."""

        def expire() -> None:
            if op.state == ASKED and not op.future.done():
                op.expired = True
                op.future.set_exception(TimeoutError(message))
                op.abandon()

        handle = self.loop.call_later(max(0.0, timeout), expire)
        op.future.add_done_callback(lambda _: handle.cancel())

    def timer(self, handle: FlowTimer) -> None:
        """See `loop.Owner`."""
        here = scope.get()
        op = TimerOp(self, handle)
        handle.operation = op
        self._ask(op, here if type(here) is Place else self.root)

    def drop_timer(self, handle: FlowTimer) -> None:
        """See `loop.Owner`."""
        if handle.operation is not None:
            handle.operation.abandon()

    def drop(self, op: Op) -> None:
        """The flow does not want it any more: it leaves no entry."""
        op.state = DROPPED
        if self.stopped:
            return
        if self.ops.pop(op.key, None) is None:
            return
        if self.live:
            op.dropped()
        else:
            if self._dropped is None:
                self._dropped = set()
            self._dropped.add(op.key)
            if isinstance(op, StepOp) and op.row:
                self.write(PendingDrop(self.uid, self.number, op.key))

    # ------------------------------------------------------------ small things that a flow's body may ask

    @property
    def flow_name(self) -> str:
        """The flow's registered name."""
        return self.instance.flow

    @property
    def instance_id(self) -> str:
        """The instance's id."""
        return self.instance.id

    @property
    def parent(self) -> tuple[str, str] | None:
        """The flow and id of the instance that started it, if it is attached."""
        return self.parent_name if self.instance.parent is not None else None

    @property
    def replaying(self) -> bool:
        """Whether entries are left that the flow has not got."""
        return self._position < len(self._recorded)

    def now(self) -> float:
        """Flow time."""
        return self.loop.now

    def random(self, place: Place) -> _random.Random:
        """A generator seeded by position, so that added code shifts its neighbours only."""
        seed = f"{self.uid.hex()}/{self.number}/{place.path()}/{place.operations}/{place.draws}"
        place.draws += 1
        return _random.Random(hashlib.blake2b(seed.encode(), digest_size=16).digest())

    def expose(self, key: str, value: object) -> None:
        """The value is readable from outside when the next batch is durable."""
        if self.stopped:
            return
        check_name(key, "key")
        data = self.payloads.encode(value, f"exposed {key!r}")
        if self._exposed is None:
            self._exposed = {}
        self._exposed[key] = data
        if self.live:
            self.write(Expose(self.uid, key, data))

    def exposed(self, key: str) -> Any:
        """What this run exposed last under the key."""
        data = (self._exposed or {}).get(key)
        return None if data is None else self.payloads.decode(data)

    def open_stream(self) -> None:
        """From here on every message of the run is an arrival."""
        if not self.stopped:
            self.mailbox.open_stream()

    def arrival(self, cursor: int) -> Any:
        """(name, body bytes) of the message at this place of the sequence; None: there is none yet."""
        sequence = self.mailbox.sequence
        return sequence[cursor] if cursor < len(sequence) else None

    def decode(self, body: bytes) -> Any:
        """The value of a message's body. Raises UnknownType and DoesNotFit."""
        return self.payloads.decode(body)

    def arrived(self) -> asyncio.Future[None]:
        """A future that is done when the sequence has grown."""
        if self.stopped:
            return asyncio.Future(loop=self.loop)
        return self.mailbox.arrived()

    # ------------------------------------------------------------ delivering (called by the loop when it is idle)

    def deliver(self) -> bool:
        """See `loop.Owner`: one entry of the journal, or the next live outcome."""
        if self.stopped:
            return False
        if self._position < len(self._recorded):
            return self._replay()
        if not self.live and not self._go_live():
            return False
        if self._ahead >= AHEAD_ENTRIES or self.host.holding:
            if self.completed:
                self.want_gate()
            return False
        completed = self.completed
        while completed:
            try:
                if completed.pop(0).record():
                    return True
            except (UnknownType, DoesNotFit) as error:
                self._block(error)
                return False
        return False

    def _replay(self) -> bool:
        entry = self._recorded[self._position]
        op = None
        if entry.kind not in PUSHED:
            op = self.ops.pop(entry.key, None)
            if op is None and (self._dropped is None or entry.key not in self._dropped):
                self._unasked(entry)
                return False
        self._recorded[self._position] = _GONE  # its payload is not needed twice
        self._position += 1
        self.seq = entry.seq + 1
        self.loop.now = max(self.loop.now, entry.at)
        try:
            if op is not None:
                op.restore(entry)
            elif entry.kind in PUSHED:
                self._push(entry)
        except (UnknownType, DoesNotFit) as error:
            self._block(error)
            return False
        return True

    def _push(self, entry: Entry) -> None:
        if entry.kind == Kind.BEGUN:
            self._begin()
        elif entry.kind == Kind.ARRIVAL:
            assert entry.ref is not None  # noqa: S101  an arrival names a message
            name = codec.decode(entry.arguments) if entry.arguments else None
            self.mailbox.arrive(entry.ref, name, entry.outcome)
        elif entry.kind == Kind.CANCEL:
            self.cancel_main(self.payloads.decode(entry.arguments) if entry.arguments else None)

    def _begin(self) -> None:
        args = self.payloads.decode(self.instance.arguments)
        context = fresh_context(self.root, self.host.base_context)
        self.main = self.loop.start_main(context.run(self.flow.body, *args), context)

    def _go_live(self) -> bool:
        """The journal is used up: what was asked for and is not in it begins, in the order of asking."""
        if self._pending:
            self._unasked_pending(next(iter(self._pending.values())))
            return False
        self.live = True
        self._recorded = _NO_ENTRIES
        self._position = 0
        self._by_key = _NO_KEYS
        self._dropped = None
        for key, data in (self._exposed or {}).items():
            self.write(Expose(self.uid, key, data))  # the last ones before a crash may not have been written
        asked = list(self.ops.values())
        for op in asked:
            if isinstance(op, StepOp) and op.intent:
                op.activate()
        self.mailbox.go_live()
        for op in asked:
            if op.state == ASKED and not (isinstance(op, StepOp) and op.intent):
                op.activate()
        return True

    def complete(self, op: Op | Pushed) -> None:
        """A live outcome is there; it gets its place when the loop is idle."""
        self.completed.append(op)
        if not self.stopped:
            self.loop.wake()

    def append(self, op: Op, attempts: int, started_at: float) -> None:
        """The operation's outcome is the next entry."""
        del self.ops[op.key]
        op.state = DELIVERED
        loop = self.loop
        loop.now = at = max(loop.now, op.at_least, self.host.now())
        seq = self.seq
        self.seq = seq + 1
        self._ahead += 1
        self.gate = self.host.write(
            Entry(
                self.uid, self.number, seq, op.key, op.kind, op.name, op.arguments, op.digest, op.failed, op.outcome, attempts,
                started_at, at, op.ref,
            )  # fmt: skip
        )

    def append_pushed(self, kind: str, name: str, arguments: bytes | None, message: Message) -> None:
        """What came by itself is the next entry."""
        loop = self.loop
        loop.now = at = max(loop.now, self.host.now())
        seq = self.seq
        self.seq = seq + 1
        self._ahead += 1
        self.write(
            Entry(self.uid, self.number, seq, "", kind, name, arguments, b"", False, message.body, 0, at, at, message.mid)
        )

    def write(self, write: Write) -> None:
        """The write is in the next batch, after all others of this instance."""
        self.gate = self.host.write(write)

    def cancel_main(self, reason: str | None) -> None:
        """The flow is asked to end, as `task.cancel` asks."""
        self.cancel_reason = reason
        self._cancelled_main = True
        if self.main is not None and not self.main.done():
            self.main.cancel(reason)

    # ------------------------------------------------------------ steps, timers (called by the host)

    def put_pending(self, op: StepOp, *, intent: bool = False) -> None:
        """The store knows what it must of an operation that is not in the journal."""
        op.row = True
        self.write(
            PendingPut(
                Pending(
                    self.uid, self.number, op.key, op.kind, op.name, op.arguments, op.digest, intent, op.failures, op.next_at,
                    op.error, op.progress,
                )  # fmt: skip
            )
        )

    def step_done(self, op: StepOp, data: bytes, copy: Any) -> None:
        """The attempt returned."""
        self.running.discard(op)
        op.running = None
        if op.state == ASKED:
            op.outcome, op.copy = data, copy
            self.complete(op)
        else:
            self.step_gone(op)

    def step_failed(self, op: StepOp, error: BaseException) -> None:
        """The attempt raised: it is tried again by the step's rule, or that is the outcome."""
        self.running.discard(op)
        op.running = None
        if op.state != ASKED:
            self.step_gone(op)
            return
        delay = self._next_delay(op, error)
        if delay is None:
            op.failed, op.outcome = True, self.payloads.encode_error(error, op.name)
            self.complete(op)
            return
        op.failures += 1
        op.error = self.payloads.encode_error(error, op.name)
        op.next_at = self.host.now() + delay
        self.put_pending(op)
        self.retry_at(op, op.next_at)
        self._look()

    def _next_delay(self, op: StepOp, error: BaseException) -> float | None:
        rule = op.spec.retry
        if rule is None and not op.spec.at_most_once:
            rule = self.host.default_retry()
        if rule is None or isinstance(error, NotEncodable | PayloadTooLarge | OutcomeUnknown):
            return None
        try:
            return rule.delay(op.failures + 1, error, self.host.random)
        except Exception as broken:
            broken.add_note(f"raised by retry_on of step {op.name}, asked about {error!r}")
            logger.exception("%r: step %s: the retry rule itself raised", self, op.name)
            return None

    def step_gone(self, op: StepOp) -> None:
        """A dropped attempt has ended; what waited for that may go on."""
        self.running.discard(op)
        op.running = None
        if not self.stopped:
            self._look()

    def outcome_unknown(self, op: StepOp, why: str) -> None:
        """The at-most-once attempt was begun, and how it ended will never be known."""
        self.running.discard(op)
        op.running = None
        op.failed, op.outcome = True, self.payloads.encode_error(OutcomeUnknown(op.name, why), op.name)
        self.complete(op)

    def retry_at(self, op: StepOp, when: float) -> None:
        """The next attempt starts at this time (and when all before it is durable)."""
        self.arm(when, op)

    def arm(self, when: float, op: Op) -> None:
        """The operation is due at this time."""
        if self.timers is None:
            self.timers = []
        heapq.heappush(self.timers, (when, next(_number), op))
        if self.timers[0][2] is op:
            self.host.arm(self, when)

    def _earliest(self) -> float | None:
        timers = self.timers
        while timers and timers[0][2].state != ASKED:
            heapq.heappop(timers)
        return timers[0][0] if timers else None

    def fire(self, now: float) -> None:
        """Timers that are due have fired; the host calls it at the time it was asked for."""
        if self.stopped:
            return
        timers = self.timers
        attempts = False
        while (when := self._earliest()) is not None and when <= now:
            assert timers is not None  # noqa: S101
            op = heapq.heappop(timers)[2]
            if isinstance(op, StepOp):
                op.next_at = None
                self.to_go.append(op)
                attempts = True
            else:
                self.complete(op)
        if when is not None:
            self.host.arm(self, when)
        if attempts:
            self._look()

    # ------------------------------------------------------------ idle

    def activity(self) -> int:
        """See `loop.Owner`."""
        return self.asked + sum(1 for task in self.loop.tasks if task.done())

    def outstanding(self) -> bool:
        """See `loop.Owner`."""
        return bool(self.ops) or bool(self.completed) or bool(self.running) or self.mailbox.listening

    def idle(self) -> None:
        """See `loop.Owner`: nothing moves inside. What the instance wants done is asked of the host."""
        if self.problem is not None:
            self.host.blocked(self, self.problem)
            return
        if self.stopped:
            return
        if self.main is not None and self.main.done() and self._end():
            return
        self._look()

    def _look(self) -> None:
        """The row says how the instance stands, and what waits for the disk waits at the gate."""
        if self.stopped or self.loop.turning:
            return
        if self.to_go:
            self.to_go = [op for op in self.to_go if op.state == ASKED]
        busy = bool(self.to_go or self.to_cancel or self.running or self.completed)
        if not busy and not self.ops and not self._ending and not self.mailbox.listening:
            self._block(WaitsForNothing(self._waits_for_nothing()))
            self.host.blocked(self, self.problem or WaitsForNothing(""))
            return
        due_at = None if busy else self._earliest()
        if self.waiting == busy or (not busy and due_at != self.due_at):
            self.waiting, self.due_at = not busy, due_at
            self.write(Update(self.uid, not busy, due_at))
        if self.to_go or self.to_cancel or self._ahead >= AHEAD_ENTRIES:
            self.want_gate()
        if not busy:
            self.host.settled(self)

    def want_gate(self) -> None:
        """`gate_open` is called when everything up to the gate is durable."""
        if not self.gated:
            self.gated = True
            self.host.gate(self)

    def gate_open(self) -> None:
        """Everything that this instance wrote is durable: output may happen."""
        self._ahead = 0
        if self.stopped:
            return
        if self.to_cancel:
            cancel, self.to_cancel = self.to_cancel, []
            for op in cancel:
                if op.running is not None:
                    self.host.cancel_step(op)
        if any(op.state == DROPPED for op in self.running):
            return  # no step starts until the cancelled ones have ended; `step_gone` looks again
        to_go, self.to_go = self.to_go, []
        for op in to_go:
            if op.state == ASKED:
                self.running.add(op)
                self.host.start_step(op)
        if self.completed:
            self.loop.wake()

    # ------------------------------------------------------------ the end

    def _end(self) -> bool:
        """After the main coroutine: the other tasks are cancelled and run out, then the outcome is written."""
        loop = self.loop
        left = [task for task in loop.tasks if not task.done()]
        if not self._ending:
            self._ending = True
            if left:
                logger.warning(
                    "%r returned with unfinished tasks, which are cancelled: %s", self, ", ".join(t.get_name() for t in left)
                )
                loop.call(lambda: [task.cancel() for task in left])
                return True
        if left:
            return False
        if loop.has_generators():
            loop.call(lambda: loop.create_task(loop.close_generators(), name="close generators"))
            return True
        if self.to_cancel or any(op.state == DROPPED for op in self.running):
            return False
        self._finish()
        return True

    def _finish(self) -> None:
        main = self.main
        assert main is not None  # noqa: S101
        name = self.instance.flow
        if main.cancelled():
            state = State.CANCELLED
            outcome = None if self.cancel_reason is None else self.payloads.encode(self.cancel_reason, "reason")
        else:
            error = main.exception()
            state = State.FAILED
            if error is None:
                try:
                    outcome, _ = self.payloads.round_trip(main.result(), f"result of {name}")
                    state = State.SUCCEEDED
                except (NotEncodable, PayloadTooLarge) as unfit:
                    outcome = self.payloads.encode_error(unfit, name)
            else:
                outcome = self.payloads.encode_error(error, name)
        if (untaken := self.mailbox.count()) > 0:
            logger.info("%r ended with %d messages that nobody took; they are kept with it", self, untaken)
        self.stopped = True
        self.host.finished(self, Finish(self.uid, state, outcome, self.host.now(), self.has_children))

    # ------------------------------------------------------------ what stops an execution

    def _block(self, error: BaseException) -> None:
        self.stopped = True
        self.problem = error
        if self.loop.turning:
            return  # the loop calls idle() when this turn is over
        self.loop.wake()

    def _mismatch(self, op: Op, recorded: str, seq: int | None) -> None:
        asked = f"{op.kind} {op.name}"
        line = _users_line(sys._getframe(1))
        place = f"entry {seq}" if seq is not None else "a pending operation"
        same = " with other arguments" if asked == recorded else ""
        self._block(
            NonDeterminismError(
                f"{self!r}, operation {op.key}: the journal holds {recorded} ({place}), and the code asks for {asked}{same} at {line}",
                recorded=recorded,
                asked=asked,
                line=line,
            )
        )

    def _unasked(self, entry: Entry) -> None:
        recorded = f"{entry.kind} {entry.name}"
        asked = ", ".join(op.why_outstanding() for op in self.ops.values()) or "nothing"
        line = self._where()
        self._block(
            NonDeterminismError(
                f"{self!r}: the journal goes on with {recorded} (entry {entry.seq}, operation {entry.key}), which the code does not "
                f"ask for; it asks for {asked}, at {line}",
                recorded=recorded,
                asked=asked,
                line=line,
            )
        )

    def _unasked_pending(self, row: Pending) -> None:
        recorded = f"{row.kind} {row.name} (begun)"
        asked = ", ".join(op.why_outstanding() for op in self.ops.values()) or "nothing"
        line = self._where()
        self._block(
            NonDeterminismError(
                f"{self!r}: {recorded} (operation {row.key}) was begun, and the code does not ask for it; it asks for {asked}, at {line}",
                recorded=recorded,
                asked=asked,
                line=line,
            )
        )

    def _where(self) -> str:
        """The line of the user's code at which the main task waits."""
        if self.main is None:
            return "its beginning"
        stack = self.main.get_stack(limit=None)
        return _users_line(stack[-1]) if stack else "its end"

    def _waits_for_nothing(self) -> str:
        tasks = [task for task in self.loop.tasks if not task.done()]
        stacks = "; ".join(
            f"{task.get_name()} at {_users_line(stack[-1])}" for task in tasks if (stack := task.get_stack()) is not None and stack
        )
        return f"{self!r} waits for something that no step, message, timer or child will bring: {stacks or 'no task is left'}"

    def spins(self) -> None:
        """See `loop.Owner`."""
        self._block(
            Spins(f"{self!r} keeps its loop busy without asking for anything durable, at {self._where()}: await a delay() there")
        )

    def unhandled(self, context: dict[str, Any]) -> None:
        """See `loop.Owner`."""
        error = context.get("exception")
        if self.stopped and not isinstance(error, PerdureError):
            return  # what an unloaded flow's code raises while it is torn down
        text = "".join(traceback.format_exception(error)) if error is not None else ""
        logger.error("%r: %s %s", self, context.get("message", "unhandled error"), text)

    # ------------------------------------------------------------ unloading

    def unload(self) -> list[FlowTask]:
        """Memory is free: every task has ended, cancelled again and again; gives those that do not end.

        Durable calls of the dead execution never return and never act. Non-durable code in `finally` does run.
        """
        self.stopped = True
        loop = self.loop
        for _ in range(UNLOAD_TURNS):
            left = [task for task in loop.tasks if not task.done()]
            if not left:
                break
            loop.run_dead([task.cancel for task in left])
        left = [task for task in loop.tasks if not task.done()]
        loop.closed = True
        self.ops.clear()
        self.completed.clear()
        if not left:  # no cycles for the collector
            loop.tasks.clear()
            loop.owner = NOBODY
            self.main = None
            del self.root, self.mailbox
        return left


class _Nobody:
    """The owner of a loop whose execution is gone."""

    def __repr__(self) -> str:
        return "an unloaded flow"

    def unhandled(self, context: dict[str, Any]) -> None:
        """Nobody to tell."""


NOBODY: Final[Any] = _Nobody()
_number = itertools.count()  # ties between timers go by the order in which they were armed
_GONE: Final[Any] = None
_NO_ENTRIES: Final[list[Entry]] = []
_NO_KEYS: Final[dict[str, Entry]] = {}


def _salt(uid: bytes) -> int:
    """A number of 40 bits from the uid, in the middle of a hash: tasks of different flows do not collide in asyncio's sets."""
    return int.from_bytes(hashlib.blake2b(uid, digest_size=5).digest(), "big") << 16


def check_name(text: str, what: str) -> None:
    """Raises ValueError unless the text is 1 to 255 bytes of UTF-8: ids and keys are stored as such."""
    if not isinstance(text, str):
        raise TypeError(f"{what} must be a str, not {type(text).__name__}")
    size = len(text.encode("utf-8", "surrogatepass"))
    if not 1 <= size <= 255:
        raise ValueError(f"{what} has {size} bytes in UTF-8; 1 to 255 are possible: {text[:40]!r}…")


def _users_line(frame: Any) -> str:
    """file:line of the innermost frame that is not asyncio's or ours."""
    while frame is not None:
        filename = frame.f_code.co_filename
        if not any(part in filename for part in _OURS):
            return f"{filename}:{frame.f_lineno}"
        frame = frame.f_back
    return "unknown line"


_OURS: Final = ("/perdure/engine/", "/perdure/api/", "/asyncio/")
