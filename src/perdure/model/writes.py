"""What may be written, as a closed union of records, and what the store answers. One batch = one transaction.

A store folds a batch and executes it in this order, whatever the order of the writes in it, so that what one instance
does to another sees the other's final state and nobody misses a wake-up:
creates → entries → pending → takes → exposes → images (`Update`, `Release`, `Finish`, `Continue`; the last per instance
wins) → watches → answers and cancel requests that follow from a finish → sends. Rows within a step are sorted by key.
Every write may be repeated: a batch sent again after a lost answer changes nothing more. An entry is inserted if its
(uid, run, seq) is free or holds an entry of kind "again".

An `Edit` is no part of a batch: it is a transaction of its own, by somebody who does not run the instance.
"""

from __future__ import annotations

import msgspec

from perdure.model.records import Entry, Instance, Message, Pending, State


class Create(msgspec.Struct, frozen=True, gc=False):
    """A new instance, unless (flow, id) exists or has left a tombstone. Answered by `Created` or `Existing`; by `NotOwned`
    if the last life of (flow, id) was this very one, and is deleted: a start that comes late begins nothing anew.
    """

    uid: bytes
    flow: str
    id: str
    lane: str
    """See `Instance`."""
    arguments: bytes
    digest: bytes
    parent: bytes | None
    owned: bool
    """Created already running and owned by the batch's replica; else `scheduled` for all, due at `due_at`."""
    due_at: float | None
    version: str
    at: float
    begun: Entry | None
    """Entry 0, written only if the instance is created; given iff owned."""
    initial: tuple[Entry, ...] = ()
    """Unordered entries, written only if the instance is created."""
    inbox: tuple[Message, ...] = ()
    """Messages that are in its inbox from the start, before all others; only if it is created."""


class PendingPut(msgspec.Struct, frozen=True, gc=False):
    """The pending operation stands as given (inserted or replaced)."""

    pending: Pending


class PendingDrop(msgspec.Struct, frozen=True, gc=False):
    """The pending operation is gone."""

    uid: bytes
    run: int
    key: str


class Send(msgspec.Struct, frozen=True, gc=False):
    """A row for the inbox of (flow, id), or of `uid` if given. Answered by `Sent`.

    If the instance is not owned by the batch's replica, and neither ended nor unknown, a wake-up row is written too.
    A message (not an answer or cancel request) for an unknown (flow, id) waits and is adopted by its creation;
    a message with a key seen before in this life is dropped. A cancel request for an ended or unknown instance is
    dropped, and so are an answer for another run than the instance's, an evict request for an instance that nobody
    owns, and a message for a (flow, id) that has left a tombstone or was deleted after the message was sent.
    """

    flow: str
    id: str
    message: Message
    uid: bytes | None = None


class Take(msgspec.Struct, frozen=True, gc=False):
    """The message is in the journal now: its row keeps only mid and key (so that neither is accepted again)."""

    uid: bytes
    mid: bytes


class Watch(msgspec.Struct, frozen=True, gc=False):
    """The asker wants to know how (flow, id) ends. Answered by `Sent` with the answer's row, or `None` while it lives.

    If the instance has ended, is unknown, or was started with other arguments than `digest` says (where given), the
    answer's
    row is written at once, else by the batch that finishes it: `Message(kind=ANSWER, key=key, run=run, type=<state or
    "not-found" or "already-started">, body=<the instance's outcome>, failed=<not succeeded>)`, with
    `mid = answer_mid(asker, run, key)`.
    """

    asker: bytes
    run: int
    key: str
    flow: str
    id: str
    digest: bytes | None


class Unwatch(msgspec.Struct, frozen=True, gc=False):
    """The asker does not want to know any more; an answer that was written already stays in its inbox."""

    asker: bytes
    run: int
    key: str


class Expose(msgspec.Struct, frozen=True, gc=False):
    """The exposed value under `key` is this one."""

    uid: bytes
    key: str
    value: bytes


class Update(msgspec.Struct, frozen=True, gc=False):
    """The owned, resident instance stands so: whether its row alone says when to go on, and when that is."""

    uid: bytes
    waiting: bool
    due_at: float | None


class Release(msgspec.Struct, frozen=True, gc=False):
    """The instance is nobody's: suspended, scheduled (to go on at once elsewhere) or blocked with a reason.

    `seen` are the messages that this execution looked at without taking them: they wake nobody again. A message of the
    instance that is neither taken nor seen, from anybody, gets a wake-up row in this batch if the state is suspended.
    """

    uid: bytes
    term: int
    """That ends by it. Not looked at by a store: whoever does not know whether a release was made compares."""
    state: State
    due_at: float | None
    seen: tuple[bytes, ...] = ()
    reason: str | None = None
    version: str = ""
    """The code identity that ran it (or, blocked, could not); empty: as it is."""
    process: str = ""
    """Of a blocked one: the process that tried. Kept with version and journal length; tries at other lengths go."""
    to: str | None = None
    """The replica that owns it now, if that is alive; it is edited there and not run."""


