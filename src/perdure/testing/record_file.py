"""A recording as a text file: JSON to be read, compared and kept in a repository. Nothing in it is imported or run.

Payloads that are JSON are shown as JSON, byte for byte what was recorded when they are read again; others as base64.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import msgspec
from msgspec import UNSET, Struct, UnsetType

from perdure.errors import PerdureError
from perdure.model.records import Entry, Instance, Kind, Loaded, Message, MessageKind, Pending, State

FORMAT: Final = 1
"""Counted up when an older Perdure could misread a file."""
HEAD: Final = "perdure_recording"
_BASE64: Final = "_base64"
_HEX: Final = frozenset({"uid", "digest", "parent", "edit", "ref", "mid"})
_MESSAGES: Final = frozenset({MessageKind.MESSAGE, MessageKind.ANSWER, MessageKind.CANCEL})

T = TypeVar("T", bound=Struct)


class NotARecording(PerdureError):
    """The file is not a recording that can be read here; the message says why, and what to do."""


class _InstanceForm(Struct, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    flow: str
    id: str
    uid: str
    run: int
    state: State
    arguments: Any = UNSET
    arguments_base64: bytes | UnsetType = UNSET
    first: Any = UNSET
    first_base64: bytes | UnsetType = UNSET
    outcome: Any = UNSET
    outcome_base64: bytes | UnsetType = UNSET
    reason: str | None = None
    version: str = ""
    created_at: float
    due_at: float | None = None
    ended_at: float | None = None
    digest: str = ""
    parent: str | None = None
    edit: str | None = None
    edited_seq: int = -1
    failed_seq: int | None = None


class _EntryForm(Struct, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    seq: int
    kind: str
    key: str = ""
    name: str = ""
    arguments: Any = UNSET
    arguments_base64: bytes | UnsetType = UNSET
    failed: bool = False
    outcome: Any = UNSET
    outcome_base64: bytes | UnsetType = UNSET
    attempts: int = 0
    started_at: float
    at: float
    digest: str = ""
    ref: str | None = None


class _PendingForm(Struct, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    key: str
    kind: str
    name: str
    arguments: Any = UNSET
    arguments_base64: bytes | UnsetType = UNSET
    intent: bool = False
    attempt: int = 0
    next_at: float | None = None
    error: Any = UNSET
    error_base64: bytes | UnsetType = UNSET
    progress: Any = UNSET
    progress_base64: bytes | UnsetType = UNSET
    digest: str = ""


class _MessageForm(Struct, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    mid: str
    kind: str
    type: str
    key: str | None = None
    name: str | None = None
    body: Any = UNSET
    body_base64: bytes | UnsetType = UNSET
    failed: bool = False
    run: int = -1
    sent_at: float


class _File(Struct, forbid_unknown_fields=True, kw_only=True):
    perdure_recording: int
    redacted: bool
    instance: _InstanceForm
    parent: tuple[str, str] | None
    entries: list[_EntryForm]
    pending: list[_PendingForm]
    inbox: list[_MessageForm]


# ---------------------------------------------------------------- writing


def text_of(loaded: Loaded, parent: tuple[str, str] | None, *, redacted: bool) -> bytes:
    """The file's text: the same recording gives the same text, each fact on a line of its own."""
    file = _File(
        perdure_recording=FORMAT,
        redacted=redacted,
        instance=_form(_InstanceForm, loaded.instance, "arguments", "first", "outcome"),
        parent=parent,
        entries=[_form(_EntryForm, entry, "arguments", "outcome") for entry in loaded.entries],
        pending=[_form(_PendingForm, row, "arguments", "error", "progress") for row in loaded.pending],
        inbox=[_form(_MessageForm, message, "body") for message in loaded.inbox],
    )
    return msgspec.json.format(msgspec.json.encode(file), indent=2) + b"\n"


def _form(form: type[T], record: Struct, *payloads: str) -> T:
    values: dict[str, Any] = {}
    for name in form.__struct_fields__:
        if name in payloads:
            values.update(_shown(name, getattr(record, name)))
        elif not name.endswith(_BASE64):
            value = getattr(record, name)
            values[name] = value.hex() if isinstance(value, bytes) else value
    return form(**values)


def _shown(name: str, data: bytes | None) -> dict[str, Any]:
    """The payload as the field that shows it."""
    if data is None:
        return {}
    plain = json_of(data)
    return {name + _BASE64: data} if plain is UNSET else {name: plain}


