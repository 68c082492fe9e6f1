"""Replay: what was recorded of a run is compared with what its code asks for, and given to it, each entry in its turn.

Functions over an execution that is not live yet. What happens live, and in which order, is decided there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from perdure import codec
from perdure.api.scope import fresh_context
from perdure.engine import differences
from perdure.engine.operations import begun_with, mark
from perdure.engine.stepping import StepOp
from perdure.model.records import PUSHED, Entry, Kind

if TYPE_CHECKING:
    from perdure.engine.execution import Execution
    from perdure.engine.journal import Journal
    from perdure.engine.operations import Op


# ---------------------------------------------------------------- what the code asks for


def recall(run: Execution, op: Op) -> None:
    """The operation that the code asks for is the one that was recorded under its key, if any was; else the instance
    is blocked.
    """
    journal, key = run.journal, op.key
    entry = journal.by_key.pop(key, None)
    if entry is not None and not journal.agrees(op, entry):
        _block(run, op, entry)
        return
    if (entry is None or entry.kind == Kind.AGAIN) and key in journal.pending:
        row = journal.pending.pop(key)
        if not journal.agrees(op, row):
            run.block(differences.other_call(run, op, f"{row.kind} {row.name} (begun)", "a pending operation"))
            return
        assert isinstance(op, StepOp)  # noqa: S101  only steps have pending rows, and the kinds agree
        op.resume(row)


def give_unordered(run: Execution, op: Op, entry: Entry) -> None:
    """The entry is given to the operation that it was put there for, in the turn that asks."""
    kind = op.kind if op.kind != Kind.TRANSACTION or entry.name else Kind.STEP
    if entry.kind != kind or (entry.name and entry.name != op.name):
        run.block(differences.other_call(run, op, f"{entry.kind} {entry.name}", "an entry that was put there"))
        return
    try:
        op.restore(entry)
    except Exception as error:  # a stored value that today's code cannot take
        run.block(error)
        return
    if entry.failed:
        mark(op.future.exception(), entry.seq)


def turn_page(run: Execution, entries: list[Entry], *, more: bool) -> None:
    """These entries come next; those that were asked for already are compared."""
    run.journal.turn_page(entries, more=more)
    for entry in run.journal.entries:
        op = run.ops.get(entry.key) or run.journal.dropped.get(entry.key)
        if op is not None and entry.kind not in PUSHED:
            del run.journal.by_key[entry.key]
            if not run.journal.agrees(op, entry):
                _block(run, op, entry)
                return


def _block(run: Execution, op: Op, entry: Entry) -> None:
    run.block(differences.other_call(run, op, f"{entry.kind} {entry.name}", f"entry {entry.seq}"))


# ---------------------------------------------------------------- what comes next


def deliver(run: Execution, journal: Journal) -> bool:
    """The entry that is due was given to the flow. False: it is to be read, a step runs again, or the instance is
    blocked.
    """
    entries, position = journal.entries, journal.position
    if position == len(entries):
        run.read_on()
        return False
    entry = entries[position]
    if entry.kind == Kind.AGAIN and entry.key in run.ops:
        return _run_again(run, entry)
    op = None
    if entry.kind not in PUSHED:
        op = run.ops.pop(entry.key, None)
        if op is None and entry.key not in journal.dropped:
            run.block(differences.unasked_entry(run, entry))
            return False
    journal.advance()
    run.seq = entry.seq + 1
    if entry.at > run.loop.now:
        run.loop.now = entry.at
    try:
        if op is not None:
            op.restore(entry)
        elif entry.kind in PUSHED:
            _push(run, entry)
    except Exception as error:  # stored values or arguments that today's code cannot take
        run.block(error)
        return False
    return True


def _run_again(run: Execution, entry: Entry) -> bool:
    """The step whose outcome was removed runs, and its new outcome stands in the old one's place."""
    if run.again is None:
        run.again = entry
        run.seq = entry.seq
        run.ops[entry.key].begin()
    if not run.completed:
        return False
    try:
        return run.completed.pop(0).record()
    except Exception as error:
        run.block(error)
        return False


def _push(run: Execution, entry: Entry) -> None:
    if entry.kind == Kind.BEGUN:
        _begin(run, entry)
    elif entry.kind == Kind.ARRIVAL:
        assert entry.ref is not None  # noqa: S101  an arrival names a message
        name = codec.decode(entry.arguments) if entry.arguments else None
        run.mailbox.arrive(entry.ref, name, entry.outcome)
    elif entry.kind == Kind.CANCEL:
        if entry.ref is not None:
            run.mailbox.forget_request(entry.ref)
        run.cancel_main(run.payloads.decode(entry.arguments) if entry.arguments else None)


def _begin(run: Execution, entry: Entry) -> None:
    if entry.arguments is not None:  # kept with the instance: replay must count turns as the first run did
        run.loop.idle_turns = begun_with(entry.arguments)
    args = run.payloads.decode(run.instance.arguments)
    context = fresh_context(run.root, run.host.base_context)
    run.main = run.loop.start_main(context.run(run.flow.body, *args), context)
