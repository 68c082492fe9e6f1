"""Every error of Perdure, as one tree; imports nothing of ours.

    PerdureError
    ├─ your program:      NotInFlow, NotDurable, NotEncodable, DoesNotFit, UnknownType, PayloadTooLarge, NotRegistered,
    │                     DuplicateId, AlreadyStarted, NonDeterminismError, WaitsForNothing, Spins, ForkedEngine
    ├─ an instance ended: FlowFailed, FlowCancelled, InstanceNotFound
    ├─ a step ended:      StepFailed, OutcomeUnknown, StoreRefused
    └─ engine and store:  StoreUnavailable (StoreFull), StoreCorrupt, NotOurs, NotSupported, Outdated, LeaseLost,
                          EngineClosed, CommitUnknown

and one warning, `FlowWarning`. Each message says what is true, with the data, and what to do next; data that a program
may want are attributes too.
"""

from __future__ import annotations


class PerdureError(Exception):
    """Something that Perdure has to tell; the class says what, the attributes carry the data."""


# ---------------------------------------------------------------- your program


class NotInFlow(PerdureError):
    """A durable call was made where there is no flow: outside one, inside a step, or with a flow's context elsewhere."""


class NotDurable(PerdureError):
    """A flow's own body did what cannot be replayed: I/O, threads, or a primitive that something outside it wakes."""


class NotEncodable(PerdureError):
    """A value cannot be written, or would not come back as it was; `where` names the step and `path` the place in it."""

    def __init__(self, message: str, *, where: str = "", path: str = "") -> None:
        super().__init__(f"{where}: {message}" if where else message)
        self.reason = message
        self.where = where
        self.path = path

    def at(self, where: str) -> NotEncodable:
        """The same error, naming the step or message that the value belongs to."""
        return NotEncodable(self.reason, where=where, path=self.path)


class DoesNotFit(PerdureError):
    """A stored value no longer fits the type that it is read as; give the new field a default, or mend the value."""


class UnknownType(PerdureError):
    """A stored value names a type that this program has not loaded; import its module before the engine starts."""

    def __init__(self, tag: str) -> None:
        super().__init__(f"type {tag!r} is not loaded here; import the module that defines it before the engine starts")
        self.tag = tag


class PayloadTooLarge(PerdureError):
    """A value is larger than the engine's `payload_limit`; keep it elsewhere and pass a reference."""

    def __init__(self, where: str, size: int, limit: int) -> None:
        super().__init__(f"{where}: {size:,} bytes, the limit is {limit:,}; keep it elsewhere and pass a reference")
        self.where = where
        self.size = size
        self.limit = limit


class NotRegistered(PerdureError):
    """No flow of that name is registered with this engine; name it in `Engine(flows=[...])`."""


class DuplicateId(PerdureError):
    """An `id=` was used twice in one run; an id names one operation."""


class AlreadyStarted(PerdureError):
    """The instance exists and was started with other arguments; use another id, or the same arguments."""

    def __init__(self, flow: str, id: str) -> None:
        super().__init__(f"{flow} {id!r} exists and was started with other arguments; use another id")
        self.flow = flow
        self.id = id


class NonDeterminismError(PerdureError):
    """The code asked for something else than the journal holds; the instance is blocked and nothing is lost."""

    def __init__(self, message: str, *, recorded: str = "", asked: str = "", line: str = "") -> None:
        super().__init__(message)
        self.recorded = recorded
        self.asked = asked
        self.line = line


class WaitsForNothing(PerdureError):
    """The flow can never go on: it awaits something that no step, message, timer or child will bring."""


class Spins(PerdureError):
    """The flow keeps its loop busy without ever asking for anything durable."""


class ForkedEngine(PerdureError):
    """The process was forked after the engine started; fork first, and open the engine in the child."""


# ---------------------------------------------------------------- how an instance ended


class FlowFailed(PerdureError):
    """The instance ended with an exception, which is this error's `__cause__`."""

    def __init__(self, flow: str, id: str, message: str) -> None:
        super().__init__(f"{flow} {id!r} failed: {message}")
        self.flow = flow
        self.id = id


class FlowCancelled(PerdureError):
    """The instance was cancelled. Never `asyncio.CancelledError`, which would cancel the one who waits."""

    def __init__(self, flow: str, id: str, reason: str | None = None) -> None:
        super().__init__(f"{flow} {id!r} was cancelled" + (f": {reason}" if reason else ""))
        self.flow = flow
        self.id = id
        self.reason = reason


class InstanceNotFound(PerdureError):
    """There is no such instance in the store (or it was deleted meanwhile)."""

    def __init__(self, flow: str, id: str) -> None:
        super().__init__(f"there is no instance {id!r} of {flow}")
        self.flow = flow
        self.id = id


# ---------------------------------------------------------------- how a step ended


class StepFailed(PerdureError):
    """A step raised something that cannot be rebuilt here: its type, message and traceback as text."""

    def __init__(self, type: str, message: str, traceback: str = "") -> None:
        super().__init__(f"{type}: {message}" if message else type)
        self.type = type
        self.message = message
        self.traceback = traceback


class OutcomeUnknown(PerdureError):
    """An at-most-once step was begun and its outcome is not known: it may have happened, or be happening."""

    def __init__(self, step: str, why: str = "") -> None:
        super().__init__(
            f"{step} was begun and its outcome is unknown{f' ({why})' if why else ''}: it may have happened; "
            "ask the other side before doing it again"
        )
        self.step = step
        self.why = why


class StoreRefused(PerdureError):
    """The database will not take this data, now or ever: keep it elsewhere. The step, or the flow, that gave it has failed
    by this error; an instance of which it refuses anything else is blocked.
    """


# ---------------------------------------------------------------- engine and store


class StoreUnavailable(PerdureError):
    """The store cannot be reached or cannot write now; it is tried again, and nothing acknowledged is lost."""


class StoreFull(StoreUnavailable):
    """The disk that holds the store is full; the engine pauses and goes on when there is room."""


class StoreCorrupt(PerdureError):
    """The database file is damaged; it is left untouched: restore a copy."""


class NotOurs(PerdureError):
    """The file or database holds something else than a Perdure store, or one of a newer version."""


class LeaseLost(PerdureError):
    """Another replica took this one's instances over; it records nothing more and joins anew."""


class CommitUnknown(PerdureError):
    """The answer to a commit was lost: it may have happened. Used inside the engine, which settles it by fence and
    repetition.
    """


class NotSupported(PerdureError):
    """This store cannot do that; use one that can (the message names which)."""


class Outdated(PerdureError):
    """The instance changed after its control panel was read: `await panel.refresh()`, look, and edit again."""


class EngineClosed(PerdureError):
    """The engine is not running: it was closed or never entered with `async with`."""


# ---------------------------------------------------------------- warnings


class FlowWarning(UserWarning):
    """A flow's code does what may go otherwise at a replay; given at that line when the process first replays the flow.
    The text begins with the rule's code, as the lint says it: write what it ends with, or ignore it by Python's filters.
    """
