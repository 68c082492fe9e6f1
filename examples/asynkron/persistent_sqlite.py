"""A flow that one engine begins and another one ends: what holds them together is a SQLite file."""

import asyncio
import tempfile

from perdure import Engine, State, flow, receive, step


@step
async def reserve_table(guests: int) -> str:
    print("reserved for", guests)
    return f"table for {guests}"


@flow
async def dinner(guests: int) -> str:
    table = await reserve_table(guests)
    return f"{table}, {await receive(str)}"


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/durable_functions.db"
        async with Engine(url, flows=[dinner]) as engine:
            handle = await engine.start(dinner, 4, id="friday")
            while await handle.state() is not State.SUSPENDED:  # it waits for the hour
                await asyncio.sleep(0.01)
        print("the server restarts")
        async with Engine(url, flows=[dinner]) as engine:
            await engine.send(dinner, "friday", "at eight")
            print(await engine.handle(dinner, "friday").result())


if __name__ == "__main__":
    asyncio.run(main())
