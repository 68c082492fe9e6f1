"""The store contract: what the engine needs from a database, stated by intent, never as SQL."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import msgspec

from perdure.model.records import Instance, Loaded, Message, State
from perdure.model.writes import Answer, Batch
from perdure.system import System


def answer_mid(asker: bytes, run: int, key: str) -> bytes:
    """The mid of the answer to one wait: always the same, so that answering twice keeps one row."""
    return hashlib.blake2b(b"answer\0" + asker + run.to_bytes(4, "big") + key.encode(), digest_size=16).digest()


def cancel_mid(parent: bytes, child: bytes) -> bytes:
    """The mid of the cancel request that an ended parent leaves for a child."""
    return hashlib.blake2b(b"cancel\0" + parent + child, digest_size=16).digest()


class Hung(msgspec.Struct, frozen=True):
    """A replica whose lease is over, whose process lives, and which cannot be taken over because it holds the
    database.
    """

    replica: str
    pid: int
    since: float


class Reaped(msgspec.Struct, frozen=True):
    """What a look at the other replicas found: those taken over now, and those that cannot be."""

    taken: tuple[str, ...] = ()
    hung: tuple[Hung, ...] = ()


class Store(Protocol):
    """A database. Coroutines are called on one event loop; `renew` is called from a thread of the engine's.

    Raises, from any method: `StoreUnavailable` (surely not done; try again), `StoreFull`, `StoreCorrupt`.
    """

    system: System

    async def open(self) -> None:
        """The schema is there and readable; refuses what is not ours, newer, read-only or damaged (`NotOurs`,
        `StoreCorrupt`, ...).
        """
        ...

    async def close(self) -> None:
        """All connections, threads and files of this object are closed; may be repeated."""
        ...

    # -- membership

    async def join(self, replica: str, lease: float) -> int:
        """A fence row (alive) and a lease of `lease` seconds exist for the replica; gives its epoch."""
        ...

    def renew(self, replica: str, lease: float) -> float:
        """The lease holds for `lease` seconds from the time returned: the store's clock, epoch seconds. Blocking;
        any thread.

        Raises:
            LeaseLost: the replica was taken over.
        """
        ...

    async def raise_epoch(self, replica: str, epoch: int) -> int:
        """A batch sent with the old epoch can no longer commit; gives the new one (from this call on).

        Raises:
            LeaseLost: the replica was taken over.
        """
        ...

    async def leave(self, replica: str) -> None:
        """The replica owns nothing (what is left is as after a takeover), and its rows are gone; may be repeated."""
        ...

    async def reap(self, me: str, *, kill_hung: bool, limit: int = 1000) -> Reaped:
        """Replicas that are dead or whose lease is over own nothing any more, as far as can be.

        Their fence is set dead first (after which no batch of theirs commits), then their instances are freed in
        chunks of
        `limit`: waiting ones become suspended (with a wake-up row if a message is there that is neither taken nor
        seen), the
        others scheduled, due now; then their rows are deleted. Any replica can finish what another began.
        """
        ...

    # -- writing

    async def commit(self, batch: Batch) -> list[Answer]:
        """The batch is on disk, whole; one answer per write (None where nothing is to be said).

        Raises:
            LeaseLost: the fence does not hold; nothing was written.
            StoreRefused: the database will never take some of this data; nothing was written.
            CommitUnknown: it may have been written; raise the epoch, then send the same batch again.
        """
        ...

    async def claim(
        self, replica: str, epoch: int, *, flows: Sequence[str], now: float, limit: int, thorough: bool = False
    ) -> tuple[list[Instance], float | None]:
        """Up to `limit` instances that nobody owns and that can go on are the replica's and `running`, longest due
        first.

        Of the given flow types: scheduled or suspended ones that are due, suspended ones with a wake-up row, and with
        `thorough` suspended ones with a message neither taken nor seen. Of any type, and blocked ones too: those
        with an
        untaken cancel request and a wake-up row. Their wake-up rows are gone. The rows are given as they were before
        the claim (state,
        waiting, due_at). Also gives the time when the next one is due (None: none by itself).
        """
        ...

    async def wakeups(self, replica: str) -> list[bytes]:
        """The wake-up rows of the replica's instances are gone; gives whose they were. Read the inbox afterwards."""
        ...

    # -- reading

    async def load(self, uids: Sequence[bytes]) -> list[Loaded]:
        """The instances with journal (by seq), pending operations and untaken messages (oldest first); missing ones
        left out.
        """
        ...

    async def inbox(self, uids: Sequence[bytes]) -> dict[bytes, list[Message]]:
        """The untaken messages of each, oldest first."""
        ...

    async def instance(self, flow: str, id: str) -> Instance | None:
        """The current life of (flow, id)."""
        ...

    async def instances(self, uids: Sequence[bytes]) -> list[Instance]:
        """The rows of these lives; missing ones left out. One query, for all who wait for results."""
        ...

    async def exposed(self, uid: bytes) -> Mapping[str, bytes]:
        """What the instance exposes."""
        ...

    async def find(
        self, *, flow: str | None, states: Sequence[State] | None, since: float | None, after: bytes | None, limit: int
    ) -> list[Instance]:
        """Up to `limit` instances in the order of their creation (by uid), after the uid `after`, created at `since`
        or later.
        """
        ...

    # -- noticing

    def on_change(self, notify: Callable[[], None]) -> None:
        """`notify` is called, from any thread, soon after somebody else has committed; never for one's own commits
        alone.
        """
        ...

    async def check(self) -> None:
        """The database can be read and written now; raises what is wrong (`StoreUnavailable`, `StoreCorrupt`, ...)."""
        ...
