"""Values of classes: rebuilt without constructors, found only among what is loaded, refused when they no longer fit."""

# ruff: noqa: UP042  (tables of cases)
from __future__ import annotations

import enum
import os
import subprocess
import sys
import types
from collections import namedtuple
from dataclasses import InitVar, dataclass, field, make_dataclass
from decimal import Decimal
from functools import cached_property
from typing import Any, Generic, NamedTuple, TypeVar
from uuid import UUID

import msgspec
import pydantic
import pytest

from perdure import codec
from perdure.codec import decode, encode, register, round_trip, tag_of, type_name
from perdure.errors import DoesNotFit, NotEncodable, UnknownType

T = TypeVar("T")
HERE = __name__


class Color(enum.Enum):
    RED = "red"
    BLUE = (1, 2)


class Level(enum.IntEnum):
    LOW = 1


class Mode(str, enum.Enum):
    ON = "on"


class Perm(enum.Flag):
    R = 4
    W = 2


class IntPerm(enum.IntFlag):
    X = 1


class Point(NamedTuple):
    x: int
    y: float = 0.0


Old = namedtuple("Old", "a b")


@dataclass(frozen=True)
class Line:
    sku: str
    price: Decimal


@dataclass(slots=True)
class Order:
    id: UUID
    lines: list[Line]
    color: Color = Color.RED
    note: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    a: int
    b: tuple[int, ...] = ()


@dataclass
class Computed:
    base: int
    seed: InitVar[int] = 0
    total: int = field(init=False)
    later: int = field(init=False, repr=False, compare=False)

    def __post_init__(self, seed: int) -> None:
        calls.append("post_init")
        self.total = self.base + seed
        self.extra = [seed]

    @cached_property
    def big(self) -> int:
        return self.total * 100


@dataclass
class Box(Generic[T]):
    item: T


class Child(Line):
    def __init__(self, odd: str) -> None:
        object.__setattr__(self, "sku", odd)
        object.__setattr__(self, "price", Decimal(1))


class Event(msgspec.Struct, frozen=True, tag="ev", rename="camel"):
    the_id: int
    tags: set[str] = set()
    inner: Event | None = None


class Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(populate_by_name=True)

    name: str = pydantic.Field(alias="theName")
    amount: Decimal = Decimal(0)
    when: Any = None
    lines: list[Line] = []
    hidden: str = pydantic.Field("h", exclude=True)
    _secret: int = pydantic.PrivateAttr(default=1)

    @pydantic.field_validator("name")
    @classmethod
    def not_twice(cls, name: str) -> str:
        calls.append("validator")
        return name + "!"


class Open(pydantic.BaseModel, extra="allow"):
    a: int
    email: pydantic.AwareDatetime | None = None


class Root(pydantic.RootModel[list[int]]):
    pass


@pydantic.dataclasses.dataclass
class Checked:
    a: int


calls: list[str] = []
child = Child("x")
computed = Computed(1, 2)
model = Model(theName="n", amount=Decimal("1.5"), lines=[Line("a", Decimal(1))], when={1: (2,)}, hidden="zzz")
model._secret = 7

VALUES: list[Any] = [
    Color.RED, Color.BLUE, Level.LOW, Mode.ON, Perm.R | Perm.W, Perm(0), IntPerm.X, IntPerm(9), {Mode.ON: Level.LOW},
    Point(1, 2.5), Point(1), Old([1], {2}), Line("a", Decimal("1.0")), Frozen(a=1, b=(2, 3)),
    Order(UUID(int=1), [Line("a", Decimal(2))], Color.BLUE, "n"), {"o": [Order(UUID(int=1), [])]}, Box[int](3), Box(Box("x")),
    child, computed, Event(1, {"b", "a"}, Event(2)), model, Open(a=1, b=[1], **{"$": 2}), Root([1, 2]), Checked(3),
    {Line("a", Decimal(1)): 1},
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_a_value_of_a_class_comes_back_as_it_was(value: Any) -> None:
    calls.clear()
    data, copy = round_trip(value)
    assert copy == value
    assert type(copy) is type(value)
    assert encode(decode(data)) == data
    assert calls == []


def test_hidden_state_comes_back_too() -> None:
    copy = round_trip(computed)[1]
    assert (copy.total, copy.extra, copy.big, hasattr(copy, "later")) == (3, [2], 300, False)
    again = round_trip(model)[1]
    assert (again.hidden, again._secret, again.when) == ("zzz", 7, {1: (2,)})
    assert again.model_fields_set == model.model_fields_set
    assert Model(theName="x").model_fields_set == round_trip(Model(theName="x"))[1].model_fields_set == {"name"}
    assert round_trip(Open(a=1, z=3))[1].model_extra == {"z": 3}


def test_pydantic_datetimes_keep_their_offset() -> None:
    value = Open(a=1, email="2024-01-01T00:00:00+02:00")
    copy = round_trip(value)[1]
    assert copy.email == value.email
    assert copy.email.utcoffset() == value.email.utcoffset()


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (Order(UUID(int=1), [Line("a", Decimal(1)), Line("b", lambda: 0)]), ".lines[1].price"),
        (Box([{"k": print}]), ".item[0]['k']"),
        (Point(1, object()), ".y"),
        (Event(1, set(), object()), ".inner"),
        (Model.model_construct(name="a", lines=[object()]), ".lines[0]"),
    ],
)
def test_the_place_in_the_object_is_named(value: Any, path: str) -> None:
    with pytest.raises(NotEncodable) as no:
        encode([value])
    assert no.value.path == "[0]" + path


