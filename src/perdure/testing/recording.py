"""Recordings: what a store holds of one instance's current run, kept as a file, to be replayed by tests for years.

Recording reads, and changes nothing. What today's code makes of a recording is `replaying`'s.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final, Self, final

from msgspec.structs import replace

from perdure import codec
from perdure.api.flow import AnyFlow, name_of
from perdure.api.info import shown
from perdure.engine.engine import Engine
from perdure.errors import DoesNotFit, InstanceNotFound
from perdure.model.records import Loaded, MessageKind, State
from perdure.stores.contract import Store
from perdure.testing import record_file
from perdure.testing.record_redaction import Redactor, Where, redacted, with_payloads
from perdure.testing.record_source import opened_to_read, parts_of

WHOLE: Final = sys.maxsize
"""A budget without end: in pages a live instance could go on between two of them."""


@final
class Recording:
    """One run of one instance: its row, all entries, its pending operations and the messages that nobody took.

    Made by `record` or `Recording.load`; never changed.
    """

    __slots__ = ("loaded", "parent", "redacted")

    def __init__(self, loaded: Loaded, parent: tuple[str, str] | None = None, *, redacted: bool = False) -> None:
        self.loaded = loaded
        self.parent = parent
        """Flow and id of the instance that started it, if it is attached to that."""
        self.redacted = redacted
        """Whether values were changed: then its journal is compared by kinds and names only."""

    @property
    def flow(self) -> str:
        """The flow's registered name."""
        return self.loaded.instance.flow

    @property
    def id(self) -> str:
        """The instance's id."""
        return self.loaded.instance.id

    @property
    def state(self) -> State:
        """How the instance stood when it was recorded."""
        return self.loaded.instance.state

    def __repr__(self) -> str:
        return f"<recording of {self.flow} {self.id!r}: {self.state.value}, {len(self.loaded.entries)} entries>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Recording):
            return NotImplemented
        return (self.loaded, self.parent, self.redacted) == (other.loaded, other.parent, other.redacted)

    __hash__ = None  # type: ignore[assignment]

    def redact(self, fn: Redactor) -> Recording:
        """A recording whose values are as the function gives them, for keeping where nobody may see the real ones.

        The function is called as `fn(value, where)` with each value, the outer ones first: the arguments and outcomes of
        the instance and its operations, exceptions, bodies of messages, progress, ids and keys. A value is JSON as the
        file shows it. What the function gives back stands there instead; if that is the same object, the function is
        called with what it holds. Tracebacks, digests and the reason of a blocked instance are left out. Names of flows,
        steps and messages stay. See `drop` for a ready-made function.

        Raises:
            ValueError: a payload is sealed by a `codec=`: record by the engine that has it.
            TypeError: an id became something else than a text.
        """
        loaded, parent = redacted(self.loaded, self.parent, fn)
        return Recording(loaded, parent, redacted=True)

    def save(self, path: str | os.PathLike[str]) -> None:
        """The file holds the recording as JSON, the same text for the same recording; what it held is gone."""
        Path(path).write_bytes(record_file.text_of(self.loaded, self.parent, redacted=self.redacted))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """The recording that the file holds. Nothing of it is imported or run.

        Raises:
            NotARecording: the file holds something else, another format, or is damaged; the message says what to do.
            OSError: it cannot be read.
        """
        loaded, parent, redacted = record_file.read(Path(path))
        return cls(loaded, parent, redacted=redacted)


async def record(source: Engine | Store | str, flow: AnyFlow | str, id: str) -> Recording:
    """What the store holds of the instance's current run, all of one moment; nothing is changed.

    Args:
        source: an entered engine (whose `codec=` opens the payloads), an open store, or a URL: a database named so is
            only read, beside the engines that run on it.

    Raises:
        InstanceNotFound.
        StoreUnavailable, NotOurs, StoreCorrupt, NotSupported: the URL names no database that can be read here.
        DoesNotFit: the engine's `codec=` cannot open what is stored.
    """
    if isinstance(source, str):
        async with opened_to_read(source) as store:
            return await _recorded(store, name_of(flow), id)
    if isinstance(source, Engine):
        parts = parts_of(source)
        found = await _recorded(parts.store, name_of(flow), id)
        return found if parts.hook is None else Recording(_opened(found.loaded, parts.hook), found.parent)
    return await _recorded(source, name_of(flow), id)


async def _recorded(store: Store, flow: str, id: str) -> Recording:
    row = await store.instance(flow, id)
    found = [] if row is None else await store.load([row.uid], budget=WHOLE)
    if not found:
        raise InstanceNotFound(flow, id)
    (loaded,) = found
    row, entries, more = loaded.instance, loaded.entries, loaded.more
    while more:  # a store may have a limit of its own
        page, more = await store.entries(row.uid, row.run, entries[-1].seq, budget=WHOLE)
        entries = [*entries, *page]
    parents = [] if row.parent is None else await store.instances([row.parent])
    inbox = [message for message in loaded.inbox if message.kind != MessageKind.EVICT]  # the engine's own affair
    row = replace(row, state=shown(row), owner=None, waiting=False, lane=row.flow, term=0)  # nor are these
    return Recording(Loaded(row, entries, loaded.pending, inbox), next(((p.flow, p.id) for p in parents), None))


def _opened(loaded: Loaded, hook: codec.Codec) -> Loaded:
    """The same with payloads as they are without the hook."""

    def opened(data: bytes, where: Where) -> bytes:
        try:
            return hook.decode(data)
        except Exception as error:
            raise DoesNotFit(f"the engine's codec= cannot read {where}: {error!r}") from error

    return with_payloads(loaded, opened)


def copied(loaded: Loaded) -> Loaded:
    """The same, with lists of its own: an execution uses up those that it is given."""
    return Loaded(loaded.instance, list(loaded.entries), list(loaded.pending), list(loaded.inbox), loaded.more)