class Finish(msgspec.Struct, frozen=True, gc=False):
    """The instance has ended; watchers are answered, unfinished attached children are asked to cancel. Answered by
    `Finished`.
    """

    uid: bytes
    term: int
    """As in `Release`."""
    state: State
    outcome: bytes | None
    at: float
    children: bool
    """Whether it may have attached children (spares a look)."""
    failed_seq: int | None = None
    """See `Instance`."""


class Continue(msgspec.Struct, frozen=True, gc=False):
    """The instance begins its next run, owned and running as before. Answered by `Continued`.

    Entries, pending operations, watches and answers of the old run are gone; other untaken messages move on, keys of
    messages stay known, and messages without a key that were taken are forgotten an hour after they were sent.
    Unfinished attached children are asked to cancel. The row keeps the first run's arguments in `first` and its digest.
    """

    uid: bytes
    run: int
    """The new run: one more than the last."""
    arguments: bytes
    version: str
    begun: Entry
    children: bool


class Edit(msgspec.Struct, frozen=True):
    """One guarded change of one instance: `row` (None: deleted) instead of what stands now, and rows that belong to it.

    It is made only if the instance is nobody's or the editor's own, and still in the run, state and journal length that
    were read, ended when it had, and not edited since. Then it is nobody's.

    A row that ends it does what a finish does: watchers are answered, unfinished attached children asked to cancel. A
    deletion does so too, with "not-found" as answer. Attempts of code that could not run it are forgotten. Messages of
    a deleted instance, its entries and all else are gone; what was sent before is not delivered to a new life.
    """

    id: bytes
    """16 bytes made by the editor; the row's `edit` afterwards: the same edit again is answered as done."""
    uid: bytes
    run: int
    state: State
    length: int
    """Highest seq + 1 of the run's entries, as read; 0: none."""
    ended_at: float | None
    last: bytes | None
    """The row's `edit`, as read."""
    row: Instance | None
    at: float
    put: tuple[Entry, ...] = ()
    """Entries inserted, or replaced by (run, seq)."""
    drop: tuple[int, ...] = ()
    """The seqs of entries that are gone."""
    forget: tuple[str, ...] = ()
    """The keys of pending operations that are gone."""
    messages: tuple[Message, ...] = ()
    """Rows of the inbox, neither taken nor seen now: replaced in place by mid, or added at the end. A row that is there
    keeps its key if the new one has none.
    """
    unsend: tuple[bytes, ...] = ()
    """Mids of rows of the inbox that are gone, as if never sent."""
    open: tuple[bytes, ...] = ()
    """Mids that must be untaken still; else the edit is outdated."""


class Edited(msgspec.Struct, frozen=True, gc=False):
    """The edit is on disk, now or since it was sent before; what it wrote into other inboxes."""

    sent: tuple[Sent, ...] = ()


class OwnedBy(msgspec.Struct, frozen=True, gc=False):
    """The edit was not made: this replica owns the instance."""

    replica: str


class Outdated(msgspec.Struct, frozen=True, gc=False):
    """The edit was not made: the instance is not as it was read, or is gone."""


Write = (
    Create
    | Entry
    | PendingPut
    | PendingDrop
    | Send
    | Take
    | Watch
    | Unwatch
    | Expose
    | Update
    | Release
    | Finish
    | Continue
)


class Batch(msgspec.Struct, frozen=True):
    """One transaction. `replica` is None for a client, which only creates (not owned) and sends."""

    replica: str | None
    epoch: int
    writes: list[Write]
    now: float
    """Engine time."""


class Created(msgspec.Struct, frozen=True, gc=False):
    """The instance was created (now, or by the same write before); `inbox` are the messages that waited for it, in
    order.
    """

    inbox: tuple[Message, ...] = ()


class Existing(msgspec.Struct, frozen=True, gc=False):
    """(flow, id) existed: whose life it is, and what it was first started with.

    Of a tombstone: an empty uid and empty arguments, with the digest and state of the life that is gone.
    """

    uid: bytes
    state: State
    arguments: bytes
    digest: bytes


class Sent(msgspec.Struct, frozen=True, gc=False):
    """Where a row went. `owner` is the target's owner after the batch; `new` is False for a key seen before."""

    uid: bytes | None
    owner: str | None
    message: Message
    new: bool


class Finished(msgspec.Struct, frozen=True, gc=False):
    """The rows that the finish wrote into other inboxes: answers for watchers, cancel requests for children."""

    sent: tuple[Sent, ...]


class Continued(msgspec.Struct, frozen=True, gc=False):
    """The next run is there; `inbox` are its untaken messages, in order, `sent` what was written into other inboxes."""

    inbox: tuple[Message, ...]
    sent: tuple[Sent, ...]


class NotOwned(msgspec.Struct, frozen=True, gc=False):
    """An image did not match: the batch's replica does not own that instance (any more); the rest of the batch
    stands.
    """

    uid: bytes


Answer = Created | Existing | Sent | Finished | Continued | NotOwned | None
