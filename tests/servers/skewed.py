"""`python -m tests.servers.skewed ...`: `tests.servers.worker` on a machine whose wall clock is PERDURE_TEST_SKEW seconds off."""

from __future__ import annotations

import asyncio
import os
import time

SKEW = float(os.environ.get("PERDURE_TEST_SKEW", "0"))
_right = time.time


def wrong() -> float:
    """What the clock on this machine's wall shows."""
    return _right() + SKEW


time.time = wrong

from perdure import delay, flow, now  # noqa: E402
from tests.servers import worker  # noqa: E402


@flow(name="servers.naps")
async def naps(times: int) -> float:
    """Waits half a second so often, with a step after each; gives how long that took, by its own time."""
    before = now()
    for number in range(times):
        await delay(0.5)
        await worker.work(str(number))
    return (now() - before).total_seconds()


worker.FLOWS = (*worker.FLOWS, naps)

if __name__ == "__main__":
    asyncio.run(worker.main())
