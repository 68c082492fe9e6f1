"""What is wrong with a file is said clearly, by the right error, and nothing is made worse."""

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from perdure.clock import Clock
from perdure.errors import (
    CommitUnknown,
    EngineClosed,
    LeaseLost,
    NotOurs,
    StoreCorrupt,
    StoreFull,
    StoreRefused,
    StoreUnavailable,
)
from perdure.model.records import Entry, Kind
from perdure.model.writes import Batch, Create, Created, Write
from perdure.stores.memory import MemoryStore
from perdure.stores.open import open_store
from perdure.stores.sqlite import SqliteStore
from perdure.system import System


class SkippingClock(Clock):
    skipped = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.skipped


def create(number: int, id: str = "", arguments: bytes = b"[]") -> Create:
    return Create(
        number.to_bytes(16, "big"), "f", id or f"i{number}", "f", arguments, b"d", None, False, None, "v", 1.0, None
    )  # fmt: skip


async def commit(store: SqliteStore, *writes: Write, epoch: int | None = None) -> list[Any]:
    return await store.commit(Batch(None if epoch is None else "a", epoch or 0, list(writes), 1.0))


async def on_writer(store: SqliteStore, work: Callable[[Any], Any]) -> None:
    """The work is done with the connection that writes, on its thread."""
    assert store._writer is not None
    await store._writer.do(work)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "test.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(path, System(SkippingClock()))
    await store.open()
    yield store
    await store.close()


async def opened_and_closed(path: Path) -> None:
    store = SqliteStore(path)
    try:
        await store.open()
    finally:
        await store.close()


# -- at open


async def test_what_was_committed_is_there_after_opening_again(path: Path) -> None:
    store = SqliteStore(path)
    await store.open()
    await commit(store, create(1))
    await store.close()
    assert not Path(f"{path}-wal").exists()
    await store.open()
    assert await store.instance("f", "i1") is not None
    await store.close()


async def test_an_empty_file_becomes_a_store(path: Path) -> None:
    path.touch()
    await opened_and_closed(path)
    assert path.stat().st_size > 0


async def test_a_file_that_is_no_database_is_refused_and_left_alone(path: Path) -> None:
    path.write_bytes(b"name;amount\n" * 1000)
    with pytest.raises(NotOurs, match="not a SQLite database"):
        await opened_and_closed(path)
    assert path.read_bytes() == b"name;amount\n" * 1000


async def test_another_programs_database_is_refused_and_left_alone(path: Path) -> None:
    other = apsw.Connection(str(path))
    other.execute("create table customer(name)")
    other.close()
    before = path.read_bytes()
    with pytest.raises(NotOurs, match="customer"):
        await opened_and_closed(path)
    assert path.read_bytes() == before


async def test_a_newer_store_is_refused(path: Path) -> None:
    await opened_and_closed(path)
    other = apsw.Connection(str(path))
    other.pragma("user_version", 99)
    other.close()
    with pytest.raises(NotOurs, match="newer"):
        await opened_and_closed(path)


@pytest.mark.fault(26)
async def test_a_damaged_file_is_refused_and_left_alone(path: Path) -> None:
    store = SqliteStore(path)
    await store.open()
    await commit(store, *(create(n, arguments=b"x" * 500) for n in range(500)))
    await store.close()
    content = bytearray(path.read_bytes())
    content[4096 * 20 : 4096 * 40] = b"\xa5" * 4096 * 20
    path.write_bytes(content)
    with pytest.raises(StoreCorrupt, match="restore a copy"):
        await opened_and_closed(path)
    assert path.read_bytes() == bytes(content)


async def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="directory does not exist"):
        await opened_and_closed(tmp_path / "none" / "x.db")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    if os.geteuid() != 0 or mount is None:
        pytest.skip("only root may mount a small disk")
    done = subprocess.run([mount, "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no small disk here: {done.stderr.decode()}")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.fault(25)
async def test_a_read_only_directory_is_named(small_disk: Path) -> None:
    await opened_and_closed(small_disk / "x.db")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(StoreUnavailable, match="right to write"):
        await opened_and_closed(small_disk / "x.db")
    with pytest.raises(StoreUnavailable):
        await opened_and_closed(small_disk / "new.db")


@pytest.mark.fault(24)
async def test_a_full_disk_refuses_whole_batches_and_goes_on_when_there_is_room(small_disk: Path) -> None:
    store = SqliteStore(small_disk / "x.db")
    await store.open()
    written = 0
    with pytest.raises(StoreFull, match="make room"):
        while written < 100:
            await commit(store, *(create(written * 50 + n, arguments=b"x" * 1000) for n in range(50)))
            written += 1
    with pytest.raises(StoreFull):
        await commit(store, *(create(n, arguments=b"x" * 1000) for n in range(9000, 9050)))
    rows = await store.find(flow=None, states=None, since=None, after=None, limit=10_000)
    assert len(rows) == written * 50
    subprocess.run(["mount", "-o", "remount,size=20m", small_disk], check=True)
    await commit(store, *(create(n, arguments=b"x" * 1000) for n in range(9000, 9050)))
    await store.check()
    await store.close()


# -- while open


@pytest.mark.fault(27)
@pytest.mark.parametrize("replaced", [False, True])
async def test_a_file_deleted_or_replaced_while_open_acknowledges_nothing_more(
    store: SqliteStore, path: Path, replaced: bool
) -> None:
    await commit(store, create(1))
    path.unlink()
    if replaced:
        path.touch()
    assert isinstance(store.system.clock, SkippingClock)
    store.system.clock.skipped = 2.0
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="deleted or replaced"):
            await commit(store, create(2))
    with pytest.raises(StoreUnavailable, match="deleted or replaced"):
        await store.check()


