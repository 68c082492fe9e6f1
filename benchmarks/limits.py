# pyright: reportUnknownMemberType=false
# (apsw types a buffer in a way that pyright cannot follow)
"""The raw limits: what SQLite and the disk do here with rows of a journal's size, with no engine above them.

A program of its own: `python -m benchmarks.limits --dir DIR` prints one line of JSON.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import apsw

ROWS_PER_BATCH = 100
BLOCK = b"\x5a" * 4096
TABLE = (
    "create table entry(uid blob, run integer, seq integer, key text, kind text, name text, arguments blob,"
    " digest blob, outcome blob, attempts integer, started_at integer, at integer)"
)
INSERT = "insert into entry values(?,?,?,?,?,?,?,?,?,?,?,?)"

Row = tuple[bytes, int, int, str, str, str, bytes, bytes, bytes, int, int, int]


def row(number: int) -> Row:
    """A row of 12 columns, as large as the entry of a small step (70 bytes of values)."""
    flow, seq = divmod(number, 10)
    uid = flow.to_bytes(16, "big")
    at = 1_760_000_000_000_000 + number
    return (uid, 0, seq, str(seq), "step", "bench.increment", b"[%d]" % seq, uid[-8:], b"%d" % seq, 1, at, at)


def open_database(path: Path) -> apsw.Connection:
    """An empty journal table in WAL mode, where every commit waits for the disk."""
    db = apsw.Connection(str(path))
    db.execute("pragma journal_mode=wal")
    db.execute("pragma synchronous=full")
    db.execute(TABLE)
    db.execute("create unique index entry_seq on entry(uid, run, seq)")
    return db


def repeat(seconds: float, work: Callable[[int], None]) -> list[float]:
    """The seconds that each call took; calls follow each other until `seconds` are over."""
    took: list[float] = []
    begin = last = time.perf_counter()
    while last - begin < seconds:
        work(len(took))
        now = time.perf_counter()
        took.append(now - last)
        last = now
    return took


def commits(directory: Path, seconds: float) -> dict[str, float]:
    """Single-row and batched commits, each row in the same table."""
    db = open_database(directory / "limits.db")

    def one(n: int) -> None:
        db.execute("begin immediate")
        db.execute(INSERT, row(n))
        db.execute("commit")

    def batch(n: int) -> None:
        base = 10_000_000 + n * ROWS_PER_BATCH
        db.execute("begin immediate")
        db.executemany(INSERT, [row(base + i) for i in range(ROWS_PER_BATCH)])
        db.execute("commit")

    single = repeat(seconds, one)
    batched = repeat(seconds, batch)
    db.close()
    return {
        "commits_per_s": len(single) / sum(single),
        "commit_p50_ms": statistics.median(single) * 1e3,
        "rows_per_s": len(batched) * ROWS_PER_BATCH / sum(batched),
        "batch_p50_ms": statistics.median(batched) * 1e3,
    }


def flushes(directory: Path, seconds: float) -> dict[str, float]:
    """4 KB writes over a preallocated file, each followed by fdatasync."""
    blocks = 1024
    fd = os.open(directory / "limits.bin", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.write(fd, BLOCK * blocks)
        os.fsync(fd)

        def one(n: int) -> None:
            os.pwrite(fd, BLOCK, n % blocks * len(BLOCK))
            os.fdatasync(fd)

        took = repeat(seconds, one)
    finally:
        os.close(fd)
    return {"fdatasync_per_s": len(took) / sum(took), "fdatasync_p50_ms": statistics.median(took) * 1e3}


def main() -> None:
    """One line of JSON with every limit is on standard output."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=1.0)
    options = parser.parse_args()
    figures = commits(options.dir, options.seconds) | flushes(options.dir, options.seconds)
    print(json.dumps({**figures, "sqlite": apsw.sqlite_lib_version()}))


if __name__ == "__main__":
    main()
