"""`python -m tests.servers.worker URL LEDGER LEASE`: an engine in a process of its own, until SIGTERM.

Prints its pid when it runs.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys

from perdure import Engine, current, flow, receive, step


@step
async def work(what: str) -> int:
    """Noted with the process that does it."""
    ledger = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(ledger, f"{os.getpid()} {current().key} {what}\n".encode())
    os.close(ledger)
    await asyncio.sleep(0.02)
    return os.getpid()


@flow(name="servers.busy")
async def busy(steps: int) -> list[int]:
    """Steps, one after the other."""
    return [await work(str(i)) for i in range(steps)]


@flow(name="servers.echo")
async def echo() -> list[str]:
    """Waits for messages, until it is told the end."""
    got: list[str] = []
    while (message := await receive(str)) != "end":
        got.append(message)
        await work(message)
    return got


@flow(name="servers.family")
async def family(children: int) -> int:
    """Waits for the ends of others."""
    return len(await asyncio.gather(*(busy(2) for _ in range(children))))


FLOWS = (busy, echo, family)


async def main() -> None:
    """Runs until SIGTERM."""
    logging.basicConfig(level=logging.INFO)
    async with Engine(sys.argv[1], flows=FLOWS, lease=float(sys.argv[3]), drain=1) as engine:
        print(os.getpid(), flush=True)
        await engine.serve()


if __name__ == "__main__":
    asyncio.run(main())