def test_a_field_against_its_annotation_is_found_when_it_is_recorded() -> None:
    with pytest.raises(NotEncodable, match=r"Line\.price"):
        round_trip(Line("a", 5))  # type: ignore[arg-type]


def test_a_data_class_that_is_also_a_container_is_refused() -> None:
    @dataclass
    class Both(dict[str, int]):
        a: int = 1

    with pytest.raises(NotEncodable, match="plain dict"):
        encode(Both())


# ---------------------------------------------------------------- change


def put(monkeypatch: pytest.MonkeyPatch, cls: type[Any]) -> None:
    """The class takes the place of the one of its name in this module, as a deploy would do."""
    cls.__module__, cls.__qualname__ = HERE, cls.__name__
    monkeypatch.setattr(sys.modules[HERE], cls.__name__, cls, raising=False)
    register(cls)


def test_a_gained_field_takes_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, make_dataclass("Grown", [("a", int)]))
    data = encode(sys.modules[HERE].Grown(1))
    put(
        monkeypatch,
        make_dataclass("Grown", [("a", int), ("b", int, 2), ("c", list, field(default_factory=list))], frozen=True),
    )
    value = decode(data)
    assert (value.a, value.b, value.c) == (1, 2, [])
    assert type(value) is sys.modules[HERE].Grown


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ([("b", int)], "has no field 'a'"),
        ([("a", int), ("b", int)], r"Changed\.b has no default"),
        ([("a", str)], r"Changed\.a is annotated"),
    ],
)
@pytest.mark.parametrize("make", ["dataclass", "struct", "pydantic", "namedtuple"])
def test_a_change_that_does_not_fit_is_refused(
    monkeypatch: pytest.MonkeyPatch, make: str, fields: Any, says: str
) -> None:
    def new(fields: list[tuple[str, type[Any]]]) -> type[Any]:
        match make:
            case "dataclass":
                return make_dataclass("Changed", fields)
            case "struct":
                return msgspec.defstruct("Changed", fields)
            case "pydantic":
                return pydantic.create_model("Changed", **{name: (form, ...) for name, form in fields})
            case _:
                return NamedTuple("Changed", fields)

    put(monkeypatch, new([("a", int)]))
    data = encode(sys.modules[HERE].Changed(a=1))
    put(monkeypatch, new(fields))
    with pytest.raises(DoesNotFit, match=says if make != "struct" or "default" not in says else "'b'"):
        decode(data)


def test_a_member_that_is_gone_does_not_fit() -> None:
    for value, name in ((Color.RED, b"RED"), (Perm.R, b'"R"')):
        with pytest.raises(DoesNotFit, match="has no member"):
            decode(encode(value).replace(name, name.replace(b"R", b"G")))


def test_a_named_class_may_be_renamed() -> None:
    def define(name: str) -> type[Any]:
        return type_name("funds-captured")(make_dataclass(name, [("amount", int)]))

    first = define("FundsCaptured")
    data = encode(first(5))
    assert data == b'{"$":"funds-captured","amount":5}'
    assert tag_of(first(5)) == "funds-captured"
    codec.names.classes.pop("funds-captured")  # the next process
    renamed = define("CapturedFunds")
    assert decode(data) == renamed(5)


def test_a_class_may_take_the_stored_name_of_its_predecessor() -> None:
    @type_name(f"{HERE}:Before")
    @dataclass
    class After:
        a: int

    assert decode(f'{{"$":"{HERE}:Before","a":1}}'.encode()) == After(1)


def test_a_name_is_for_one_class() -> None:
    type_name("only-one")(make_dataclass("A1", [("a", int)]))
    type_name("only-one")(make_dataclass("A1", [("a", int)]))  # reloaded
    with pytest.raises(ValueError, match="taken"):
        type_name("only-one")(make_dataclass("A2", [("a", int)]))
    for name in ("", "tuple", "Decimal"):
        with pytest.raises(ValueError, match="type name"):
            type_name(name)(make_dataclass("A3", []))


