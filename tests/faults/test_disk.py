"""A full disk, a file that is deleted or replaced while open, files that are damaged, read-only or somebody else's."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure import Engine, NotOurs, StoreCorrupt, StoreUnavailable, flow, receive, step
from perdure.errors import PerdureError
from perdure.stores.sqlite import SqliteStore
from tests.support.world import eventually

ran: Counter[str] = Counter()


@step
async def fill(name: str) -> bytes:
    """Noted; a lot for the journal."""
    ran[name] += 1
    return os.urandom(60_000)


@flow
async def large(name: str) -> int:
    """Four large entries after a message."""
    await receive(str)
    return sum([len(await fill(f"{name} {i}")) for i in range(4)])


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 12 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        if os.environ.get("PERDURE_TEST_REQUIRE"):
            pytest.fail(f"no small disk can be mounted: {mounted.stderr}")
        pytest.skip("no small disk can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def use_up(folder: Path) -> Path:
    """No byte is left on the disk."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(65_536))
        except OSError:
            pass
    return filler


@pytest.mark.fault(24)
async def test_a_full_disk_pauses_and_goes_on_when_there_is_room(disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    ran.clear()
    async with Engine(SqliteStore(disk / "flows.db"), flows=[large]) as engine:
        handles = [await engine.start(large, str(i), id=str(i)) for i in range(8)]
        filler = use_up(disk)
        sending = [asyncio.create_task(handle.send("go", key="go")) for handle in handles]

        async def paused() -> object:
            try:
                return (await engine.health()).paused
            except PerdureError as error:
                return error

        seen = await eventually(paused, lambda seen: seen is not None, seconds=20)
        assert "full" in str(seen), seen
        asked = asyncio.create_task(engine.start(large, "late", id="late"))
        await eventually(lambda: asyncio.sleep(0, engine._member is not None and engine._member.paused == "disk full"))
        acknowledged = [task for task in sending if task.done()]
        assert len(acknowledged) < 8 or not asked.done()
        filler.unlink()
        for handle in handles:
            assert await handle.result(timeout=20) == 240_000
        late = await asyncio.wait_for(asked, 10)
        await late.send("go")
        assert await late.result(timeout=20) == 240_000
        await asyncio.gather(*sending)
        assert (await engine.health()).paused is None
    assert set(ran.values()) == {1}
    assert "paused: disk full" in caplog.text


@pytest.mark.fault(27)
@pytest.mark.parametrize("how", ["deleted", "replaced"])
async def test_a_file_that_goes_away_while_open_acknowledges_nothing_more(tmp_path: Path, how: str) -> None:
    path = tmp_path / "flows.db"
    async with Engine(SqliteStore(path), flows=[large], drain=0) as engine:
        handle = await engine.start(large, "x", id="x")
        if how == "deleted":
            path.unlink()
        else:
            other = tmp_path / "other.db"
            sqlite3.connect(other).close()
            other.touch()
            other.rename(path)

        async def wrong() -> object:
            try:
                return await engine.health()
            except StoreUnavailable as error:
                return str(error)

        said = await eventually(wrong, lambda seen: isinstance(seen, str))
        assert "deleted or replaced" in str(said)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(handle.send("go"), 0.5)


async def opened(path: Path) -> None:
    async with Engine(SqliteStore(path), flows=[large]):
        pass


@pytest.mark.fault(26)
async def test_foreign_files_are_refused_and_left_alone(tmp_path: Path) -> None:
    text, foreign = tmp_path / "text.db", tmp_path / "foreign.db"
    text.write_bytes(b"not a database at all\n" * 100)
    with sqlite3.connect(foreign) as db:
        db.execute("create table theirs(x)")
    db.close()
    for path in (text, foreign):
        before = path.read_bytes()
        with pytest.raises(NotOurs):
            await opened(path)
        assert path.read_bytes() == before


@pytest.mark.fault(26)
async def test_a_damaged_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "flows.db"
    await opened(path)
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (size - 4096))
    before = path.read_bytes()
    with pytest.raises(StoreCorrupt):
        await opened(path)
    assert path.read_bytes() == before


@pytest.mark.fault(25)
async def test_a_read_only_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "flows.db"
    await opened(path)
    path.chmod(0o444)
    if os.access(path, os.W_OK):  # root may write to everything; a disk that may not be written to holds for root too
        folder = tmp_path / "ro"
        folder.mkdir()
        if subprocess.run(["mount", "--bind", str(tmp_path), str(folder)], check=False).returncode:
            pytest.skip("nothing can be made read-only here")
        try:
            subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)
            with pytest.raises(PerdureError, match=r"read-only|read only|written"):
                await opened(folder / "flows.db")
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True)
    else:
        with pytest.raises(PerdureError, match=r"read-only|read only|written"):
            await opened(path)


@pytest.mark.fault(26)
async def test_a_page_that_is_damaged_while_open_is_said(tmp_path: Path) -> None:
    path = tmp_path / "flows.db"
    async with Engine(SqliteStore(path), flows=[large]) as engine:
        for i in range(20):
            handle = await engine.start(large, str(i), id=str(i))
            await handle.send("go")
            await handle.result(timeout=10)
    async with Engine(SqliteStore(path), flows=[large], execute=False) as engine:
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(b"\xa5" * (size - 4096))
        with pytest.raises(StoreCorrupt, match=r"damaged|malformed|corrupt"):
            async for _ in engine.find():
                pass
            await engine.health()
