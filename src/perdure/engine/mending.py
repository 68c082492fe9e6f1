"""What an edit of an instance changes, decided from what was read and what was staged. Pure: no store, no clock."""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum
from typing import Final

import msgspec
from msgspec.structs import replace

from perdure import codec
from perdure.model.records import PUSHED, Entry, Instance, Kind, Loaded, Message, MessageKind, State
from perdure.model.writes import Edit
from perdure.stores.contract import answer_mid


class Verb(Enum):
    """What becomes of the instance once the staged edits are made."""

    SAVE = "save"
    RESTART = "restart"
    SUCCEED = "succeed"
    FAIL = "fail"
    POSTPONE = "postpone"
    DELETE = "delete"


class Outcome(msgspec.Struct, frozen=True):
    """A staged outcome of one operation; `remove`: there is none."""

    data: bytes | None = None
    failed: bool = False
    remove: bool = False


class Staged(msgspec.Struct):
    """The edits that wait for being written, in stored bytes."""

    arguments: bytes | None = None
    entries: dict[str, Outcome] = msgspec.field(default_factory=dict[str, Outcome])
    """By key."""
    added: list[Message] = msgspec.field(default_factory=list[Message])
    replaced: dict[bytes, Message] = msgspec.field(default_factory=dict[bytes, Message])
    removed: set[bytes] = msgspec.field(default_factory=set[bytes])

    def __bool__(self) -> bool:
        return bool(self.arguments is not None or self.entries or self.added or self.replaced or self.removed)


SETTABLE: Final = frozenset({Kind.STEP, Kind.AGAIN, Kind.RECEIVE, Kind.WAIT, Kind.READ, Kind.TRANSACTION})
"""Kinds whose outcome can be replaced."""


class Ambiguous(KeyError):
    """More than one operation has that name."""


def key_of(loaded: Loaded, id: str) -> str:
    """The key of the operation that people mean: an explicit id, a path such as `3` or `4.0`, or the only one of a name.

    Raises:
        KeyError: nothing is meant.
        Ambiguous: more than one thing is.
    """
    keys = {entry.key for entry in loaded.entries if entry.kind not in PUSHED} | {row.key for row in loaded.pending}
    for key in ("=" + id, id):
        if key in keys:
            return key
    named = [e.key for e in loaded.entries if e.name == id and e.kind not in PUSHED]
    named += [row.key for row in loaded.pending if row.name == id]
    if len(named) == 1:
        return named[0]
    if named:
        raise Ambiguous(f"{len(named)} operations are named {id!r}: say which by its path, one of {', '.join(named)}")
    raise KeyError(
        f"there is no entry {id!r}; entries are: {', '.join(sorted(shown_id(key) for key in keys)) or 'none'}"
    )


def shown_id(key: str) -> str:
    """An operation's key as people write it."""
    return key.removeprefix("=")


def in_place_of(old: Message, new: Message) -> Message:
    """The new message as the row that the old one is."""
    return replace(new, mid=old.mid, sent_at=old.sent_at)


def plan(
    loaded: Loaded, staged: Staged, verb: Verb, id: bytes, at: float, *, outcome: bytes | None = None,
    due_at: float | None = None,
) -> Edit:  # fmt: skip
    """The edit that turns what was read into what was asked for."""
    row = loaded.instance
    length = max((e.seq for e in loaded.entries if e.seq >= 0), default=-1) + 1
    edit = Edit(id, row.uid, row.run, row.state, length, row.ended_at, row.edit, None, at)
    if verb is Verb.DELETE:
        return edit
    again = verb in (Verb.RESTART, Verb.POSTPONE)
    entries = _Entries(loaded, at)
    if again and row.state.ended:
        entries.cut(staged.entries)
    for key, change in staged.entries.items():
        entries.change(key, change)
    if staged.arguments is not None or staged.entries or entries.dropped:
        row = replace(row, edited_seq=entries.last_seq())
    if entries.mended:
        row = replace(row, failed_seq=entries.behind_failure())
    return replace(
        edit,
        row=_row(row, staged, verb, at, outcome, due_at, begun=length > 0),
        put=tuple(entries.put.values()),
        drop=tuple(sorted(entries.dropped)),
        forget=tuple(entries.forgotten),
        messages=(*entries.given_back, *staged.replaced.values(), *staged.added),
        unsend=(*entries.unsent, *staged.removed),
        open=(*staged.replaced, *staged.removed),
    )


def _row(
    row: Instance, staged: Staged, verb: Verb, at: float, outcome: bytes | None, due_at: float | None, *, begun: bool
) -> Instance:
    if staged.arguments is not None:
        row = replace(row, arguments=staged.arguments, first=row.first or row.arguments)
    row = replace(row, owner=None)
    match verb:
        case Verb.SUCCEED | Verb.FAIL:
            state = State.SUCCEEDED if verb is Verb.SUCCEED else State.FAILED
            return replace(
                row, state=state, outcome=outcome, ended_at=at, due_at=None, reason=None, failed_seq=None, waiting=False
            )
        case Verb.RESTART | Verb.POSTPONE:
            return _scheduled(row, at if due_at is None else due_at)
        case _:
            only_inbox = staged.arguments is None and not staged.entries
            if row.state.ended or not begun or (row.state is State.SUSPENDED and only_inbox):
                return row
            return _scheduled(row, at)


