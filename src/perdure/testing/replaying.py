"""Replaying a recording: today's code fits its journal, or the error by which an engine would block the instance is raised.

Nothing is done meanwhile: no step, no write, no timer, no message.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

from perdure.api.flow import AnyFlow
from perdure.engine.engine import PAYLOAD_LIMIT
from perdure.engine.payloads import Payloads
from perdure.errors import NonDeterminismError, PayloadTooLarge, StoreRefused
from perdure.model.records import Kind, State
from perdure.model.writes import Continue, Finish
from perdure.testing.recording import Recording, copied
from perdure.testing.replay_host import SECONDS, Ran, pages_of, run_over

WIDTH: Final = 200
"""Values longer than this are cut in messages."""


class OtherEnd(NonDeterminismError):
    """Today's code ends the recorded run otherwise than it had ended, or goes on where it had ended.

    No engine would notice: it never runs again what has ended. If the change is meant, record anew.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What today's code made of a recording that fits."""

    flow: str
    id: str
    entries: int
    """Of the journal, that the code went over: all, unless a step is to run again in the middle of it."""
    asks_for: tuple[str, ...]
    """What the code has asked for and not got: it would begin now, or is waited for."""
    state: State | None = None
    """How the code ended: succeeded, failed or cancelled; None: it has not."""
    result: Any = None
    """What it returned, if it succeeded."""
    error: BaseException | None = None
    """What it raised, if it failed."""
    next_run: bool = False
    """Whether it ended by `continue_as_new`."""


async def replay(recording: Recording, flow: AnyFlow, *, timeout: float = SECONDS) -> Replay:
    """Today's code of the flow fits the recording: it asks for what the journal holds, as far as that goes.

    Nothing is done: no step runs, nothing is written, no time passes. Of an instance that had ended, the code ends where
    the journal ends, in the same way and with the same result or exception (a redacted one: in the same way). Not
    compared is the end of one that a control panel has mended, or that was cancelled without its code.

    Args:
        timeout: in seconds, for a flow that turns for ever without the engine noticing.

    Raises:
        NonDeterminismError, WaitsForNothing, Spins, UnknownType, DoesNotFit, and whatever else an engine would block the
            instance with: the first difference, with the line of the code.
        OtherEnd: the recorded run had ended otherwise.
        ValueError: the recording is of another flow.
        TimeoutError: the code has not come to rest in time.
    """
    if flow.name != recording.flow:
        raise ValueError(f"the recording is of flow {recording.flow!r}, and this one is named {flow.name!r}")
    payloads = Payloads(None, PAYLOAD_LIMIT)
    pages = pages_of(recording.loaded.entries)
    ran = await run_over(copied(recording.loaded), flow, payloads, recording.parent, pages=pages, timeout=timeout)
    if ran.problem is not None:
        raise ran.problem
    if recording.state.ended:
        _compare(recording, ran, payloads)
    return _replay_of(recording, ran, payloads)


def _replay_of(recording: Recording, ran: Ran, payloads: Payloads) -> Replay:
    found = Replay(flow=recording.flow, id=recording.id, entries=ran.entries, asks_for=ran.asks_for)
    end = ran.end
    if end is None:
        return found
    if isinstance(end, Continue):
        return replace(found, next_run=True)
    found = replace(found, state=end.state)
    if end.state is State.FAILED:
        return replace(found, error=payloads.decode_error(end.outcome or b""))
    return found if end.state is State.CANCELLED else replace(found, result=payloads.decode(end.outcome or b""))


def _compare(recording: Recording, ran: Ran, payloads: Payloads) -> None:
    """The code ended as the recorded run had, as far as that was the code's doing. Raises OtherEnd."""
    row = recording.loaded.instance
    cancelled_without_code = row.state is State.CANCELLED and all(
        entry.kind != Kind.CANCEL for entry in recording.loaded.entries
    )
    if row.edit is not None or cancelled_without_code or _refused(recording, payloads):
        return
    had = _told(row.state, row.outcome, payloads)
    if isinstance(ran.end, Finish):
        now = _told(ran.end.state, ran.end.outcome, payloads)
        same = ran.end.state is row.state and (recording.redacted or _same(row.outcome, ran.end, payloads))
    else:
        now = "begins its next run" if ran.end is not None else f"asks for {', '.join(ran.asks_for) or 'nothing'}"
        same = False
    if not same:
        where = f" at {ran.line}" if ran.line else ""
        raise OtherEnd(
            f"{row.flow} {row.id!r} had {had} where its journal ends, and today's code {now}{where}",
            recorded=had,
            asked=now,
            line=ran.line,
        )


def _refused(recording: Recording, payloads: Payloads) -> bool:
    """Whether it failed because its result could not be kept: by limits of another machine than this one."""
    row = recording.loaded.instance
    return (
        row.state is State.FAILED
        and row.outcome is not None
        and isinstance(payloads.show_error(row.outcome), StoreRefused | PayloadTooLarge)
    )


def _same(recorded: bytes | None, end: Finish, payloads: Payloads) -> bool:
    """Whether the outcomes say the same; of exceptions the traceback is of no account."""
    if recorded == end.outcome:
        return True
    if recorded is None or end.outcome is None:
        return False
    if end.state is State.FAILED:
        had, now = payloads.show_error(recorded), payloads.show_error(end.outcome)
        return type(had) is type(now) and str(had) == str(now)
    return payloads.same_today(recorded, payloads.digest_of(end.outcome))


def _told(state: State, outcome: bytes | None, payloads: Payloads) -> str:
    if outcome is None:
        return state.value
    shown = payloads.show_error(outcome) if state is State.FAILED else payloads.show(outcome)
    text = repr(shown)
    return f"{state.value} with {text if len(text) <= WIDTH else text[: WIDTH - 1] + '…'}"
