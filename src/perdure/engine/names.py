"""Which ids, keys, names and queues may be stored."""

from __future__ import annotations

import unicodedata
from typing import cast


def check_name(text: str, what: str) -> None:
    """Nothing is wrong with the text as an id, key or name, which are stored as UTF-8.

    Raises:
        ValueError: it has not 1 to 255 bytes in UTF-8, or holds a lone surrogate, which UTF-8 cannot say, or NUL, which some
            databases cannot keep.
        TypeError: it is not a str.
    """
    if not isinstance(cast("object", text), str):
        raise TypeError(f"{what} must be a str, not {type(text).__name__}")
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise ValueError(f"{what} {text[:40]!r} is not text: {error.reason}") from None
    if not 1 <= size <= 255:
        raise ValueError(f"{what} has {size} bytes in UTF-8; 1 to 255 are possible: {text[:40]!r}…")
    if "\0" in text:
        raise ValueError(f"{what} {text[:40]!r} holds NUL, which some databases cannot keep; leave it out")


def check_queue(queue: str | None) -> None:
    """Nothing is wrong with the text as a queue; None (nothing is said) and "" (no queue) are not either.

    Raises:
        ValueError, TypeError: as `check_name`; or it holds a control character.
    """
    if queue is None or queue == "":
        return
    check_name(queue, "queue")
    if any(unicodedata.category(letter) == "Cc" for letter in queue):
        raise ValueError(f"queue {queue[:40]!r} holds a control character; name it with what can be seen")
