"""Short words for the records, so that a test shows only what it is about; and what makes its coroutine a plain test."""

import asyncio
import functools
import inspect
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from typing import Any

from msgspec.structs import replace

from perdure.clock import Clock
from perdure.model.records import Entry, Instance, Kind, Loaded, Message, MessageKind, Pending, State
from perdure.model.writes import (
    Answer,
    Batch,
    Continue,
    Continued,
    Create,
    Created,
    Edit,
    Edited,
    Finish,
    Outdated,
    OwnedBy,
    PendingPut,
    Release,
    Send,
    Sent,
    Watch,
    Write,
)
from perdure.stores.contract import Store

LEASE = 10.0
LIMIT_S = 60
"""A test that has not ended by then fails: a store that hangs shall not hang the suite."""


class MovableClock(Clock):
    """Time stands still until a test sets `now`; whoever waits for time then looks again."""

    def __init__(self) -> None:
        self._now = 1_800_000_000.0
        self._watchers: list[Callable[[], None]] = []

    @property
    def now(self) -> float:
        """What both clocks show, epoch seconds."""
        return self._now

    @now.setter
    def now(self, at: float) -> None:
        self._now = at
        for moved in list(self._watchers):
            moved()

    def wall(self) -> float:
        """See Clock."""
        return self._now

    def boot(self) -> float:
        """See Clock."""
        return self._now - 1_000_000_000.0

    def on_move(self, moved: Callable[[], None]) -> Callable[[], None]:
        """See Clock."""
        self._watchers.append(moved)
        return lambda: self._watchers.remove(moved)


def uid(number: int) -> bytes:
    return number.to_bytes(16, "big")


def entry(of: int, seq: int, outcome: bytes = b"1", *, run: int = 0, kind: str = Kind.STEP) -> Entry:
    return Entry(uid(of), run, seq, str(seq), kind, "work", b"[]", b"digest-8", False, outcome, 1, 1.0, 2.0)


def create(  # noqa: PLR0913  what a creation may say
    number: int, id: str | None = None, *, flow: str = "f", lane: str | None = None, owned: bool = True, due_at: float | None = None,
    parent: int | None = None, arguments: bytes = b"[]", at: float = 1.0, version: str = "v1",
    initial: tuple[Entry, ...] = (), inbox: tuple[Message, ...] = (),
) -> Create:  # fmt: skip
    return Create(
        uid=uid(number),
        flow=flow,
        id=f"i{number}" if id is None else id,
        lane=flow if lane is None else lane,
        arguments=arguments,
        digest=b"d:" + arguments,
        parent=None if parent is None else uid(parent),
        owned=owned,
        due_at=due_at,
        version=version,
        at=at,
        begun=entry(number, 0, kind=Kind.BEGUN) if owned else None,
        initial=initial,
        inbox=inbox,
    )


def message(number: int, body: bytes = b"{}", *, key: str | None = None, kind: str = MessageKind.MESSAGE,
            name: str | None = None, run: int = -1, sent_at: float = 5.0) -> Message:  # fmt: skip
    return Message(b"m" + number.to_bytes(15, "big"), kind, key, name, "T", body, False, run, sent_at)


def send(
    to: int, number: int, *, key: str | None = None, kind: str = MessageKind.MESSAGE, sent_at: float = 5.0
) -> Send:
    return Send("f", f"i{to}", message(number, key=key, kind=kind, sent_at=sent_at))


def evict(to: int, number: int, replica: str) -> Send:
    """The owner is asked to hand the instance over to the replica."""
    return Send("f", f"i{to}", message(number, kind=MessageKind.EVICT, name=replica))


def pending(of: int, key: str = "1", attempt: int = 1, *, run: int = 0) -> PendingPut:
    return PendingPut(
        Pending(uid(of), run, key, Kind.STEP, "work", b"[]", b"dd", True, attempt, 3.5, b"error", b"half")
    )


