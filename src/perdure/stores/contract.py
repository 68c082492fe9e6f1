"""The store contract: what the engine needs from a database, stated by intent, never as SQL."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final, Protocol

import msgspec

from perdure.model.records import Entry, Instance, Loaded, Message, State
from perdure.model.tx import Tx
from perdure.model.writes import Answer, Batch, Edit, Edited, Outdated, OwnedBy
from perdure.system import System

BUDGET: Final = 8 * 1024 * 1024
"""Bytes of arguments and outcomes that one reading of journals brings into memory, or little more."""
REPEAT_SECONDS: Final = 3600.0
"""So long after it was sent somebody may send a message once more, whose answer was lost."""


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

    Raises, from any method: `StoreUnavailable` (surely not done; try again), `StoreFull`, `StoreCorrupt`; in a forked child
    `ForkedEngine`, at once.
    """

    system: System
    transactions: bool
    """Whether `transact` works here."""

    @property
    def poll(self) -> float:
        """Seconds after which work is looked for although `on_change` told of none: the more surely it tells, the longer."""
        ...

    async def open(self) -> None:
        """The schema is there and readable, also after a close; refuses what is not ours, newer, read-only or damaged
        (`NotOurs`, `StoreCorrupt`, ...).
        """
        ...

    async def close(self) -> None:
        """All connections, threads and files of this object are closed; may be repeated."""
        ...

    # -- membership

    async def join(self, replica: str, lease: float, flows: Mapping[str, str] | None = None) -> int:
        """A fence row (alive, with the lanes that the replica serves and the identity of its code for each) and a lease
        of `lease` seconds exist for the replica; gives its epoch. Joining once more gives the epoch that holds.
        """
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

        Their fence is set dead first (after which no batch of theirs commits), then their instances are freed in chunks
        of `limit`: running ones that do not wait become scheduled, due now, all others stay in their state (waiting ones
        with a wake-up row if a message is there that is neither taken nor seen); then their rows are deleted. Any
        replica can finish what another began.
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

    async def edit(self, replica: str | None, epoch: int, edit: Edit) -> Edited | OwnedBy | Outdated:
        """The edit is on disk, whole, or nothing of it, and the answer says why. With a replica its fence is proved.

        Raises:
            LeaseLost: the fence does not hold; nothing was written.
            StoreRefused: the database will never take some of this data; nothing was written.
            CommitUnknown: it may have been written; make the same edit again.
        """
        ...

    async def retire(self, replica: str, epoch: int, *, before: float, now: float, limit: int) -> int:
        """Up to `limit` instances that ended before this time are gone, as if deleted, each leaving a tombstone.

        Not those that somebody owns, or whose parent is there and has not ended. Gives how many went.
        """
        ...

    async def forget(self, flow: str, id: str) -> bool:
        """The tombstone of (flow, id) is gone, so that the id may be started again; False: there was none.

        That the life was there is known still, as of one that was deleted.
        """
        ...

    async def transact(
        self, replica: str, epoch: int, work: Callable[[Tx], Coroutine[Any, Any, Entry]], *, limit: float
    ) -> Entry:
        """`work` ran in one transaction that proved the fence, and the entry that it gave is written in that too.

        What the work raises is raised here, and nothing was written. It may run for `limit` seconds and may not touch
        the store's own tables. A store without transactions (`transactions` is False) raises NotSupported.

        Raises:
            TimeoutError: it took longer; nothing was written.
            LeaseLost: the fence does not hold, or the replica does not run the instance; nothing was written.
            StoreRefused: the entry is there already; nothing was written.
            CommitUnknown: it may have been written: raise the epoch, then look for the entry.
        """
        ...

    async def claim(
        self,
        replica: str,
        epoch: int,
        *,
        flows: Mapping[str, str],
        now: float,
        limit: int,
        thorough: bool = False,
    ) -> tuple[list[Instance], float | None]:
        """Up to `limit` instances that nobody owns and that can go on are the replica's and `running`, longest due
        first.

        `flows` are the lanes that it serves, each with the identity of its flow's code here. Of these lanes: scheduled
        or suspended ones that are due, suspended ones with a wake-up row, and with `thorough` suspended ones with a
        message neither taken nor seen. Of these lanes and of those that no other live replica serves, and blocked ones
        too: those with an untaken cancel request and a wake-up row. Their wake-up rows are gone. Also gives the time when
        the next one of these lanes is due (None: none by itself). What waits in other lanes, however much, costs
        nothing.

        Instances that another code identity ran last (a `version` neither empty nor their lane's here) are left to it
        while another, live replica has it for that lane, cancel requests aside.

        The `version` of what is claimed is now its lane's identity here, so that whoever takes over from a dead replica
        knows who ran it last; it stays as it was if there is none, or an empty one. The rows are given as they were
        before the claim (state, waiting, due_at, version).
        """
        ...

    async def claim_blocked(
        self, replica: str, epoch: int, *, flows: Mapping[str, str], process: str, after: bytes, limit: int
    ) -> tuple[list[Instance], bytes]:
        """Blocked instances of these lanes, with a uid above `after`, that this code may still try, are the replica's
        and `running`.

        An identity tries an instance once, and once more in another process: those are claimed of which no try by
        their lane's identity here is known, or exactly one, of another process. Their `version` is that identity now,
        as in `claim`. At most `limit` blocked instances are looked at, in the order of their uid; gives the rows as
        they were before, and the last uid looked at (empty: there are no more).
        """
        ...

    async def wakeups(self, replica: str, epoch: int) -> list[bytes]:
        """The wake-up rows of the replica's instances are gone; gives whose they were. Read the inbox afterwards.

        The fence is proved if there are any: after an answer that was lost, raise the epoch and read all inboxes.

        Raises:
            LeaseLost: the fence does not hold; nothing was written.
        """
        ...

    # -- reading

    async def load(self, uids: Sequence[bytes], *, budget: int = BUDGET) -> list[Loaded]:
        """The instances with the journal of their run (by seq), pending operations and untaken messages (oldest first),
        in the order of their uid; missing ones left out.

        When the entries read have `budget` bytes of arguments and outcomes, the journal that is being read is cut
        there (`more`), and the instances after it are left out too: ask again for those.
        """
        ...

    async def entries(self, uid: bytes, run: int, after: int, *, budget: int = BUDGET) -> tuple[list[Entry], bool]:
        """The entries of the run with a seq above `after`, by seq, and whether there are more: cut as in `load`."""
        ...

    async def inbox(self, uids: Sequence[bytes]) -> dict[bytes, list[Message]]:
        """The untaken messages of each, oldest first."""
        ...

    async def instance(self, flow: str, id: str) -> Instance | None:
        """The current life of (flow, id)."""
        ...

    async def instances(self, uids: Sequence[bytes]) -> list[Instance]:
        """The rows of these lives; missing ones left out."""
        ...

    async def results(self, uids: Sequence[bytes]) -> dict[bytes, Instance | None]:
        """Those of these lives that have ended or are blocked, and None for each that is not there.

        One query, for all who wait for results; what goes on costs no reading of its row.
        """
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