def _scheduled(row: Instance, due_at: float) -> Instance:
    return replace(
        row, state=State.SCHEDULED, due_at=due_at, waiting=False, outcome=None, ended_at=None, reason=None,
        failed_seq=None,
    )  # fmt: skip


class _Entries:
    """What becomes of the entries, and of the messages that those that go had taken."""

    def __init__(self, loaded: Loaded, at: float) -> None:
        self._loaded = loaded
        self._at = at
        self._by_key = {e.key: e for e in loaded.entries if e.kind not in PUSHED}
        self._pending = {row.key for row in loaded.pending}
        self._free = min((e.seq for e in loaded.entries if e.seq < 0), default=0)
        self.put: dict[str, Entry] = {}
        self.dropped: set[int] = set()
        self.forgotten: list[str] = []
        self.given_back: list[Message] = []
        self.unsent: list[bytes] = []
        self.mended = False
        """Whether the entry whose exception escaped has another outcome now."""

    def cut(self, changes: Collection[str]) -> None:
        """The ended run's journal ends before what made it end: the exception that escaped, or a cancel request."""
        row, failed_seq = self._loaded.instance, self._loaded.instance.failed_seq
        first = None
        if failed_seq is not None and failed_seq < 0:
            self.dropped.add(failed_seq)
        elif failed_seq is not None:
            changed = any(key in self._by_key and self._by_key[key].seq == failed_seq for key in changes)
            first = failed_seq + 1 if changed else failed_seq
        elif row.state is not State.SUCCEEDED:
            first = min((e.seq for e in self._loaded.entries if e.kind == Kind.CANCEL), default=None)
        if first is not None:
            for entry in self._loaded.entries:
                if entry.seq >= first:
                    self._drop(entry)
        self.forgotten += [row.key for row in self._loaded.pending if not row.intent]
        self.unsent += [m.mid for m in self._loaded.inbox if m.kind == MessageKind.CANCEL]  # it would end at once again

    def _drop(self, entry: Entry) -> None:
        self.dropped.add(entry.seq)
        uid, run = self._loaded.instance.uid, self._loaded.instance.run
        if entry.kind == Kind.RECEIVE and entry.ref is not None and not entry.failed:
            name: str | None = codec.decode(entry.arguments)[1] if entry.arguments else None
            self.given_back.append(
                Message(entry.ref, MessageKind.MESSAGE, None, name, entry.name, entry.outcome, False, -1, entry.at)
            )
        elif entry.kind == Kind.WAIT:
            self.unsent.append(answer_mid(uid, run, entry.key))
        elif entry.kind == Kind.CANCEL and entry.ref is not None:
            self.unsent.append(entry.ref)  # a parent that ends once more asks by the same mid

    def last_seq(self) -> int:
        """The seq of the last entry that stays."""
        return max((e.seq for e in self._loaded.entries if e.seq >= 0 and e.seq not in self.dropped), default=-1)

    def behind_failure(self) -> int:
        """From where a later restart drops: no more the entry whose exception escaped, only what came after it."""
        failed_seq = self._loaded.instance.failed_seq
        return failed_seq + 1 if failed_seq is not None and failed_seq >= 0 else self.last_seq() + 1

    def change(self, key: str, change: Outcome) -> None:
        """The operation has this outcome, or none."""
        entry = self._by_key.get(key)
        if entry is not None and entry.seq in self.dropped:
            entry = None
        if key in self._pending and key not in self.forgotten:
            self.forgotten.append(key)
        if entry is not None and entry.seq == self._loaded.instance.failed_seq:
            self.mended = True
        if change.remove:
            if entry is not None and entry.seq < 0:
                self.dropped.add(entry.seq)
            elif entry is not None:
                self.put[key] = replace(entry, kind=Kind.AGAIN, outcome=None, failed=False)
        elif entry is not None:
            kind = Kind.STEP if entry.kind == Kind.AGAIN else entry.kind
            self.put[key] = replace(entry, kind=kind, outcome=change.data, failed=change.failed)
        else:
            self._free -= 1
            row, at = self._loaded.instance, self._at
            self.put[key] = Entry(
                row.uid, row.run, self._free, key, Kind.STEP, "", None, b"", change.failed, change.data, 0, at, at
            )


def initial_entry(uid: bytes, seq: int, id: str, data: bytes, at: float, *, failed: bool) -> Entry:
    """An entry that comes when a step of this id is asked for, in the instance's first run."""
    return Entry(uid, 0, seq, "=" + id, Kind.STEP, "", None, b"", failed, data, 0, at, at)
