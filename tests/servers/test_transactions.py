"""A transaction on a server, in a flow: what ends its work from outside is no outcome of the work."""

from __future__ import annotations

import asyncio

import pytest

from perdure import Engine, Tx, flow, transaction

WAIT_S = 20


class Work:
    """Waits the first time, for longer than it may."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()

    async def __call__(self, tx: Tx) -> str:
        again = self.begun.is_set()
        self.begun.set()
        if not again:
            await asyncio.sleep(WAIT_S)
        return "done"


@pytest.fixture(params=["url", "mysql_url"])
def server_url(request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue(request.param)
    return url


async def test_one_that_takes_too_long_ends_with_a_timeout(server_url: str) -> None:
    work = Work()

    @flow(name="slow")
    async def slow() -> str:
        try:
            return await transaction(work)
        except TimeoutError as error:
            return str(error)

    async with Engine(server_url, flows=[slow]) as engine:
        said = await engine.run(slow, id="a", timeout=WAIT_S)
    assert said == "the transaction took longer than 0.5 s; nothing was written"


async def test_one_that_is_cut_off_by_a_drain_is_made_again(server_url: str) -> None:
    work = Work()

    @flow(name="drained")
    async def drained() -> str:
        return await transaction(work)

    async with Engine(server_url, flows=[drained], drain=0.0) as engine:
        await engine.start(drained, id="a")
        await work.begun.wait()
    async with Engine(server_url, flows=[drained]) as engine:
        assert await engine.handle(drained, "a").result(timeout=WAIT_S) == "done"
