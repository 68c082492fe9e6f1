"""What an instance is given before it begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, final

_NO_ENTRIES: Final[Mapping[str, object]] = {}


@final
class InitialState:
    """Outcomes of steps by their id, and messages, that an instance has from its start: for tests and for moving in.

    Args:
        entries: a step that is asked for with this id is not run; its outcome is this value, or this exception.
        messages: are in the inbox before all others, in this order.
    """

    __slots__ = ("entries", "messages")

    def __init__(self, *, entries: Mapping[str, object] = _NO_ENTRIES, messages: Sequence[object] = ()) -> None:
        self.entries = entries
        self.messages = messages
