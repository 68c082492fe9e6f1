"""Values to bytes. Plain JSON where JSON says it all, else an object `{"$": tag, ...}` that says the type.

Each writer turns a value into what msgspec writes as it stands. A value that cannot be written raises `Refusal`, which
gathers its place in the value on the way up, so that success pays nothing for it.
"""

from __future__ import annotations

import dataclasses
import functools
from binascii import b2a_base64
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum, Flag
from math import isfinite
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any, Final, cast
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec

from perdure.codec.names import Kind, c_base, changed, classes, kind_of, register
from perdure.errors import NotEncodable

Writer = Callable[[Any, int], Any]
Doc = dict[str, Any]

MAX_DEPTH: Final = 200
MORE: Final = "$more"
type_of: Callable[[object], type[Any]] = type  # what `type` gives, known to checkers as a class of anything
_INT_MIN: Final = -(1 << 63)
_INT_MAX: Final = (1 << 63) - 1
_WRITERS_LIMIT: Final = 4096
_TOO_DEEP: Final = f"nested deeper than {MAX_DEPTH} levels"

ATOMS: Final = frozenset({str, bool, type(None)})
"""Types whose values are written as they are (a string's characters are checked by msgspec)."""

dumps: Final = msgspec.json.Encoder().encode


class Refusal(Exception):
    """A value that cannot be written; inside this package only."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.steps: list[str] = []
        self.inside: list[int] = []

    def climb(self, step: str, container: object) -> None:
        """Note the step by which the container leads here."""
        self.steps.append(step)
        self.inside.append(id(container))

    def error(self) -> NotEncodable:
        """The same as the error for the user, with the path from the outermost value."""
        steps, inside = self.steps[::-1], self.inside[::-1]
        if self.reason == _TOO_DEEP:
            first: dict[int, int] = {}
            for n, place in enumerate(inside):
                if place in first:
                    return not_encodable("contains itself; only trees of values can be written", "".join(steps[:n]))
                first[place] = n
            return not_encodable(f"{self.reason}, from {''.join(steps[:8])}…", "".join(steps))
        return not_encodable(self.reason, "".join(steps))


def not_encodable(reason: str, path: str) -> NotEncodable:
    """The error that names the place first, unless it is the whole value."""
    return NotEncodable(f"{path}: {reason}" if path and len(path) < 200 else reason, path=path)


def encode(value: Any) -> bytes:
    """The value as bytes: equal values of equal types give equal bytes, in every process.

    Raises:
        NotEncodable: it holds something that cannot be written; `path` says where.
    """
    try:
        t = type_of(value)
        if t in ATOMS or (t is list and _all_plain(value)):
            return dumps(value)
        return dumps(write(value, 0))
    except Refusal as no:
        raise no.error() from None
    except UnicodeEncodeError:
        path = _find_bad_text(value if type(value) is str else write(value, 0), "")
        raise not_encodable("a str with a lone surrogate; it is not text that can be written", path or "") from None
    except RecursionError:
        raise NotEncodable("nested too deep to be written from here") from None


def _all_plain(values: list[Any]) -> bool:
    """Whether JSON says every item as it is: so are most arguments."""
    for item in values:
        t = type_of(item)
        if t not in ATOMS and (t is not int or not _INT_MIN <= item <= _INT_MAX):
            return False
    return True


def write(value: Any, depth: int) -> Any:
    """What msgspec writes for the value."""
    t = type_of(value)
    if t in ATOMS:
        return value
    return (_writers.get(t) or writer_of(t))(value, depth)


# ---------------------------------------------------------------- what JSON has


def _write_int(value: int, _depth: int) -> Any:
    return value if _INT_MIN <= value <= _INT_MAX else {"$": "int", "v": hex(value)}


def _write_float(value: float, _depth: int) -> Any:
    return value if isfinite(value) else {"$": "float", "v": repr(value)}


def _write_list(value: Iterable[Any], depth: int) -> list[Any]:
    if depth > MAX_DEPTH:
        raise Refusal(_TOO_DEEP)
    out: list[Any] = []
    try:
        for item in value:
            t = type_of(item)
            plain = t in ATOMS or (t is int and _INT_MIN <= item <= _INT_MAX)
            out.append(item if plain else (_writers.get(t) or writer_of(t))(item, depth + 1))
    except Refusal as no:
        no.climb(f"[{len(out)}]", value)
        raise
    return out


def _write_dict(value: Mapping[Any, Any], depth: int) -> Doc:
    if depth > MAX_DEPTH:
        raise Refusal(_TOO_DEEP)
    out: Doc = {}
    key: Any = None
    try:
        for key, item in value.items():
            if type(key) is not str or key == "$":
                break
            t = type_of(item)
            out[key] = item if t in ATOMS else (_writers.get(t) or writer_of(t))(item, depth + 1)
        else:
            return out
    except Refusal as no:
        no.climb(f"[{_short(key)}]", value)
        raise
    return {"$": "dict", "v": _write_pairs(value, depth + 2)}


def _write_pairs(value: Mapping[Any, Any], depth: int) -> list[Any]:
    pairs: list[Any] = []
    key: Any = None
    try:
        for key, item in value.items():
            pairs.append([write(key, depth + 1), write(item, depth + 1)])
    except Refusal as no:
        no.climb(f"[{_short(key)}]", value)
        raise
    return pairs


# ---------------------------------------------------------------- what JSON has not


def _write_tuple(value: tuple[Any, ...], depth: int) -> Doc:
    return {"$": "tuple", "v": _write_list(value, depth + 1)}


def _set_writer(tag: str) -> Writer:
    def write_set(value: Iterable[Any], depth: int) -> Doc:
        if depth > MAX_DEPTH:
            raise Refusal(_TOO_DEEP)
        members: list[bytes] = []
        item: Any = None
        try:
            for item in value:
                members.append(dumps(write(item, depth + 2)))
        except Refusal as no:
            no.climb(f"{{{_short(item)}}}", value)
            raise
        except UnicodeEncodeError:
            no = Refusal("a str with a lone surrogate; it is not text that can be written")
            no.climb(f"{{{_short(item)}}}", value)
            raise no from None
        members.sort()  # the order of a set differs from process to process
        return {"$": tag, "v": [msgspec.Raw(member) for member in members]}

    return write_set


def _zone(value: tzinfo) -> Any:
    """The zone's key, or None for a fixed offset, which the text of the value says."""
    if type(value) is ZoneInfo:
        if value.key:
            return value.key
    elif value.utcoffset(None) is not None:  # a fixed offset, by convention of all classes of zones
        return None
    raise Refusal(f"a time in a zone of type {type(value).__qualname__}; use zoneinfo.ZoneInfo or datetime.timezone")


