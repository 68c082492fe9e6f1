"""A proxy in front of a PostgreSQL server that counts statements and transactions: those of who connects through it."""

import asyncio
import threading
from contextlib import suppress
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit


class Counting:
    """See the module. Use it as `with Counting(url) as counting`, and `counting.url` as the server's.

    `statements` counts what is executed (messages Query and Execute), `transactions` how often the server was ready for
    the next transaction after that. It reads what is said, so it asks for connections without TLS. It has a thread of
    its own: an engine may block its loop while it waits for the server.
    """

    def __init__(self, url: str) -> None:
        self._parts = urlsplit(url)
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="counting", daemon=True)
        self.statements = 0
        self.transactions = 0
        self.url = ""

    def __enter__(self) -> "Counting":
        self._thread.start()
        port = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()
        login, at, _ = self._parts.netloc.rpartition("@")
        options = [pair for pair in parse_qsl(self._parts.query) if pair[0] != "sslmode"]
        query = urlencode([*options, ("sslmode", "disable")])
        self.url = urlunsplit(self._parts._replace(netloc=f"{login}{at}127.0.0.1:{port}", query=query))
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _listen(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _end(self) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        there, there_writer = await asyncio.open_connection(self._parts.hostname, self._parts.port or 5432)
        executed = asyncio.Event()
        ways = [
            asyncio.ensure_future(self._asked(reader, there_writer, executed)),
            asyncio.ensure_future(self._answered(there, writer, executed)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            writer.close()
            there_writer.close()
            self._tasks.discard(task)

    async def _asked(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, executed: asyncio.Event) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            length = await reader.readexactly(4)  # the first message has no kind
            writer.write(length + await reader.readexactly(int.from_bytes(length, "big") - 4))
            while True:
                head = await reader.readexactly(5)
                writer.write(head + await reader.readexactly(int.from_bytes(head[1:], "big") - 4))
                if head[:1] in (b"Q", b"E"):
                    self.statements += 1
                    executed.set()

    async def _answered(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, executed: asyncio.Event
    ) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readexactly(5)
                body = await reader.readexactly(int.from_bytes(head[1:], "big") - 4)
                writer.write(head + body)
                if head[:1] == b"Z" and body == b"I" and executed.is_set():  # ready, in no transaction
                    self.transactions += 1
                    executed.clear()
