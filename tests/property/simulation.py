"""One instance on a host that is all chance from one seed: commits, completions, timers, messages come in any order.

No real loop, thread or time is involved: whatever happens is one event of `Simulation.run`. What was written can be
cut anywhere, and another simulation, in another process, goes on from there.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any

import msgspec

from perdure import codec
from perdure.api.scope import scope
from perdure.engine import ending
from perdure.engine.execution import Execution
from perdure.engine.loop import FlowLoop
from perdure.engine.operations import ASKED, ReadOp
from perdure.engine.payloads import Payloads
from perdure.engine.stepping import StepOp
from perdure.engine.transacting import TransactionOp
from perdure.errors import PerdureError
from perdure.model.records import Entry, Instance, Kind, Loaded, Message, MessageKind, Pending, State
from perdure.model.tx import Tx
from perdure.model.writes import Create, Finish, PendingDrop, PendingPut, Send, Take, Unwatch, Watch, Write
from perdure.stores.contract import answer_mid
from tests.property.programs import Failure, Ping, Text, program, traces

START = 1_750_000_000.0
EVENTS = 4_000
"""A program that has not ended after so many events is looked at as it is."""


class Saved(msgspec.Struct):
    """What a store would hold, and what is still to come from outside."""

    uid: bytes
    arguments: bytes
    clock: float
    entries: list[Entry] = []
    pending: list[Pending] = []
    inbox: list[Message] = []
    children: dict[str, tuple[bytes, bool]] = {}
    """By id: arguments of the instances that were started, and whether they were cancelled."""
    watched: dict[str, tuple[int, str]] = {}
    """By the key that asks: the run and the id that is waited for."""


class NoTx:
    """A transaction on no database."""

    async def execute(self, sql: str, /, *args: object) -> None: ...

    async def fetch(self, sql: str, /, *args: object) -> list[dict[str, Any]]:
        return [{"sql": sql}]


class Attempt:
    """What `current()` is inside a simulated step."""

    cancelled = False

    def __init__(self, op: StepOp) -> None:
        self.step = op.name
        self.attempt = op.failures + 1


class Watched(Execution):
    """Notes how things stand when the journal is used up: how long the trace is, and what was asked for."""

    __slots__ = ("at_live",)
    at_live: Any

    def _go_live(self) -> bool:
        before = [len(traces.get(self.instance.id, ())), self.asked_keys]
        if not super()._go_live():
            return False
        self.at_live = before
        return True

    @property
    def asked_keys(self) -> list[str]:
        return [key for key, op in self.ops.items() if op.state == ASKED]


class Simulation:
    """See the module; it is the execution's host, and its own real loop."""

    def __init__(self, saved: Saved, plan: dict[str, Any], flow: Any = program, *, paged: bool = False) -> None:
        self.saved = saved
        self.chance = random.Random(plan["seed"])
        self.planned: list[list[Any]] = plan["messages"]
        self.to_send = list(self.planned)
        self.cancel_after: int | None = plan["cancel_after"]
        self.real = self
        self.base_context = Context()
        self.durable = 0
        self.holding = False
        self.clock = saved.clock
        self.writes: list[Write] = []
        self.marks: list[list[Any]] = []
        """At each entry: its place in the writes, how long the trace was then, and what was asked for."""
        self.boundaries: set[int] = set()
        """Where a batch may end: after an event, and before each entry."""
        self.sent: list[tuple[int, Message]] = []
        """What came into the inbox here, and after how many writes."""
        self.state: str | None = None
        self.result: Any = None
        self.started: list[str] = []
        self.trace: list[Any] = []
        self.problem = ""
        self._callbacks: list[Callable[[], object]] = []
        self._gated = False
        self._running: list[StepOp | ReadOp] = []
        self._transactions: list[tuple[TransactionOp, Callable[[Tx], Coroutine[Any, Any, Entry]]]] = []
        self._page_wanted = False
        self._cancelling: list[StepOp] = []
        self._alarms: list[float] = []
        self._answers: list[tuple[int, str, str, bool]] = []
        self._uids = int.from_bytes(saved.uid[:4], "big") * 1_000_000 + int(self.chance.random() * 1e5) * 10
        self.children = dict(saved.children)
        for key, (number, id) in saved.watched.items():
            self._answers.append((number, key, id, False))
        instance = Instance(
            uid=saved.uid, run=0, flow=flow.name, id="one", lane=flow.name, state=State.RUNNING, owner="me", waiting=False,
            due_at=None, arguments=saved.arguments, digest=b"", parent=None, outcome=None, reason=None, version="", created_at=START,
            ended_at=None,
        )  # fmt: skip
        traces.pop("one", None)
        entries, self._later = list(saved.entries), list[Entry]()
        if paged:  # each entry is a page of its own
            entries, self._later = entries[:1], entries[1:]
        loaded = Loaded(instance, entries, list(saved.pending), list(saved.inbox), bool(self._later))
        self.execution = Watched(self, Payloads(None, 1 << 20), flow, loaded)  # type: ignore[arg-type]
        self.execution.at_live = None
        self.execution.loop.wake()

    # -- the real loop

    def call_soon(self, callback: Callable[[], object]) -> None:
        self._callbacks.append(callback)

    # -- the host

    def schedule(self, loop: FlowLoop, /) -> None:
        self._callbacks.append(loop.run)

    def now(self) -> float:
        return self.clock

    def write(self, write: Write, /) -> int:
        if isinstance(write, Entry) and write.kind != Kind.PATCHED:
            self._mark(write.key)
        self.writes.append(write)
        return len(self.writes)

    def _mark(self, key: str) -> None:
        """An entry is written now, of the operation with this key if that was asked for no more."""
        self.boundaries.add(len(self.writes))
        self.marks.append([len(self.writes), len(traces.get("one", ())), self.execution.asked_keys, key])

    def gate(self, execution: Execution) -> None:
        self._gated = True
        self._open()

    def _open(self) -> None:
        execution = self.execution
        if self._gated and self.durable >= execution.gate and not self.holding:
            self._gated = False
            execution.gated = False
            execution.gate_open()

    def start_step(self, op: StepOp | ReadOp | TransactionOp) -> None:
        self.started.append(op.name)
        if isinstance(op, TransactionOp):
            self._transactions.append((op, op.body()))
            return
        if isinstance(op, StepOp):
            op.running = Attempt(op)
            op.started_at = self.clock
        self._running.append(op)

    def cancel_step(self, op: StepOp) -> None:
        if op in self._running:
            self._running.remove(op)
            self._cancelling.append(op)

    def arm(self, execution: Execution, when: float) -> None:
        heapq.heappush(self._alarms, when)

    def settled(self, execution: Execution) -> None: ...

    def read_on(self, execution: Execution) -> None:
        self._page_wanted = True

    def finished(self, execution: Execution, finish: Finish) -> None:
        self.state = finish.state.value
        if finish.outcome is not None and finish.state is State.SUCCEEDED:
            self.result = repr(codec.decode(finish.outcome))
        elif finish.outcome is not None and finish.state is State.FAILED:
            self.result = type(codec.decode_error(finish.outcome)).__name__
        self.writes.append(finish)

    def blocked(self, execution: Execution, error: BaseException) -> None:
        self.state = f"blocked: {type(error).__name__}"
        self.problem = str(error)

    def random(self) -> float:
        return 0.0

    def new_uid(self) -> bytes:
        self._uids += 1
        return self._uids.to_bytes(16, "big")

    def new_instance(
        self, uid: bytes, flow: str, id: str, queue: str, arguments: bytes, digest: bytes, parent: bytes | None
    ) -> Create:
        return Create(uid, flow, id, flow, arguments, digest, parent, False, self.clock, "", self.clock, None)

    queues = False

    def default_retry(self) -> None:
        return None

    # -- the world

    def possible(self) -> list[tuple[int, Callable[[], object]]]:
        """What may happen next, with weights."""
        found: list[tuple[int, Callable[[], object]]] = []
        if self._callbacks:
            found.append((12, self.turn))
        if self.holding:
            found.append((4, self.hold_no_more))
        elif self.durable < len(self.writes):
            found.append((6, self.commit))
            found.append((1, self.hold))
        if self._running:
            found.append((6, self.end_a_step))
        if self._transactions and not self.holding:
            found.append((4, self.end_a_transaction))
        if self._page_wanted:
            found.append((6, self.turn_page))
        if self._cancelling:
            found.append((3, lambda: self._cancelling.pop(0).gone()))
        if self._alarms:
            found.append((3, self.ring))
        if self._answers:
            found.append((3, self.answer))
        if self.to_send:
            found.append((2, self.deliver))
        return found

    def turn(self) -> None:
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()
        asyncio._set_running_loop(None)

    def commit(self) -> None:
        fresh = self.writes[self.durable :]
        self.durable = len(self.writes)
        for write in fresh:
            if isinstance(write, Create):
                self.children[write.id] = (write.arguments, False)
            elif isinstance(write, Watch):
                self._answers.append((write.run, write.key, write.id, False))
            elif isinstance(write, Unwatch):
                self._answers = [a for a in self._answers if a[1] != write.key]
        self._open()

    def hold(self) -> None:
        """A commit fails: nothing is delivered until one succeeds."""
        self.holding = True

    def hold_no_more(self) -> None:
        self.holding = False
        self._open()

    def end_a_step(self) -> None:
        op = self._running.pop(self.chance.randrange(len(self._running)))
        if not isinstance(op, StepOp):
            return
        run = self.execution
        args, kwargs = run.payloads.copies(op.arguments or b"", op.args, op.kwargs, op.opaque)
        context = op.context.copy()
        context.run(scope.set, op.running)
        try:
            value = context.run(op.spec.fn, *args, **kwargs)
            if op.spec.is_async:
                value = _at_once(context, value)
            data, copy = run.payloads.round_trip(value, op.name)
        except Exception as error:
            op.raised(error)
        else:
            op.returned(data, copy)

    def end_a_transaction(self) -> None:
        """It commits by itself, with its entry, after what was written before."""
        self.commit()
        op, work = self._transactions.pop(0)
        try:
            entry = _at_once(Context(), work(NoTx()))
        except Exception as error:
            op.raised(error)
            return
        self._mark("")
        self.writes.append(entry)
        self.durable = len(self.writes)
        op.committed(entry)

    def turn_page(self) -> None:
        self._page_wanted = False
        page, self._later = self._later[:1], self._later[1:]
        self.execution.page(page, more=bool(self._later))

    def ring(self) -> None:
        self.clock = max(self.clock, heapq.heappop(self._alarms))
        self.execution.fire(self.clock)

    def answer(self) -> None:
        number, key, id, _ = self._answers.pop(self.chance.randrange(len(self._answers)))
        row = self.children.get(id)
        if row is None:
            kind, body, failed = "not-found", None, True
        else:
            label, fails = codec.decode(row[0])
            failed = fails > 0
            kind = State.FAILED.value if failed else State.SUCCEEDED.value
            body = codec.encode_error(Failure(label)) if failed else codec.encode(f"{label}=child")
        mid = answer_mid(self.saved.uid, number, key)
        self._come(Message(mid, MessageKind.ANSWER, key, None, kind, body, failed, number, self.clock))

    def deliver(self) -> None:
        kind, value, name = self.to_send.pop(0)
        body = codec.encode(Ping(value) if kind == "ping" else Text(str(value)))
        self._come(Message(self.new_uid(), MessageKind.MESSAGE, None, name, kind, body, False, -1, self.clock))

    def cancel(self) -> None:
        """The instance is asked to end."""
        kind = MessageKind.CANCEL
        self._come(Message(self.new_uid(), kind, None, None, kind, None, False, -1, self.clock))

    def _come(self, message: Message) -> None:
        self.sent.append((len(self.writes), message))
        self.execution.mailbox.admit(message)

    def run(self) -> None:
        """Events happen until the instance has ended or nothing can happen any more."""
        for number in range(EVENTS):
            if self.state is not None:
                break
            if number == self.cancel_after:
                self.cancel()
            events = self.possible()
            if not events:
                break
            self.chance.choices([e for _, e in events], [w for w, _ in events])[0]()
            self.boundaries.add(len(self.writes))
        self.end()

    def replay_only(self) -> None:
        """The journal is replayed, and nothing else happens."""
        while (self._callbacks or self._page_wanted) and self.state is None:
            if self._page_wanted:
                self.turn_page()
            self.turn()
        self.end()

    def end(self) -> None:
        """The execution is unloaded; the trace is as it was before."""
        self.trace = list(traces.get("one", ()))
        ending.unload(self.execution)

    # -- cutting

    def cut(self, n: int) -> Saved:
        """What a store holds if only the first `n` writes are durable."""
        old = self.saved
        entries = {e.seq: e for e in old.entries}
        pending = {p.key: p for p in old.pending}
        children, watched = dict(old.children), dict(old.watched)
        came = [*old.inbox, *(m for at, m in self.sent if at <= n)]
        taken: set[bytes] = set()
        for write in self.writes[:n]:
            match write:
                case Entry():
                    entries[write.seq] = write
                case PendingPut():
                    pending[write.pending.key] = write.pending
                case PendingDrop():
                    pending.pop(write.key, None)
                case Take():
                    taken.add(write.mid)
                case Create():
                    children[write.id] = (write.arguments, False)
                case Watch():
                    watched[write.key] = (write.run, write.id)
                case Unwatch():
                    watched.pop(write.key, None)
                case _:
                    pass
        inbox = [m for m in came if m.mid not in taken]
        answered = {m.key for m in came if m.kind == MessageKind.ANSWER}
        watched = {k: v for k, v in watched.items() if k not in answered}
        journal = [entries[seq] for seq in sorted(entries)]
        clock = max(old.clock, journal[-1].at)
        return Saved(old.uid, old.arguments, clock, journal, list(pending.values()), inbox, children, watched)

    def plan_left(self, n: int) -> list[list[Any]]:
        """The messages that had not come when the first `n` writes were made."""
        came = sum(1 for at, m in self.sent if at <= n and m.kind == MessageKind.MESSAGE)
        return self.planned[came:]

    def report(self) -> dict[str, Any]:
        """How it ended."""
        return {
            "state": self.state,
            "result": self.result,
            "problem": self.problem,
            "trace": self.trace,
            "started": self.started,
            "at_live": self.execution.at_live,
            "clock": self.clock,
        }


def _at_once(context: Context, coroutine: Any) -> Any:
    """The result of a coroutine that waits for nothing."""
    try:
        context.run(coroutine.send, None)
    except StopIteration as stop:
        return stop.value
    raise PerdureError("a simulated step must not wait")


def fresh(node: Any, uid: bytes) -> Saved:
    """A new instance that runs the program."""
    begun = Entry(uid, 0, 0, "", Kind.BEGUN, program.name, None, b"", False, None, 0, START, START)
    return Saved(uid, codec.encode([node]), START, [begun])


__all__ = ["Saved", "Send", "Simulation", "fresh"]
