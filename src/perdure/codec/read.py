"""Bytes to values. What was written is checked, never trusted: nothing is imported, evaluated or called by its name.

Classes are rebuilt without their constructors: dataclasses and models from their fields as recorded, so that a copy is
what the original was, not what `__init__` or a validator would make of it today. Structs are the exception: only their
own constructor (msgspec's, in C) makes one, and it runs `__post_init__`, as msgspec does whenever it decodes.
"""

from __future__ import annotations

import dataclasses
import re
from binascii import a2b_base64
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, Flag
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Final, cast
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec

from perdure.codec.forms import anything, check_of, hints_of
from perdure.codec.names import Kind, changed, kind_of, resolve
from perdure.codec.write import MORE, may_be_unset
from perdure.errors import DoesNotFit, PerdureError

Reader = Callable[[dict[str, Any]], Any]

_READERS_LIMIT: Final = 4096
_ZONE_KEY: Final = re.compile(r"[A-Za-z0-9_+\-]+(/[A-Za-z0-9_+\-]+)*")
_MISSING: Final = object()
_new_tuple: Final[Any] = vars(tuple)["__new__"]  # past a `__new__` of the class

loads: Final = msgspec.json.Decoder().decode


def decode(data: bytes) -> Any:
    """The value that `encode` gave these bytes for, made of today's classes.

    Raises:
        UnknownType: a class is not loaded in this program.
        DoesNotFit: the bytes are not a value, or a class has changed so that its stored fields no longer fit.
    """
    try:
        value = loads(data)
    except (ValueError, RecursionError) as bad:
        raise DoesNotFit(f"not a stored value: {bad}") from None
    if b'"$"' not in data:  # no tag: plain JSON is the value itself
        return value
    return read_all(value)


def read_all(doc: Any) -> Any:
    """The value of a whole document; whatever goes wrong in it is one of the two errors of `decode`."""
    try:
        return read(doc)
    except PerdureError:
        raise
    except Exception as bad:  # stored bytes may be wrong in any way, and a default's factory may raise
        raise DoesNotFit(f"a stored value does not fit: {type(bad).__name__}: {bad}") from bad


def read(doc: Any) -> Any:
    """The value of a document; lists and dicts of it are used as they are, in place."""
    if type(doc) is dict:
        doc = cast("dict[str, Any]", doc)
        if "$" in doc:
            tag = doc["$"]
            if type(tag) is not str:
                raise DoesNotFit(f"a stored value has the tag {tag!r}")
            reader = _BUILTIN.get(tag)
            if reader is None:
                cls = resolve(tag)
                reader = _readers.get(cls) or _reader_of(cls)
            return reader(doc)
        for key, item in doc.items():
            if type(item) is dict or type(item) is list:
                doc[key] = read(item)
        return doc
    if type(doc) is list:
        doc = cast("list[Any]", doc)
        for n, item in enumerate(doc):
            if type(item) is dict or type(item) is list:
                doc[n] = read(item)
    return doc


# ---------------------------------------------------------------- what JSON has not


def _text(doc: dict[str, Any]) -> str:
    text = doc["v"]
    if type(text) is not str:
        raise DoesNotFit(f"a stored {doc['$']} is not text")
    return text


def _list(doc: dict[str, Any]) -> list[Any]:
    items = doc["v"]
    if type(items) is not list:
        raise DoesNotFit(f"a stored {doc['$']} is not a list")
    return cast("list[Any]", items)


def _read_dict(doc: dict[str, Any]) -> dict[Any, Any]:
    return {read(key): read(item) for key, item in _list(doc)}