async def test_a_check_sees_a_deleted_file_at_once(store: SqliteStore, path: Path) -> None:
    path.unlink()
    with pytest.raises(StoreUnavailable, match="deleted or replaced"):
        await store.check()


@pytest.mark.fault(27)
async def test_a_log_deleted_while_open_is_seen(store: SqliteStore, path: Path) -> None:
    Path(f"{path}-wal").unlink()
    with pytest.raises(StoreUnavailable, match="deleted or replaced"):
        await store.check()


@pytest.mark.fault(22)
async def test_a_lock_held_by_another_is_waited_for_and_then_named(store: SqliteStore, path: Path) -> None:
    other = apsw.Connection(str(path))
    other.execute("begin immediate")
    await on_writer(store, lambda db: db.set_busy_timeout(20))
    with pytest.raises(StoreUnavailable, match=f"process {os.getpid()} holds its write lock"):
        await commit(store, create(1))
    other.execute("rollback")
    other.close()
    assert await commit(store, create(1)) == [Created()]


async def test_data_that_the_database_never_takes_is_refused_alone(store: SqliteStore) -> None:
    await on_writer(store, lambda db: db.limit(apsw.SQLITE_LIMIT_LENGTH, 100_000))
    for bad in (create(2, id="\ud800"), create(3, arguments=b"x" * 200_000)):
        with pytest.raises(StoreRefused):
            await commit(store, create(1), bad)
    assert await store.instance("f", "i1") is None
    assert await commit(store, create(1)) == [Created()]


async def test_a_full_database_leaves_nothing_of_the_batch(store: SqliteStore) -> None:
    await on_writer(store, lambda db: db.pragma("max_page_count", 30))
    with pytest.raises(StoreFull):
        await commit(store, *(create(n, arguments=b"x" * 1000) for n in range(200)))
    assert await store.instance("f", "i0") is None
    await on_writer(store, lambda db: db.pragma("max_page_count", 100_000))
    assert await commit(store, create(0)) == [Created()]


class FailingCommit:
    """A connection whose commits fail on the disk, after or before they were done."""

    def __init__(self, db: Any, *, after: bool) -> None:
        self._db = db
        self._after = after

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)

    def execute(self, text: str, values: Any = None) -> Any:
        if text == "commit":
            if self._after:
                self._db.execute(text)
            raise apsw.IOError("disk I/O error")
        return self._db.execute(text, values)


@pytest.mark.fault(29)
@pytest.mark.parametrize("after", [False, True])
async def test_a_disk_that_fails_in_the_commit_is_an_unknown_outcome(store: SqliteStore, after: bool) -> None:
    epoch = await store.join("a", 10.0)
    writer = store._writer
    assert writer is not None
    await writer.do(lambda db: None)  # the thread is idle, or at most looks whether others wrote
    db, writer._db = writer._db, FailingCommit(writer._db, after=after)  # type: ignore[assignment]
    begun = Entry((1).to_bytes(16, "big"), 0, 1, "1", Kind.STEP, "n", None, b"", False, b"1", 1, 1.0, 1.0)
    with pytest.raises(CommitUnknown):
        await commit(store, create(1), begun, epoch=epoch)
    writer._db = db
    raised = await store.raise_epoch("a", epoch)
    with pytest.raises(LeaseLost):
        await commit(store, create(1), begun, epoch=epoch)
    assert await commit(store, create(1), begun, epoch=raised) == [Created(), None]
    (loaded,) = await store.load([begun.uid])
    assert loaded.entries == [begun]


async def test_a_closed_store_says_so(path: Path) -> None:
    store = SqliteStore(path)
    for _ in range(2):
        with pytest.raises(EngineClosed, match="not open"):
            await store.instance("f", "i")
        with pytest.raises(EngineClosed, match="not open"):
            await commit(store, create(1))
        await store.open()
        await store.open()
        await store.close()


async def test_what_was_asked_for_before_a_close_is_done(path: Path) -> None:
    store = SqliteStore(path)
    await store.open()
    waiting = [store.commit(Batch(None, 0, [create(n)], 1.0)) for n in range(20)]
    tasks = [asyncio.ensure_future(w) for w in waiting]
    await asyncio.sleep(0)
    await store.close()
    assert [await t for t in tasks] == [[Created()]] * 20


async def test_a_lost_lease_is_learnt_by_renewing_without_the_database(store: SqliteStore, path: Path) -> None:
    await store.join("a", 10.0)
    store.renew("a", 10.0)
    shutil.rmtree(f"{path}-replicas")
    with pytest.raises(LeaseLost):
        store.renew("a", 10.0)


# -- URLs


def test_urls_name_their_stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    relative = open_store("sqlite:///rel.db")
    absolute = open_store("sqlite:////var/abs.db")
    assert isinstance(relative, SqliteStore)
    assert isinstance(absolute, SqliteStore)
    assert (relative.path, absolute.path) == (str(tmp_path / "rel.db"), "/var/abs.db")
    assert isinstance(open_store("memory://"), MemoryStore)


@pytest.mark.parametrize(
    "url", ["", "x.db", "oracle://h/db", "sqlite://", "sqlite:///", "sqlite://rel.db", "memory://x"]
)
def test_an_unknown_url_names_those_that_are_known(url: str) -> None:
    with pytest.raises(ValueError, match=r"sqlite:///relative\.db.*memory://"):
        open_store(url)
