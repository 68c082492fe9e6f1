"""What was taken and not kept is read from the journal again, for a stream that is opened after it.

Holds what was read so far; who reads, and when the stream gets it, is the execution's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from perdure import codec
from perdure.model.records import Entry, Kind

if TYPE_CHECKING:
    from perdure.engine.execution import Execution


class Rereading:
    """See the module. Of the entries before `end`, which are on disk when it begins."""

    __slots__ = ("_end", "_mids", "after", "done", "sequence")

    def __init__(self, end: int) -> None:
        self._end = end
        self._mids: set[bytes] = set()
        self.after = -1
        """The entries above this seq are to be read next."""
        self.done = False
        self.sequence: list[tuple[str | None, bytes | None]] = []
        """See `Mailbox.sequence`."""

    def page(self, entries: list[Entry], *, more: bool) -> bool:
        """Whether all is read that is wanted; these entries were, and there are others if there are `more`."""
        for entry in entries:
            if entry.seq >= self._end or entry.kind not in _NAMING or entry.failed:
                continue
            if entry.ref is not None and entry.ref not in self._mids:
                self._mids.add(entry.ref)
                self.sequence.append((_name(entry), entry.outcome))
        self.done = not more or entries[-1].seq >= self._end - 1
        if entries:
            self.after = entries[-1].seq
        return self.done

    def give(self, run: Execution) -> bool:
        """The stream has what it reads, and its readers are told. False: that is not read yet."""
        if self.done:
            run.rereading = None
            run.mailbox.read_again(self.sequence)
        return self.done


_NAMING: Final = frozenset({Kind.RECEIVE, Kind.ARRIVAL})
"""Entries that name a message."""


def _name(entry: Entry) -> str | None:
    """The name of the message that was taken or has arrived."""
    if entry.arguments is None:
        return None
    said = codec.decode(entry.arguments)
    return said[1] if entry.kind == Kind.RECEIVE else said
