"""One resident instance: replays its journal into the flow loop, then gives every live outcome its place in the order.

Decides and does no I/O: what it wants done (writes, steps, timers) it asks of its host. State has one owner: this
object while it lives. The rules are design points of their own:
- Completions queue; only an idle loop takes one, and then it gets its seq and flow time.
- Replay is strict: at idle the lowest entry must be pushed or asked for, else mismatch, here and now.
- Output (starting or cancelling a step, the next attempt, results) waits for `gate`: the latest write is durable.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from perdure.api.scope import Place, scope
from perdure.engine import differences, ending, replaying
from perdure.engine.calls import Calls
from perdure.engine.due import Due
from perdure.engine.host import Host
from perdure.engine.journal import Journal
from perdure.engine.loop import FlowLoop, FlowTask, FlowTimer, salt
from perdure.engine.mailbox import Mailbox
from perdure.engine.names import check_name
from perdure.engine.operations import ASKED, DELIVERED, DROPPED, Op, Pushed, ReadOp, TimerOp, WaitOp
from perdure.engine.payloads import Payloads
from perdure.engine.rereading import Rereading
from perdure.engine.stepping import StepOp
from perdure.engine.transacting import TransactionOp
from perdure.errors import DuplicateId
from perdure.model.records import Entry, Loaded, Message
from perdure.model.writes import Expose, Update, Write

if TYPE_CHECKING:
    from perdure.api.flow import FlowFunction

logger = logging.getLogger("perdure")

AHEAD_ENTRIES: Final = 1_000
"""An instance that is so many entries ahead of the disk gets no more deliveries."""
LONG: Final = 10_000
"""At every so many entries of a run a warning tells of it."""
IS_LONG: Final = """%r has %d entries in run %d, all of which every replay goes through: begin a new run with \
perdure.continue_as_new(), or do parts of it in children"""


class Execution:
    """See the module. Made from what the store has loaded; runs from plain callbacks of the real loop."""

    __slots__ = (
        "__weakref__", "_ahead", "_explicit", "_stale", "again", "alarm", "asked",
        "cancel_reason", "completed", "due_at", "ending", "exposed", "flow", "gate", "gated", "had_waited",
        "has_children", "host", "instance", "journal", "leaving", "live", "loop", "mailbox", "main", "number",
        "ops", "parent", "parked_at", "payloads", "problem", "reading", "rereading", "restarted", "root", "running", "schedule",
        "seq", "stopped", "timers", "to_cancel", "to_go", "transaction", "uid", "waiting",
    )  # fmt: skip

    def __init__(  # noqa: PLR0915  the state of an instance, in one place
        self,
        host: Host,
        payloads: Payloads,
        flow: FlowFunction[..., Any],
        loaded: Loaded,
        parent: tuple[str, str] | None = None,
    ) -> None:
        instance = loaded.instance
        self.host = host
        self.schedule = host.schedule
        self.payloads = payloads
        self.flow = flow
        self.instance = instance
        self.uid = instance.uid
        self.number = instance.run
        self.loop = FlowLoop(host.real, self, salt(instance.uid))
        self.root = Place(Calls(self, self.loop), None)
        self.mailbox = Mailbox(self, loaded.inbox)
        self.main: FlowTask | None = None
        self.ops: dict[str, Op] = {}
        """What was asked for and is neither delivered nor dropped, in the order of asking."""
        self.completed: list[Op | Pushed] = []
        """Live outcomes that wait for the loop to be idle."""
        self.to_go: list[StepOp | ReadOp | TransactionOp] = []
        """Steps that start when all before them is durable."""
        self.to_cancel: list[StepOp] = []
        self.running: dict[StepOp | ReadOp | TransactionOp, None] = {}
        """Steps that run now, those dropped and not yet ended included."""
        self.timers: Due | None = None
        self.alarm: Any = None
        """The host's, for the earliest of the timers."""
        self.seq = 0
        self.asked = 0
        self.gate = 0
        """The number of the latest write that this instance made."""
        self.gated = False
        self.live = False
        self.stopped = False
        """Nothing is delivered any more: frozen, ended, blocked or dead."""
        self.waiting = False
        self.due_at: float | None = None
        self.problem: BaseException | None = None
        self.has_children = False
        self.cancel_reason: str | None = None
        self.parked_at = 0.0
        self.had_waited = False
        """Whether an earlier life ran to the journal's end and waited there: then all before the first live delivery
        is replay.
        """
        self.parent = parent
        self._ahead = 0
        self.ending = False
        """Whether what the main coroutine left was cancelled."""
        self._stale = False
        """Whether `to_go` may hold what was dropped."""
        self._explicit: set[str] | None = None
        self.exposed: dict[str, bytes] = _NONE_EXPOSED
        self.journal = Journal(loaded)
        self.restarted = loaded.more or len(self.journal.entries) > 1
        self.reading = False
        """Whether the next page of the journal is being read."""
        self.rereading: Rereading | None = None
        """What a stream waits for that was just opened: nothing else is delivered meanwhile."""
        self.again: Entry | None = None
        """The entry whose step runs again now: nothing else is delivered meanwhile."""
        self.transaction: Op | None = None
        """The transaction that runs now: nothing else is delivered meanwhile."""
        self.leaving: str | None = None
        """The replica that asked for the instance: no step starts here any more."""

    def __repr__(self) -> str:
        return f"{self.instance.flow} {self.instance.id!r}"

    # ------------------------------------------------------------ asking (called by the flow's own code, in a turn)

    def ask(self, op: Op, place: Place, id: str | None = None) -> Op:
        """The operation has its key and is checked against the journal, or begins."""
        if self.stopped:
            return op  # of a dead execution: never returns and never acts
        op.key = key = place.next_key() if id is None else self._explicit_key(id)
        self.asked += 1
        journal = self.journal
        if journal.unordered and (entry := journal.unordered.get(key)) is not None:
            replaying.give_unordered(self, op, entry)
            return op
        self.ops[key] = op
        if self.live:
            op.begin()
        elif journal.by_key or journal.pending:
            replaying.recall(self, op)
        return op

    def _explicit_key(self, id: str) -> str:
        check_name(id, "id")
        if self._explicit is None:
            self._explicit = set()
        if id in self._explicit:
            raise DuplicateId(f"{self!r}: id={id!r} was used before in this run; an id names one operation")
        self._explicit.add(id)
        return "=" + id

    def timer(self, handle: FlowTimer) -> None:
        """See `loop.Owner`."""
        here = scope.get()
        op = TimerOp(self, handle)
        handle.operation = op
        self.ask(op, here if type(here) is Place else self.root)

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
            self._stale = True
            op.dropped()
        else:
            self.journal.drop(op)
            if isinstance(op, StepOp) and op.row:
                op.dropped()
            elif isinstance(op, WaitOp) and self.journal.over:
                op.dropped()  # after the last entry: what was written then may be lost, and is the same if it is not

    # ------------------------------------------------------------ delivering (called by the loop when it is idle)

    def deliver(self) -> bool:
        """See `loop.Owner`: one entry of the journal, or the next live outcome."""
        if self.stopped:
            return False
        if self.main is not None and self.main.done() and ending.wind_up(self):
            return True
        if self.rereading is not None:
            return self.rereading.give(self)
        if not self.live:
            journal = self.journal
            if journal.more or journal.position < len(journal.entries):
                return replaying.deliver(self, journal)
            if not self._go_live():
                return False
        if self.transaction is not None and not (self.completed and self.completed[0] is self.transaction):
            return False
        if self._ahead >= AHEAD_ENTRIES or self.host.holding:
            if self.completed:
                self.want_gate()
            if self._ahead >= AHEAD_ENTRIES or self.host.holding:  # else the gate stood open
                return False
        completed = self.completed
        while completed:
            try:
                if completed.pop(0).record():
                    return True
            except Exception as error:
                self.block(error)
                return False
        return False

    def read_on(self) -> None:
        """The next page of the journal comes to `page`; nothing is delivered meanwhile."""
        if not self.reading:
            self.reading = True
            self.host.read_on(self)

    @property
    def read(self) -> int:
        """The entries above this seq are the page that is wanted."""
        return self.journal.read if self.rereading is None else self.rereading.after

    def page(self, entries: list[Entry], *, more: bool) -> None:
        """The next page of the journal is here."""
        self.reading = False
        if self.stopped:
            return
        if self.rereading is None:
            replaying.turn_page(self, entries, more=more)
        elif not self.rereading.page(entries, more=more):
            self.read_on()
            return
        self.loop.wake()

    def _go_live(self) -> bool:
        """The journal is used up: what was asked for and is not in it begins, in the order of asking."""
        if self.journal.pending:
            self.block(differences.unasked_pending(self, next(iter(self.journal.pending.values()))))
            return False
        self.live = True
        self.journal.close()
        for key, data in self.exposed.items():
            self.write(Expose(self.uid, key, data))  # the last ones before a crash may not have been written
        asked = list(self.ops.values())
        for op in asked:
            if isinstance(op, StepOp) and op.intent:
                op.begin()
        self.mailbox.go_live()
        for op in asked:
            if op.state == ASKED and not (isinstance(op, StepOp) and op.intent):
                op.begin()
        return True

    def complete(self, op: Op | Pushed) -> None:
        """A live outcome is there; it gets its place when the loop is idle."""
        self.completed.append(op)
        loop = self.loop
        if not (loop.scheduled or loop.turning or self.stopped):
            loop.wake()

    def append(self, op: Op, attempts: int, started_at: float) -> None:
        """The operation's outcome is the next entry."""
        del self.ops[op.key]
        op.state = DELIVERED
        loop = self.loop
        if self.again is None:
            loop.now = at = max(loop.now, op.at_least, self.host.now())
        else:  # what came after it stays where it is, and so does the time
            loop.now = at = max(loop.now, self.again.at)
            self.again = None
            self.journal.advance()
        seq = self._next_seq()
        self.gate = self.host.write(
            Entry(
                self.uid, self.number, seq, op.key, op.kind, op.name, op.arguments, op.digest, op.failed, op.outcome,
                attempts, started_at, at, op.ref,
            )
        )  # fmt: skip

    def _next_seq(self) -> int:
        """The place of the next entry."""
        seq = self.seq
        self.seq = seq + 1
        self._ahead += 1
        if self.seq % LONG == 0:
            logger.warning(IS_LONG, self, self.seq, self.number)
        return seq

    def append_pushed(self, kind: str, name: str, arguments: bytes | None, message: Message) -> None:
        """What came by itself is the next entry."""
        loop = self.loop
        loop.now = at = max(loop.now, self.host.now())
        seq = self._next_seq()
        self.write(
            Entry(
                self.uid, self.number, seq, "", kind, name, arguments, b"", False, message.body, 0, at, at, message.mid
            )
        )

    def write(self, write: Write) -> None:
        """The write is in the next batch, after all others of this instance."""
        self.gate = self.host.write(write)

    def cancel_main(self, reason: str | None) -> None:
        """The flow is asked to end, as `task.cancel` asks."""
        self.cancel_reason = reason
        if self.main is not None and not self.main.done():
            self.main.cancel(reason)

    def expose(self, key: str, data: bytes) -> None:
        """The value is readable from outside when the next batch is durable."""
        if self.exposed is _NONE_EXPOSED:
            self.exposed = {}
        self.exposed[key] = data
        if self.live:
            self.write(Expose(self.uid, key, data))

    def patched(self, id: str) -> bool:
        """Whether this run is new enough for the change of that id; the first answer holds for the run."""
        journal = self.journal
        answer = journal.patches.get(id)
        if answer is None:
            check_name(id, "id")
            new = not self.stopped and (self.live or journal.used_up)
            answer, entry = journal.patch(id, self.uid, self.number, self.loop.now, new=new)
            if entry is not None:
                self.write(entry)
        return answer

    @property
    def replaying(self) -> bool:
        """Whether the flow's code runs over what it ran over before, as far as that is known."""
        return not self.live and (self.had_waited or not self.journal.used_up)

    # ------------------------------------------------------------ steps, timers (called by the host)

    def arm(self, when: float, op: Op) -> None:
        """The operation is due at this time."""
        if self.timers is None:
            self.timers = Due()
        if self.timers.add(when, op):
            self.host.arm(self, when)

    def fire(self, now: float) -> None:
        """Timers that are due have fired; the host calls it at the time it was asked for."""
        timers = self.timers
        if self.stopped or timers is None:
            return
        attempts = False
        while (op := timers.take(now)) is not None:
            if isinstance(op, StepOp):
                op.again()
                attempts = True
            else:
                self.complete(op)
        if (when := timers.earliest()) is not None:
            self.host.arm(self, when)
        if attempts:
            self.look()

    # ------------------------------------------------------------ idle

    def activity(self) -> int:
        """See `loop.Owner`."""
        return self.asked + sum(1 for task in self.loop.tasks if task.done())

    def outstanding(self) -> bool:
        """See `loop.Owner`."""
        # Only what is the same at replay: not what has come meanwhile, runs still, or stands in the journal.
        return bool(self.ops) or self.mailbox.listening

    def cut_short(self) -> None:
        """See `loop.Owner`: the row, which may be written before the rest of the turns, says that something is to do."""
        if self.waiting and not self.stopped:
            self.waiting, self.due_at = False, None
            self.write(Update(self.uid, False, None))

    def interrupted(self) -> None:
        """A signal's exception went through the flow's code: it can only begin again from the journal."""
        self.waiting, self.due_at = False, None

    def idle(self) -> None:
        """See `loop.Owner`: nothing moves inside. What the instance wants done is asked of the host."""
        if self.problem is not None:
            self.host.blocked(self, self.problem)
            return
        if self.stopped:
            return
        try:
            if self.main is not None and self.main.done() and ending.end(self):
                return
        except Exception as error:  # the outcome cannot be written
            self.block(error)
            return
        self.look()

    def look(self) -> None:
        """The row says how the instance stands, and what waits for the disk waits at the gate."""
        if self.stopped or self.loop.turning or self.reading:
            return
        if self._stale:
            self._stale = False
            self.to_go = [op for op in self.to_go if op.state == ASKED]
        rereading = self.rereading is not None
        busy = bool(self.to_go or self.to_cancel or self.running or self.completed or rereading)
        if not busy and not self.ops and not self.mailbox.listening:
            self.block(problem := differences.waits_for_nothing(self))
            self.host.blocked(self, problem)
            return
        due_at = None if busy or self.timers is None else self.timers.earliest()
        if self.waiting == busy or (not busy and due_at != self.due_at):
            self.waiting, self.due_at = not busy, due_at
            self.write(Update(self.uid, not busy, due_at))
        if self.to_go or self.to_cancel or rereading or self._ahead >= AHEAD_ENTRIES:
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
        self.caught_up()
        if self.running and any(op.state == DROPPED for op in self.running):
            return  # no step starts until the cancelled ones have ended; `StepOp.gone` wakes the loop, which looks again
        to_go, self.to_go = self.to_go, []
        for op in to_go:
            if op.state != ASKED:
                continue
            if isinstance(op, TransactionOp):
                if self.transaction is not None:
                    self.to_go.append(op)  # one after the other: each writes the next entry by itself
                    continue
                self.transaction = op
            self.running[op] = None
            self.host.start_step(op)
        if self.completed:
            self.loop.wake()

    def caught_up(self) -> None:
        """Everything that this instance wrote is durable, and what may happen then whether or not a step may begin:
        steps that the flow does not want any more are asked to end; the journal is read for a stream.
        """
        if self.rereading is not None and not self.rereading.done:
            self.read_on()
        if self.to_cancel:
            cancel, self.to_cancel = self.to_cancel, []
            for op in cancel:
                if op.running is not None:
                    self.host.cancel_step(op)
            self.loop.wake()  # those that have ended by themselves meanwhile hold up the end no more

    # ------------------------------------------------------------ what stops an execution

    def block(self, error: BaseException) -> None:
        """The instance cannot go on here, for this reason."""
        self.stopped = True
        self.problem = error
        if self.loop.turning:
            return  # the loop calls idle() when this turn is over
        self.loop.wake()

    def spins(self) -> None:
        """See `loop.Owner`."""
        self.block(differences.spins(self))

    def unhandled(self, context: dict[str, Any]) -> None:
        """See `loop.Owner`."""
        ending.unhandled(self, context)


_NONE_EXPOSED: Final[dict[str, bytes]] = {}
