"""Messages in batches, from a topic: a batch is few commits, and one that is read twice is delivered once."""

import asyncio
import tempfile
from dataclasses import dataclass

from perdure import Engine, Outgoing, flow, receive

MESSAGES, INSTANCES = 100, 10


@dataclass(frozen=True)
class Reading:
    instance: str
    value: int


class Topic:
    """A partition with one consumer: what was read and not committed is read again after a restart."""

    def __init__(self, records: list[Reading]) -> None:
        self._records = records
        self._position = 0
        self.committed = 0

    async def getmany(self, max_records: int) -> list[tuple[int, Reading]]:
        """The next records, with their offsets."""
        first = self._position
        batch = self._records[first : first + max_records]
        self._position += len(batch)
        return list(enumerate(batch, first))

    async def commit(self) -> None:
        """What was read so far will not be read again."""
        self.committed = self._position

    def reopen(self) -> None:
        """The consumer has restarted."""
        self._position = self.committed


@flow
async def sum_flow(count: int) -> int:
    return sum([(await receive(Reading)).value for _ in range(count)])


async def consume(topic: Topic, engine: Engine) -> None:
    """All records are messages to their flows."""
    while batch := await topic.getmany(max_records=10):
        await engine.send_many(sum_flow, [Outgoing(r.instance, r, key=f"offset {n}") for n, r in batch])
        await topic.commit()  # only now: what is in the inboxes is on disk


async def main() -> None:
    topic = Topic([Reading(str(n % INSTANCES), n) for n in range(MESSAGES)])
    with tempfile.TemporaryDirectory() as folder:
        async with Engine(f"sqlite:///{folder}/flows.db", flows=[sum_flow]) as engine:
            handles = await engine.start_many(sum_flow, [(str(n), MESSAGES // INSTANCES) for n in range(INSTANCES)])
            await consume(topic, engine)
            print("sums:", *[await handle.result() for handle in handles])


if __name__ == "__main__":
    asyncio.run(main())
