"""Edits of generated instances, planned and made on a model of the store: what they may change, and what never."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import assume, given, note, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from perdure import codec
from perdure.engine import mending
from perdure.engine.mending import SETTABLE, Outcome, Staged, Verb
from perdure.model.records import PUSHED, Entry, Instance, Kind, Loaded, Message, MessageKind, Pending, State
from perdure.model.writes import Edit
from perdure.stores.contract import answer_mid

UID = b"u" * 16
EDIT = b"e" * 16
RUN = 3
AT = 100.0
ENDED = [State.SUCCEEDED, State.FAILED, State.CANCELLED]
KINDS = [
    *[Kind.STEP] * 4, Kind.AGAIN, Kind.TIMER, *[Kind.RECEIVE] * 3, Kind.ARRIVAL, Kind.START, Kind.WAIT, Kind.SEND,
    Kind.READ, Kind.CANCEL, Kind.TRANSACTION,
]  # fmt: skip
IDS = ["charge", "ship", "mail", "a.b"]
AGAIN = (Verb.RESTART, Verb.POSTPONE)


def mid(number: int) -> bytes:
    return b"m" + number.to_bytes(15, "big")


def entry(seq: int, key: str, kind: str, *, failed: bool = False, ref: bytes | None = None, name: str = "") -> Entry:
    arguments = codec.encode(["int", "named" if seq % 2 else None]) if kind == Kind.RECEIVE else None
    outcome = None if kind in (Kind.AGAIN, Kind.TIMER) else b"%d" % seq
    return Entry(UID, RUN, seq, key, kind, name or kind, arguments, b"digest", failed, outcome, 1, 1.0, float(seq), ref)


def message(number: int, kind: str = MessageKind.MESSAGE, key: str | None = None) -> Message:
    return Message(mid(number), kind, key, None, "int", b"%d" % number, False, -1, float(number))


def journal(chance: random.Random, size: int) -> list[Entry]:
    """As an execution writes it: `begun`, then one entry after the other, no key twice; and some unordered ones."""
    ids = chance.sample(IDS, len(IDS))
    numbers = itertools.count()
    found = [entry(0, "", Kind.BEGUN)]
    for seq in range(1, size):
        kind = chance.choice(KINDS)
        key = "" if kind in PUSHED else f"{next(numbers)}"
        if kind in (Kind.STEP, Kind.AGAIN) and ids and chance.randrange(2):
            key = "=" + ids.pop()
        ref = mid(500 + seq) if kind in (Kind.RECEIVE, Kind.ARRIVAL, Kind.CANCEL) and chance.randrange(5) else None
        failed = kind in (Kind.STEP, Kind.RECEIVE) and not chance.randrange(4)
        found.append(entry(seq, key, kind, failed=failed, ref=ref))
    unordered = [entry(-1 - i, "=" + id, Kind.STEP) for i, id in enumerate(ids) if chance.randrange(3) == 0]
    if chance.randrange(4) == 0:
        unordered.append(entry(-9, "~patch", Kind.PATCHED, name="patch"))
    return [*sorted(unordered, key=lambda e: e.seq), *found]


def instance(chance: random.Random) -> Loaded:
    """An instance that nobody owns, of any state."""
    begun = chance.randrange(8) > 0
    entries = journal(chance, chance.randint(1, 12)) if begun else []
    if not begun and chance.randrange(2):
        entries = [entry(-2, "=charge", Kind.STEP), entry(-1, "=ship", Kind.STEP)][: chance.randint(1, 2)]
    states = [State.SCHEDULED, State.CANCELLED, State.BLOCKED]
    state = chance.choice([*states, State.SUSPENDED, State.SUCCEEDED, State.FAILED, State.FAILED] if begun else states)
    failing = [e.seq for e in entries if e.kind in SETTABLE and e.kind != Kind.AGAIN]
    failed_seq = chance.choice([None, *failing]) if state is State.FAILED else None
    row = Instance(
        UID, RUN, "flow", "id", "flow", state, None, state is State.SUSPENDED, chance.choice([None, 50.0]), b"[1]", b"digest",
        None, b"outcome" if state.ended else None, "why" if state is State.BLOCKED else None, "v", 1.0,
        90.0 if state.ended else None, chance.choice([None, b"[0]"]), chance.choice([None, b"l" * 16]),
        chance.randint(-1, 3), failed_seq,
    )  # fmt: skip
    keys = {e.key for e in entries if e.kind != Kind.AGAIN}
    pending = [
        Pending(UID, RUN, key, Kind.STEP, "step", None, b"digest", bool(chance.randrange(2)), 2, 60.0, b"error", None)
        for key in ("=mail", "77", *(e.key for e in entries if e.kind == Kind.AGAIN))
        if key not in keys and chance.randrange(2)
    ]
    inbox = [
        message(n, chance.choice([MessageKind.MESSAGE] * 4 + [MessageKind.CANCEL, MessageKind.ANSWER]), f"k{n}")
        for n in range(chance.randrange(6))
    ]
    return Loaded(row, entries, pending, inbox)


def stage(chance: random.Random, loaded: Loaded) -> Staged:
    """What a panel would stage, with what it refuses left out."""
    staged = Staged()
    if chance.randrange(4) == 0:
        staged.arguments = b"[2]"
    for key in chance.sample([*sorted({e.key for e in recorded(loaded)}), "=new", "=mail", "77"], chance.randrange(4)):
        there = next((e for e in recorded(loaded) if e.key == key), None)
        outcomes = [Outcome(b"new"), Outcome(b"error", failed=True), Outcome(remove=True)]
        if there is not None and there.seq >= 0:
            outcomes = (outcomes[:2] if there.kind in SETTABLE else []) + (
                outcomes[2:] if there.kind in (Kind.STEP, Kind.AGAIN) else []
            )
        if outcomes:
            staged.entries[key] = chance.choice(outcomes)
    for one in [m for m in loaded.inbox if m.kind == MessageKind.MESSAGE]:
        match chance.randrange(4):
            case 0:
                staged.removed.add(one.mid)
            case 1:
                staged.replaced[one.mid] = mending.in_place_of(one, message(900))
            case _:
                pass
    staged.added += [message(800 + n) for n in range(chance.randrange(3))]
    return staged


def recorded(loaded: Loaded) -> list[Entry]:
    return [e for e in loaded.entries if e.kind not in PUSHED and e.kind != Kind.PATCHED]


class Edits:
    """An instance, what is staged, what becomes of it."""

    def __init__(self, chance: random.Random, verbs: Iterable[Verb]) -> None:
        self.loaded = instance(chance)
        self.staged = stage(chance, self.loaded)
        self.verb = chance.choice([*verbs])
        self.edit = plan(self.loaded, self.staged, self.verb)
        assert self.edit.row is None or self.edit.row.uid == UID

    def __repr__(self) -> str:
        return f"{self.verb}\n{self.loaded}\n{self.staged}\n=> {self.edit}"

    @property
    def row(self) -> Instance:
        assert self.edit.row is not None
        return self.edit.row

    @property
    def after(self) -> Loaded:
        return made(self.loaded, self.edit)


def plan(loaded: Loaded, staged: Staged, verb: Verb) -> Edit:
    outcome = b"end" if verb in (Verb.SUCCEED, Verb.FAIL) else None
    due_at = 500.0 if verb is Verb.POSTPONE else None
    return mending.plan(loaded, staged, verb, EDIT, AT, outcome=outcome, due_at=due_at)


def made(loaded: Loaded, edit: Edit) -> Loaded:
    """The instance as it is after the edit, by the words of the store contract; taken messages are out of sight."""
    assert edit.row is not None
    entries = {e.seq: e for e in loaded.entries} | {e.seq: e for e in edit.put}
    for seq in edit.drop:
        entries.pop(seq, None)
    inbox = {m.mid: m for m in loaded.inbox if m.mid not in edit.unsend}
    inbox |= {m.mid: m for m in edit.messages}
    return Loaded(
        replace(edit.row, edit=edit.id), sorted(entries.values(), key=lambda e: e.seq),
        [p for p in loaded.pending if p.key not in edit.forget], list(inbox.values()),
    )  # fmt: skip


SEEDS = st.integers(0, 1 << 32)
"""Of instances and edits: a thousand that are drawn piece by piece take minutes."""


def edits(*verbs: Verb) -> st.SearchStrategy[Edits]:
    return SEEDS.map(lambda seed: Edits(random.Random(seed), verbs or [v for v in Verb if v is not Verb.DELETE]))


def mending_the_failure(seed: int) -> Edits:
    """An edit that is saved and gives another outcome to the entry whose exception escaped."""
    chance = random.Random(seed)
    while True:
        it = Edits(chance, [Verb.SAVE])
        row = it.loaded.instance
        if row.state is State.FAILED and {e.key for e in it.loaded.entries if e.seq == row.failed_seq} & set(
            it.staged.entries
        ):
            return it


ANY = edits()
many = settings(max_examples=500)


@many
@given(ANY)
def test_it_is_guarded_by_what_was_read(it: Edits) -> None:
    row, edit = it.loaded.instance, it.edit
    length = sum(1 for e in it.loaded.entries if e.seq >= 0)
    assert (edit.uid, edit.run, edit.state, edit.ended_at, edit.last) == (UID, RUN, row.state, row.ended_at, row.edit)
    assert (edit.id, edit.at, edit.length) == (EDIT, AT, length)
    touched = {*it.staged.replaced, *it.staged.removed}
    assert set(edit.open) == touched
    assert touched <= {m.mid for m in it.loaded.inbox}


@many
@given(ANY)
def test_the_journal_stays_one(it: Edits) -> None:
    """Its ordered part has no gaps, and no operation has two entries, or an entry and failed attempts."""
    after = it.after
    ordered = [e.seq for e in after.entries if e.seq >= 0]
    assert ordered == list(range(len(ordered)))
    keys = [e.key for e in after.entries if e.kind not in PUSHED]
    assert len(keys) == len(set(keys))
    recorded_keys = {e.key for e in after.entries if e.kind != Kind.AGAIN}
    assert not recorded_keys & {p.key for p in after.pending}
    assert all(e.uid == UID and e.run == RUN for e in it.edit.put)


@many
@given(ANY)
def test_new_entries_have_seqs_that_are_free_and_others_keep_theirs(it: Edits) -> None:
    before = {e.seq: e for e in it.loaded.entries}
    for new in it.edit.put:
        old = before.get(new.seq)
        if old is None:
            assert new.seq < 0
            assert new.kind == Kind.STEP
            assert new.name == ""
        else:
            assert (old.key, old.name, old.arguments, old.at) == (new.key, new.name, new.arguments, new.at)
            assert old.kind == new.kind or {old.kind, new.kind} == {Kind.STEP, Kind.AGAIN}
    assert len({e.seq for e in it.edit.put}) == len(it.edit.put)
    assert not {e.seq for e in it.edit.put} & set(it.edit.drop)
    assert set(it.edit.drop) <= set(before)


@many
@given(ANY)
def test_what_nobody_touched_is_as_it_was(it: Edits) -> None:
    after = {e.seq: e for e in it.after.entries}
    touched = {e.seq for e in it.edit.put} | set(it.edit.drop)
    assert all(after[e.seq] == e for e in it.loaded.entries if e.seq not in touched)
    staged = set(it.staged.entries)
    assert {e.key for e in it.edit.put} <= staged
    if it.verb not in AGAIN or not it.loaded.instance.state.ended:
        assert {e.key for e in it.loaded.entries if e.seq in it.edit.drop} <= staged
        assert set(it.edit.forget) <= staged
        assert set(it.edit.unsend) == it.staged.removed


@many
@given(ANY)
def test_every_staged_outcome_is_there(it: Edits) -> None:
    after = {e.key: e for e in it.after.entries}
    for key, change in it.staged.entries.items():
        there = after.get(key)
        if not change.remove:
            assert there is not None
            assert (there.outcome, there.failed) == (change.data, change.failed)
            assert there.kind != Kind.AGAIN
        else:
            assert there is None or (there.kind, there.outcome, there.failed) == (Kind.AGAIN, None, False)


@many
@given(ANY)
def test_no_message_is_lost(it: Edits) -> None:
    """Those that nobody took are there but for the removed ones, and those whose taking is dropped are there again."""
    after = {m.mid: m for m in it.after.inbox}
    for one in it.loaded.inbox:
        if one.kind == MessageKind.MESSAGE and one.mid not in it.staged.removed:
            assert after[one.mid] == it.staged.replaced.get(one.mid, one)
        if one.kind == MessageKind.ANSWER:
            assert after[one.mid] == one
    dropped = [e for e in it.loaded.entries if e.seq in it.edit.drop]
    taken = [e for e in dropped if e.kind == Kind.RECEIVE and e.ref is not None and not e.failed]
    for e in taken:
        back = after[e.ref or b""]
        assert (back.kind, back.body, back.failed) == (MessageKind.MESSAGE, e.outcome, False)
        assert back.name == codec.decode(e.arguments or b"")[1]
    given_back = [m.mid for m in it.edit.messages if m.mid not in it.staged.replaced and m not in it.staged.added]
    assert given_back == [e.ref for e in taken]
    assert [m for m in it.edit.messages if m in it.staged.added] == it.staged.added
    asked_again = {answer_mid(UID, RUN, e.key) for e in dropped if e.kind == Kind.WAIT}
    assert asked_again <= set(it.edit.unsend)


@many
@given(ANY)
def test_planned_twice_it_is_the_same(it: Edits) -> None:
    assert plan(it.loaded, it.staged, it.verb) == it.edit


@many
@given(edits(Verb.SAVE))
def test_saved_twice_it_is_as_saved_once(it: Edits) -> None:
    """Entries keep their outcomes, and no second one appears; messages keep their places."""
    assume(not it.staged.removed)
    once = it.after
    again = made(once, plan(once, it.staged, Verb.SAVE))
    note(f"{again}")
    assert [(e.seq, e.key, e.kind, e.outcome) for e in again.entries] == [
        (e.seq, e.key, e.kind, e.outcome) for e in once.entries
    ]
    assert again.inbox == once.inbox
    assert again.pending == once.pending


@many
@given(ANY)
def test_the_row_is_what_the_verb_says(it: Edits) -> None:
    before, row = it.loaded.instance, it.row
    assert row.owner is None
    kept = (row.uid, row.run, row.flow, row.id, row.digest, row.parent, row.version, row.created_at)
    assert kept == (
        UID, RUN, before.flow, before.id, before.digest, before.parent, before.version, before.created_at
    )  # fmt: skip
    if it.staged.arguments is not None:
        assert (row.arguments, row.first) == (b"[2]", before.first or before.arguments)
    else:
        assert (row.arguments, row.first) == (before.arguments, before.first)
    match it.verb:
        case Verb.SUCCEED | Verb.FAIL:
            state = State.SUCCEEDED if it.verb is Verb.SUCCEED else State.FAILED
            assert (row.state, row.outcome, row.ended_at, row.due_at) == (state, b"end", AT, None)
            assert (row.failed_seq, row.reason) == (None, None)
        case Verb.RESTART | Verb.POSTPONE:
            assert_scheduled(row, 500.0 if it.verb is Verb.POSTPONE else AT)
        case _:
            begun = any(e.seq >= 0 for e in it.loaded.entries)
            inbox_only = it.staged.arguments is None and not it.staged.entries
            if before.state.ended or not begun or (before.state is State.SUSPENDED and inbox_only):
                assert (row.state, row.outcome, row.ended_at) == (before.state, before.outcome, before.ended_at)
                assert (row.due_at, row.reason) == (before.due_at, before.reason)
            else:
                assert_scheduled(row, AT)


def assert_scheduled(row: Instance, due_at: float) -> None:
    assert (row.state, row.due_at, row.waiting) == (State.SCHEDULED, due_at, False)
    assert (row.outcome, row.ended_at, row.reason, row.failed_seq) == (None, None, None, None)


@many
@given(ANY)
def test_arguments_of_steps_are_not_compared_up_to_the_last_entry_of_that_moment(it: Edits) -> None:
    last = max((e.seq for e in it.after.entries if e.seq >= 0), default=-1)
    edited = it.staged.arguments is not None or it.staged.entries or it.edit.drop
    assert it.row.edited_seq == (last if edited else it.loaded.instance.edited_seq)


@many
@given(edits(*AGAIN))
def test_a_restart_drops_from_what_ended_the_run_and_nothing_before(it: Edits) -> None:
    before, dropped = it.loaded.instance, set(it.edit.drop)
    ordered = [e for e in it.loaded.entries if e.seq >= 0]
    seq = before.failed_seq
    cancels = [e.seq for e in ordered if e.kind == Kind.CANCEL]
    if before.state is State.FAILED and seq is not None and seq < 0:
        first = None
        assert seq in dropped or any(e.seq == seq for e in it.edit.put)
    elif before.state is State.FAILED and seq is not None:
        mended = {e.key for e in ordered if e.seq == seq} & set(it.staged.entries)
        first = seq + 1 if mended else seq
    elif before.state in (State.CANCELLED, State.FAILED) and cancels:
        first = min(cancels)
    else:
        first = None
    expected: set[int] = set() if first is None else {e.seq for e in ordered if e.seq >= first}
    assert {n for n in dropped if n >= 0} == expected


@many
@given(edits(*AGAIN))
def test_a_restarted_instance_is_not_ended_by_the_same_requests_nor_waits_for_old_attempts(it: Edits) -> None:
    assume(it.loaded.instance.state.ended)
    assert not [m for m in it.after.inbox if m.kind == MessageKind.CANCEL]
    assert all(p.intent for p in it.after.pending)


@many
@given(SEEDS.map(mending_the_failure), st.sampled_from(AGAIN))
def test_an_outcome_that_was_saved_survives_a_later_restart(it: Edits, verb: Verb) -> None:
    """The entry whose exception escaped has another outcome since: only what came after it goes."""
    failed_seq = it.loaded.instance.failed_seq
    assert failed_seq is not None
    saved = it.after
    later = made(saved, plan(saved, Staged(), verb))
    last = failed_seq if failed_seq >= 0 else 1000
    assert later.entries == [e for e in saved.entries if e.seq <= last]


@many
@given(edits(Verb.DELETE))
def test_a_deletion_needs_no_more_than_the_guards(it: Edits) -> None:
    edit = it.edit
    assert edit.row is None
    assert (edit.put, edit.drop, edit.forget, edit.messages, edit.unsend) == ((), (), (), (), ())


# -- what people may call an operation

ENTRIES = [
    entry(-1, "=put", Kind.STEP), entry(0, "", Kind.BEGUN), entry(1, "0", Kind.STEP, name="charge"),
    entry(2, "=3", Kind.STEP, name="ship"), entry(3, "3", Kind.STEP, name="ship"), entry(4, "4.0", Kind.STEP, name="4"),
    entry(5, "", Kind.CANCEL, name="cancel"),
]  # fmt: skip
PENDING = [Pending(UID, RUN, "5", Kind.STEP, "mail", None, b"", False, 1, None, None, None)]


def described(**change: Any) -> Loaded:
    row = instance(random.Random(1)).instance
    return Loaded(row, ENTRIES, PENDING, [], **change)


@pytest.mark.parametrize(
    ("id", "key"),
    [
        ("put", "=put"),
        ("0", "0"),
        ("charge", "0"),
        ("3", "=3"),
        ("4.0", "4.0"),
        ("4", "4.0"),
        ("5", "5"),
        ("mail", "5"),
    ],
)
def test_an_operation_is_meant_by_its_id_then_its_path_then_its_name(id: str, key: str) -> None:
    assert mending.key_of(described(), id) == key


def test_a_name_of_several_operations_is_refused_and_the_paths_are_told() -> None:
    with pytest.raises(KeyError, match=r"2 operations are named 'ship': .* =3, 3"):
        mending.key_of(described(), "ship")


def test_what_is_not_there_is_refused_and_what_is_there_is_told() -> None:
    with pytest.raises(KeyError, match=r"no entry 'cancel'; entries are: 0, 3, 3, 4\.0, 5, put"):
        mending.key_of(described(), "cancel")
