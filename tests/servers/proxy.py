"""A TCP proxy in front of a server, which can keep back or delay what is said, and cut or reset connections.

It lives in a thread of its own: whoever blocks the test's loop does not block the way to the server.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable
from urllib.parse import urlsplit, urlunsplit


class Proxy:
    """See the module."""

    def __init__(self, url: str) -> None:
        self._parts = urlsplit(url)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._passing = asyncio.Event()
        self._passing.set()
        self.cut_answers_after: bytes | None = None
        """A message of the client's with this in it goes through; then the connection is cut before the answer."""
        self.cut = 0
        self.made = 0
        """How many connections were asked for."""
        self.delay = 0.0
        """Seconds for which each message is kept back, both ways."""
        self.refusing = False
        self.resets = False
        """Whether a connection that is cut ends with a RST instead of a FIN."""
        self.url = ""

    async def start(self) -> None:
        self._thread.start()
        port = await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._listen(), self._loop))
        user = f"{self._parts.username}@" if self._parts.username else ""
        self.url = urlunsplit(self._parts._replace(netloc=f"{user}127.0.0.1:{port}"))

    async def stop(self) -> None:
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._stop(), self._loop))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def cut_all(self) -> None:
        """No connection is open."""
        self._do(lambda: [self._end(writer) for writer in list(self._writers)])

    def blackhole(self) -> None:
        """Nothing goes through any more, and nobody is told: connections stay, and new ones are accepted."""
        self._do(self._passing.clear)

    def heal(self) -> None:
        """What was kept back goes through."""
        self._do(self._passing.set)

    def lead_to(self, url: str) -> None:
        """Connections that are made from now on go to that server; the others are cut."""
        self._parts = urlsplit(url)
        self.cut_all()

    # -- in the thread

    def _do(self, what: Callable[[], object]) -> None:
        async def done() -> None:
            what()

        asyncio.run_coroutine_threadsafe(done(), self._loop).result()

    async def _listen(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _stop(self) -> None:
        self._server.close()
        self.refusing = True
        self._passing.set()
        for writer in list(self._writers):
            self._end(writer)
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def _end(self, writer: asyncio.StreamWriter) -> None:
        connection: socket.socket = writer.get_extra_info("socket")
        if self.resets and connection.fileno() >= 0:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.made += 1
        both = {writer}
        self._writers.add(writer)
        try:
            if not self.refusing:
                await self._passing.wait()
            if self.refusing:
                return
            to_reader, to_writer = await asyncio.open_connection(self._parts.hostname, self._parts.port or 5432)
            both.add(to_writer)
            self._writers.add(to_writer)
            await self._between(reader, writer, to_reader, to_writer)
        except ConnectionError:
            pass  # the server is not there
        finally:
            for each in both:
                self._end(each)
            self._writers -= both

    async def _between(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        to_reader: asyncio.StreamReader,
        to_writer: asyncio.StreamWriter,
    ) -> None:
        dropping = asyncio.Event()

        async def asked() -> None:
            while data := await reader.read(65536):
                await self._late()
                if self.cut_answers_after is not None and self.cut_answers_after in data:
                    self.cut_answers_after = None
                    dropping.set()
                to_writer.write(data)

        async def answered() -> None:
            while data := await to_reader.read(65536):
                await self._late()
                if dropping.is_set():
                    self.cut += 1
                    return
                writer.write(data)

        ways = [asyncio.ensure_future(asked()), asyncio.ensure_future(answered())]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _late(self) -> None:
        if self.delay:
            await asyncio.sleep(self.delay)
        await self._passing.wait()
