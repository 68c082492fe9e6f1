"""`fits`: whether a value is of a type form."""

# ruff: noqa: DTZ001, UP006, UP007, UP045  (tables of cases)
from __future__ import annotations

import typing
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from enum import Enum
from typing import Annotated, Any, Generic, Literal, NewType, Optional, Protocol, TypedDict, TypeVar, Union

import pytest

from perdure.codec import fits

B = TypeVar("B", bound=int)
C = TypeVar("C", int, str)
T = TypeVar("T")
UserId = NewType("UserId", str)
Alias = dict[str, list[int]]


class Color(Enum):
    RED = 1


class Shape(Protocol):
    sides: int


@dataclass
class Box(Generic[T]):
    item: T


class Movie(TypedDict, total=False):
    name: typing.Required[str]
    year: int


YES: list[tuple[Any, Any]] = [
    (1, int), (1, float), (1.5, float), (1, complex), (True, bool), (None, None), (None, type(None)), (1, Any), (1, object),
    ("a", str), (1, int | str), ("a", int | str), (None, Optional[int]), (1, Union[int, None]), (datetime(2024, 1, 1), date),
    ([1], list[int]), ([], list[int]), ([[1]], list[list[int]]), ({"a": 1}, dict[str, float]), ({1}, set[int]), ([1], list),
    ((1, "a"), tuple[int, str]), ((1, 2, 3), tuple[int, ...]), ((), tuple[()]), ((1,), typing.Tuple), ((1, "a"), tuple),
    ([1], Sequence[int]), ((1,), Sequence[int]), ("ab", Sequence[str]), ({"a": 1}, Mapping[str, int]), (deque([1]), deque[int]),
    ([1], Iterable[int]), (frozenset([1]), Collection[int]), (iter([1]), Iterable[str]), (frozenset([1]), frozenset[int]),
    ("a", Literal["a", 1]), (Color.RED, Color), (Color.RED, Literal[Color.RED]), (1, Annotated[int, []]), (1, Annotated[int, "x"]),
    ("u", UserId), (1, B), ("a", C), (object(), T), ({"a": [1]}, Alias), (Box("x"), Box[int]), (Box(1), Box),
    (5, Shape), ({"name": "x"}, Movie), (print, Callable[[], None]), (int, type[int]), ([1], typing.List[int]), (5, "Box"),
    ([5], list["Box"]), (1, typing.Final[int]), ("x", typing.LiteralString),
]  # fmt: skip
NO: list[tuple[Any, Any]] = [
    (True, int), (False, float), (1, bool), (1.0, int), ("1", int), (1, str), (0, None), (1, str | None), (True, int | str),
    (["a"], list[int]), ((1,), list[int]), ([True], list[int]), ({1: 1}, dict[str, int]), ({"a": "b"}, dict[str, int]), ({"a"}, set[int]),
    ((1,), tuple[int, str]), ((1, 2), tuple[int, str]), ((1, "a"), tuple[int, ...]), ((1,), tuple[()]), ([1], tuple), ([1], Sequence[str]),
    (1, Sequence[int]), ([("a", 1)], Mapping[str, int]), ("b", Literal["a", 1]), (True, Literal[1]), (1.0, Literal[1]), ("RED", Color),
    ("a", Annotated[int, []]), (5, UserId), ("a", B), (True, B), (1.5, C), ({"a": ["x"]}, Alias), (1, Box[int]), ({"year": 1}, Movie),
    ({"name": "x", "zz": 1}, Movie), ({"name": 1}, Movie), (date(2024, 1, 1), datetime), (5, Callable[[], None]), (5, typing.List[int]),
]  # fmt: skip


@pytest.mark.parametrize(("value", "form"), YES)
def test_it_fits(value: Any, form: Any) -> None:
    assert fits(value, form) is True
    assert fits(value, form) is True  # from the cache


@pytest.mark.parametrize(("value", "form"), NO)
def test_it_does_not_fit(value: Any, form: Any) -> None:
    assert fits(value, form) is False


def test_an_iterator_is_not_used_up() -> None:
    numbers = iter([1, 2])
    assert fits(numbers, Iterable[str])
    assert list(numbers) == [1, 2]
