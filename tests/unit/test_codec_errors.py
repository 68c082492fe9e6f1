"""Exceptions: rebuilt as their class without a constructor, or written as StepFailed, once and for all."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import pytest

from perdure import errors
from perdure.codec import decode, decode_error, encode, encode_error, round_trip
from perdure.errors import DoesNotFit, NotEncodable, StepFailed, UnknownType

calls: list[object] = []


class Odd(Exception):
    def __init__(self, code: int, *, why: str) -> None:
        calls.append(code)
        super().__init__(f"{code} because {why}")
        self.code = code
        self.why = why


class NoArgs(ValueError):
    def __init__(self) -> None:
        super().__init__("fixed", 1)


class MadeByNew(Exception):
    def __new__(cls, *args: Any) -> MadeByNew:
        calls.append("new")
        return super().__new__(cls, *args)


class Slotted(Exception):
    __slots__ = ("extra",)

    def __init__(self, extra: int) -> None:
        super().__init__()
        self.extra = extra


class Disk(OSError):
    def __init__(self, name: str) -> None:
        super().__init__(28, "full", name)


class WithClient(Exception):
    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.client = object()
        self.status = 500


class SaysClient(WithClient):
    def __str__(self) -> str:
        return f"{self.status} from {id(self.client)}"


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


def raised(exc: BaseException, cause: BaseException | None = None) -> BaseException:
    try:
        raise exc from cause
    except BaseException as caught:
        return caught


def undecodable() -> Exception:
    try:
        b"\xff".decode()
    except UnicodeDecodeError as caught:
        return caught
    raise AssertionError


def bad_json() -> Exception:
    try:
        json.loads("{")
    except ValueError as caught:
        return caught
    raise AssertionError


def same(exc: BaseException) -> BaseException:
    calls.clear()
    data = encode_error(exc)
    copy = decode_error(data)
    assert encode_error(copy) == data
    assert encode_error(decode_error(encode_error(copy))) == data
    assert calls == []
    return copy


KEPT: list[BaseException] = [
    ValueError("x"), KeyError("k"), Exception(), RuntimeError(1, [2], {"a": (3,)}), Odd(3, why="w"), NoArgs(), MadeByNew(1),
    OSError(2, "gone", "/a"), FileNotFoundError(2, "gone", "/a", None, "/b"), ConnectionResetError("r"), TimeoutError(),
    Disk("/d"), Slotted(5), undecodable(), bad_json(), ImportError("m", name="n", path="p"), StopAsyncIteration(1),
    SyntaxError("s", ("f", 1, 2, "t")), ZeroDivisionError("division"), WithClient("m"), AttributeError("a", name="n", obj=1),
]  # fmt: skip


@pytest.mark.parametrize("exc", KEPT, ids=lambda exc: type(exc).__name__)
def test_an_exception_comes_back_as_its_class(exc: BaseException) -> None:
    copy = same(raised(exc))
    assert type(copy) is type(exc)
    assert copy.args == exc.args
    assert str(copy) == str(exc)
    for name in (
        "code",
        "why",
        "filename",
        "filename2",
        "errno",
        "extra",
        "reason",
        "start",
        "doc",
        "pos",
        "name",
        "status",
        "text",
    ):
        assert getattr(copy, name, None) == getattr(exc, name, None)


OURS: list[errors.PerdureError] = [
    errors.OutcomeUnknown("ship", "killed"), errors.StepFailed("x:Y", "m", "trace"), errors.FlowFailed("f", "1", "m"),
    errors.AlreadyStarted("f", "1"), errors.NotEncodable("r", where="w", path=".a"), errors.DoesNotFit("d"),
    errors.UnknownType("t"), errors.PayloadTooLarge("w", 2, 1), errors.InstanceNotFound("f", "1"), errors.FlowCancelled("f", "1"),
    errors.NonDeterminismError("m", recorded="a", asked="b", line="c"), errors.StoreRefused("s"), errors.DuplicateId("d"),
]  # fmt: skip


@pytest.mark.parametrize("exc", OURS, ids=lambda exc: type(exc).__name__)
def test_our_own_errors_keep_their_data(exc: errors.PerdureError) -> None:
    copy = same(raised(exc))
    assert type(copy) is type(exc)
    assert str(copy) == str(exc)
    assert {k: v for k, v in vars(copy).items() if k != "__notes__"} == {
        k: v for k, v in vars(exc).items() if k != "__notes__"
    }


def local() -> type[Exception]:
    class Local(Exception):
        def __reduce__(self) -> Any:
            raise AssertionError

    return Local


@pytest.mark.parametrize(
    ("exc", "message"),
    [
        (ValueError(object), "<class 'object'>"),
        (ValueError("\ud800"), "\\ud800"),
        (asyncio.CancelledError("c"), "c"),
        (KeyboardInterrupt(), ""),
        (SystemExit(3), "3"),
        (GeneratorExit(), ""),
        (StopIteration(1), "1"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_raised_again_as_it_was_is_a_failed_step(exc: BaseException, message: str) -> None:
    copy = same(raised(exc))
    assert isinstance(copy, StepFailed)
    assert copy.type == f"{type(exc).__module__}:{type(exc).__qualname__}"
    assert copy.message == message
    assert "test_codec_errors.py" in copy.traceback


def test_an_exception_that_cannot_speak_is_written_all_the_same() -> None:
    assert type(same(raised(Unprintable()))) is Unprintable
    lost = same(raised(SaysClient("m")))  # its text needs what cannot be written
    assert isinstance(lost, StepFailed)
    assert "500 from" in lost.message


def test_the_traceback_is_a_note_and_is_not_piled_up() -> None:
    copy = same(raised(ValueError("deep")))
    (note,) = copy.__notes__
    assert "It happened here" in note
    assert "in raised" in note
    again = same(raised(decode_error(encode_error(copy))))
    assert len(again.__notes__) == 1
    assert "in raised" in again.__notes__[0]


def test_notes_stay() -> None:
    exc = ValueError("x")
    exc.add_note("one")
    exc.add_note("two")
    assert same(raised(exc)).__notes__[:2] == ["one", "two"]


def test_the_traceback_text_is_bounded() -> None:
    def deep(n: int) -> None:
        if n:
            deep(n - 1)
        raise ValueError("x" * 20_000)

    with pytest.raises(ValueError, match="x") as caught:
        deep(200)
    assert len(encode_error(caught.value)) < 30_000
    assert len(same(caught.value).__notes__[-1]) < 9_000


def test_causes_stay_each_as_what_it_can_be() -> None:
    exc = raised(Odd(1, why="top"), raised(ValueError(object), raised(KeyError("root"))))
    copy = same(exc)
    assert isinstance(copy, Odd)
    middle = copy.__cause__
    assert isinstance(middle, StepFailed)
    assert isinstance(middle.__cause__, KeyError)
    assert middle.__cause__.__cause__ is None


def test_a_chain_of_causes_is_cut() -> None:
    exc: BaseException = ValueError(0)
    for n in range(1, 50):
        exc = raised(ValueError(n), exc)
    chain, link = 0, same(exc).__cause__
    while link is not None:
        chain, link = chain + 1, link.__cause__
    assert chain == 10
    circle = ValueError("c")
    circle.__cause__ = circle
    same(circle)


def test_groups_stay_groups() -> None:
    inner = ExceptionGroup("inner", [Odd(1, why="a"), ValueError(object)])
    copy = same(raised(ExceptionGroup("outer", [inner, KeyError("k")])))
    assert type(copy) is ExceptionGroup
    assert copy.message == "outer"
    first, second = copy.exceptions
    assert isinstance(first, ExceptionGroup)
    assert [type(e) for e in first.exceptions] == [Odd, StepFailed]
    assert isinstance(second, KeyError)
    assert copy.split(Odd)[0] is not None
    assert type(same(BaseExceptionGroup("b", [asyncio.CancelledError()]))) is BaseExceptionGroup
    nested: Exception = ValueError("x")
    for n in range(30):
        nested = ExceptionGroup(str(n), [nested])
    same(nested)


def test_a_class_that_is_not_loaded_is_unknown_and_not_guessed() -> None:
    data = encode_error(Odd(1, why="x")).replace(b":Odd", b":Gone")
    with pytest.raises(UnknownType):
        decode_error(data)
    with pytest.raises(DoesNotFit):
        decode_error(b"5")
    with pytest.raises(DoesNotFit):
        decode_error(b'{"$":"builtins:ValueError"}')


def test_a_local_class_comes_back_in_this_program() -> None:
    cls = local()
    assert type(same(raised(cls("x")))) is cls


def test_exceptions_are_values_too_without_the_frames_of_this_process() -> None:
    value = {"errors": [raised(Odd(1, why="a"), KeyError("c")), ExceptionGroup("g", [ValueError(1)])]}
    data, copy = round_trip(value)
    assert b"test_codec_errors.py" not in data
    odd, group = copy["errors"]
    assert (type(odd), odd.code, type(odd.__cause__)) == (Odd, 1, KeyError)
    assert repr(group) == repr(value["errors"][1])
    assert encode(decode(data)) == data
    with pytest.raises(NotEncodable) as no:
        encode([ValueError(1, object())])
    assert no.value.path == "[0].args[1]"


def test_nothing_is_imported_for_an_exception() -> None:
    before = set(sys.modules)
    with pytest.raises(UnknownType):
        decode_error(b'{"$":"xml.dom.minidom_not_loaded:Boom","args":[]}')
    assert set(sys.modules) == before
