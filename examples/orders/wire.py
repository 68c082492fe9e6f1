"""HTTP/1.1 over asyncio streams: as much of it as JSON between trusted services needs, with limits and deadlines.

Keep-alive, `Content-Length` bodies, sequential requests on a connection. No TLS, no chunked bodies, no redirects.
"""

import asyncio
import contextlib
import json
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import unquote, urlsplit

HEAD_LIMIT: Final = 16 * 1024
BODY_LIMIT: Final = 1024 * 1024
# A client lets go of an idle connection long before the server does: no request meets a connection just being closed.
SERVER_IDLE_S: Final = 60.0
CLIENT_IDLE_S: Final = 15.0

_logger = logging.getLogger(__name__)


class NotSent(ConnectionError):
    """No connection came about: the other side has seen nothing of the request."""


class NoAnswer(ConnectionError):
    """The request went out and no answer came back: it may have been carried out, or still be."""


class BadMessage(Exception):
    """What came over the wire is not a message that this module accepts; `status` says which rule it breaks."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True, slots=True)
class Request:
    """One request, read whole."""

    method: str
    parts: tuple[str, ...]
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> dict[str, Any]:
        """The body as a JSON object; `BadMessage` (400) if it is none."""
        try:
            value: Any = json.loads(self.body)
        except ValueError as error:
            raise BadMessage(400, f"the body is not JSON: {error}") from error
        if not isinstance(value, dict):
            raise BadMessage(400, "the body is not a JSON object")
        return value  # pyright: ignore[reportUnknownVariableType]


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, read whole."""

    status: int
    body: bytes

    def json(self) -> Any:
        """The body as JSON; None if it is empty."""
        return json.loads(self.body) if self.body else None


Handler = Callable[[Request], Awaitable[tuple[int, object]]]


