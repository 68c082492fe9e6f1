"""Which payloads a recording holds, and how a user's function changes what they say. Pure.

Values are JSON as it is stored: what JSON has not is an object with a tag under "$" (see `perdure.codec`). Its class is
never made here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

import msgspec
from msgspec import UNSET
from msgspec.structs import replace

from perdure.codec.names import RESERVED, kind_of, resolve, tag_of_class
from perdure.errors import StepFailed, UnknownType
from perdure.model.records import Entry, Instance, Kind, Loaded, Message, MessageKind, Pending, State
from perdure.testing.record_file import json_of

Part = Literal["arguments", "outcome", "error", "message", "progress", "id"]


@dataclass(frozen=True, slots=True)
class Where:
    """Where a value stands in a recording."""

    part: Part
    """`id`: of an instance, of an operation (as given by `id=`), or the key of a message."""
    kind: str
    """Whose it is: "flow" (the recorded instance), "step", "wait", "send", "message" (in the inbox) and so on."""
    name: str
    """Of the step, the flow or the type of the message."""
    path: tuple[str | int, ...] = ()
    """The fields and positions that lead to it: `(0, "card")` is the field `card` of the first argument."""


Redactor = Callable[[Any, Where], Any]
"""Called with each value, the outer ones first; gives it back, or what shall stand there instead."""


def drop(*fields: str) -> Redactor:
    """Values of fields with these names say nothing any more: texts are "redacted-1" and so on, numbers 0.

    What has fields: objects and dictionaries, at any depth, arguments given by keyword, attributes of exceptions.
    Arguments given by position have none; but a text that stands in such a field is replaced wherever else it stands,
    whole or in part, ids included, if it has at least four characters. Equal texts stay equal and others stay others. The
    type of every value stays, and the length of every list.

    Called inside a function of one's own it knows the field alone: texts are "redacted" there, and elsewhere stay.
    """
    return _Drop(frozenset(fields), {})


class _Drop:
    """See `drop`."""

    def __init__(self, fields: frozenset[str], texts: dict[str, str]) -> None:
        self._fields = fields
        self._texts = texts
        """What stands for the texts of these fields."""
        known = sorted((text for text in texts if len(text) >= _LEAST), key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, known))) if known else None

    def __call__(self, value: Any, where: Where) -> Any:
        if where.path and where.path[-1] in self._fields:
            return blank(value, lambda text: self._texts.get(text, REDACTED))
        if self._known is None or type(value) is not str:
            return value
        return self._known.sub(lambda found: self._texts[found[0]], value)

    def knowing(self, loaded: Loaded) -> _Drop:
        """The same, which knows all texts in these fields of a recording."""
        texts: dict[str, str] = {}

        def look(value: Any, where: Where) -> Any:
            if where.path and where.path[-1] in self._fields:
                blank(value, lambda text: texts.setdefault(text, f"{REDACTED}-{len(texts) + 1}"))
            return value

        redacted(loaded, None, look)
        return _Drop(self._fields, texts)


# ---------------------------------------------------------------- all payloads

Change = Callable[[bytes, Where], bytes]


def with_payloads(loaded: Loaded, change: Change) -> Loaded:
    """The same, with all payloads that were made of a user's values changed."""
    return Loaded(
        _instance(loaded.instance, change),
        [_entry(entry, change) for entry in loaded.entries],
        [_pending(row, change) for row in loaded.pending],
        [_message(message, change) for message in loaded.inbox],
    )


def _instance(row: Instance, change: Change) -> Instance:
    arguments = Where("arguments", "flow", row.flow)
    outcome = Where("error" if row.state is State.FAILED else "outcome", "flow", row.flow)
    return replace(
        row,
        arguments=change(row.arguments, arguments),
        first=_changed(row.first, arguments, change),
        outcome=_changed(row.outcome, outcome, change),
    )


def _entry(entry: Entry, change: Change) -> Entry:
    part: Part = "error" if entry.failed else "message" if entry.kind in _MESSAGES else "outcome"
    outcome = _changed(entry.outcome, Where(part, entry.kind, entry.name), change)
    if entry.kind in _OWN_ARGUMENTS:
        return replace(entry, outcome=outcome)
    part = "message" if entry.kind in (Kind.SEND, Kind.CANCEL) else "arguments"
    arguments = _changed(entry.arguments, Where(part, entry.kind, entry.name), change)
    return replace(entry, arguments=arguments, outcome=outcome)


