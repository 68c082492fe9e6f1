"""A store in memory that looks at everything that is written: the first promise that an engine breaks is kept in words.

What it looks for holds for every flow. It knows the tables, and nothing of processes, loops or time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from perdure.model.records import Entry, Kind, Loaded, State
from perdure.model.writes import Create, Edited, Expose, Finish, PendingPut, Release, Take
from perdure.stores.memory import MemoryStore

if TYPE_CHECKING:
    from perdure.model.records import Instance
    from perdure.model.writes import Answer, Batch, Edit, Outdated, OwnedBy
    from perdure.stores.memory.life import Life
    from perdure.system import System

Run = tuple[bytes, int]


class WatchedStore(MemoryStore):
    """See the module."""

    def __init__(self, system: System | None = None, *, may_block: bool = False) -> None:
        super().__init__(system)
        self._may_block = may_block
        self.broken: str | None = None
        """The first promise that was broken."""
        self.written = 0
        """How many entries there were, those of runs that are over included."""
        self._recorded: dict[Run, dict[str, int]] = {}
        """The seq of each recorded operation, by its key."""
        self._lengths: dict[Run, int] = {}
        self._ended: dict[bytes, tuple[State, bytes | None]] = {}

    async def commit(self, batch: Batch) -> list[Answer]:
        """See Store."""
        before = {uid: self._owner(uid) for uid in self._touched(batch)}
        answers = await super().commit(batch)
        born = {w.uid for w in batch.writes if isinstance(w, Create) and w.uid in self._lives}
        for write in batch.writes:
            if isinstance(write, Entry):
                self._look_at(write, batch.replica, before, born)
            elif isinstance(write, Release) and write.state is State.BLOCKED and not self._may_block:
                life = self._lives.get(write.uid)
                if life is not None and life.row.state is State.BLOCKED:
                    self._break(life, f"is blocked: {write.reason}")
            elif isinstance(write, Finish):
                self._look_at_end(write)
        return answers

    async def edit(self, replica: str | None, epoch: int, edit: Edit) -> Edited | OwnedBy | Outdated:
        """See Store."""
        answer = await super().edit(replica, epoch, edit)
        life = self._lives.get(edit.uid)
        if isinstance(answer, Edited) and life is not None:
            run = (edit.uid, life.row.run)
            self._recorded[run] = {entry.key: entry.seq for entry in life.journal(life.row.run) if entry.key}
            self._lengths[run] = life.length()
            self._ended.pop(edit.uid, None)
        return answer

    # ------------------------------------------------------------ looking

    def named(self, uid: bytes) -> str:
        """The instance, for people."""
        life = self._lives.get(uid)
        return f"{life.row.flow} {life.row.id!r}" if life is not None else "an instance that is gone"

    def rows(self) -> Iterator[Instance]:
        """All instances, in the order of their creation."""
        for _, life in sorted(self._lives.items()):
            yield life.row

    def row(self, uid: bytes) -> Instance | None:
        """The instance, if it is there."""
        life = self._lives.get(uid)
        return life.row if life is not None else None

    def loaded(self, uid: bytes) -> Loaded:
        """The whole instance."""
        life = self._lives[uid]
        return Loaded(life.row, life.journal(life.row.run), life.operations(), list(life.inbox.values()))

    def exposes(self, uid: bytes) -> dict[str, bytes]:
        """What the instance exposes."""
        return dict(self._lives[uid].exposed)

    def knows_key(self, flow: str, id: str, key: str) -> bool:
        """Whether a message with this key has come for (flow, id), or a life of that is gone, and maybe its messages."""
        if self.is_gone(flow, id):
            return True
        uid = self._tables.ids.get((flow, id))
        if uid is not None:
            return key in self._lives[uid].keys
        early = self._tables._early.get((flow, id), {})  # pyright: ignore[reportPrivateUsage]  # noqa: SLF001
        return any(message.key == key for message in early.values())

    def is_gone(self, flow: str, id: str) -> bool:
        """Whether (flow, id) was there and was deleted, or removed by retention."""
        return (flow, id) in self._tables.gone

    def may_begin(self, uid: bytes, run: int, key: str, replica: str | None) -> str | None:
        """Why an attempt of the step with this key must not begin in this replica; None: it may."""
        life = self._lives.get(uid)
        if life is None or life.row.run != run:
            return None
        if life.row.owner != replica:
            return f"begins in a process (replica {replica}) that is not its owner ({life.row.owner})"
        recorded = self._recorded_of(life, run).get(key)
        if recorded is not None and (run, recorded) in life.entries and life.entries[run, recorded].kind != Kind.AGAIN:
            return f"begins again, and its outcome is recorded as entry {recorded}"
        return None

    # ------------------------------------------------------------ what must hold

    def _touched(self, batch: Batch) -> set[bytes]:
        return {w.uid for w in batch.writes if isinstance(w, Entry | Take | Expose)} | {
            w.pending.uid for w in batch.writes if isinstance(w, PendingPut)
        }

    def _owner(self, uid: bytes) -> str | None:
        life = self._lives.get(uid)
        return life.row.owner if life is not None else None

    def _look_at(self, entry: Entry, replica: str | None, before: dict[bytes, str | None], born: set[bytes]) -> None:
        """The entry was written now, or before: by its owner, next in the order, and as nobody else has."""
        life = self._lives.get(entry.uid)
        if life is None or entry.run < life.row.run:
            return
        run = (entry.uid, entry.run)
        stored = life.entries.get((entry.run, entry.seq))
        if stored != entry:
            if stored is None or stored.kind != Kind.AGAIN:
                self._break(life, f"has entry {entry.seq} as {_said(stored)}, and {replica} writes {_said(entry)}")
            return
        recorded = self._recorded_of(life, entry.run)
        length = self._lengths[run]
        if entry.seq >= 0:
            if entry.seq < length:
                return  # it was sent again
            if entry.seq > length:
                self._break(life, f"has a journal of {length} entries, and {replica} writes entry {entry.seq}")
            self._lengths[run] = entry.seq + 1
        elif recorded.get(entry.key) == entry.seq:
            return
        self.written += 1
        owner = before.get(entry.uid)
        if owner != replica and entry.uid not in born:
            self._break(life, f"is {owner or 'nobody'}'s, and {replica} writes entry {entry.seq}")
        if entry.key:
            seq = recorded.setdefault(entry.key, entry.seq)
            if seq != entry.seq:
                self._break(life, f"has operation {entry.key} ({entry.name}) as entry {seq} and as entry {entry.seq}")

    def _look_at_end(self, finish: Finish) -> None:
        """The instance ends once."""
        life = self._lives.get(finish.uid)
        if life is None or not life.row.state.ended:
            return
        end = (life.row.state, life.row.outcome)
        if self._ended.setdefault(finish.uid, end) != end:
            self._break(life, f"had {self._ended[finish.uid]}, and has {end} now")

    def _recorded_of(self, life: Life, run: int) -> dict[str, int]:
        """By key, what was known of the run before; of one that is not known yet, what can be known."""
        place = (life.row.uid, run)
        recorded = self._recorded.get(place)
        if recorded is None:
            recorded = self._recorded[place] = {}
            begun = life.entries.get((run, 0))
            self._lengths[place] = 1 if begun is not None and not begun.key else 0
        return recorded

    def _break(self, life: Life, what: str) -> None:
        if self.broken is None:
            self.broken = f"{life.row.flow} {life.row.id!r} {what}"


def _said(entry: Entry | None) -> str:
    if entry is None:
        return "nothing"
    outcome = "" if entry.outcome is None else f" with {entry.outcome[:60]!r}"
    return f"{entry.kind} {entry.name} ({entry.key}){outcome}"
