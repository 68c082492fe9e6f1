"""Exceptions to bytes and back, as data: class, arguments, attributes, notes, causes, and the traceback as text.

Whether an exception comes back as its class or as `StepFailed` is decided here, once, by trying it, and is written.
The traceback text comes back as a note of a type of its own, so that encoding the copy again gives the same bytes.
"""

from __future__ import annotations

import traceback
from asyncio import CancelledError
from types import MemberDescriptorType
from typing import Any, Final, cast

from perdure.codec import read as reading
from perdure.codec import write as writing
from perdure.codec.names import c_base, tag_of_class
from perdure.codec.read import decode, read, read_all
from perdure.codec.write import Refusal, dumps, tag_for, write
from perdure.errors import DoesNotFit, StepFailed

MAX_CAUSES: Final = 10
MAX_TRACE: Final = 8_000
_FRAMES: Final = 40
_BEFORE: Final = "It happened here:\n"
# raised inside a coroutine or a loop these mean something else than "the step failed"
_NOT_RAISED_AGAIN: Final = (CancelledError, GeneratorExit, KeyboardInterrupt, SystemExit, StopIteration)


class _Trace(str):
    """The note that holds the traceback text of a rebuilt exception."""

    __slots__ = ()

    @property
    def text(self) -> str:
        return self[len(_BEFORE) :]


def encode_error(exc: BaseException) -> bytes:
    """The exception as bytes that `decode_error` can always read where its class is loaded; never fails.

    It is written as `StepFailed` if it cannot be rebuilt as it is, and if raising it again would be no failure.
    """
    doc = _outcome(exc, 0)
    text = _trace_of(exc)
    if text is None:
        text = _formatted(exc)
    _put_trace(doc, text)
    return dumps(doc)


def decode_error(data: bytes) -> BaseException:
    """The exception that was written: a new object, with the recorded traceback as its last note.

    Raises:
        UnknownType: it was written as a class that is not loaded in this program.
        DoesNotFit: the bytes are not an exception.
    """
    exc = decode(data)
    if not isinstance(exc, BaseException):
        raise DoesNotFit(f"a stored {type(exc).__qualname__} is not an exception")
    return exc


# ---------------------------------------------------------------- writing


def _outcome(exc: BaseException, depth: int) -> dict[str, Any]:
    """The exception's document, tried: as its class if that gives the same again, else as StepFailed."""
    doc = None
    if depth or not isinstance(exc, _NOT_RAISED_AGAIN):
        doc = _tried(exc, depth)
    if doc is None:
        failed = StepFailed(tag_of_class(type(exc)), _clean(_said(exc))[:MAX_TRACE], _trace_of(exc) or "")
        doc = _own_doc(failed, 0)
        doc["notes"] = [_clean(note) for note in _notes(exc)]
        if not doc["notes"]:
            del doc["notes"]
    if exc.__cause__ is not None and depth < MAX_CAUSES:
        doc["cause"] = _outcome(exc.__cause__, depth + 1)
    _put_trace(doc, _trace_of(exc))
    return doc


def _tried(exc: BaseException, depth: int) -> dict[str, Any] | None:
    """The document of the exception as its class, or None if it does not come back as it was."""
    try:
        doc = _own_doc(exc, 0)
        members = _members(exc)
        if members is not None:
            if depth >= MAX_CAUSES:
                return None
            doc["errors"] = [_outcome(inner, depth + 1) for inner in members]
        data = dumps(doc)
        copy = read_all(reading.loads(data))
        again = _own_doc(copy, 0)
        if "errors" in doc:
            again["errors"] = doc["errors"]  # each was tried by itself
        same = type(copy) is type(exc) and dumps(again) == data and _said(copy) == _said(exc)
    except Exception:  # the exception's own code takes part, and the outcome must be written whatever it does
        return None
    return doc if same else None


def _own_doc(exc: BaseException, depth: int) -> dict[str, Any]:
    """Class, arguments, attributes and notes. Attributes that cannot be written (a client, a response) are left out."""
    cls = type(exc)
    doc: dict[str, Any] = {"$": tag_for(cls)}
    args: tuple[Any, ...] = exc.args if _members(exc) is None else exc.args[:1]
    try:
        doc["args"] = write(list(args), depth + 1)
    except Refusal as no:
        no.climb(".args", exc)
        raise
    attributes: dict[str, Any] = {}
    for name, item in _attributes(exc).items():
        try:
            written = write(item, depth + 2)
            dumps(written)
        except (Refusal, UnicodeEncodeError):
            continue
        attributes[name] = written
    if attributes:
        tagged = "$" in attributes
        doc["attrs"] = {"$": "dict", "v": [list(pair) for pair in attributes.items()]} if tagged else attributes
    notes = [note for note in _notes(exc) if not isinstance(note, _Trace)]
    if notes:
        doc["notes"] = [str(note) for note in notes]
    return doc


def _members(exc: BaseException) -> tuple[BaseException, ...] | None:
    """The exceptions in a group; None if it is none."""
    return cast("tuple[BaseException, ...]", getattr(exc, "exceptions")) if _is_group(exc) else None  # noqa: B009


