"""Values <-> bytes: JSON that says its types, read back only as classes that this program has loaded already.

What holds: a value read is of the same types as the value written, in every process; sets give the same bytes whatever
the hash seed; nothing stored is imported, unpickled or executed. Two references to one list become two lists.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from hashlib import blake2b
from math import isfinite
from typing import Any, Final, Protocol, cast
from uuid import UUID, SafeUUID

from perdure.codec.failures import decode_error, encode_error
from perdure.codec.forms import fits
from perdure.codec.names import register, tag_of_class, type_name
from perdure.codec.read import decode, loads
from perdure.codec.write import ATOMS, BUILTIN_NAMES, dumps, encode, type_of
from perdure.errors import DoesNotFit, NotEncodable, UnknownType

__all__ = [
    "Codec",
    "decode",
    "decode_error",
    "digest",
    "encode",
    "encode_error",
    "fits",
    "register",
    "round_trip",
    "tag_of",
    "tag_of_class",
    "type_name",
]


_FROZEN: Final = frozenset({UUID, Decimal, bytes, date, timedelta})
_INT_MIN: Final = -(1 << 63)
_INT_MAX: Final = (1 << 63) - 1


class Codec(Protocol):
    """The user's hook on all payload bytes, for compression or encryption; `decode(encode(data)) == data`."""

    def encode(self, data: bytes, /) -> bytes:
        """The bytes to store."""
        ...

    def decode(self, data: bytes, /) -> bytes:
        """The bytes that `encode` was given."""
        ...


def round_trip(value: Any) -> tuple[bytes, Any]:
    """The bytes of the value, and a copy: what decoding them gives.

    Raises:
        NotEncodable: it cannot be written, or the copy is not the same: another type, or other bytes.
    """
    t = type_of(value)
    if t in ATOMS or (t is int and _INT_MIN <= value <= _INT_MAX) or (t is float and isfinite(value)):
        try:
            return dumps(value), value  # nobody can change it: it is its own copy
        except UnicodeEncodeError:
            pass
    data = encode(value)
    if (t in _FROZEN and (t is not UUID or value.is_safe is SafeUUID.unknown)) or (
        t is datetime and (value.tzinfo is None or value.tzinfo is UTC)
    ):
        return data, value  # as above, and the bytes say all of it
    if b'"$"' not in data:
        return data, loads(data)  # plain JSON: no class took part that could spoil it
    try:
        copy = decode(data)
        same = type(copy) is t and encode(copy) == data
    except (DoesNotFit, UnknownType, NotEncodable) as bad:
        raise NotEncodable(f"a {tag_of(value)} does not come back as it was: {bad}") from bad
    if not same:
        raise NotEncodable(f"a {tag_of(value)} does not come back as it was; what it holds changes on the way")
    return data, copy


def digest(data: bytes) -> bytes:
    """Eight bytes that stand for the data when two are compared."""
    return blake2b(data, digest_size=8).digest()


def tag_of(value: object) -> str:
    """The name of the value's type, for people and filters: "str", "Decimal", or the tag of its class."""
    cls = cast("type[Any]", type(value))
    return BUILTIN_NAMES.get(cls) or tag_of_class(cls)
