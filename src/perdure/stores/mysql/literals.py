"""Values as SQL text. Whatever comes from a user or from the database becomes a literal here, and nowhere else.

All of our text is bytes to the server, compared as such: a literal says so itself, whatever the connection's character
set is. The connection must not have `NO_BACKSLASH_ESCAPES` in its SQL mode; `connection` sees to that.
"""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class Name(bytes):
    """What stands in the text as it is: the name of a variable of ours."""

    __slots__ = ()


class Refused(ValueError):
    """The value is one that the database never takes."""


def literal(value: Any) -> bytes:
    """The value as the server reads it: a list or tuple as `(a,b,c)`, of which nothing is in an empty one."""
    kind = cast("type[object]", type(value))
    if kind is bytes:
        return b"_binary'%s'" % value.replace(b"\\", b"\\\\").replace(b"'", b"\\'")
    if kind is str:
        return b"_binary'%s'" % value.encode().replace(b"\\", b"\\\\").replace(b"'", b"\\'")
    if value is None:
        return b"null"
    if kind is bool:
        return b"1" if value else b"0"
    if kind is int:
        return b"%d" % value
    if kind is float:
        return _number(value)
    if isinstance(value, Name):
        return bytes(value)
    if isinstance(value, list | tuple):
        return b"(%s)" % (b",".join(map(literal, value)) or b"null")  # pyright: ignore[reportUnknownArgumentType]
    raise TypeError(f"{kind.__name__} is no value of a statement")


def _number(value: float) -> bytes:
    if not isfinite(value):
        raise Refused(f"{value!r} is no number for this database")
    text = repr(value)
    return text.encode() if "e" in text else text.encode() + b"e0"


def literals(values: Iterable[Any]) -> list[bytes]:
    """Each value as the server reads it."""
    return list(map(literal, values))


class Texts(dict[str, list[bytes]]):
    """Statements taken apart at their `%s`, for tables whose names begin with the store's own prefix."""

    def __init__(self, prefix: str, mark: bytes = b"") -> None:
        super().__init__()
        self._prefix = prefix
        self.mark = mark
        """What this server wants before each row of `values` in a query."""

    def __missing__(self, sql: str) -> list[bytes]:
        pieces = self[sql] = sql.replace("perdure_", self._prefix).encode().split(b"%s")
        return pieces

    def filled(self, sql: str, args: Sequence[bytes] = ()) -> bytes:
        """The statement with these texts in the places of its `%s`."""
        pieces = self[sql]
        if len(pieces) != len(args) + 1:
            raise TypeError(f"{len(args)} values for the {len(pieces) - 1} of {sql}")
        parts = [b""] * (2 * len(args) + 1)
        parts[::2] = pieces
        parts[1::2] = args
        return b"".join(parts)

    def table(self, columns: str, rows: Sequence[Sequence[bytes]]) -> bytes:
        """Rows of literals as a derived table with these columns."""
        names = map(str.encode, columns.split(","))
        first = b",".join(b"%s as `%s`" % pair for pair in zip(rows[0], names, strict=True))
        if len(rows) == 1:
            return b"(select %s)" % first
        rest = b",".join(b"%s(%s)" % (self.mark, b",".join(each)) for each in rows[1:])
        return b"(select %s union all values %s)" % (first, rest)