def _write_datetime(value: datetime, _depth: int) -> Doc:
    return _with_zone({"$": "datetime", "v": value.isoformat()}, value)


def _write_time(value: time, _depth: int) -> Doc:
    return _with_zone({"$": "time", "v": value.isoformat()}, value)


def _with_zone(doc: Doc, value: datetime | time) -> Doc:
    if value.tzinfo is not None and value.tzinfo is not UTC:
        zone = _zone(value.tzinfo)
        if zone is not None:
            doc["zone"] = zone
        elif type(value.tzinfo) is timezone:
            name = value.tzinfo.tzname(None)
            if name != timezone(value.tzinfo.utcoffset(None)).tzname(None):
                doc["name"] = name
    if value.fold:
        doc["fold"] = 1
    return doc


def _text_writer(tag: str, text: Callable[[Any], str]) -> Writer:
    return lambda value, _depth: {"$": tag, "v": text(value)}


def _base64(value: bytes | bytearray) -> str:
    return b2a_base64(value, newline=False).decode()


_HERE: Final = type(Path())

_BUILTIN: Final[dict[type[Any], Writer]] = {
    **dict.fromkeys((str, bool, type(None)), lambda value, _depth: value),
    int: _write_int,
    float: _write_float,
    list: _write_list,
    dict: _write_dict,
    tuple: _write_tuple,
    set: _set_writer("set"),
    frozenset: _set_writer("frozenset"),
    bytes: _text_writer("bytes", _base64),
    bytearray: _text_writer("bytearray", _base64),
    UUID: _text_writer("UUID", str),
    datetime: _write_datetime,
    date: _text_writer("date", date.isoformat),
    time: _write_time,
    timedelta: lambda value, _depth: {"$": "timedelta", "v": [value.days, value.seconds, value.microseconds]},
    Decimal: _text_writer("Decimal", str),
    complex: lambda value, depth: {"$": "complex", "v": [_write_float(value.real, 0), _write_float(value.imag, 0)]},
    _HERE: _text_writer("Path", str),
    PurePosixPath: _text_writer("PurePosixPath", str),
    PureWindowsPath: _text_writer("PureWindowsPath", str),
}
BUILTIN_NAMES: Final = {t: t.__name__ for t in _BUILTIN} | {_HERE: "Path", type(None): "None"}


