"""What the file and the ledger say, read without the engine, and what must hold after any crash."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apsw

MAYBE = "maybe "
"""Effects of steps that the flow cancels: they may happen or not."""
ONCE = "once "
"""Effects of at-most-once steps."""


@dataclass(frozen=True)
class Seen:
    """A database and a ledger at one moment. Operations are named (uid of the instance, run, key)."""

    instances: dict[str, tuple[str, str]]
    """By uid: id and state."""
    entries: list[tuple[str, int, int, str, str, str, bool]]
    """uid, run, seq, key, kind, name, failed; by seq."""
    pending: dict[str, tuple[bool, int]]
    """By idempotency key: whether an at-most-once attempt may have begun, and how many attempts have failed."""
    inbox: list[tuple[str, ...]]
    """Id of the receiver, kind, key, and whether it was taken; of every row that was ever put there."""
    left: dict[str, int]
    """Rows that nobody needs once everything has ended."""
    effects: Counter[str]
    """By idempotency key: how often."""
    labels: dict[str, str]
    runs: dict[str, int] = field(default_factory=dict[str, int])
    """By uid: the run that the instance is in."""

    @property
    def recorded(self) -> set[str]:
        """The idempotency keys of all steps in the journals, and of all that belonged to runs that are over."""
        steps = {f"{uid}.{run}.{key}" for uid, run, _, key, kind, _, _ in self.entries if kind == "step"}
        return steps | {key for key in self.effects if self.is_over(key)}

    def is_over(self, key: str) -> bool:
        """Whether the operation belonged to a run that is over, whose journal is gone."""
        uid, run, _ = key.split(".", 2)
        return int(run) < self.runs.get(uid, 0)

    def journal(self) -> list[tuple[str, ...]]:
        """What the journals hold, in an order that does not depend on which of several parallel steps ended first."""
        ids = {uid: id for uid, (id, _) in self.instances.items()}
        return sorted(
            (stable(ids[uid]), key, kind, name, str(failed)) for uid, _, _, key, kind, name, failed in self.entries
        )

    def done(self) -> Counter[str]:
        """How often each effect happened, by label."""
        done: Counter[str] = Counter()
        for key, count in self.effects.items():
            done[self.labels[key]] += count
        return done


def stable(id: str) -> str:
    """The id; one that is made of its parent's uid without that."""
    head, dot, rest = id.partition(".")
    return f"child{dot}{rest}" if dot else head


def see(folder: Path) -> Seen:
    """What the folder holds now; nothing of it is changed."""
    path = folder / "flows.db"
    effects: Counter[str] = Counter()
    labels: dict[str, str] = {}
    ledger = folder / "ledger"
    for line in ledger.read_text().splitlines() if ledger.exists() else ():
        label, _, key = line.rpartition(" ")
        effects[key] += 1
        labels[key] = label
    if not path.exists() or not _has_tables(path):
        return Seen({}, [], {}, [], {}, effects, labels)
    db = _connect(path)
    try:
        runs = dict(_rows(db, "select lower(hex(uid)), run from instance"))
        instances = {u: (id, s) for u, id, s in _rows(db, "select lower(hex(uid)), id, state from instance")}
        entries = [
            (*row[:6], bool(row[6]))
            for row in _rows(
                db, "select lower(hex(uid)), run, seq, key, kind, name, failed from entry order by uid, run, seq"
            )
        ]
        pending = {
            f"{uid}.{run}.{key}": (bool(intent), attempt)
            for uid, run, key, intent, attempt in _rows(
                db, "select lower(hex(uid)), run, key, intent, attempt from pending"
            )
        }
        inbox = sorted(
            (stable(id), kind, str(key), "untaken" if untaken else "taken")
            for id, kind, key, untaken in _rows(
                db, "select i.id, m.kind, m.key, m.open from inbox m join instance i on i.uid = m.uid"
            )
        )
        left = {
            t: _rows(db, f"select count(*) from {t}")[0][0] for t in ("pending", "wakeup", "watch", "fence", "early")
        }
    finally:
        db.close()
    return Seen(instances, entries, pending, inbox, left, effects, labels, runs)


