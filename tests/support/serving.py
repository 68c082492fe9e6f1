"""A process that serves one flow until it is told to stop; run as `python -m tests.support.serving DATABASE DRAIN`."""

import asyncio
import logging
import sys

from perdure import Engine, flow, receive, step


@step
async def slow() -> str:
    print("step", flush=True)
    await asyncio.Event().wait()
    return "never"


@step
async def brief() -> str:
    print("step", flush=True)
    await asyncio.sleep(0.2)
    return "brief"


@flow(name="served")
async def served(kind: str) -> str:
    return await {"slow": slow, "brief": brief, "waits": wait}[kind]()


async def wait() -> str:
    return await receive(str)


async def main() -> None:
    engine = Engine(f"sqlite:///{sys.argv[1]}", flows=[served], drain=float(sys.argv[2]))
    async with engine:
        for kind in ("slow", "brief", "waits"):
            if kind in sys.argv[3:]:
                await engine.start(served, kind, id=kind)
        asyncio.get_running_loop().call_soon(lambda: print("ready", flush=True))  # when serve() listens for signals
        await engine.serve()
    print("ended", flush=True)


if __name__ == "__main__":
    logging.basicConfig()
    asyncio.run(main())
