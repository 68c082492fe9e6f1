"""One item of `send_many`."""

from __future__ import annotations

from typing import final


@final
class Outgoing:
    """A message for the instance `id`, with its key and name."""

    __slots__ = ("id", "key", "message", "name")

    def __init__(self, id: str, message: object, /, *, key: str | None = None, name: str | None = None) -> None:
        self.id = id
        self.message = message
        self.key = key
        self.name = name
