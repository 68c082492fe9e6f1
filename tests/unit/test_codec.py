"""Plain values and what JSON has no word for: the same value, the same type, the same bytes in every process."""

# ruff: noqa: E501, DTZ001, DTZ901  (tables of cases)
from __future__ import annotations

import math
import os
import socket
import subprocess
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.codec import decode, digest, encode, round_trip, tag_of
from perdure.errors import DoesNotFit, NotEncodable

CPH = ZoneInfo("Europe/Copenhagen")

VALUES: list[Any] = [
    None, True, False, 0, -1, 2**63 - 1, -(2**63), 2**63, -(2**63) - 1, 2**70, -(10**5000),
    0.0, -0.0, 1.0, 1e22, 5e-324, 1.7976931348623157e308, 0.1, math.nan, math.inf, -math.inf,
    "", "a", "é😀\x00\n\"\\", "$", '"$":', [], [1, [2, [None]]], {}, {"a": {"b": [1.5]}},
    {"$": "tuple", "v": [1]}, {"$": {"$": 1}}, {1: "a", "1": "b", None: 2, (1, 2): [3]}, {True: 1}, {2.5: {3: 4}},
    (), (1,), (1, (2, [3])), set(), {1, "a", (2,), None}, frozenset({frozenset({1}), "x"}),
    b"", b"\x00\xff", bytearray(b"ab"), UUID(int=7), Decimal("1.10"), Decimal("-0"), Decimal("NaN"), Decimal("-sNaN12"), Decimal("-Infinity"),
    Decimal("1E+400"), 1 + 2j, complex(math.nan, -0.0), complex(math.inf, 1),
    datetime(2024, 2, 29, 1, 2, 3, 4), datetime(2024, 7, 1, tzinfo=UTC), datetime(1, 1, 1), datetime.max,
    datetime(2024, 7, 1, tzinfo=timezone(timedelta(hours=-3, minutes=-30))),
    datetime(2024, 7, 1, tzinfo=timezone(timedelta(hours=1), "CET")), datetime(2024, 7, 1, 12, tzinfo=CPH),
    datetime(2024, 10, 27, 2, 30, tzinfo=CPH), datetime(2024, 10, 27, 2, 30, tzinfo=CPH, fold=1), datetime(2024, 1, 1, fold=1),
    datetime(2024, 3, 31, 2, 30, tzinfo=CPH), datetime(2024, 1, 1, tzinfo=ZoneInfo("UTC")),
    date(2024, 2, 29), time(1, 2, 3, 4), time(1, tzinfo=UTC), time(1, tzinfo=CPH), time(2, fold=1),
    timedelta(0), timedelta(days=-1, microseconds=1), timedelta.max,
    Path("/a/b é"), PurePosixPath("x"), PureWindowsPath("C:\\x"),
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_a_value_comes_back_as_it_was(value: Any) -> None:
    data, copy = round_trip(value)
    assert data == encode(value)
    for back in (copy, decode(data)):
        assert type(back) is type(value)
        assert back == value if is_huge(value) else repr(back) == repr(value) or back == value
        assert encode(back) == data


def is_huge(value: Any) -> bool:
    """Python refuses to print it."""
    return isinstance(value, int) and abs(value) > 2**100


def test_zones_folds_and_signs_are_kept() -> None:
    fold = decode(encode(datetime(2024, 10, 27, 2, 30, tzinfo=CPH, fold=1)))
    assert fold.tzinfo is CPH
    assert fold.fold == 1
    assert fold.utcoffset() == timedelta(hours=1)
    assert decode(encode(datetime(2024, 7, 1, tzinfo=timezone(timedelta(hours=1), "CET")))).tzname() == "CET"
    assert math.copysign(1, decode(encode([-0.0]))[0]) == -1
    assert decode(encode((1, [2])))[1] == [2]
    assert type(decode(encode({"a": (1,)}))["a"]) is tuple


def test_when_the_rules_of_a_zone_have_changed_the_instant_counts() -> None:
    data = encode(datetime(2024, 7, 1, 12, tzinfo=CPH)).replace(b"+02:00", b"+03:00")
    assert decode(data) == datetime(2024, 7, 1, 9, tzinfo=UTC)


@pytest.mark.parametrize("value", [5, "x", [1, {"a": None}], {"a": [1.5, True]}])
def test_plain_values_are_plain_json(value: Any) -> None:
    assert b"$" not in encode(value)


def test_a_copy_shares_nothing_with_the_original() -> None:
    value = {"a": [1], "b": {"c": [2]}}
    _, copy = round_trip(value)
    copy["a"].append(2)
    copy["b"]["c"].clear()
    assert value == {"a": [1], "b": {"c": [2]}}


scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.decimals(allow_nan=False) | st.uuids()
    | st.dates() | st.times() | st.timedeltas() | st.datetimes() | st.datetimes(timezones=st.timezones()) | st.complex_numbers()
)  # fmt: skip
hashable = st.recursive(scalars, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=4), max_leaves=4)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner)
        | st.dictionaries(st.text() | st.just("$"), inner, max_size=4)
        | st.dictionaries(hashable, inner, max_size=3)
        | st.sets(hashable, max_size=4)
    ),
    max_leaves=12,
)


@settings(derandomize=True, deadline=None)
@given(values)
def test_any_value_comes_back(value: Any) -> None:
    data, copy = round_trip(value)
    assert encode(copy) == data
    assert encode(decode(data)) == data
    if value == value and b"nan" not in data.lower():
        assert copy == value


@settings(derandomize=True, deadline=None)
@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_bytes_give_a_value_or_a_clear_error(data: bytes) -> None:
    try:
        decode(data)
    except DoesNotFit:
        pass


