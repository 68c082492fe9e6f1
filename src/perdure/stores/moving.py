"""Moving house: all that one store keeps goes to another, of whatever kind, and is compared afterwards.

Which tables there are, what the rows of each hold and in which order they come is said here, once for all stores; the SQL is
theirs. Leases are not taken along, and of a fence only that the replica is dead: so whatever its owner left behind is taken
over on the other side as from any dead replica.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, Protocol

import msgspec

from perdure.model.records import Entry, Instance, Message, Pending

PAGE_ROWS: Final = 1000
"""So many rows come at a time; fewer, if they are large."""
_PAGE_BYTES: Final = 4 * 1024 * 1024

Row = tuple[Any, ...]
"""The columns of a table in its order: text, bytes, whole numbers, floats, bools and None alone."""


class Table(msgspec.Struct, frozen=True):
    """Rows of one kind."""

    name: str
    columns: tuple[str, ...]
    order: tuple[str, ...]
    """What the rows are sorted by, text and bytes byte by byte; empty: they come as they arrived."""


_MESSAGE: Final = Message.__struct_fields__

TABLES: Final = (
    Table("instance", Instance.__struct_fields__, ("uid",)),
    Table("entry", Entry.__struct_fields__, ("uid", "run", "seq")),
    Table("pending", Pending.__struct_fields__, ("uid", "run", "key")),
    Table("inbox", ("uid", *_MESSAGE, "open"), ()),
    Table("early", ("flow", "id", *_MESSAGE), ()),
    Table("exposed", ("uid", "key", "value"), ("uid", "key")),
    Table("watch", ("mid", "asker", "run", "key", "target"), ("mid",)),
    Table("wakeup", ("uid", "owner", "lane", "at", "cancel"), ("uid",)),
    Table("tried", ("uid", "version", "process", "length"), ("uid", "version", "process")),
    Table("gone", ("flow", "id", "at", "uid", "state", "digest", "edit"), ("flow", "id")),
    Table("fence", ("replica", "epoch", "flows"), ("replica",)),
)
"""In an order in which they can be written."""
BOOLEANS: Final = frozenset({"waiting", "failed", "intent", "cancel"})


class Reading(Protocol):
    """The rows of a store, as they stood at one instant."""

    def pages(self, table: Table) -> AsyncIterator[Sequence[Row]]:
        """All rows of the table, in its order."""
        ...


class Restore(Reading, Protocol):
    """A store that holds nothing but what is put here, and that every engine refuses until it is finished."""

    async def put(self, table: Table, rows: Sequence[Row]) -> None:
        """The rows are there, behind those that are."""
        ...

    async def settle(self) -> None:
        """What this store derives from the rows is there; no more are put."""
        ...

    async def finish(self) -> None:
        """All of it is on disk, and the store may be used.

        Raises:
            CommitUnknown: it may be; else nothing of it is.
        """
        ...


class Moving(Protocol):
    """What a store may offer for `perdure copy`. It is not open meanwhile."""

    def dump(self) -> AbstractAsyncContextManager[Reading]:
        """The store to copy from. Until the block ends nobody can write to it or join it.

        Raises:
            StoreUnavailable: a replica lives in it (the message says which), or it is not there.
            NotOurs: it holds another version, or something else.
        """
        ...

    def restore(self) -> AbstractAsyncContextManager[Restore]:
        """The store to copy to: made if it is not there, and marked as unfinished before anything is put. If the block ends
        without `finish`, the mark stays and nothing else does; then it may be restored to again.

        Raises:
            NotOurs: it holds something.
        """
        ...


def next_size(size: int, page: Sequence[Row]) -> int:
    """How many rows to ask for after a page of `size` rows, so that one holds about 4 MB."""
    held = sum(len(value) for row in page for value in row if isinstance(value, bytes | str))
    return max(1, min(PAGE_ROWS, 2 * size, size * _PAGE_BYTES // max(held, 1)))


class Moved(msgspec.Struct, frozen=True):
    """What went over of one table: rows and their digest, on both sides."""

    table: str
    rows: int
    digest: str
    rows_there: int
    digest_there: str

    @property
    def same(self) -> bool:
        """Whether it is the same on both sides."""
        return (self.rows, self.digest) == (self.rows_there, self.digest_there)


async def copy(source: Moving, target: Moving, told: Callable[[str, int], object]) -> list[Moved]:
    """The target holds what the source holds, verified row by row, and may be used; or, if anything differs, is left unfinished.

    Args:
        source: where nobody is at work.
        target: an empty one.
        told: is called with the name of a table and the number of its rows so far; first as they go, then as they are verified.
    """
    async with source.dump() as old, target.restore() as new:
        sent = [await _digested(old, table, told, new.put) for table in TABLES]
        await new.settle()
        moved: list[Moved] = []
        for table, here in zip(TABLES, sent, strict=True):
            moved.append(Moved(table.name, *here, *await _digested(new, table, told, None)))
        if all(each.same for each in moved):
            await new.finish()
        return moved


async def _digested(
    side: Reading,
    table: Table,
    told: Callable[[str, int], object],
    put: Callable[[Table, Sequence[Row]], Awaitable[None]] | None,
) -> tuple[int, str]:
    count, digest = 0, hashlib.blake2b(digest_size=16)
    encode = msgspec.msgpack.Encoder().encode
    async for page in side.pages(table):
        digest.update(b"".join(map(encode, page)))
        if put is not None:
            await put(table, page)
        count += len(page)
        told(table.name, count)
    return count, digest.hexdigest()