def finish(of: int, state: State = State.SUCCEEDED, outcome: bytes | None = b"done", *, at: float = 9.0,
           children: bool = False, failed_seq: int | None = None, term: int = 0) -> Finish:  # fmt: skip
    return Finish(uid(of), term, state, outcome, at, children, failed_seq)


def again(of: int, run: int = 1, *, arguments: bytes = b"[2]", children: bool = False, at: float = 2.0) -> Continue:
    """The instance continues as new."""
    begun = replace(entry(of, 0, run=run, kind=Kind.BEGUN), at=at)
    return Continue(uid(of), run, arguments, "v1", begun, children)


def suspend(of: int, *, due_at: float | None = None, seen: tuple[bytes, ...] = (), to: str | None = None) -> Release:
    return Release(uid(of), 0, State.SUSPENDED, due_at, seen, to=to)


def block(of: int, version: str = "v1", process: str = "p1", *, to: str | None = None) -> Release:
    return Release(uid(of), 0, State.BLOCKED, None, reason="why", version=version, process=process, to=to)


def watch(asker: int, target: int, key: str = "1", *, digest: bytes | None = None, run: int = 0) -> Watch:
    return Watch(uid(asker), run, key, "f", f"i{target}", digest)


def numbers(rows: list[Instance]) -> list[int]:
    return [int.from_bytes(row.uid, "big") for row in rows]


def mids(*numbers: int) -> list[bytes]:
    return [message(n).mid for n in numbers]


async def until(condition: Callable[[], object]) -> None:
    """The condition holds; it is looked at often, and a test that it never comes true for ends by the limit."""
    while not condition():  # noqa: ASYNC110  what it waits for comes from any thread
        await asyncio.sleep(0.002)


