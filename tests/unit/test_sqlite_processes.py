"""Several processes on one file: death, stopping in the wrong place, fairness, and being told of each other."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from perdure.errors import LeaseLost
from perdure.model.records import State
from perdure.model.writes import Batch, Create
from perdure.stores.sqlite import SqliteStore
from perdure.stores.sqlite.replicas import write_lock_holder
from perdure.system import System
from perdure.testing.conformance.kit import MovableClock

PEER = Path(__file__).with_name("sqlite_peer.py")
LEASE = 10.0


class Shifted(MovableClock):
    """The machine's clocks, moved on by a test: other processes look late from here."""

    shift = 0.0

    def wall(self) -> float:
        return super(MovableClock, self).wall() + self.shift

    def boot(self) -> float:
        return super(MovableClock, self).boot() + self.shift


class Peer:
    def __init__(self, path: Path, replica: str, lease: float = LEASE) -> None:
        command = [sys.executable, str(PEER), str(path), replica, str(lease)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self.process.pid

    def ask(self, *words: str) -> None:
        assert self.process.stdin is not None
        for word in words:
            self.process.stdin.write(word + "\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def do(self, *words: str) -> str:
        for word in words:
            self.ask(word)
            answer = self.answer()
        return answer

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def stopped(self) -> None:
        """The process stands still."""
        self.signal(signal.SIGSTOP)
        os.waitpid(self.pid, os.WUNTRACED)

    def killed(self) -> None:
        self.process.kill()
        self.process.wait()


Starter = Callable[..., Peer]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "test.db"


@pytest.fixture
def peer(path: Path) -> Iterator[Starter]:
    peers: list[Peer] = []

    def start(replica: str, *words: str, lease: float = LEASE) -> Peer:
        peers.append(Peer(path, replica, lease))
        if words:
            assert peers[-1].do(*words) == "ok"
        return peers[-1]

    yield start
    for one in peers:
        one.killed()
        for pipe in (one.process.stdin, one.process.stdout):
            if pipe is not None:
                pipe.close()


@pytest.fixture
async def mine(path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(path, System(Shifted()))
    await store.open()
    await store.join("me", LEASE)
    yield store
    await store.close()


def late(store: SqliteStore) -> None:
    """This process has held its lease all the time, and the others have not renewed theirs."""
    clock = store.system.clock
    assert isinstance(clock, Shifted)
    for _ in range(3):
        clock.shift += LEASE * 0.7
        store.renew("me", LEASE)


async def owner_of(store: SqliteStore, number: int) -> tuple[str | None, State]:
    row = await store.instance("f", f"i{number}")
    assert row is not None
    return row.owner, row.state


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while not await true():
            await asyncio.sleep(0.005)


async def test_a_killed_process_is_taken_over_at_once(mine: SqliteStore, peer: Starter) -> None:
    other = peer("other", "open", "join", "create 1")
    assert (await mine.reap("me", kill_hung=False)).taken == ()
    other.killed()
    assert (await mine.reap("me", kill_hung=False)).taken == ("other",)
    assert await owner_of(mine, 1) == (None, State.SCHEDULED)
    assert [p.name for p in Path(f"{mine.path}-replicas").glob("*.replica")] == ["me.replica"]


@pytest.mark.fault(7)
async def test_a_forked_child_does_not_keep_its_dead_parent_alive(mine: SqliteStore, peer: Starter) -> None:
    other = peer("other", "open", "join", "create 1", "fork")
    other.killed()
    taken: tuple[str, ...] = ()
    deadline = time.monotonic() + 5
    while not taken and time.monotonic() < deadline:  # the child closes its copy as soon as the kernel lets it run
        taken = (await mine.reap("me", kill_hung=False)).taken
    assert taken == ("other",)
    assert other.process.stdin is not None
    other.process.stdin.close()  # the child ends


async def test_a_process_killed_in_mid_transaction_leaves_nothing_locked(mine: SqliteStore, peer: Starter) -> None:
    other = peer("other", "open", "join", "create 1")
    assert other.do("hold") == "ok"
    assert write_lock_holder(mine.path) == other.pid
    other.killed()
    assert (await mine.reap("me", kill_hung=False)).taken == ("other",)
    await mine.check()


@pytest.mark.fault(3)
@pytest.mark.peer(5)
async def test_a_stopped_process_is_taken_over_by_its_lease_and_writes_nothing_more(
    mine: SqliteStore, peer: Starter
) -> None:
    other = peer("other", "open", "join", "create 1")
    other.stopped()
    assert (await mine.reap("me", kill_hung=False)).taken == ()
    late(mine)
    assert (await mine.reap("me", kill_hung=False)).taken == ("other",)
    assert await owner_of(mine, 1) == (None, State.SCHEDULED)
    other.signal(signal.SIGCONT)
    assert other.do("entry 1 1").startswith("LeaseLost")
    assert other.do("renew").startswith("LeaseLost")
    assert other.do("create 2").startswith("LeaseLost")
    (loaded,) = await mine.load([(1).to_bytes(16, "big")])
    assert [e.seq for e in loaded.entries] == [0]


@pytest.mark.fault(22)
async def test_a_process_stopped_in_mid_transaction_is_named_by_pid(mine: SqliteStore, peer: Starter) -> None:
    other = peer("other", "open", "join", "create 1")
    assert other.do("hold") == "ok"
    other.stopped()
    late(mine)
    found = await mine.reap("me", kill_hung=False)
    assert found.taken == ()
    assert [(h.replica, h.pid) for h in found.hung] == [("other", other.pid)]
    assert found.hung[0].since < mine.system.clock.wall()
    other.killed()
    assert (await mine.reap("me", kill_hung=False)).taken == ("other",)


async def test_a_process_stopped_in_mid_transaction_is_killed_if_that_is_wanted(
    mine: SqliteStore, peer: Starter
) -> None:
    other = peer("other", "open", "join", "create 1")
    innocent = peer("innocent", "open", "join")
    assert other.do("hold") == "ok"
    other.stopped()
    held = await mine.reap("me", kill_hung=True)  # its lease is good: nobody is killed
    assert (held.taken, held.hung) == ((), ())
    assert other.process.poll() is None
    late(mine)
    found = await mine.reap("me", kill_hung=True)
    assert "other" in found.taken
    assert other.process.wait() == -signal.SIGKILL
    assert innocent.process.poll() is None
    assert await owner_of(mine, 1) == (None, State.SCHEDULED)


async def test_who_holds_the_lock_but_is_not_late_is_not_killed(mine: SqliteStore, peer: Starter) -> None:
    late_one = peer("late", "open", "join", "create 1")
    late_one.stopped()
    late(mine)
    busy = peer("busy", "open", "join", lease=1000.0)
    assert busy.do("hold") == "ok"
    found = await mine.reap("me", kill_hung=True)
    assert (found.taken, found.hung) == ((), ())
    assert busy.process.poll() is None
    assert late_one.process.poll() is None


async def test_a_takeover_that_was_cut_short_is_finished_by_another(mine: SqliteStore, peer: Starter) -> None:
    other = peer("other", "open", "join", "create 1")
    writer = mine._writer
    assert writer is not None
    await writer.write(lambda db: db.execute("update fence set alive = 0, epoch = epoch + 1").fetchall())
    assert other.do("entry 1 1").startswith("LeaseLost")
    await writer.write(lambda db: db.execute("update fence set alive = 1 where replica = 'me'").fetchall())
    assert (await mine.reap("me", kill_hung=False)).taken == ("other",)
    assert await owner_of(mine, 1) == (None, State.SCHEDULED)


async def test_a_process_that_stands_in_the_turnstile_stops_nobody(mine: SqliteStore, peer: Starter) -> None:
    peer("other", "open", "turnstile")
    clock = mine.system.clock
    begin = clock.monotonic()
    for _ in range(20):
        await mine.check()
    assert clock.monotonic() - begin < 5  # patience ends once, not twenty times


@pytest.mark.fault(22, 23)
async def test_writers_take_turns(peer: Starter) -> None:
    peers = [peer(f"p{n}", "open", "join") for n in range(3)]
    for one in peers:
        one.ask("hammer 0.6")
    counts = sorted(int(one.answer()) for one in peers)
    assert counts[0] > counts[-1] / 5


async def test_processes_are_told_of_each_other(mine: SqliteStore, peer: Starter) -> None:
    other = peer("other", "open")
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    mine.on_change(lambda: loop.call_soon_threadsafe(told.set))
    other.ask("told")
    create = Create((7).to_bytes(16, "big"), "f", "i7", "f", b"", b"", None, False, None, "v", 1.0, None)
    await mine.commit(Batch(None, 0, [create], 1.0))
    assert other.answer() == "ok"
    told.clear()
    assert other.do("join") == "ok"
    async with asyncio.timeout(20):
        await told.wait()


@pytest.mark.fault(28)
async def test_many_processes_make_one_new_file(path: Path, peer: Starter) -> None:
    peers = [peer(f"p{n}") for n in range(4)]
    for one in peers:
        one.ask("open", "join", f"create {one.pid}", "close")
    assert [[one.answer() for _ in range(4)] for one in peers] == [["ok"] * 4] * 4
    store = SqliteStore(path)
    await store.open()
    assert len(await store.find(flow=None, states=None, since=None, after=None, limit=10)) == 4
    await store.close()


@pytest.mark.fault(1)
async def test_a_process_killed_at_any_instant_leaves_whole_batches(mine: SqliteStore, peer: Starter) -> None:
    for _ in range(5):
        other = peer(f"p{os.urandom(4).hex()}", "open", "join")
        other.ask("hammer 20")
        uid = other.pid.to_bytes(16, "big")

        async def begun(uid: bytes = uid) -> bool:
            writer = mine._writer
            assert writer is not None
            counted = await writer.do(lambda db: db.execute("select count(*) from entry where uid = ?", (uid,)).get)
            return bool(counted > 3)

        await until(begun)
        other.killed()
    await mine.check()
    writer = mine._writer
    assert writer is not None
    assert await writer.do(lambda db: db.pragma("integrity_check")) == "ok"
    gaps = "select count(*) from (select uid from entry group by uid having count(*) <> max(seq))"
    assert await writer.do(lambda db: db.execute(gaps).get) == 0
    assert len((await mine.reap("me", kill_hung=False)).taken) == 5


@pytest.mark.fault(28)
@pytest.mark.peer(2)
async def test_a_replica_id_is_held_by_one_process(mine: SqliteStore, peer: Starter) -> None:
    peer("other", "open", "join")
    with pytest.raises(LeaseLost):
        await mine.join("other", LEASE)
