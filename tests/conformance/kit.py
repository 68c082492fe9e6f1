"""Short words for the records, so that a test shows only what it is about."""

from perdure.clock import Clock
from perdure.model.records import Entry, Instance, Kind, Loaded, Message, MessageKind, Pending, State
from perdure.model.writes import (
    Answer,
    Batch,
    Create,
    Created,
    Finish,
    PendingPut,
    Release,
    Send,
    Sent,
    Watch,
    Write,
)
from perdure.stores.contract import Store

LEASE = 10.0


class MovableClock(Clock):
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def wall(self) -> float:
        return self.now

    def boot(self) -> float:
        return self.now - 1_000_000_000.0


def uid(number: int) -> bytes:
    return number.to_bytes(16, "big")


def entry(of: int, seq: int, outcome: bytes = b"1", *, run: int = 0, kind: str = Kind.STEP) -> Entry:
    return Entry(uid(of), run, seq, str(seq), kind, "work", b"[]", b"digest-8", False, outcome, 1, 1.0, 2.0)


def create(number: int, id: str | None = None, *, flow: str = "f", owned: bool = True, due_at: float | None = None,
           parent: int | None = None, arguments: bytes = b"[]", at: float = 1.0) -> Create:  # fmt: skip
    return Create(
        uid=uid(number),
        flow=flow,
        id=f"i{number}" if id is None else id,
        arguments=arguments,
        digest=b"d:" + arguments,
        parent=None if parent is None else uid(parent),
        owned=owned,
        due_at=due_at,
        version="v1",
        at=at,
        begun=entry(number, 0, kind=Kind.BEGUN) if owned else None,
    )


def message(number: int, body: bytes = b"{}", *, key: str | None = None, kind: str = MessageKind.MESSAGE) -> Message:
    return Message(b"m" + number.to_bytes(15, "big"), kind, key, None, "T", body, False, -1, 5.0)


def send(to: int, number: int, *, key: str | None = None, kind: str = MessageKind.MESSAGE) -> Send:
    return Send("f", f"i{to}", message(number, key=key, kind=kind))


def pending(of: int, key: str = "1", attempt: int = 1) -> PendingPut:
    return PendingPut(Pending(uid(of), 0, key, Kind.STEP, "work", b"[]", b"dd", True, attempt, 3.5, b"error", b"half"))


def finish(
    of: int, state: State = State.SUCCEEDED, outcome: bytes | None = b"done", *, children: bool = False
) -> Finish:
    return Finish(uid(of), state, outcome, 9.0, children)


def suspend(of: int, *, due_at: float | None = None, seen: tuple[bytes, ...] = ()) -> Release:
    return Release(uid(of), State.SUSPENDED, due_at, seen)


def watch(asker: int, target: int, key: str = "1", *, digest: bytes | None = None) -> Watch:
    return Watch(uid(asker), 0, key, "f", f"i{target}", digest)


class Kit:
    """A store, and what a test says to it as one replica or another."""

    def __init__(self, store: Store, clock: MovableClock) -> None:
        self.store = store
        self.clock = clock
        self.epochs: dict[str, int] = {}

    async def join(self, replica: str) -> None:
        self.epochs[replica] = await self.store.join(replica, LEASE)

    async def commit(self, *writes: Write, by: str | None = "a") -> list[Answer]:
        epoch = self.epochs[by] if by is not None else 0
        return await self.store.commit(Batch(by, epoch, list(writes), self.clock.now))

    async def one(self, write: Write, by: str | None = "a") -> Answer:
        (answer,) = await self.commit(write, by=by)
        return answer

    async def sent(self, write: Write, by: str | None = "a") -> Sent:
        answer = await self.one(write, by)
        assert isinstance(answer, Sent)
        return answer

    async def created(self, write: Create, by: str | None = "a") -> Created:
        answer = await self.one(write, by)
        assert isinstance(answer, Created)
        return answer

    async def claim(self, by: str = "a", *, flows: tuple[str, ...] = ("f",), limit: int = 100,
                    thorough: bool = False) -> list[Instance]:  # fmt: skip
        rows, _ = await self.store.claim(
            by, self.epochs[by], flows=flows, now=self.clock.now, limit=limit, thorough=thorough
        )
        return rows

    async def claimed(self, by: str = "a", *, thorough: bool = False) -> list[int]:
        return [int.from_bytes(row.uid, "big") for row in await self.claim(by, thorough=thorough)]

    async def next_due(self, by: str = "a") -> float | None:
        _, due = await self.store.claim(by, self.epochs[by], flows=["f"], now=self.clock.now, limit=0)
        return due

    async def row(self, number: int) -> Instance:
        (row,) = await self.store.instances([uid(number)])
        return row

    async def load(self, number: int) -> Loaded:
        (loaded,) = await self.store.load([uid(number)])
        return loaded

    async def inbox(self, number: int) -> list[Message]:
        return (await self.store.inbox([uid(number)]))[uid(number)]

    async def bodies(self, number: int) -> list[bytes]:
        return [m.mid for m in await self.inbox(number)]

    async def wakeups(self, by: str = "a") -> list[int]:
        return sorted(int.from_bytes(u, "big") for u in await self.store.wakeups(by))

    async def taken_over(self, *replicas: str, me: str) -> None:
        """`replicas` miss their lease while `me` holds its own, and `me` reaps them."""
        self.clock.now += LEASE * 0.7
        self.store.renew(me, LEASE)
        self.clock.now += LEASE * 0.7
        self.store.renew(me, LEASE)
        reaped = await self.store.reap(me, kill_hung=False)
        assert sorted(reaped.taken) == sorted(replicas)

    async def taken_over_by_b(self) -> None:
        """Replica `a` is taken over."""
        await self.join("b")
        await self.taken_over("a", me="b")
