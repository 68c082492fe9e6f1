"""A TCP proxy in front of a server, which can keep answers back or cut connections."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit, urlunsplit


class Proxy:
    """See the module."""

    def __init__(self, url: str) -> None:
        self._parts = urlsplit(url)
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.cut_answers_after: bytes | None = None
        """A message of the client's with this in it goes through; then the connection is cut before the answer."""
        self.cut = 0
        self.refusing = False
        self.url = ""

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        user = f"{self._parts.username}@" if self._parts.username else ""
        self.url = urlunsplit(self._parts._replace(netloc=f"{user}127.0.0.1:{port}"))

    async def stop(self) -> None:
        self._server.close()
        self.cut_all()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def cut_all(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if self.refusing:
            writer.transport.abort()
            return
        to_reader, to_writer = await asyncio.open_connection(self._parts.hostname, self._parts.port or 5432)
        both = {writer, to_writer}
        self._writers |= both
        dropping = asyncio.Event()

        async def asked() -> None:
            while data := await reader.read(65536):
                if self.cut_answers_after is not None and self.cut_answers_after in data:
                    self.cut_answers_after = None
                    dropping.set()
                to_writer.write(data)

        async def answered() -> None:
            while data := await to_reader.read(65536):
                if dropping.is_set():
                    self.cut += 1
                    return
                writer.write(data)

        try:
            await asyncio.wait(
                [asyncio.ensure_future(asked()), asyncio.ensure_future(answered())],
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            for each in both:
                each.transport.abort()
            self._writers -= both