async def _read_head(reader: asyncio.StreamReader) -> tuple[str, dict[str, str]] | None:
    """The first line and the headers (names in lower case); None if the other side closed before the first byte."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if not error.partial:
            return None
        raise
    except asyncio.LimitOverrunError as error:
        raise BadMessage(431, f"the head is longer than {HEAD_LIMIT} bytes") from error
    first, *lines = head[:-4].decode("latin-1").split("\r\n")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise BadMessage(400, f"not a header: {line!r}")
        name, value = name.lower(), value.strip()
        if name == "content-length" and headers.get(name, value) != value:
            raise BadMessage(400, "two lengths for one body")
        headers[name] = value
    return first, headers


async def _read_body(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> bytes:
    """The whole body, as long as `Content-Length` says."""
    if "transfer-encoding" in headers:
        raise BadMessage(501, "chunked bodies are not read here")
    text = headers.get("content-length", "0")
    if not (text.isascii() and text.isdigit()):
        raise BadMessage(400, f"not a length: {text!r}")
    length = int(text[:20])
    if length > BODY_LIMIT:
        raise BadMessage(413, f"the body is longer than {BODY_LIMIT} bytes")
    return await reader.readexactly(length)


def _message(first: str, headers: Mapping[str, str], body: bytes) -> bytes:
    """The bytes of one message."""
    lines = [first, *(f"{name}: {value}" for name, value in headers.items())]
    if any("\r" in line or "\n" in line for line in lines):
        raise ValueError("a header may not hold a line break")
    lines += ["Content-Type: application/json", f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode("ascii") + body


class Server:
    """A listening server; `port` is the real one, also when 0 was asked for."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self.port = 0

    async def listen(self, sock: socket.socket) -> None:
        """The server accepts connections on this bound socket."""
        self._server = await asyncio.start_server(self._connected, sock=sock, limit=HEAD_LIMIT, backlog=512)
        self.port = sock.getsockname()[1]

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._connections)

    async def aclose(self) -> None:
        """No connection is accepted any more, and those open are cut."""
        if self._server is not None:
            self._server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._talk(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Exchanges follow each other until one side has enough.

        A request read whole is carried out to its end, also if its sender is gone by then: that is what leaves a
        killed caller in doubt.
        """
        try:
            while await self._exchange(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError):
            pass  # gone, or silent for too long: nobody is left to tell
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request is answered; true if another may follow."""
        keep = False
        try:
            async with asyncio.timeout(SERVER_IDLE_S):
                head = await _read_head(reader)
                if head is None:
                    return False
                first, headers = head
                body = await _read_body(reader, headers)
            request = _request(first, headers, body)
            keep = first.endswith("HTTP/1.1") and headers.get("connection", "").lower() != "close"
            status, value = await self._answer(request)
        except BadMessage as error:
            keep, status, value = False, error.status, {"error": str(error)}
        line = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"
        data = json.dumps(value, ensure_ascii=False).encode()
        writer.write(_message(line, {"Connection": "keep-alive" if keep else "close"}, data))
        async with asyncio.timeout(SERVER_IDLE_S):
            await writer.drain()
        return keep

    async def _answer(self, request: Request) -> tuple[int, object]:
        try:
            return await self._handler(request)
        except BadMessage as error:
            return error.status, {"error": str(error)}
        except Exception:
            _logger.exception("%s /%s failed", request.method, "/".join(request.parts))
            return 500, {"error": "see the log"}


def _request(first: str, headers: dict[str, str], body: bytes) -> Request:
    """The request that these bytes are."""
    words = first.split(" ")
    if len(words) != 3 or words[2] not in {"HTTP/1.1", "HTTP/1.0"} or not words[1].startswith("/"):
        raise BadMessage(400, f"not a request: {first[:80]!r}")
    path = words[1].partition("?")[0]
    return Request(words[0], tuple(unquote(part) for part in path[1:].split("/")), headers, body)


@dataclass(frozen=True, slots=True)
class _Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    idle_since: float

    def usable(self) -> bool:
        fresh = time.monotonic() - self.idle_since < CLIENT_IDLE_S
        return fresh and not self.reader.at_eof() and not self.writer.is_closing()


class Client:
    """Requests to one server, over at most `connections` connections, which are kept for the next request.

    It never repeats a request on its own: whether that is right, only the caller knows.
    """

    def __init__(self, url: str, *, timeout: float = 10.0, connections: int = 64) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or parts.hostname is None or parts.port is None:
            raise ValueError(f"not of the form http://host:port: {url!r}")
        self._host = parts.hostname
        self._port = parts.port
        self._timeout = timeout
        self._slots = asyncio.Semaphore(connections)
        self._idle: list[_Connection] = []

    async def request(
        self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """The server's answer, whatever its status.

        Raises:
            NotSent: nothing reached the server; repeating is safe.
            NoAnswer: the server may have carried the request out.
        """
        data = b"" if body is None else json.dumps(body, ensure_ascii=False).encode()
        message = _message(f"{method} {path} HTTP/1.1", {"Host": f"{self._host}:{self._port}", **(headers or {})}, data)
        async with self._slots:
            connection = await self._connection()
            kept = False
            try:
                async with asyncio.timeout(self._timeout):
                    connection.writer.write(message)
                    await connection.writer.drain()
                    answer, kept = await _read_answer(connection.reader)
            except (OSError, asyncio.IncompleteReadError, BadMessage) as error:
                raise NoAnswer(f"{method} {path}: {error!r}") from error
            finally:
                if kept:
                    self._idle.append(_Connection(connection.reader, connection.writer, time.monotonic()))
                else:
                    connection.writer.close()
        return answer

    async def aclose(self) -> None:
        """The idle connections are closed."""
        while self._idle:
            self._idle.pop().writer.close()

    async def _connection(self) -> _Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable():
                return connection
            connection.writer.close()
        try:
            async with asyncio.timeout(self._timeout):
                reader, writer = await asyncio.open_connection(self._host, self._port, limit=HEAD_LIMIT)
        except OSError as error:
            raise NotSent(f"{self._host}:{self._port}: {error!r}") from error
        return _Connection(reader, writer, time.monotonic())


async def _read_answer(reader: asyncio.StreamReader) -> tuple[Answer, bool]:
    """The answer, and whether the connection may be used again."""
    head = await _read_head(reader)
    if head is None:
        raise ConnectionResetError("closed before the answer")
    first, headers = head
    words = first.split(" ")
    if len(words) < 2 or not words[0].startswith("HTTP/1.") or not words[1].isdigit():
        raise BadMessage(502, f"not an answer: {first[:80]!r}")
    body = await _read_body(reader, headers)
    return Answer(int(words[1]), body), headers.get("connection", "").lower() != "close"


def bound(port: int = 0, *, share: bool = False) -> socket.socket:
    """A TCP socket bound to this port of 127.0.0.1, not listening.

    With `share` another process may bind the same port: its owner then keeps the port over the deaths of the one that
    listens, and nothing else can take it meanwhile.
    """
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if share:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        sock.bind(("127.0.0.1", port))
    except OSError:
        sock.close()
        raise
    sock.setblocking(False)
    return sock
