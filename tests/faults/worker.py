"""`python -m tests.faults.worker DATABASE LEDGER LEASE [stop]`: an engine in a process of its own, until SIGTERM.

Prints its pid when it runs. With `stop` it stops itself (SIGSTOP) in the transaction that records a step named `hang`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from typing import Any

from perdure import Engine, current, flow, receive, step
from perdure.model.records import Entry
from perdure.stores.sqlite import SqliteStore, writing


@step
async def work(what: str) -> int:
    """Noted with the process that does it."""
    ledger = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(ledger, f"{os.getpid()} {current().key} {what}\n".encode())
    os.close(ledger)
    await asyncio.sleep(0.02)
    return os.getpid()


@step
async def hang() -> int:
    """The process stops while this is recorded."""
    return os.getpid()


@flow
async def busy(steps: int) -> list[int]:
    """Steps, one after the other."""
    return [await work(str(i)) for i in range(steps)]


@flow
async def echo() -> list[str]:
    """Waits for messages, as many as it is told."""
    got: list[str] = []
    while (message := await receive(str)) != "end":
        got.append(message)
        await work(message)
    return got


@flow
async def hangs() -> int:
    """A step whose recording may stop the process."""
    return await hang()


FLOWS = (busy, echo, hangs)


def _stop_in_transaction() -> None:
    real = writing.write

    def write(db: Any, batch: Any, fold: Any) -> Any:
        answers = real(db, batch, fold)
        if any(isinstance(w, Entry) and w.name.endswith("hang") for w in batch.writes):
            os.kill(os.getpid(), signal.SIGSTOP)
        return answers

    writing.write = write


async def main() -> None:
    """Runs until SIGTERM."""
    logging.basicConfig(level=logging.INFO)
    if "stop" in sys.argv:
        _stop_in_transaction()
    async with Engine(SqliteStore(sys.argv[1]), flows=FLOWS, lease=float(sys.argv[3]), drain=1) as engine:
        print(os.getpid(), flush=True)
        await engine.serve()


if __name__ == "__main__":
    asyncio.run(main())