def test_the_name_may_stand_below_the_dataclass_decorator() -> None:
    @dataclass(slots=True)
    @type_name("below")
    class Below:
        a: int

    register(Below)
    data = encode(Below(1))
    assert data == b'{"$":"below","a":1}'
    assert decode(data) == Below(1)


def test_local_classes_come_back_as_the_one_used_last() -> None:
    def make() -> type[Any]:
        @dataclass
        class Local:
            a: int

        return Local

    first, second = make(), make()
    for cls in (first, second, first):
        assert type(round_trip(cls(1))[1]) is cls


def test_a_registered_class_is_read_before_one_is_written() -> None:
    @dataclass
    class Fresh:
        a: int

    data = f'{{"$":"{HERE}:{Fresh.__qualname__}","a":1}}'.encode()
    with pytest.raises(UnknownType) as unknown:
        decode(data)
    assert unknown.value.tag.endswith("Fresh")
    register(Fresh)
    assert decode(data) == Fresh(1)
    with pytest.raises(NotEncodable):
        register(int)


class Outer:
    @dataclass
    class Inner:
        a: int


@pytest.mark.parametrize("value", [Outer.Inner(1), Color.RED, Point(1), Line("a", Decimal(1)), Event(1), Open(a=1)])
def test_a_loaded_class_is_found_by_its_name_in_a_program_that_has_written_none(value: Any) -> None:
    data = encode(value)
    codec.names.classes.pop(f"{HERE}:{type(value).__qualname__}")
    assert decode(data) == value


PROGRAM = """
import sys
from dataclasses import dataclass
from perdure.codec import decode, encode, decode_error, encode_error
@dataclass
class Order:
    id: str
class Declined(Exception):
    def __init__(self, *, code):
        super().__init__(code)
        self.code = code
if len(sys.argv) == 1:
    print(encode([Order("a")]).hex(), encode_error(Declined(code=7)).hex())
else:
    value, error = (bytes.fromhex(arg) for arg in sys.argv[1:])
    print(decode(value), decode_error(error).code, [name for name in ("pydantic", "anyio") if name in sys.modules])
"""


def test_another_process_reads_the_classes_of_its_own_main_module_and_loads_nothing_for_it() -> None:
    def run(*args: str) -> str:
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, *args], env=env, capture_output=True, text=True, check=True, timeout=30
        )
        return done.stdout.strip()

    assert run(*run().split()) == "[Order(id='a')] 7 []"


# ---------------------------------------------------------------- data is data


@pytest.mark.parametrize(
    "tag",
    [
        "os:system", "subprocess:Popen", "builtins:eval", "builtins:dict", "builtins:object", "builtins:type", "os.path:join",
        "not_loaded_anywhere:X", "this:d", "os:environ.__class__", "threading:Thread", "nothing", "", ":", "a:b:c", "os:", "sys:modules",
        "tests:__dict__", "builtins:ValueError.__class__", "pickle:Unpickler", "collections:OrderedDict", "decimal:Decimal",
        "builtins:ValueError.__init__.__globals__",
    ],
)  # fmt: skip
def test_a_tag_reaches_data_classes_only(tag: str) -> None:
    before = set(sys.modules)
    for fields in ({}, {"args": ["touch /tmp/never"]}, {"v": ["id"]}):
        with pytest.raises(UnknownType):
            decode(msgspec.json.encode({"$": tag, **fields}))
    assert set(sys.modules) == before


def test_nothing_of_a_lazy_module_runs() -> None:
    class Lazy(types.ModuleType):
        def __getattribute__(self, name: str) -> Any:
            raise AssertionError(name)

    sys.modules["lazy_one"] = Lazy("lazy_one")
    try:
        with pytest.raises(UnknownType):
            decode(b'{"$":"lazy_one:X"}')
    finally:
        del sys.modules["lazy_one"]


def test_an_alias_is_not_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[HERE], "Alias", Line, raising=False)
    with pytest.raises(UnknownType):
        decode(f'{{"$":"{HERE}:Alias","sku":"a","price":1}}'.encode())


@pytest.mark.parametrize(
    "fields",
    ["", ',"sku":"a"', ',"sku":1,"price":2', ',"__class__":"x"', ',"sku":"a","price":{"$":"Decimal","v":"1"},"x":1'],
)
def test_fields_that_are_not_the_class_s_do_not_fit(fields: str) -> None:
    with pytest.raises(DoesNotFit):
        decode(f'{{"$":"{HERE}:Line"{fields}}}'.encode())


@pytest.mark.parametrize("name", ["Color", "Perm", "Model", "Point", "Event"])
def test_a_shape_of_another_kind_does_not_fit(name: str) -> None:
    for rest in ("", ',"name":[]', ',"names":1', ',"v":1', ',"v":{"zz":1}'):
        with pytest.raises(DoesNotFit):
            decode(f'{{"$":"{HERE}:{name}"{rest}}}'.encode())
