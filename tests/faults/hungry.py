"""`python -m tests.faults.hungry DATABASE`: an engine whose process may have little memory, and a step that wants a lot.

Prints how often that was tried, how it ended, and what another flow gave.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
from pathlib import Path

from perdure import Engine, Retry, flow, step
from perdure.stores.sqlite import SqliteStore

tries = 0


@step(retry=Retry(attempts=3, initial=0.01))
async def eat() -> int:
    """More than there is."""
    global tries
    tries += 1
    return len(bytearray(4 << 30))


@step
async def work(number: int) -> int:
    """Little."""
    await asyncio.sleep(0.01)
    return number


@flow(name="faults.hungry")
async def hungry() -> str:
    """Learns that there is no more."""
    try:
        return str(await eat())
    except MemoryError:
        return "no memory"


@flow(name="faults.modest")
async def modest(steps: int) -> int:
    """Steps, one after the other."""
    return sum([await work(n) for n in range(steps)])


async def main() -> None:
    """See the module."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + (1 << 30), -1))
    async with Engine(SqliteStore(sys.argv[1]), flows=[hungry, modest]) as engine:
        other = await engine.start(modest, 20, id="m")
        ended = await engine.run(hungry, id="h", timeout=20)
        print(json.dumps([tries, ended, await other.result(timeout=20)]))


if __name__ == "__main__":
    asyncio.run(main())