# ---------------------------------------------------------------- classes

_writers: dict[type[Any], Writer] = dict(_BUILTIN)


def writer_of(cls: type[Any]) -> Writer:
    """The writer of a class, made once.

    Raises:
        Refusal: its values cannot be written.
    """
    kind = kind_of(cls)
    if kind is None:
        raise Refusal(_why_not(cls))
    writer = MAKERS[kind](cls)
    if len(_writers) >= _WRITERS_LIMIT:  # a program that makes classes all the time
        _writers.clear()
        _writers.update(_BUILTIN)
    _writers[cls] = writer
    return writer


def _forget(cls: type[Any]) -> None:
    if cls not in _BUILTIN:
        _writers.pop(cls, None)


changed.append(_forget)


def _why_not(cls: type[Any]) -> str:
    name = cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
    for base in cls.__mro__[1:]:
        if base in _BUILTIN and base is not object:
            return f"a {name}, which would come back as a plain {BUILTIN_NAMES[base]}; convert it first"
    if issubclass(cls, PurePath):
        return f"a {name}; use pathlib.Path"
    if callable(getattr(cls, "__get__", None)) and c_base(cls) is cls:
        return f"a {name}, which is code; only data can be written"
    return f"a {name}, which cannot be written; use a dataclass, Struct, NamedTuple, Enum or pydantic model"


def tag_for(cls: type[Any]) -> str:
    """The class's tag, registered, so that its values can be read back here.

    Raises:
        Refusal: another class has this name.
    """
    try:
        return register(cls)
    except ValueError as taken:
        raise Refusal(str(taken)) from None


def add_more(doc: Doc, value: object, known: frozenset[str], depth: int) -> None:
    """Write attributes beyond the fields under `MORE`: what `__post_init__` or a later line has set on the object."""
    own: dict[str, Any] | None = getattr(value, "__dict__", None)
    if not own or own.keys() <= known:
        return
    more = {name: item for name, item in own.items() if name not in known and not _is_cache(type(value), name)}
    if more:
        doc[MORE] = write_attributes(more, value, depth + 1)


def write_attributes(items: Mapping[str, Any], owner: object, depth: int) -> Doc:
    """The document of a dict of names that are attributes of the owner."""
    out: Doc = {}
    name = ""
    try:
        for name, item in items.items():
            out[name] = write(item, depth + 1)
    except Refusal as no:
        no.climb("." + name, owner)
        raise
    return {"$": "dict", "v": [list(pair) for pair in out.items()]} if "$" in out else out


def _is_cache(cls: type[Any], name: str) -> bool:
    return any(isinstance(vars(base).get(name), functools.cached_property) for base in cls.__mro__)


def _fields_maker(cls: type[Any]) -> Writer:
    """The writer of a dataclass, Struct or NamedTuple: its fields, in order."""
    kind = kind_of(cls)
    optional: set[str] = set()
    if kind == "dataclass":
        fields = dataclasses.fields(cls)
        names = tuple(field.name for field in fields)
        optional = {field.name for field in fields if may_be_unset(field)}
    else:
        names = cast("tuple[str, ...]", cls.__struct_fields__ if kind == "struct" else cls._fields)
    known = frozenset(names) | {"__orig_class__"}  # set by Box[int](...)
    tag = tag_for(cls)

    def write_fields(value: Any, depth: int) -> Doc:
        if depth > MAX_DEPTH:
            raise Refusal(_TOO_DEEP)
        if classes.get(tag) is not cls:  # another class of this name was used meanwhile
            tag_for(cls)
        doc: Doc = {"$": tag}
        name = ""
        try:
            for name in names:
                item = getattr(value, name)
                t = cast("type[Any]", type(item))
                doc[name] = item if t in ATOMS else (_writers.get(t) or writer_of(t))(item, depth + 1)
        except Refusal as no:
            no.climb("." + name, value)
            raise
        except AttributeError:
            return write_unset(value, depth)
        if hasattr(value, "__dict__"):
            add_more(doc, value, known, depth)
        return doc

    def write_unset(value: Any, depth: int) -> Doc:
        present = {name: getattr(value, name) for name in names if hasattr(value, name)}
        for name in names:
            if name not in present and name not in optional:
                raise Refusal(f"a {cls.__qualname__} whose field {name!r} is not set")
        doc: Doc = {"$": tag, **write_attributes(present, value, depth)}
        add_more(doc, value, known, depth)
        return doc

    return write_fields


