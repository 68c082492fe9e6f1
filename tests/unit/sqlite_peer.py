"""A process that does to a store what it is told on standard input, and says each time that it is done."""

import asyncio
import fcntl
import os
import sys
import threading
from typing import Any

from perdure.errors import PerdureError
from perdure.model.records import Entry, Kind
from perdure.model.writes import Batch, Create
from perdure.stores.sqlite import SqliteStore


def say(text: object) -> None:
    print(text, flush=True)


def entry(uid: bytes, seq: int) -> Entry:
    return Entry(uid, 0, seq, str(seq), Kind.STEP, "n", None, b"", False, b"1", 1, 1.0, 1.0)


def create(number: int) -> Create:
    uid = number.to_bytes(16, "big")
    return Create(uid, "f", f"i{number}", "f", b"[]", b"d", None, True, None, "v", 1.0, entry(uid, 0))


class Peer:
    def __init__(self, path: str, replica: str, lease: float) -> None:
        self.store = SqliteStore(path)
        self.replica = replica
        self.lease = lease
        self.epoch = 0
        self.told = asyncio.Event()
        loop = asyncio.get_running_loop()
        self.store.on_change(lambda: loop.call_soon_threadsafe(self.told.set))

    async def commit(self, *writes: Any) -> Any:
        return await self.store.commit(Batch(self.replica, self.epoch, list(writes), self.store.system.clock.wall()))

    async def do(self, word: str, *args: str) -> object:
        match word:
            case "open":
                await self.store.open()
            case "join":
                self.epoch = await self.store.join(self.replica, self.lease)
            case "renew":
                self.store.renew(self.replica, self.lease)
            case "create":
                await self.commit(create(int(args[0])))
            case "entry":
                await self.commit(entry(int(args[0]).to_bytes(16, "big"), int(args[1])))
            case "hold":  # stop in the middle of a transaction
                writer: Any = self.store._writer
                writer.write(lambda db: (db.execute("delete from checked").fetchall(), say("ok"), hang()))
                await asyncio.sleep(3600)
            case "turnstile":  # stand in it and do not move
                fd = os.open(f"{self.store.path}-replicas/turnstile", os.O_RDWR | os.O_CREAT)
                fcntl.flock(fd, fcntl.LOCK_EX)
            case "hammer":  # commit back to back until told to stop, and count
                return await self.hammer(float(args[0]))
            case "fork":  # a child that outlives us and has inherited everything
                if os.fork() == 0:
                    os.close(1)
                    os.close(2)
                    os.read(0, 1)  # until the test closes the pipe
                    os._exit(0)
            case "reap":
                return await self.store.reap(self.replica, kill_hung="kill" in args)
            case "told":
                await asyncio.wait_for(self.told.wait(), 20)
            case "close":
                await self.store.close()
            case _:
                raise ValueError(word)
        return "ok"

    async def hammer(self, seconds: float) -> int:
        clock = self.store.system.clock
        end, count = clock.monotonic() + seconds, 0
        while clock.monotonic() < end:
            count += 1
            await self.commit(entry(os.getpid().to_bytes(16, "big"), count))
        return count


def hang() -> None:
    threading.Event().wait()


async def main() -> None:
    peer = Peer(sys.argv[1], sys.argv[2], float(sys.argv[3]))
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        try:
            say(await peer.do(*line.split()))
        except PerdureError as error:
            say(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    asyncio.run(main())