def _connect(path: Path) -> Any:
    db = apsw.Connection(str(path))
    db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)  # what the killed process left is left as it is
    return db


def _has_tables(path: Path) -> bool:
    db = _connect(path)
    try:
        return bool(_rows(db, "select 1 from sqlite_schema where name = 'instance'"))
    finally:
        db.close()


def _rows(db: Any, text: str) -> Sequence[tuple[Any, ...]]:
    return db.execute(text).fetchall()


def check_end(seen: Seen, plain: Seen, *, same_journal: bool) -> None:
    """Everything has ended as in the run without a crash, and nothing is left over."""
    assert _ends(seen) == _ends(plain)
    seqs: dict[tuple[str, int], list[int]] = {}
    keys: Counter[tuple[str, int, str]] = Counter()
    for uid, run, seq, key, _, _, _ in seen.entries:
        seqs.setdefault((uid, run), []).append(seq)
        if key:
            keys[uid, run, key] += 1
    assert all(found == list(range(len(found))) for found in seqs.values()), f"gaps in a journal: {seqs}"
    assert not [key for key, count in keys.items() if count > 1], "an operation is recorded twice"
    if same_journal:
        assert seen.journal() == plain.journal()
    assert seen.inbox == plain.inbox, "messages were lost, doubled, or left"
    assert not any(seen.left.values()), f"rows are left over: {seen.left}"


def untaken(seen: Seen) -> int:
    """How many messages nobody took."""
    return sum(1 for _, kind, _, what in seen.inbox if kind == "message" and what == "untaken")


def _ends(seen: Seen) -> list[tuple[str, str]]:
    return sorted((stable(id), state) for id, state in seen.instances.values())


def check_effects(at_crash: Sequence[Seen], end: Seen, plain: Seen, *, parallel: int) -> None:
    """No recorded step ran again after a crash; the others ran as often as their policy says.

    A step starts when all before it is on disk: so at a crash at most as many effects are not recorded as run at once.
    """
    for crash in at_crash:
        doubtful = [crash.labels[key] for key in crash.effects if key not in crash.recorded]
        doubtful = [label for label in doubtful if not label.startswith(MAYBE)]
        assert len(doubtful) <= parallel, f"these ran before what came before them was on disk: {doubtful}"
    usual = plain.done()
    shared = Counter(plain.labels[key] for key in plain.effects)  # keys per label
    again = {end.labels[key] for key, count in end.effects.items() if count > 1 and end.labels[key].startswith(ONCE)}
    assert not again, f"these are at most once and happened again: {again}"
    before = at_crash[0]
    for crash in at_crash[1:]:
        _check_one_life(before, crash, usual, shared, ended=False)
        before = crash
    _check_one_life(before, end, usual, shared, ended=True)


def _check_one_life(before: Seen, after: Seen, usual: Counter[str], shared: Counter[str], *, ended: bool) -> None:
    """The life of a process that found `before` and left `after`."""
    recorded = before.recorded
    for key, count in after.effects.items():
        label = after.labels[key]
        ran = count - before.effects[key]
        intent, failures = before.pending.get(key, (False, 0))
        if key in recorded:
            assert ran == 0, f"{label} was recorded and ran {ran} times more"
        elif intent:
            assert ran == 0, f"{label} is at most once, had begun, and ran again"
        elif label.startswith(MAYBE):
            assert ran <= 1, f"{label} ran {ran} times in one life"
        else:
            whole = usual[label] // shared[label] - failures
            assert ran == whole if ended else ran <= whole, (
                f"{label} ran {ran} times after the crash, {whole} attempts were left"
            )
    if ended:
        begun = {key for key, (intent, _) in before.pending.items() if intent}
        failed = {f"{uid}.{run}.{key}" for uid, run, _, key, _, _, failed in after.entries if failed}
        lost = {key for key in begun - failed if not after.is_over(key)}
        assert not lost, "an at-most-once step had begun and did not end in OutcomeUnknown"
        missing = {label for label in usual if not label.startswith(MAYBE)} - set(after.labels.values())
        assert len(missing) <= len(begun), f"these never happened: {missing}"
