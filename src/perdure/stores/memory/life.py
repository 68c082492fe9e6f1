"""One instance of the memory store and all that belongs to it. No locks, no time, nothing of other instances."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from perdure.model.records import Entry, Instance, Kind, Message, MessageKind, Pending, State
from perdure.stores.contract import REPEAT_SECONDS
from perdure.stores.folding import by_entry_key

if TYPE_CHECKING:
    from perdure.model.writes import Continue, Edit


class Gone(msgspec.Struct, frozen=True):
    """What is left of the last life of a (flow, id): of a deleted one when, and which; of a retired one a tombstone."""

    at: float
    uid: bytes
    state: State | None = None
    digest: bytes = b""
    edit: bytes | None = None

    def drops(self, message: Message) -> bool:
        """Whether a message was meant for a life that is gone."""
        return self.state is not None or message.sent_at <= self.at


class Life:
    """See the module."""

    __slots__ = ("_places", "entries", "exposed", "inbox", "keys", "pending", "row", "seen", "taken", "tries")

    def __init__(self, row: Instance) -> None:
        self.row = row
        self.entries: dict[tuple[int, int], Entry] = {}
        self.pending: dict[tuple[int, str], Pending] = {}
        self.inbox: dict[bytes, Message] = {}
        """Untaken messages by mid, in the order of arrival."""
        self.taken: dict[bytes, Message] = {}
        """What is kept of those that were taken."""
        self._places: dict[bytes, int] = {}
        """The order of arrival of both."""
        self.keys: dict[str, bytes] = {}
        self.seen: set[bytes] = set()
        self.exposed: dict[str, bytes] = {}
        self.tries: dict[tuple[str, str], int] = {}
        """The journal's length at each try of code that could not run it, by version and process."""

    # -- journal

    def journal(self, run: int, after: int | None = None) -> list[Entry]:
        """The entries of the run (above the seq), by seq."""
        found = [e for e in self.entries.values() if e.run == run and (after is None or e.seq > after)]
        by_entry_key(found)
        return found

    def record(self, entry: Entry) -> None:
        """The entry is in the journal if its place is free, or waits for the step that runs again."""
        there = self.entries.setdefault((entry.run, entry.seq), entry)
        if there.kind == Kind.AGAIN:
            self.entries[entry.run, entry.seq] = entry

    def operations(self) -> list[Pending]:
        """The pending operations of the current run, by key."""
        return [self.pending[run, key] for run, key in sorted(self.pending) if run == self.row.run]

    def length(self) -> int:
        """Highest seq + 1 of the run's ordered entries."""
        return max((seq + 1 for run, seq in self.entries if run == self.row.run and seq >= 0), default=0)

    def tried(self, version: str, process: str) -> None:
        """This code could not run it; tries of it with another journal do not count any more."""
        length = self.length()
        self.tries = {code: tried for code, tried in self.tries.items() if tried == length}
        self.tries[version, process] = length

    def may_be_tried(self, version: str, process: str) -> bool:
        """Whether this code has not tried it, or has once, in another process."""
        processes = [other for code, other in self.tries if code == version]
        return not processes or (len(processes) == 1 and processes[0] != process)

    def begin(self, image: Continue) -> None:
        """What belonged to runs before this one is gone; messages stay, and so do traces of those that may come again."""
        run, old = image.run, image.begun.at - REPEAT_SECONDS
        self.entries = {key: entry for key, entry in self.entries.items() if entry.run >= run}
        self.pending = {key: pending for key, pending in self.pending.items() if pending.run >= run}
        self.tries.clear()
        for message in [*self.inbox.values(), *self.taken.values()]:
            if message.kind == MessageKind.ANSWER and message.run < run:
                self.unsend(message.mid)
        for message in list(self.taken.values()):
            if message.key is None and message.sent_at < old:
                self.unsend(message.mid)

    def go_on(self, image: Continue) -> None:
        """The row is that of the next run, with its entry 0."""
        row = self.row
        first = row.arguments if row.first is None else row.first
        self.row = replace(
            row, run=image.run, arguments=image.arguments, first=first, version=image.version, state=State.RUNNING,
            waiting=False, due_at=None, edited_seq=-1, failed_seq=None,
        )  # fmt: skip
        self.entries[image.begun.run, image.begun.seq] = image.begun

    # -- inbox

    def put(self, message: Message) -> bool:
        """The message is in the inbox, or was (True); False if its key came with another message before."""
        if message.mid in self._places:
            return True
        if not self._claim_key(message):
            return False
        self._places[message.mid] = next(reversed(self._places.values()), 0) + 1
        self.inbox[message.mid] = message
        return True

    def take(self, mid: bytes) -> None:
        """Of the message only what keeps it from being accepted again is left."""
        message = self.inbox.pop(mid, None)
        if message is not None:
            self.taken[mid] = replace(message, name=None, type="", body=None)

    def unsend(self, mid: bytes) -> None:
        """The message is gone, as if it had never come."""
        message = self.inbox.pop(mid, None) or self.taken.pop(mid, None)
        if message is None:
            return
        del self._places[mid]
        self.seen.discard(mid)
        self._free_key(message)

    def unseen(self, kind: str | None = None) -> bool:
        """Whether a message (of the kind) is there that is neither taken nor seen."""
        return any(mid not in self.seen and kind in (None, m.kind) for mid, m in self.inbox.items())

    def cancelled(self) -> bool:
        """Whether a cancel request is there that was not taken."""
        return any(m.kind == MessageKind.CANCEL for m in self.inbox.values())

    def drop_requests(self) -> bool:
        """Nobody is asked to hand it over, for nobody owns it; gives whether somebody was."""
        requests = [mid for mid, m in self.inbox.items() if m.kind == MessageKind.EVICT]
        for mid in requests:
            self.unsend(mid)
        return bool(requests)

    def _claim_key(self, message: Message) -> bool:
        if message.kind != MessageKind.MESSAGE or message.key is None:
            return True
        return self.keys.setdefault(message.key, message.mid) == message.mid

    def _free_key(self, message: Message) -> None:
        if message.kind == MessageKind.MESSAGE and message.key is not None:
            del self.keys[message.key]

    # -- edits

    def stands(self, edit: Edit) -> bool:
        """Whether it is as the editor read it."""
        row = self.row
        return (
            (row.run, row.state, row.ended_at, row.edit) == (edit.run, edit.state, edit.ended_at, edit.last)
            and self.length() == edit.length
            and all(mid in self.inbox for mid in edit.open)
        )

    def mend(self, edit: Edit, row: Instance) -> None:
        """The row and what belongs to it are as the edit says."""
        for entry in edit.put:
            self.entries[entry.run, entry.seq] = entry
        for seq in edit.drop:
            self.entries.pop((edit.run, seq), None)
        for key in edit.forget:
            self.pending.pop((edit.run, key), None)
        for mid in edit.unsend:
            self.unsend(mid)
        for message in edit.messages:
            self._replace(message)
        self.tries.clear()
        waiting = row.state is State.SUSPENDED
        self.row = replace(row, owner=None, waiting=waiting, edit=edit.id, term=self.row.term)

    def _replace(self, new: Message) -> None:
        """The message is in the inbox, at the place it had, neither taken nor seen; left out if its key is another's."""
        old = self.inbox.get(new.mid) or self.taken.get(new.mid)
        if old is None:
            self.put(new)
            return
        key = old.key if new.key is None else new.key
        new = replace(old, key=key, name=new.name, type=new.type, body=new.body)
        if not self._claim_key(new):
            return
        if old.key != new.key:
            self._free_key(old)
        self.seen.discard(new.mid)
        self.inbox[new.mid] = new
        if self.taken.pop(new.mid, None) is not None:
            self.inbox = dict(sorted(self.inbox.items(), key=lambda item: self._places[item[0]]))


def page(entries: list[Entry], left: int) -> tuple[list[Entry], int]:
    """The first of the entries, with the one that brings them to `left` bytes; and what is left then (0 or less: cut
    there).
    """
    for number, entry in enumerate(entries, 1):
        left -= len(entry.arguments or b"") + len(entry.outcome or b"")
        if left <= 0:
            return entries[:number], left
    return entries, left