def _pending(row: Pending, change: Change) -> Pending:
    return replace(
        row,
        arguments=_changed(row.arguments, Where("arguments", row.kind, row.name), change),
        error=_changed(row.error, Where("error", row.kind, row.name), change),
        progress=_changed(row.progress, Where("progress", row.kind, row.name), change),
    )


def _message(message: Message, change: Change) -> Message:
    part: Part = "error" if message.failed else "outcome" if message.kind == MessageKind.ANSWER else "message"
    return replace(message, body=_changed(message.body, Where(part, "message", message.type), change))


def _changed(data: bytes | None, where: Where, change: Change) -> bytes | None:
    return None if data is None else change(data, where)


_OWN_ARGUMENTS: Final = frozenset({Kind.BEGUN, Kind.TIMER, Kind.RECEIVE, Kind.ARRIVAL, Kind.WAIT, Kind.READ})
"""Kinds whose arguments are the engine's own words: times, names, ids."""
_MESSAGES: Final = frozenset({Kind.RECEIVE, Kind.ARRIVAL, Kind.CANCEL})
"""Kinds whose outcome is the body of a message."""
_ID_AT: Final = {Kind.WAIT: 1, Kind.READ: 2}
"""Where in the engine's own words the id of another instance stands."""


# ---------------------------------------------------------------- redaction


def redacted(loaded: Loaded, parent: tuple[str, str] | None, fn: Redactor) -> tuple[Loaded, tuple[str, str] | None]:
    """The same with values as the function gives them, and nothing left that tells of the old ones.

    Digests go: a short text could be guessed by them. So the journal counts as edited, and is compared by kinds and names.
    """
    return _Redaction(fn.knowing(loaded) if isinstance(fn, _Drop) else fn).of(loaded, parent)


class _Redaction:
    """See `redacted`."""

    def __init__(self, fn: Redactor) -> None:
        self._fn = fn

    def of(self, loaded: Loaded, parent: tuple[str, str] | None) -> tuple[Loaded, tuple[str, str] | None]:
        found = with_payloads(loaded, self._payload)
        row = found.instance
        last = max((entry.seq for entry in found.entries), default=0)
        row = replace(
            row,
            id=self._id(row.id, "flow", row.flow),
            digest=b"",
            reason=None,
            edited_seq=max(row.edited_seq, last, 0),
        )
        if parent is not None:
            parent = parent[0], self._id(parent[1], "flow", parent[0])
        entries = [
            replace(entry, key=self._key(entry.key, entry.kind, entry.name), arguments=self._own(entry), digest=b"")
            for entry in found.entries
        ]
        pending = [replace(one, key=self._key(one.key, one.kind, one.name), digest=b"") for one in found.pending]
        return Loaded(row, entries, pending, [self._keyed(message) for message in found.inbox]), parent

    def _payload(self, data: bytes, where: Where) -> bytes:
        value = json_of(data)
        if value is UNSET:
            raise ValueError(f"{where} is no JSON and cannot be redacted: a codec= has sealed it; record by its engine")
        return msgspec.json.encode(_visit(value, where, self._fn))

    def _id(self, id: str, kind: str, name: str) -> str:
        found: Any = self._fn(id, Where("id", kind, name))
        if type(found) is not str or not found:
            raise TypeError(f"the id {id!r} must stay a text with something in it, and became {found!r}")
        return found

    def _key(self, key: str, kind: str, name: str) -> str:
        """An operation's key, which is the user's where it was given by `id=`."""
        return "=" + self._id(key[1:], kind, name) if key.startswith("=") else key

    def _own(self, entry: Entry) -> bytes | None:
        """The engine's own words, with the id in them."""
        place = _ID_AT.get(entry.kind)
        if place is None or entry.arguments is None:
            return entry.arguments
        words: list[Any] = msgspec.json.decode(entry.arguments)
        words[place] = self._id(words[place], entry.kind, entry.name)
        return msgspec.json.encode(words)

    def _keyed(self, message: Message) -> Message:
        if message.key is None:
            return message
        change = self._key if message.kind == MessageKind.ANSWER else self._id
        return replace(message, key=change(message.key, "message", message.type))