class MyStr(str):
    pass


class MyInt(int):
    pass


class MyDict(dict[str, int]):
    pass


class Tz(tzinfo):
    def utcoffset(self, dt: datetime | None) -> timedelta | None:
        return None if dt is None else timedelta(hours=1)


class Plain:
    pass


@pytest.mark.parametrize(
    ("value", "path", "says"),
    [
        ({"lines": [0, 1, {"price": MyStr("1")}]}, "['lines'][2]['price']", "MyStr"),
        ([MyInt(1)], "[0]", "MyInt"),
        (MyDict(a=1), "", "plain dict"),
        (OrderedDict(a=1), "", "OrderedDict"),
        ([defaultdict(list)], "[0]", "defaultdict"),
        (Counter("a"), "", "Counter"),
        (deque([1]), "", "deque"),
        ({"f": lambda: None}, "['f']", "function"),
        ((print,), "[0]", "builtin_function"),
        ([Plain()], "[0]", "Plain"),
        ([Plain], "[0]", "type"),
        ({MyStr("k"): 1}, "['k']", "MyStr"),
        ("\ud800", "", "surrogate"),
        (["a", {"k": "\udfff"}], "[1]['k']", "surrogate"),
        ([(1, "\ud800")], "[0][1]", "surrogate"),
        ({"\ud800": 1}, "['\\ud800']", "surrogate"),
        ({1: "\ud800"}, "[1]", "surrogate"),
        ([{"\ud800"}], "[0]{'\\ud800'}", "surrogate"),
        ([Path(os.fsdecode(b"\xff"))], "[0]", "surrogate"),
        (datetime(2024, 1, 1, tzinfo=Tz()), "", "Tz"),
        ([iter([])], "[0]", "list_iterator"),
        (memoryview(b""), "", "memoryview"),
    ],
)
def test_what_cannot_be_written_is_named_with_its_place(value: Any, path: str, says: str) -> None:
    for write in (encode, round_trip):
        with pytest.raises(NotEncodable) as no:
            write(value)
        assert no.value.path == path
        assert says in str(no.value)
        assert path in str(no.value)


def test_a_socket_cannot_be_written() -> None:
    with socket.socket() as s, pytest.raises(NotEncodable, match=r"\['s'\]: a socket.socket"):
        encode({"s": s})


def test_a_value_that_contains_itself_is_refused_with_the_way_back() -> None:
    cycle: dict[str, Any] = {"a": []}
    cycle["a"].append(cycle)
    with pytest.raises(NotEncodable, match="contains itself") as no:
        encode([cycle])
    assert no.value.path == "[0]['a'][0]"


@pytest.mark.parametrize(
    "wrap", [lambda v: [v], lambda v: (v,), lambda v: {"a": v}, lambda v: {1: v}, lambda v: frozenset([v])]
)
def test_deep_values_are_written_to_a_limit_and_refused_beyond(wrap: Any) -> None:
    value: Any = 1
    for _ in range(60):
        value = wrap(value)
    assert round_trip(value)[1] == value
    for _ in range(200):
        value = wrap(value)
    with pytest.raises(NotEncodable, match="nested deeper than 200"):
        encode(value)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b"nan", b"\xff", b'"\xed\xa0\x80"', b"1e400", b"9" * 5000, b"[" * 100_000, b"[" * 900 + b"]" * 900 + b" x",
        b'{"$":1}', b'{"$":[]}', b'{"$":"tuple"}', b'{"$":"tuple","v":1}', b'{"$":"set","v":[[]]}', b'{"$":"dict","v":[[1]]}',
        b'{"$":"dict","v":[[[],1]]}', b'{"$":"int","v":"zz"}', b'{"$":"int","v":5}', b'{"$":"float","v":"x"}',
        b'{"$":"bytes","v":"%%"}', b'{"$":"UUID","v":"1"}', b'{"$":"Decimal","v":"1.x"}', b'{"$":"Decimal","v":[1]}',
        b'{"$":"datetime","v":"yesterday"}', b'{"$":"datetime","v":"2024-01-01T00:00:00+00:00","zone":"../../etc/passwd"}',
        b'{"$":"datetime","v":"2024-01-01T00:00:00+00:00","zone":"Mars/Olympus"}', b'{"$":"timedelta","v":[1e308,0,0]}',
        b'{"$":"timedelta","v":[999999999999,0,0]}', b'{"$":"complex","v":["1",2]}', b'{"$":"date","v":null}',
        b'{"$":"Path","v":{}}',
    ],
)  # fmt: skip
def test_wrong_bytes_do_not_fit(data: bytes) -> None:
    with pytest.raises(DoesNotFit):
        decode(data)


def test_deep_bytes_never_exhaust_the_stack() -> None:
    deep = b'{"$":"tuple","v":[' * 400 + b"]}" * 400
    with pytest.raises(DoesNotFit):
        decode(deep)


def test_sets_are_written_alike_under_any_hash_seed() -> None:
    program = (
        "from perdure.codec import encode; from enum import Enum\n"
        "print(encode([{'a','b','c','dd',1,2.5,None,(1,'x')}, {frozenset('abc'): {b'x', b'y'}}]).hex())"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True, text=True, check=True, timeout=30,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(found) == 1


def test_digests_are_short_and_differ() -> None:
    assert len(digest(b"")) == 8
    assert digest(b"a") == digest(b"a") != digest(b"b")


def test_tags_for_people() -> None:
    values: list[Any] = ["", 1, None, Decimal(1), Path(), {}, ValueError()]
    assert [tag_of(value) for value in values] == [
        "str",
        "int",
        "None",
        "Decimal",
        "Path",
        "dict",
        "builtins:ValueError",
    ]