def json_of(data: bytes) -> Any:
    """What the bytes say as JSON, if writing that gives the same bytes again; else UNSET."""
    try:
        plain = msgspec.json.decode(data)
        return plain if msgspec.json.encode(plain) == data else UNSET
    except (ValueError, RecursionError):
        return UNSET


# ---------------------------------------------------------------- reading


def read(path: Path) -> tuple[Loaded, tuple[str, str] | None, bool]:
    """What the file holds: the instance, flow and id of its parent, and whether it was redacted.

    Raises:
        NotARecording: it holds something else, another format, or is damaged.
        OSError: it cannot be read.
    """
    data = path.read_bytes()
    _look_at_head(path, data)
    try:
        file = msgspec.json.decode(data, type=_File)
        loaded = _loaded(file)
    except (ValueError, OverflowError, RecursionError) as wrong:
        raise NotARecording(f"{path} is damaged: {wrong}; restore the file, or record the instance anew") from None
    return loaded, file.parent, file.redacted


def _look_at_head(path: Path, data: bytes) -> None:
    """The file says that it is a recording, of the format that is known here."""
    try:
        doc: Any = msgspec.json.decode(data)
    except (ValueError, RecursionError) as wrong:
        raise NotARecording(
            f"{path} is no JSON ({wrong}): give a file that Recording.save() has written, or restore this one"
        ) from None
    if not isinstance(doc, dict) or HEAD not in doc:
        raise NotARecording(f"{path} is JSON, but no recording: give a file that Recording.save() has written")
    number = cast("dict[str, Any]", doc)[HEAD]
    if number != FORMAT:
        raise NotARecording(
            f"{path} is a recording of format {number!r}, and this Perdure reads {FORMAT}: upgrade Perdure, or record "
            "the instance anew"
        )


def _loaded(file: _File) -> Loaded:
    """The records that the file stands for. Raises ValueError if they could not have been recorded."""
    row = file.instance
    uid, run = bytes.fromhex(row.uid), row.run
    fixed = {"owner": None, "waiting": False, "lane": row.flow, "term": 0}  # who ran it, and where
    if row.arguments is UNSET and row.arguments_base64 is UNSET:
        raise ValueError("the instance has no arguments")
    instance = _record(Instance, row, fixed, "arguments", "first", "outcome")
    of_run = {"uid": uid, "run": run}
    entries = [_record(Entry, entry, of_run, "arguments", "outcome") for entry in file.entries]
    pending = [_record(Pending, one, of_run, "arguments", "error", "progress") for one in file.pending]
    inbox = [_record(Message, message, {}, "body") for message in file.inbox]
    for wrong in _wrong(instance, entries, pending, inbox):
        raise ValueError(wrong)
    return Loaded(instance, entries, pending, inbox)


def _record(cls: type[T], form: Struct, fixed: dict[str, Any], *payloads: str) -> T:
    values = dict(fixed)
    for name in cls.__struct_fields__:
        if name in payloads:
            values[name] = _payload(form, name)
        elif name not in values:
            value = getattr(form, name)
            values[name] = bytes.fromhex(value) if name in _HEX and value is not None else value
    return cls(**values)


def _payload(form: Struct, name: str) -> bytes | None:
    plain, data = getattr(form, name), getattr(form, name + _BASE64)
    if plain is UNSET:
        return None if data is UNSET else data
    if data is not UNSET:
        raise ValueError(f"{name} is given twice, as JSON and as base64")
    return msgspec.json.encode(plain)


def _wrong(
    instance: Instance, entries: list[Entry], pending: list[Pending], inbox: list[Message]
) -> Iterator[str]:  # fmt: skip
    """What no store would hold, and an engine would not expect."""
    if len(instance.uid) != 16:
        yield "the uid of an instance has 16 bytes"
    for before, after in itertools.pairwise(entries):
        if before.seq >= after.seq:
            yield f"entry {after.seq} stands after entry {before.seq}"
    for place, entry in enumerate(entry for entry in entries if entry.seq >= 0):
        if (entry.kind == Kind.BEGUN) != (place == 0):
            yield f"entry {entry.seq} is {entry.kind}: a journal begins with `begun`, once"
        if entry.kind == Kind.ARRIVAL and entry.ref is None:
            yield f"entry {entry.seq} is an arrival of no message"
    for row in pending:
        if row.kind != Kind.STEP:
            yield f"pending operation {row.key} is {row.kind}: only steps can be pending"
    for message in inbox:
        if message.kind not in _MESSAGES:
            yield f"message {message.mid.hex()} is {message.kind!r}"
