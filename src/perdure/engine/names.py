"""Which ids, keys and names may be stored."""

from __future__ import annotations

from typing import cast


def check_name(text: str, what: str) -> None:
    """Raises ValueError unless the text is 1 to 255 bytes of UTF-8: ids and keys are stored as such."""
    if not isinstance(cast("object", text), str):
        raise TypeError(f"{what} must be a str, not {type(text).__name__}")
    size = len(text.encode("utf-8", "surrogatepass"))
    if not 1 <= size <= 255:
        raise ValueError(f"{what} has {size} bytes in UTF-8; 1 to 255 are possible: {text[:40]!r}…")
