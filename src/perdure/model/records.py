"""What the store keeps: instances, entries, pending operations, messages. Facts only; who may write them is engine's."""

from __future__ import annotations

from enum import Enum
from typing import Final

import msgspec


class State(Enum):
    """Where an instance stands: scheduled → running ⇄ suspended → succeeded, failed or cancelled; or blocked."""

    SCHEDULED = "scheduled"
    RUNNING = "running"
    SUSPENDED = "suspended"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    BLOCKED = "blocked"

    @property
    def ended(self) -> bool:
        """Whether an instance in this state is over for good."""
        return self in _ENDED


_ENDED: Final = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})


class Kind:
    """The kinds of entries and pending operations."""

    BEGUN: Final = "begun"
    STEP: Final = "step"
    TIMER: Final = "timer"
    RECEIVE: Final = "receive"
    ARRIVAL: Final = "arrival"
    START: Final = "start"
    WAIT: Final = "wait"
    SEND: Final = "send"
    CANCEL_OTHER: Final = "cancel-other"
    READ: Final = "read"
    CANCEL: Final = "cancel"
    TRANSACTION: Final = "transaction"
    PATCHED: Final = "patched"
    AGAIN: Final = "again"
    """A step whose outcome was removed: it runs again when its seq is due, and nothing else is delivered meanwhile."""


PUSHED: Final = frozenset({Kind.BEGUN, Kind.ARRIVAL, Kind.CANCEL})
"""Entries that no operation asks for: they come when their seq is due."""


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One recorded fact of one run, at its place `seq` in the order of delivery.

    A negative seq is *unordered*: the entry comes when its operation is asked for. With an empty `name` it answers any
    step of its key.
    """

    uid: bytes
    run: int
    seq: int
    key: str
    """Which operation: its path (`3`, `4.0`), `=` and its explicit id, or "" for a pushed entry."""
    kind: str
    name: str
    arguments: bytes | None
    digest: bytes
    """8 bytes over the encoded arguments; empty where there are none."""
    failed: bool
    """Whether `outcome` is an exception."""
    outcome: bytes | None
    attempts: int
    started_at: float
    at: float
    """Flow time of the delivery, epoch seconds."""
    ref: bytes | None = None
    """The mid of the message that it names, or the uid of the instance that it started."""


class Pending(msgspec.Struct, frozen=True, gc=False):
    """An operation begun and not yet in the journal, as far as the store must know of it; never delivered."""

    uid: bytes
    run: int
    key: str
    kind: str
    name: str
    arguments: bytes | None
    digest: bytes
    intent: bool
    """An at-most-once attempt may have begun."""
    attempt: int
    """Attempts that have failed so far."""
    next_at: float | None
    """When the next attempt is due, epoch seconds of engine time."""
    error: bytes | None
    """The last attempt's encoded exception."""
    progress: bytes | None
    """What the step last gave to `current().heartbeat(...)`."""


class MessageKind:
    """What a row of an inbox is."""

    MESSAGE: Final = "message"
    ANSWER: Final = "answer"
    """The outcome of another instance, for the wait named by `key` of `run`."""
    CANCEL: Final = "cancel"
    EVICT: Final = "evict"
    """The owner is asked to hand the instance over to the replica `name`; dropped if nobody owns it."""


class Message(msgspec.Struct, frozen=True, gc=False):
    """A row of an instance's inbox."""

    mid: bytes
    """16 bytes made by the sender: sending the same row twice keeps one."""
    kind: str
    key: str | None
    """Of a message: the sender's key, delivered once per life. Of an answer: the asking operation's key."""
    name: str | None
    type: str
    """The body's type tag, for people and for looking without decoding."""
    body: bytes | None
    failed: bool
    run: int
    """Of an answer: the asker's run; else -1."""
    sent_at: float


class Instance(msgspec.Struct, frozen=True, gc=False):
    """One life of a flow, as its row says it."""

    uid: bytes
    run: int
    flow: str
    id: str
    lane: str
    """What claims look for: the flow's name, or that and a queue; see `perdure.model.lanes`. Never changed."""
    state: State
    owner: str | None
    waiting: bool
    """Parked: nothing runs, and the row alone (`due_at`, inbox) says when to go on."""
    due_at: float | None
    """When a scheduled or suspended instance wants to go on by itself, epoch seconds of engine time."""
    arguments: bytes
    digest: bytes
    parent: bytes | None
    """The uid of the instance that started it, if it is attached to that: it is cancelled when the parent ends."""
    outcome: bytes | None
    """The encoded result, exception or reason of a cancellation."""
    reason: str | None
    """Of a blocked instance: why, in words."""
    version: str
    """The code identity that last ran it; empty: none has."""
    created_at: float
    ended_at: float | None
    first: bytes | None = None
    """The arguments of its first start, if `arguments` are others now; `digest` is always theirs."""
    edit: bytes | None = None
    """The id of the last edit from a control panel."""
    edited_seq: int = -1
    """Entries up to this seq are checked by kind and name only: they were there when it was last edited."""
    failed_seq: int | None = None
    """Of a failed instance: the seq of the entry whose exception escaped, if one did."""
    term: int = 0
    """How many times it was claimed. Who claims it again after a release owns it in another term."""


class Loaded(msgspec.Struct, frozen=True):
    """All that is needed to run an instance on: its row, journal, pending operations and untaken messages, in order."""

    instance: Instance
    entries: list[Entry]
    """Of the current run, by seq: unordered ones first. A long journal's first page only, if `more`."""
    pending: list[Pending]
    inbox: list[Message]
    more: bool = False
    """Whether the journal goes on after these entries; see `Store.entries`."""
