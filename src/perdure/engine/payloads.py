"""Values to payload bytes and back: the codec, the user's hook (compression, encryption) and the size limit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from perdure import codec
from perdure.errors import DoesNotFit, NotEncodable, PayloadTooLarge, StepFailed, UnknownType

NO_DIGEST: Final = b""
_NONE: Final[frozenset[int | str]] = frozenset()
LARGE: Final = 4096
"""Payloads below this many bytes do not make a batch too large, whatever their number."""


class _Told(msgspec.Struct):
    """As much of a stored exception as needs no class."""

    type: str = msgspec.field(name="$")
    args: list[Any] = msgspec.field(default_factory=list[Any])


class Payloads:
    """The one way from a value to the bytes that are stored. Pure; one per engine."""

    __slots__ = ("_hook", "_small", "large", "limit")

    def __init__(self, hook: codec.Codec | None, limit: int) -> None:
        self._hook = hook
        self.limit = limit
        self._small = min(LARGE, limit) if hook is None else -1
        """Encoded values of up to so many bytes are stored as they are, and need no look."""
        self.large = 0
        """Bytes of payloads above `LARGE` that were made since somebody set this to 0."""

    def _seal(self, data: bytes, where: str, *, limited: bool = True) -> bytes:
        """What is stored of the encoded value; callers spare it for small values without a hook."""
        if len(data) > self.limit and limited:
            raise PayloadTooLarge(where, len(data), self.limit)
        if len(data) > LARGE:
            self.large += len(data)
        return data if self._hook is None else self._hooked(data, where)

    def _hooked(self, data: bytes, where: str) -> bytes:
        assert self._hook is not None  # noqa: S101
        try:
            return self._hook.encode(data)
        except Exception as error:
            raise NotEncodable(f"the engine's codec= failed: {error!r}", where=where) from error

    def _open(self, data: bytes) -> bytes:
        if self._hook is None:
            return data
        try:
            return self._hook.decode(data)
        except Exception as error:
            raise DoesNotFit(f"the engine's codec= cannot read what is stored: {error!r}") from error

    def encode(self, value: object, where: str, *, limited: bool = True) -> bytes:
        """The stored bytes. Raises NotEncodable and PayloadTooLarge, naming `where`."""
        try:
            return self._seal(codec.encode(value), where, limited=limited)
        except NotEncodable as error:
            raise error.at(where) from None

    def round_trip(self, value: object, where: str) -> tuple[bytes, Any]:
        """The stored bytes and what decoding them gives. Raises NotEncodable (also if it is not the same) and
        PayloadTooLarge.
        """
        try:
            data, copy = codec.round_trip(value)
        except NotEncodable as error:
            raise error.at(where) from None
        if len(data) <= self._small:
            return data, copy
        return self._seal(data, where), copy

    def decode(self, data: bytes) -> Any:
        """The value. Raises UnknownType and DoesNotFit."""
        return codec.decode(data if self._hook is None else self._open(data))

    def encode_error(self, error: BaseException, where: str) -> bytes:
        """The stored bytes of an exception; one that is too large is kept as its type and the beginning of its
        message.
        """
        data = codec.encode_error(error)
        if len(data) > self.limit:
            data = codec.encode_error(PayloadTooLarge(f"{where}: {type(error).__name__}", len(data), self.limit))
        return data if self._hook is None else self._hooked(data, where)

    def decode_error(self, data: bytes) -> BaseException:
        """The exception. Raises UnknownType and DoesNotFit."""
        return codec.decode_error(self._open(data))

    def show(self, data: bytes) -> Any:
        """The value for people: as plain data where its types are not loaded here, or do not fit it."""
        try:
            return self.decode(data)
        except (UnknownType, DoesNotFit):
            try:
                return msgspec.json.decode(self._open(data))
            except (msgspec.DecodeError, DoesNotFit):
                return data

    def show_error(self, data: bytes) -> BaseException:
        """The exception for people: a `StepFailed` where its type is not loaded here."""
        try:
            return self.decode_error(data)
        except (UnknownType, DoesNotFit) as unfit:
            try:
                plain = msgspec.json.decode(self._open(data), type=_Told)
                return StepFailed(plain.type, ", ".join(map(str, plain.args)))
            except (msgspec.MsgspecError, DoesNotFit):
                pass
            return StepFailed(type(unfit).__name__, str(unfit))

    def arguments(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], where: str, *, limited: bool = True
    ) -> tuple[bytes, bytes, frozenset[int | str]]:
        """The stored bytes of a call's arguments, their digest, and which of them (position or keyword) cannot be
        encoded.

        Those are kept as a placeholder and are not part of the digest.
        """
        try:
            plain = codec.encode([list(args), dict(kwargs)] if kwargs else list(args))
        except NotEncodable:
            return self._arguments_apart(args, kwargs, where, limited=limited)
        if len(plain) <= self._small:
            return plain, codec.digest(plain), _NONE
        return self._seal(plain, where, limited=limited), codec.digest(plain), _NONE

    def _arguments_apart(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], where: str, *, limited: bool
    ) -> tuple[bytes, bytes, frozenset[int | str]]:
        opaque: set[int | str] = set()
        shown: dict[int | str, Any] = {}
        hidden: dict[int | str, Any] = {}
        for place, value in (*enumerate(args), *kwargs.items()):
            try:
                codec.encode(value)
                shown[place] = hidden[place] = value
            except NotEncodable:
                opaque.add(place)
                shown[place] = {"not encoded": type(value).__qualname__}
                hidden[place] = None
        n = len(args)

        def parts(values: dict[int | str, Any]) -> list[Any]:
            positional = [values[i] for i in range(n)]
            return [positional, {k: values[k] for k in kwargs}] if kwargs else positional

        return (
            self._seal(codec.encode(parts(shown)), where, limited=limited),
            codec.digest(codec.encode(parts(hidden))),
            frozenset(opaque),
        )

    def copies(
        self, data: bytes, args: tuple[Any, ...], kwargs: Mapping[str, Any], opaque: frozenset[int | str]
    ) -> tuple[list[Any], Mapping[str, Any]]:
        """The arguments as decoding the stored bytes gives them; those that cannot be encoded as they are."""
        decoded = codec.decode(data) if self._hook is None else self.decode(data)
        positional: list[Any] = decoded[0] if kwargs else decoded
        keywords: dict[str, Any] = decoded[1] if kwargs else {}
        if opaque:
            positional = [args[i] if i in opaque else value for i, value in enumerate(positional)]
            keywords = {k: kwargs[k] if k in opaque else value for k, value in keywords.items()}
        return positional, keywords

    def digest(self, value: object, where: str) -> bytes:
        """The digest of one value's encoding."""
        try:
            return codec.digest(codec.encode(value))
        except NotEncodable as error:
            raise error.at(where) from None

    def same_today(self, recorded: bytes, digest: bytes) -> bool:
        """Whether recorded arguments, decoded and encoded with today's types, have this digest: a new field has a
        default.
        """
        return self.today(recorded) == digest

    def today(self, recorded: bytes, opaque: frozenset[int | str] = _NONE) -> bytes | None:
        """The digest of a recorded value, decoded and encoded with today's types; None: today's types cannot.

        Of a call's arguments the `opaque` ones have no part in it.
        """
        try:
            value: Any = codec.decode(self._open(recorded))
            if opaque:
                value = _without(value, opaque)
            return codec.digest(codec.encode(value))
        except (NotEncodable, DoesNotFit, UnknownType):
            return None

    def digest_of(self, recorded: bytes) -> bytes:
        """The digest of a recorded value as it was. Raises DoesNotFit if the hook cannot read it."""
        return codec.digest(self._open(recorded))


def _without(arguments: Any, opaque: frozenset[int | str]) -> Any:
    """Recorded arguments with None in place of those that were not encoded, as `Payloads.arguments` digests them."""
    keywords = len(arguments) == 2 and isinstance(arguments[0], list) and isinstance(arguments[1], dict)
    if keywords and any(isinstance(place, str) for place in opaque):
        positional, named = arguments
        return [
            [None if i in opaque else v for i, v in enumerate(positional)],
            {k: None if k in opaque else v for k, v in named.items()},
        ]
    return [None if i in opaque else v for i, v in enumerate(arguments)]
