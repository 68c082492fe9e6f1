"""A batch taken apart into the steps in which every store executes it, so that no two stores differ in the order."""

from __future__ import annotations

from operator import attrgetter, itemgetter

from perdure.model.records import Entry
from perdure.model.writes import (
    Continue,
    Create,
    Expose,
    Finish,
    PendingDrop,
    PendingPut,
    Release,
    Send,
    Take,
    Unwatch,
    Update,
    Watch,
    Write,
)

Image = Update | Release | Finish | Continue

_ENTRY_KEY = attrgetter("uid", "run", "seq")


def by_entry_key(entries: list[Entry]) -> None:
    """The entries are in the order of their key."""
    entries.sort(key=_ENTRY_KEY)


class Folded:
    """The writes of one batch by step, each step sorted by key; numbers are places in the batch, for the answers."""

    __slots__ = ("creates", "drops", "entries", "exposes", "images", "puts", "sends", "takes", "watches")

    def __init__(self, writes: list[Write]) -> None:
        self.entries: list[Entry] = [w for w in writes if type(w) is Entry]
        self.creates: list[tuple[int, Create]] = []
        self.puts: dict[tuple[bytes, int, str], PendingPut] = {}
        self.drops: dict[tuple[bytes, int, str], PendingDrop] = {}
        self.takes: list[Take] = []
        self.exposes: dict[tuple[bytes, str], Expose] = {}
        self.images: dict[bytes, tuple[int, Image]] = {}
        self.watches: dict[tuple[bytes, int, str], tuple[int, Watch | Unwatch]] = {}
        self.sends: list[tuple[int, Send]] = []
        if len(self.entries) < len(writes):
            self._take_apart(writes)

    @property
    def rare(self) -> bool:
        """Whether there is anything of what `_take_rarer` takes, watches aside."""
        return bool(self.puts or self.drops or self.takes or self.exposes)

    def without(self, uids: set[bytes]) -> None:
        """What was written for these instances is left out: they were not created after all."""
        self.entries = [e for e in self.entries if e.uid not in uids]
        self.puts = {k: w for k, w in self.puts.items() if k[0] not in uids}
        self.exposes = {k: w for k, w in self.exposes.items() if k[0] not in uids}
        self.watches = {k: w for k, w in self.watches.items() if k[0] not in uids}

    def _take_apart(self, writes: list[Write]) -> None:
        images = self.images
        for number, write in enumerate(writes):
            kind = type(write)
            if kind is Entry:
                continue
            if kind is Finish or kind is Update or kind is Release or kind is Continue:
                images[write.uid] = (number, write)  # type: ignore[union-attr]
            elif kind is Create:
                self.creates.append((number, write))  # type: ignore[arg-type]
            elif kind is Send:
                self.sends.append((number, write))  # type: ignore[arg-type]
            else:
                self._take_rarer(number, write)
        self.creates.sort(key=lambda c: (c[1].flow, c[1].id))  # stable: of two for one id the first is created
        self.takes.sort(key=lambda t: (t.uid, t.mid))
        self.watches = dict(sorted(self.watches.items(), key=itemgetter(0)))
        if self.watches and images:
            self._drop_old_watches()
        if len(images) > 1:
            self.images = dict(sorted(images.items(), key=itemgetter(0)))

    def _drop_old_watches(self) -> None:
        """What an instance asked for in the run that it ends by continuing is left out: nobody waits for it."""
        runs = {uid: image.run for uid, (_, image) in self.images.items() if type(image) is Continue}
        if runs:
            self.watches = {k: w for k, w in self.watches.items() if k[1] >= runs.get(k[0], k[1])}

    def _take_rarer(self, number: int, write: Write) -> None:
        match write:
            case PendingPut(pending=p):
                key = (p.uid, p.run, p.key)
                self.drops.pop(key, None)
                self.puts[key] = write
            case PendingDrop():
                key = (write.uid, write.run, write.key)
                self.puts.pop(key, None)
                self.drops[key] = write
            case Take():
                self.takes.append(write)
            case Expose():
                self.exposes[write.uid, write.key] = write
            case Watch() | Unwatch():
                self.watches[write.asker, write.run, write.key] = (number, write)
            case _:
                other: object = write
                raise TypeError(f"{other!r} is no write")