class Kit:
    """A store, and what a test says to it as one replica or another."""

    def __init__(self, store: Store, clock: MovableClock, runner: asyncio.Runner | None = None) -> None:
        self.store = store
        self.clock = clock
        self.runner = runner
        """Whose loop the store was opened on; None: that of whoever calls."""
        self.at_end = AsyncExitStack()
        """What is done when the test is over, before the store is closed."""
        self.epochs: dict[str, int] = {}

    async def join(self, replica: str, version: str = "", **flows: str) -> None:
        """With this version of the flow f, and others of others."""
        self.epochs[replica] = await self.store.join(replica, LEASE, {"f": version, **flows})

    async def commit(self, *writes: Write, by: str | None = "a") -> list[Answer]:
        epoch = self.epochs[by] if by is not None else 0
        return await self.store.commit(Batch(by, epoch, list(writes), self.clock.now))

    async def one(self, write: Write, by: str | None = "a") -> Answer:
        (answer,) = await self.commit(write, by=by)
        return answer

    async def sent(self, write: Write, by: str | None = "a") -> Sent:
        answer = await self.one(write, by)
        assert isinstance(answer, Sent), answer
        return answer

    async def created(self, write: Create, by: str | None = "a") -> Created:
        answer = await self.one(write, by)
        assert isinstance(answer, Created), answer
        return answer

    async def continued(self, write: Continue, by: str | None = "a") -> Continued:
        answer = await self.one(write, by)
        assert isinstance(answer, Continued), answer
        return answer

    async def claim(self, by: str = "a", *, flows: Mapping[str, str] | None = None, limit: int = 100,
                    thorough: bool = False, version: str = "") -> list[Instance]:  # fmt: skip
        flows = {"f": version} if flows is None else flows
        rows, _ = await self.store.claim(
            by, self.epochs[by], flows=flows, now=self.clock.now, limit=limit, thorough=thorough
        )
        return rows

    async def claimed(self, by: str = "a", *, limit: int = 100, thorough: bool = False, version: str = "") -> list[int]:
        return numbers(await self.claim(by, limit=limit, thorough=thorough, version=version))

    async def next_due(self, by: str = "a", *, version: str = "") -> float | None:
        _, due = await self.store.claim(by, self.epochs[by], flows={"f": version}, now=self.clock.now, limit=0)
        return due

    async def tried(self, version: str, process: str = "p1", *, by: str = "a") -> list[int]:
        """The blocked instances that this code may try; they are blocked no more."""
        rows, last = await self.store.claim_blocked(
            by, self.epochs[by], flows={"f": version}, process=process, after=b"", limit=100
        )
        assert last == b"", last
        return numbers(rows)

    async def retire(self, before: float, *, limit: int = 100) -> int:
        return await self.store.retire("a", self.epochs["a"], before=before, now=self.clock.now, limit=limit)

    async def staged(self, number: int, /, *, id: str = "edit", delete: bool = False,
                     change: dict[str, Any] | None = None, **rest: Any) -> Edit:  # fmt: skip
        """An edit of the instance as it stands now, with these changes of its row."""
        loaded = await self.load(number)
        row = loaded.instance
        return Edit(
            id=id.encode().ljust(16, b"-"),
            uid=row.uid,
            run=row.run,
            state=row.state,
            length=max((e.seq + 1 for e in loaded.entries if e.seq >= 0), default=0),
            ended_at=row.ended_at,
            last=row.edit,
            row=None if delete else replace(row, **(change or {})),
            at=self.clock.now,
            **rest,
        )

    async def edit(self, edit: Edit, by: str | None = None) -> Edited | OwnedBy | Outdated:
        return await self.store.edit(by, self.epochs[by] if by is not None else 0, edit)

    async def edited(self, number: int, /, *, by: str | None = None, **how: Any) -> Edited:
        """The instance as it stands now is edited so."""
        answer = await self.edit(await self.staged(number, **how), by)
        assert isinstance(answer, Edited), answer
        return answer

    async def row(self, number: int) -> Instance:
        (row,) = await self.store.instances([uid(number)])
        return row

    async def load(self, number: int) -> Loaded:
        (loaded,) = await self.store.load([uid(number)])
        return loaded

    async def inbox(self, number: int) -> list[Message]:
        return (await self.store.inbox([uid(number)]))[uid(number)]

    async def mids(self, number: int) -> list[bytes]:
        return [m.mid for m in await self.inbox(number)]

    async def wakeups(self, by: str = "a") -> list[int]:
        return sorted(int.from_bytes(u, "big") for u in await self.store.wakeups(by, self.epochs[by]))

    async def seqs(self, number: int) -> list[int]:
        """The seqs of the journal."""
        return [e.seq for e in (await self.load(number)).entries]

    async def taken_over(self, *replicas: str, me: str) -> None:
        """`replicas` miss their lease while `me` holds its own, and `me` reaps them."""
        self.clock.now += LEASE * 0.7
        self.store.renew(me, LEASE)
        self.clock.now += LEASE * 0.7
        self.store.renew(me, LEASE)
        reaped = await self.store.reap(me, kill_hung=False)
        assert sorted(reaped.taken) == sorted(replicas), reaped

    async def taken_over_by_b(self) -> None:
        """Replica `a` is taken over."""
        await self.join("b")
        await self.taken_over("a", me="b")


def plain_tests(module: dict[str, Any]) -> None:
    """The coroutine tests of the module are plain functions, which pytest runs with no plugin's help.

    A hook at the time of the run would not do: pytest-asyncio and anyio take hold of a coroutine test when it is
    collected.
    """
    for name, test in list(module.items()):
        if name.startswith("test_") and inspect.iscoroutinefunction(test):
            module[name] = _plain(test)


def _plain(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    async def within_the_limit(**given: Any) -> None:
        async with asyncio.timeout(LIMIT_S):
            await test(**given)

    @functools.wraps(test)
    def plain(*, kit: Kit, **given: Any) -> None:
        assert kit.runner is not None, "the kit of a test comes from the fixture"
        kit.runner.run(within_the_limit(kit=kit, **given))

    return plain
