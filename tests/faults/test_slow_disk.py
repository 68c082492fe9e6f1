"""The disk under SQLite answers late or not at all (by strace), and its log cannot be emptied."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from perdure import Engine, flow, step
from perdure.stores.sqlite import SqliteStore, writer
from tests.faults import worker
from tests.faults.test_processes import ROOT, whole
from tests.support.required import not_here


@step
async def fill(_number: int) -> bytes:
    """Some pages for the log."""
    return os.urandom(20_000)


@flow
async def fills(steps: int) -> int:
    """So many of them."""
    return sum([len(await fill(n)) for n in range(steps)])


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Engine]:
    """This process's engine, which runs nothing."""
    async with Engine(SqliteStore(tmp_path / "flows.db"), execute=False) as engine:
        yield engine


class Traced:
    """An engine in a process of its own, to whose calls of the system something happens."""

    def __init__(self, folder: Path) -> None:
        if shutil.which("strace") is None:
            not_here("calls of the system that fail", "no program strace")
        self.folder = folder
        self.process: subprocess.Popen[str] | None = None

    def start(self, lease: float, injected: str) -> None:
        """It runs, and this happens whenever a file is written through to the disk."""
        strace = ["strace", "-D", "-f", "-o", "/dev/null", "-e", "trace=fdatasync,fsync"]
        with (self.folder / "log").open("w") as log:
            self.process = subprocess.Popen(
                [*strace, "-e", f"inject=fdatasync,fsync:{injected}", sys.executable, "-m", "tests.faults.worker",
                 self.folder / "flows.db", self.folder / "ledger", str(lease)],
                cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip
        assert self.process.stdout is not None
        if not self.process.stdout.readline().strip():
            not_here("calls of the system that fail", self.log)

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def end(self) -> None:
        if self.process is not None and self.process.stdout is not None:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()


@pytest.fixture
def traced(tmp_path: Path) -> Iterator[Traced]:
    traced = Traced(tmp_path)
    yield traced
    traced.end()


@pytest.mark.fault(29)
async def test_a_disk_that_takes_half_a_second_costs_time_and_no_lease(traced: Traced, client: Engine) -> None:
    traced.start(1, "delay_enter=500000:when=3+")
    began = time.monotonic()
    handles = [await client.start(worker.busy, 4, id=str(i)) for i in range(10)]
    for handle in handles:
        assert len(await handle.result(timeout=20)) == 4
    assert time.monotonic() - began > 1.5  # longer than the lease
    await whole(client, handles, 4)
    assert len((traced.folder / "ledger").read_text().splitlines()) == 40
    assert "the lease was lost" not in traced.log


@pytest.mark.fault(29)
async def test_a_disk_that_fails_now_and_then_loses_nothing(traced: Traced, client: Engine) -> None:
    traced.start(10, "error=EIO:when=5+3")
    handles = [await client.start(worker.busy, 12, id=str(i)) for i in range(5)]
    for handle in handles:
        assert len(await handle.result(timeout=20)) == 12
    await whole(client, handles, 12)
    assert len((traced.folder / "ledger").read_text().splitlines()) == 60
    assert "the disk failed" in traced.log


READER = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("begin")
print(*db.execute("select count(*) from instance").fetchone(), flush=True)
sys.stdin.readline()
print(*db.execute("select count(*) from instance").fetchone(), flush=True)
"""


@pytest.mark.fault(30)
async def test_a_log_that_cannot_be_emptied_is_warned_of_and_is_when_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(writer, "LARGE_LOG_PAGES", 2_000)
    path = tmp_path / "flows.db"
    async with Engine(SqliteStore(path), flows=[fills]) as engine:
        reader = subprocess.Popen(
            [sys.executable, "-c", READER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        with reader:
            assert reader.stdin is not None
            assert reader.stdout is not None
            assert reader.stdout.readline() == "0\n"
            assert await engine.run(fills, 600, id="read", timeout=20) == 12_000_000
            assert caplog.text.count("cannot be emptied") in (1, 2)  # and again when it is twice as large
            large = (tmp_path / "flows.db-wal").stat().st_size
            assert large > 2_000 * 4096
            reader.stdin.write("\n")
            reader.stdin.flush()
            assert reader.stdout.readline() == "0\n"
        assert await engine.run(fills, 300, id="unread", timeout=20) == 6_000_000
        assert (tmp_path / "flows.db-wal").stat().st_size < large * 1.3  # it begins anew instead of growing
