"""What was recorded of one run, as long as it is replayed: the entries to come, in order and by key. Decides nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from perdure.model.records import PUSHED, Entry, Kind, Loaded, Pending

if TYPE_CHECKING:
    from perdure.engine.operations import Op


class Journal:
    """See the module. Long journals come in pages: `more` says that there are others."""

    __slots__ = (
        "by_key",
        "dropped",
        "edited_seq",
        "entries",
        "more",
        "patches",
        "pending",
        "position",
        "read",
        "unordered",
    )

    def __init__(self, loaded: Loaded) -> None:
        self.unordered: dict[str, Entry] = _NO_ENTRY
        """Entries that come when they are asked for, by key."""
        self.by_key: dict[str, Entry] = _NO_ENTRY
        """Entries of this page and earlier ones that nobody has asked for yet."""
        self.pending: dict[str, Pending] = {p.key: p for p in loaded.pending} if loaded.pending else _NO_PENDING
        """Pending operations that nobody has asked for yet."""
        self.dropped: dict[str, Op] = _NO_OP
        """What was asked for and dropped, by key: its entry is a no-op."""
        self.patches: dict[str, bool] = _NO_PATCH
        """What `patched` has answered in this run."""
        self.edited_seq = loaded.instance.edited_seq
        self.read = -1
        self.turn_page(loaded.entries, more=loaded.more)

    def turn_page(self, entries: list[Entry], *, more: bool) -> None:
        """These entries come next, and then others if there are `more`."""
        self.more = more
        self.position = 0
        ordered = 0
        for entry in entries:
            if entry.seq >= 0:
                break
            ordered += 1
        if ordered:
            self.unordered = self.unordered | {entry.key: entry for entry in entries[:ordered]}
        self.entries = entries[ordered:] if ordered else entries
        for entry in self.entries:
            if entry.kind not in PUSHED:
                if self.by_key is _NO_ENTRY:
                    self.by_key = {}
                self.by_key[entry.key] = entry
        if entries:
            self.read = entries[-1].seq

    @property
    def used_up(self) -> bool:
        """Whether every entry was delivered and every pending operation asked for."""
        return self.over and not self.pending

    @property
    def over(self) -> bool:
        """Whether every entry was delivered."""
        return self.position == len(self.entries) and not self.more

    def advance(self) -> None:
        """The entry that was due is done."""
        self.entries[self.position] = _GONE  # its payload is not needed twice
        self.position += 1

    def close(self) -> None:
        """Nothing is replayed any more; what comes when it is asked for stays."""
        self.entries, self.position, self.by_key, self.dropped = _NO_ENTRIES, 0, _NO_ENTRY, _NO_OP

    def drop(self, op: Op) -> None:
        """The operation is not wanted any more: its entry, if there is one, is a no-op."""
        self.dropped = self.dropped | {op.key: op}

    def patch(self, id: str, uid: bytes, run: int, at: float, *, new: bool) -> tuple[bool, Entry | None]:
        """The first answer of `patched`, which holds: whether an entry says so or the run is `new` enough; and the
        entry that is to be written then.
        """
        key, entry = "~" + id, None
        if new and key not in self.unordered:
            seq = min((entry.seq for entry in self.unordered.values()), default=0) - 1
            entry = Entry(uid, run, seq, key, Kind.PATCHED, id, None, b"", False, None, 0, at, at)
            self.unordered = self.unordered | {key: entry}
        answer = key in self.unordered
        self.patches = self.patches | {id: answer}
        return answer, entry

    def agrees(self, op: Op, found: Entry | Pending) -> bool:
        """Whether this is of what the code asks for: of the same kind, name and arguments, unless an edit has made the
        recorded arguments of no account.
        """
        if op.name != found.name or (op.kind != found.kind and (op.kind, found.kind) != (Kind.STEP, Kind.AGAIN)):
            return False
        if op.digest == found.digest or self.edited_seq >= (found.seq if isinstance(found, Entry) else 0):
            return True
        return found.arguments is not None and op.digest == op.digest_today(found.arguments, found.digest)


_GONE: Final[Any] = None
# What most journals have none of, shared and never changed: five dictionaries would be 320 bytes a flow.
_NO_ENTRIES: Final[list[Entry]] = []
_NO_ENTRY: Final[dict[str, Entry]] = {}
_NO_PENDING: Final[dict[str, Pending]] = {}
_NO_OP: Final[dict[str, Op]] = {}
_NO_PATCH: Final[dict[str, bool]] = {}