def _visit(value: Any, where: Where, fn: Redactor) -> Any:
    """The value as the function wants it, or else with what it holds as the function wants that."""
    found = fn(value, where)
    if found is not value:
        return found
    if isinstance(value, list):
        return [_visit(item, _at(where, n), fn) for n, item in enumerate(cast("list[Any]", value))]
    return _visit_fields(cast("dict[str, Any]", value), where, fn) if isinstance(value, dict) else value


def _visit_fields(doc: dict[str, Any], where: Where, fn: Redactor) -> dict[str, Any]:
    tag = doc.get("$")
    if tag == "dict":
        pairs = [[key, _visit(item, _at(where, key if isinstance(key, str) else n), fn)]
                 for n, (key, item) in enumerate(doc["v"])]  # fmt: skip
        return {"$": "dict", "v": pairs}
    if _is_whole(tag):
        return doc
    doc = _without_trace(doc)
    return {name: item if name == "$" else _visit(item, _at(where, name), fn) for name, item in doc.items()}


def _at(where: Where, step: str | int) -> Where:
    return Where(where.part, where.kind, where.name, (*where.path, step))


def _is_whole(tag: str | None) -> bool:
    """Whether what has this tag is one value: a time, a number, a member of an enum."""
    if tag is None or tag in _HOLDING:
        return False
    if tag in RESERVED:
        return True
    try:
        return kind_of(resolve(tag)) == "enum"
    except UnknownType:
        return False


def _without_trace(doc: dict[str, Any]) -> dict[str, Any]:
    """A traceback quotes the message of its exception, and nothing needs it."""
    if "args" not in doc or "$" not in doc:
        return doc
    doc = {name: item for name, item in doc.items() if name != "trace"}
    if doc["$"] == _STEP_FAILED and "attrs" in doc:
        doc["attrs"] = doc["attrs"] | {"traceback": ""}
    return doc


def blank(value: Any, text: Callable[[str], str]) -> Any:
    """A value of the same type that says nothing: of a class, a list or a dictionary, each thing in it."""
    if isinstance(value, str):
        return text(value)
    if isinstance(value, list):
        return [blank(item, text) for item in cast("list[Any]", value)]
    if not isinstance(value, dict):
        return _BLANK.get(cast("type[object]", type(value)))
    doc = cast("dict[str, Any]", value)
    tag = doc.get("$")
    if tag == "dict":
        return {"$": "dict", "v": [[key, blank(item, text)] for key, item in doc["v"]]}
    if tag in _WHOLE:
        return {"$": tag, "v": _WHOLE[tag]}
    if tag in _MIDNIGHT:
        return {"$": tag, "v": _MIDNIGHT[tag] + ("+00:00" if _OFFSET.search(doc["v"]) else "")}
    if _is_whole(tag):
        return doc
    return {name: item if name == "$" else blank(item, text) for name, item in _without_trace(doc).items()}


REDACTED: Final = "redacted"
_LEAST: Final = 4
"""A shorter text is a part of too many others."""
_HOLDING: Final = frozenset({"dict", "list", "tuple", "set", "frozenset"})
_BLANK: Final[dict[type, Any]] = {bool: False, int: 0, float: 0.0}
_WHOLE: Final[dict[Any, Any]] = {
    "int": "0x0", "float": "0.0", "bytes": "", "bytearray": "", "UUID": "00000000-0000-0000-0000-000000000000",
    "date": "2000-01-01", "timedelta": [0, 0, 0], "Decimal": "0", "complex": [0.0, 0.0], "Path": REDACTED,
    "PurePosixPath": REDACTED, "PureWindowsPath": REDACTED,
}  # fmt: skip
_MIDNIGHT: Final[dict[Any, str]] = {"datetime": "2000-01-01T00:00:00", "time": "00:00:00"}
_OFFSET: Final = re.compile(r"[+-]\d\d:\d\d(:\d\d)?(\.\d+)?$")
_STEP_FAILED: Final = tag_of_class(StepFailed)