def may_be_unset(field: dataclasses.Field[Any]) -> bool:
    """True for a field that neither the constructor nor a default sets."""
    return not field.init and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _enum_maker(cls: type[Any]) -> Writer:
    tag = tag_for(cls)

    def write_enum(value: Enum, _depth: int) -> Doc:
        if classes.get(tag) is not cls:
            tag_for(cls)
        return {"$": tag, "name": value.name}

    def write_flag(value: Flag, _depth: int) -> Doc:
        if classes.get(tag) is not cls:
            tag_for(cls)
        names: list[str | None] = []
        rest = value.value
        for member in value:  # by name: the numbers of `auto()` change with the order of the lines
            names.append(member.name)
            rest &= ~member.value
        return {"$": tag, "names": names, "rest": rest} if rest else {"$": tag, "names": names}

    return cast("Writer", write_flag if issubclass(cls, Flag) else write_enum)


def _pydantic_maker(cls: type[Any]) -> Writer:
    """The writer of a model: fields as they are (no aliases, no serializers), which were set, extras, private ones."""
    names = tuple(cls.__pydantic_fields__)
    known = frozenset(names)
    tag = tag_for(cls)

    def write_model(value: Any, depth: int) -> Doc:
        if depth > MAX_DEPTH:
            raise Refusal(_TOO_DEEP)
        if classes.get(tag) is not cls:
            tag_for(cls)
        own = value.__dict__
        fields = write_attributes({name: own[name] for name in names if name in own}, value, depth + 1)
        doc: Doc = {"$": tag, "v": fields}
        unset = [name for name in fields if name not in value.__pydantic_fields_set__]
        if unset:
            doc["unset"] = unset
        if value.__pydantic_extra__:
            doc["extra"] = write_attributes(value.__pydantic_extra__, value, depth + 1)
        if value.__pydantic_private__:
            doc["private"] = write_attributes(value.__pydantic_private__, value, depth + 1)
        add_more(doc, value, known, depth)
        return doc

    return write_model


MAKERS: Final[dict[Kind, Callable[[type[Any]], Writer]]] = {
    "dataclass": _fields_maker,
    "struct": _fields_maker,
    "namedtuple": _fields_maker,
    "enum": _enum_maker,
    "pydantic": _pydantic_maker,
}
"""How the writer of each kind of class is made; that of exceptions is added by `failures`."""


# ---------------------------------------------------------------- saying where


def _short(value: object) -> str:
    try:
        text = repr(value)
    except Exception:
        text = f"<{type(value).__qualname__}>"
    return text if len(text) <= 40 else text[:39] + "…"


def _bad(text: str) -> bool:
    return any("\ud800" <= char <= "\udfff" for char in text)


def _find_bad_text(doc: Any, path: str) -> str | None:
    """The path to the first string that is not text, in what `write` gave."""
    if type(doc) is str:
        return path if _bad(doc) else None
    for step, inner in _inner(doc):
        found = _find_bad_text(inner, path + step)
        if found is not None:
            return found
    return None


def _inner(doc: Any) -> Iterable[tuple[str, Any]]:
    """What a document holds, each with the step to it as the user sees it."""
    if type(doc) is list:
        yield from ((f"[{n}]", item) for n, item in enumerate(cast("list[Any]", doc)))
    elif type(doc) is dict:
        fields = cast("Doc", doc)
        tag = fields.get("$")
        pairs: Iterable[Any] = fields["v"] if tag == "dict" else fields.items()
        for key, item in pairs:
            if tag is None or tag == "dict":
                yield f"[{_short(key)}]", key
                yield f"[{_short(key)}]", item
            else:
                yield "" if key == "v" else f".{key}", item
