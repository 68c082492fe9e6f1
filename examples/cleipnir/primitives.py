"""Capture, messages and suspension: the three things that a flow is made of."""

import asyncio
import tempfile
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from uuid import UUID, uuid4

from perdure import Engine, FlowFunction, Retry, capture, delay, flow, receive


@dataclass(frozen=True)
class FundsReserved:
    order: str


class Http:
    """A client whose first request never gets through."""

    def __init__(self) -> None:
        self.posted: list[str] = []
        self._tried = False

    async def post(self, url: str, *, content: str) -> int:
        """The status of the answer."""
        if not self._tried:
            self._tried = True
            raise ConnectionError("no route")
        print(f"POST {url}: {content}")
        self.posted.append(content)
        return 200


def primitives(http: Http, pause: timedelta) -> FlowFunction[[str], tuple[UUID, str]]:
    """The flow, with the client that it needs."""

    @flow(name="Primitives")
    async def run(order_id: str) -> tuple[UUID, str]:
        transaction = await capture(uuid4, id="TransactionId")  # an id, where somebody may want to mend it later
        message = await capture(uuid4)  # or simply
        # A call to the outside, tried again until it works. Keywords of the work go into a partial.
        await capture(
            partial(http.post, "https://someurl.com", content=f"{order_id} {message}"),
            retry=Retry(initial=timedelta(milliseconds=50)),
        )
        reserved = await receive(FundsReserved, timeout=timedelta(minutes=5), default=None)
        await delay(pause)
        return transaction, "reserved" if reserved else "too late"

    return run


async def main() -> None:
    run = primitives(Http(), pause=timedelta(milliseconds=100))
    with tempfile.TemporaryDirectory() as folder:
        async with Engine(f"sqlite:///{folder}/flows.db", flows=[run]) as engine:
            handle = await engine.start(run, "MK-54321", id="MK-54321")
            await handle.send(FundsReserved("MK-54321"))
            _, funds = await handle.result()
            print("funds:", funds)


if __name__ == "__main__":
    asyncio.run(main())