def _is_group(exc: object) -> bool:
    return isinstance(exc, BaseExceptionGroup)


def _attributes(exc: BaseException) -> dict[str, Any]:
    """What the exception carries beside its arguments: C members such as `OSError.filename`, slots, its `__dict__`."""
    found: dict[str, Any] = {}
    for base in type(exc).__mro__:
        if base is BaseException or base is BaseExceptionGroup:
            continue  # what every exception has is written apart
        for name, member in vars(base).items():
            if isinstance(member, MemberDescriptorType) and name not in found:
                item = getattr(exc, name, None)
                if item is not None:
                    found[name] = item
    own = cast("dict[Any, Any]", exc.__dict__)
    found.update({name: own[name] for name in own if type(name) is str and name not in ("__notes__", "__orig_class__")})
    return found


def _notes(exc: BaseException) -> list[str]:
    notes: Any = getattr(exc, "__notes__", ())
    return [note for note in cast("list[Any]", notes) if isinstance(note, str)] if isinstance(notes, list) else []


def _trace_of(exc: BaseException) -> str | None:
    """The recorded traceback of a rebuilt exception that has not been raised since."""
    if exc.__traceback__ is None:
        for note in _notes(exc):
            if isinstance(note, _Trace):
                return note.text
        if isinstance(exc, StepFailed) and exc.traceback:
            return exc.traceback
    return None


def _put_trace(doc: dict[str, Any], text: str | None) -> None:
    if not text:
        return
    attributes = doc.get("attrs", {})
    if doc["$"] == _STEP_FAILED and not attributes.get("traceback"):
        attributes["traceback"] = text  # it has a place of its own for it
    elif attributes.get("traceback") != text:
        doc["trace"] = text


def _formatted(exc: BaseException) -> str:
    try:
        text = "".join(traceback.format_exception(exc, limit=-_FRAMES))
    except Exception:  # the exception's own __str__ and __repr__ take part
        text = "".join(traceback.format_tb(exc.__traceback__, limit=-_FRAMES))
    text = _clean(text)
    return text if len(text) <= MAX_TRACE else "…" + text[-MAX_TRACE:]


def _said(exc: BaseException) -> str:
    try:
        return str(exc)
    except Exception as bad:
        return f"<its text cannot be had: {type(bad).__name__}>"


def _clean(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


_STEP_FAILED: Final = tag_of_class(StepFailed)


# ---------------------------------------------------------------- as values, and reading


def _write_as_value(exc: BaseException, depth: int) -> dict[str, Any]:
    """The document of an exception inside a value: it must come back as its class; no frames of this process in it."""
    if depth > writing.MAX_DEPTH:
        raise Refusal(f"nested deeper than {writing.MAX_DEPTH} levels")
    doc = _own_doc(exc, depth)
    members = _members(exc)
    if members is not None:
        doc["errors"] = [_write_as_value(inner, depth + 2) for inner in members]
    causes = 0
    inner, within = exc.__cause__, doc
    while inner is not None and causes < MAX_CAUSES:
        within["cause"] = _own_doc(inner, depth)
        within, inner, causes = within["cause"], inner.__cause__, causes + 1
    _put_trace(doc, next((note.text for note in _notes(exc) if isinstance(note, _Trace)), None))
    return doc


def _exception_reader(cls: type[Any]) -> reading.Reader:
    base = cast("type[BaseException]", c_base(cls))
    make_group: Any = getattr(BaseExceptionGroup, "__new__")  # noqa: B009  (partially unknown to the type checker)
    members = {
        name
        for parent in cls.__mro__
        if parent is not BaseException and parent is not BaseExceptionGroup
        for name, member in vars(parent).items()
        if isinstance(member, MemberDescriptorType)
    }

    def read_exception(doc: dict[str, Any]) -> BaseException:
        args = read(doc["args"])
        if issubclass(cls, BaseExceptionGroup):
            exc: BaseException = make_group(cls, *args, read(doc["errors"]))
        else:
            exc = base.__new__(cls, *args)  # the builtin's own, in C: no constructor of anybody runs
            base.__init__(exc, *args)
            exc.args = tuple(args)
        for name, item in read(doc.get("attrs", {})).items():
            if name in members:
                try:
                    object.__setattr__(exc, name, item)
                except (AttributeError, TypeError):
                    raise DoesNotFit(f"{cls.__qualname__}.{name} cannot be set") from None
            else:
                exc.__dict__[name] = item
        for note in doc.get("notes", ()):
            exc.add_note(note)
        cause = read(doc["cause"]) if "cause" in doc else None
        if cause is not None:
            exc.__cause__ = cause
        text = doc.get("trace") or (exc.__dict__.get("traceback") if isinstance(exc, StepFailed) else None)
        if text:
            exc.add_note(_Trace(_BEFORE + text))
        return exc

    return read_exception


writing.MAKERS["exception"] = lambda cls: (tag_for(cls), _write_as_value)[1]
reading.MAKERS["exception"] = _exception_reader
