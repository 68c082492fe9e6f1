"""`python -m tests.soak.replica PARENT URL LEDGER LEASE OPTIONS`: an engine in a process of its own, until SIGTERM.

Says `ready` in its log when it runs; on SIGUSR1 it logs its health. It ends with the process that started it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
from pathlib import Path

from perdure import Engine, StoreUnavailable
from tests.soak import ledger, programs
from tests.soak.leash import hold

log = logging.getLogger("soak")


async def main() -> None:
    """Runs until SIGTERM."""
    _, url, _, lease, options = sys.argv[1:]
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    while not ended.is_set():
        engine = Engine(url, flows=programs.FLOWS, lease=float(lease), drain=1.0, version="soak", **json.loads(options))
        try:
            await engine.__aenter__()
        except StoreUnavailable as error:  # whoever is responsible for a process would start it again
            log.info("the store is away: %s", error)
            await asyncio.sleep(0.2)
            continue
        tells = asyncio.create_task(_tell(engine))
        log.info("ready")
        if not ended.is_set():
            await engine.serve()
        await engine.__aexit__(None, None, None)
        tells.cancel()
        return


async def _tell(engine: Engine) -> None:
    """The health, each time it is asked for."""
    asked = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, asked.set)
    while True:
        await asked.wait()
        asked.clear()
        try:
            log.info("health %s", await engine.health())
        except Exception as error:
            log.info("health %r", error)


if __name__ == "__main__":
    hold(int(sys.argv[1]), signal.SIGKILL)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # asked before it can tell
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    ledger.write_to(Path(sys.argv[3]))
    asyncio.run(main())