def _read_tuple(doc: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(read(_list(doc)))


def _read_timedelta(doc: dict[str, Any]) -> timedelta:
    days, seconds, microseconds = _list(doc)
    return timedelta(days, seconds, microseconds)


def _read_complex(doc: dict[str, Any]) -> complex:
    real, imaginary = _list(doc)
    return complex(read(real), read(imaginary))


def _zone(doc: dict[str, Any]) -> ZoneInfo | None:
    key = doc.get("zone")
    if key is None:
        return None
    if type(key) is not str or not _ZONE_KEY.fullmatch(key):
        raise DoesNotFit(f"{key!r} is not a time zone")
    return ZoneInfo(key)


def _read_datetime(doc: dict[str, Any]) -> datetime:
    value = datetime.fromisoformat(_text(doc))
    zone = _zone(doc)
    fold = 1 if doc.get("fold") else 0
    if zone is None:
        return _named(value, doc).replace(fold=fold) if fold or "name" in doc else value
    local = value.replace(tzinfo=zone, fold=fold)
    # the rules of the zone have changed since: the instant counts, not the hour on the wall
    return local if local.utcoffset() == value.utcoffset() else value.astimezone(UTC).astimezone(zone)


def _read_time(doc: dict[str, Any]) -> time:
    value = time.fromisoformat(_text(doc))
    zone = _zone(doc)
    value = _named(value, doc) if zone is None else value.replace(tzinfo=zone)
    return value.replace(fold=1) if doc.get("fold") else value


def _named(value: Any, doc: dict[str, Any]) -> Any:
    name = doc.get("name")
    return value if name is None else value.replace(tzinfo=timezone(value.utcoffset(), name))


_BUILTIN: Final[dict[str, Reader]] = {
    "int": lambda doc: int(_text(doc), 16),
    "float": lambda doc: float(_text(doc)),
    "dict": _read_dict,
    "tuple": _read_tuple,
    "set": lambda doc: set(read(_list(doc))),
    "frozenset": lambda doc: frozenset(read(_list(doc))),
    "bytes": lambda doc: a2b_base64(_text(doc), strict_mode=True),
    "bytearray": lambda doc: bytearray(a2b_base64(_text(doc), strict_mode=True)),
    "UUID": lambda doc: UUID(_text(doc)),
    "datetime": _read_datetime,
    "date": lambda doc: date.fromisoformat(_text(doc)),
    "time": _read_time,
    "timedelta": _read_timedelta,
    "Decimal": lambda doc: Decimal(_text(doc)),
    "complex": _read_complex,
    "Path": lambda doc: Path(_text(doc)),
    "PurePosixPath": lambda doc: PurePosixPath(_text(doc)),
    "PureWindowsPath": lambda doc: PureWindowsPath(_text(doc)),
}


# ---------------------------------------------------------------- classes

_readers: dict[type[Any], Reader] = {}


def _reader_of(cls: type[Any]) -> Reader:
    kind = kind_of(cls)
    if kind is None:
        raise DoesNotFit(f"values of {cls.__qualname__} are not stored")
    reader = MAKERS[kind](cls)
    if len(_readers) >= _READERS_LIMIT:
        _readers.clear()
    _readers[cls] = reader
    return reader


changed.append(lambda cls: _readers.pop(cls, None))


def _fields(doc: dict[str, Any], cls: type[Any], checks: dict[str, Any]) -> dict[str, Any]:
    """The stored fields that the class has, read and checked; defaults are not filled in."""
    out: dict[str, Any] = {}
    for name, item in doc.items():
        if name == "$" or name == MORE:
            continue
        check = checks.get(name)
        if check is None:
            raise DoesNotFit(f"{cls.__qualname__} has no field {name!r} any more, and a stored one has it")
        value = read(item) if type(item) is dict or type(item) is list else item
        if not check(value):
            raise DoesNotFit(f"{cls.__qualname__}.{name} is annotated otherwise than what is stored: {_short(value)}")
        out[name] = value
    return out


def _short(value: object) -> str:
    text = repr(value)
    return f"a {type(value).__qualname__}, {text if len(text) <= 60 else text[:59] + '…'}"


def _add_more(doc: dict[str, Any], value: Any) -> Any:
    if MORE in doc:
        own = getattr(value, "__dict__", None)
        if own is None:
            raise DoesNotFit(f"{type(value).__qualname__} has slots now, and a stored one has other attributes")
        own.update(read(doc[MORE]))
    return value


def _missing(cls: type[Any], name: str) -> DoesNotFit:
    return DoesNotFit(f"{cls.__qualname__}.{name} has no default, and a stored {cls.__qualname__} is without it")


def _checks_of(cls: type[Any], names: tuple[str, ...]) -> dict[str, Any]:
    hints = hints_of(cls)
    return {name: check_of(hints[name]) if name in hints else anything for name in names}


def _dataclass_maker(cls: type[Any]) -> Reader:
    fields = {field.name: field for field in dataclasses.fields(cls)}
    checks = _checks_of(cls, tuple(fields))
    set_field = object.__setattr__  # past a frozen class's refusal

    def read_dataclass(doc: dict[str, Any]) -> Any:
        stored = _fields(doc, cls, checks)
        value = object.__new__(cls)
        for name, field in fields.items():
            item = stored.get(name, _MISSING)
            if item is _MISSING:
                if field.default is not dataclasses.MISSING:
                    item = field.default
                elif field.default_factory is not dataclasses.MISSING:
                    item = field.default_factory()
                elif may_be_unset(field):
                    continue
                else:
                    raise _missing(cls, name)
            set_field(value, name, item)
        return _add_more(doc, value)

    return read_dataclass


def _struct_maker(cls: type[Any]) -> Reader:
    names: tuple[str, ...] = cls.__struct_fields__
    checks = _checks_of(cls, names)

    def read_struct(doc: dict[str, Any]) -> Any:
        stored = _fields(doc, cls, checks)
        try:
            value = cls(**stored)
        except TypeError as bad:
            raise DoesNotFit(f"a stored {cls.__qualname__} does not fit: {bad}") from None
        return _add_more(doc, value)

    return read_struct


def _namedtuple_maker(cls: type[Any]) -> Reader:
    names: tuple[str, ...] = cls._fields
    defaults: dict[str, Any] = getattr(cls, "_field_defaults", {})
    checks = _checks_of(cls, names)

    def read_namedtuple(doc: dict[str, Any]) -> Any:
        stored = _fields(doc, cls, checks)
        for name in names:
            if name not in stored:
                if name not in defaults:
                    raise _missing(cls, name)
                stored[name] = defaults[name]
        return _add_more(doc, _new_tuple(cls, [stored[name] for name in names]))

    return read_namedtuple


def _enum_maker(cls: type[Any]) -> Reader:
    members = cast("dict[str, Enum]", cls.__members__)

    def member(name: Any) -> Any:
        if type(name) is not str or name not in members:
            raise DoesNotFit(f"{cls.__qualname__} has no member {name!r}")
        return members[name]

    def read_enum(doc: dict[str, Any]) -> Any:
        return member(doc["name"])

    def read_flag(doc: dict[str, Any]) -> Any:
        flag: Any = cls(doc.get("rest", 0))
        for name in doc["names"]:
            flag |= member(name)
        return flag

    return read_flag if issubclass(cls, Flag) else read_enum


def _pydantic_maker(cls: type[Any]) -> Reader:
    """The reader of a model. Validators do not run: they ran when the value was made, once is enough."""
    infos: dict[str, Any] = cls.__pydantic_fields__
    private: dict[str, Any] = cls.__private_attributes__
    by = cls.__pydantic_decorators__
    make: Any = cls.__new__
    own_checks = bool(by.validators or by.field_validators or by.root_validators or by.model_validators)
    checks = {
        # a validator may make something else of the annotated type
        name: anything if own_checks or _has_validator(info) else check_of(info.annotation)
        for name, info in infos.items()
    }

    def read_model(doc: dict[str, Any]) -> Any:
        stored = _fields(doc["v"], cls, checks)
        given = stored.keys() - set(doc.get("unset", ()))
        fields: dict[str, Any] = {}
        for name, info in infos.items():
            if name in stored:
                fields[name] = stored[name]
            elif info.is_required():
                raise _missing(cls, name)
            else:
                fields[name] = _model_default(info, fields)
        hidden = {name: attribute.get_default() for name, attribute in private.items()}
        hidden = {name: item for name, item in hidden.items() if type(item).__name__ != "PydanticUndefinedType"}
        hidden.update(read(doc.get("private", {})))
        extra = read(doc.get("extra", {})) if cls.model_config.get("extra") == "allow" else None
        if extra is None and "extra" in doc:
            raise DoesNotFit(f"{cls.__qualname__} allows no extra fields any more, and a stored one has some")
        value: Any = make(cls)
        object.__setattr__(value, "__dict__", fields)
        object.__setattr__(value, "__pydantic_fields_set__", given)
        if not cls.__pydantic_root_model__:  # there they belong to the class
            object.__setattr__(value, "__pydantic_extra__", extra)
            object.__setattr__(value, "__pydantic_private__", hidden if private else None)
        return _add_more(doc, value)

    return read_model


def _has_validator(info: Any) -> bool:
    return any(hasattr(extra, "__get_pydantic_core_schema__") for extra in info.metadata)


def _model_default(info: Any, fields: dict[str, Any]) -> Any:
    if getattr(info, "default_factory_takes_validated_data", False):
        return info.default_factory(fields)
    return info.get_default(call_default_factory=True)


MAKERS: Final[dict[Kind, Callable[[type[Any]], Reader]]] = {
    "dataclass": _dataclass_maker,
    "struct": _struct_maker,
    "namedtuple": _namedtuple_maker,
    "enum": _enum_maker,
    "pydantic": _pydantic_maker,
}
"""How the reader of each kind of class is made; that of exceptions is added by `failures`."""
