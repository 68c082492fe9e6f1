"""What must hold when all programs of a round have ended: effects, journals, states, messages counted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from perdure import Engine, State, Store
from perdure.model.records import Kind, Loaded
from tests.soak.ledger import Effects, Ledger
from tests.soak.making import Effect, Round

CHUNK: Final = 200
NOT_ENDED: Final = (State.SCHEDULED, State.RUNNING, State.SUSPENDED, State.BLOCKED)


def store_of(client: Engine) -> Store:
    """What the client reads from."""
    return client._store  # pyright: ignore[reportPrivateUsage]


def effects(made: Round, ledger: Ledger, prefix: str, cancelled_twice: set[str]) -> Iterator[str]:
    """What the ledger tells that cannot be."""
    for place, effect in made.effects.items():
        sure = effect.sure and place.partition("/")[0] not in cancelled_twice
        wrong = _effect(effect, ledger.places.get(place, Effects()), sure=sure)
        if wrong:
            yield f"{effect.kind} at {place}: {wrong}"
    for place, done in ledger.places.items():
        if place.startswith(prefix) and place not in made.effects and ("/" in place or len(done.values) != 1):
            yield f"{place}: a step ran that is in no program, or twice: {done}"


def _effect(effect: Effect, done: Effects, *, sure: bool) -> str:
    if effect.kind == "once":
        return f"an at-most-once step ran {done.lines} times" if done.lines > 1 else ""
    if len(done.values) > 1:
        return f"it ran as {len(done.values)} operations: {', '.join(done.values)}"
    if sure and not done.values:
        return "it did not run"
    if any(len(values) != 1 for values in done.values.values()):
        return f"one operation ran with different arguments: {done.values}"
    if effect.attempts is not None and not (
        done.attempts == effect.attempts if sure else done.attempts <= effect.attempts
    ):
        return f"its attempts were {sorted(done.attempts)}, not {sorted(effect.attempts)}"
    return ""


def written(made: Round, rows: list[tuple[str, int]]) -> Iterator[str]:
    """What transactions wrote that they did not, or wrote twice, or not at all."""
    found: dict[str, list[int]] = {}
    for place, n in rows:
        found.setdefault(place, []).append(n)
    for place, (n, sure) in made.rows.items():
        got = found.pop(place, [])
        if got != [n] and (sure or got):
            yield f"the transaction at {place} wrote {got}, not {[n]}"
    if found:
        yield f"there are rows of no transaction: {found}"


async def journals(client: Engine, ledger: Ledger, prefix: str) -> tuple[int, list[str]]:
    """How many instances the round has, and what is wrong with their states and journals."""
    store, wrong, count = store_of(client), list[str](), 0
    after: bytes | None = None
    while page := await store.find(flow=None, states=None, since=None, after=after, limit=CHUNK):
        after = page[-1].uid
        left = [row.uid for row in page if row.id.startswith(prefix)]
        count += len(left)
        while left:
            loaded = await store.load(left)
            for one in loaded:
                if problem := _journal(one, ledger):
                    wrong.append(f"{one.instance.flow} {one.instance.id!r}: {problem}")
            left = left[len(loaded) :] if loaded else []
    return count, wrong


def _journal(loaded: Loaded, ledger: Ledger) -> str:
    row = loaded.instance
    if row.state in NOT_ENDED:
        return f"it is {row.state.value}"
    if row.owner is not None:
        return f"it has ended, and {row.owner} still owns it"
    numbers = [entry.seq for entry in loaded.entries if entry.seq >= 0]
    if not loaded.more and numbers != list(range(len(numbers))):
        return f"its journal has the entries {numbers}"
    if loaded.pending:
        return f"it has ended, and {len(loaded.pending)} operations are pending"
    if row.flow == "soak.sleeper":
        requests = sum(entry.kind == Kind.CANCEL for entry in loaded.entries)
        if requests == 1 and row.id not in ledger.places:  # a second one cuts the cleaning off
            return "it was cancelled and did not clean up"
    return ""
