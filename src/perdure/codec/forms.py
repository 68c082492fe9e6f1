"""Whether a value is of a type form: `fits(value, list[int] | None)`. Checks, never converts."""

from __future__ import annotations

import collections
import collections.abc
import sys
import types
import typing
from collections.abc import Callable
from typing import Any, Final, Literal, TypeVar, Union, cast, get_args, get_origin

Check = Callable[[Any], bool]

_LIMIT: Final = 2048
_CALLABLE: Final[Any] = collections.abc.Callable
_checks: dict[Any, Check] = {}
_WRAPPERS: Final = {
    typing.Annotated,
    typing.ClassVar,
    typing.Final,
    typing.Required,
    typing.NotRequired,
    getattr(typing, "ReadOnly", typing.Required),
}


def fits(value: object, form: Any) -> bool:
    """True if the value is of the form; also for forms that cannot be checked at run time."""
    return check_of(form)(value)


def check_of(form: Any) -> Check:
    """The compiled check of a form, from a bounded cache."""
    try:
        check = _checks.get(form)
    except TypeError:  # Annotated[int, []] has no hash
        return _compile(form)
    if check is None:
        check = _compile(form)
        if len(_checks) >= _LIMIT:
            _checks.clear()
        _checks[form] = check
    return check


def anything(_value: object) -> bool:
    """The check of a form that says nothing."""
    return True


def _is_none(value: object) -> bool:
    return value is None


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_float(value: object) -> bool:
    return isinstance(value, (float, int)) and not isinstance(value, bool)


def _is_complex(value: object) -> bool:
    return isinstance(value, (complex, float, int)) and not isinstance(value, bool)


_SIMPLE: Final[dict[Any, Check]] = {
    Any: anything,
    object: anything,
    None: _is_none,
    type(None): _is_none,
    int: _is_int,
    float: _is_float,
    complex: _is_complex,
    typing.LiteralString: lambda value: isinstance(value, str),
}


def _compile(form: Any) -> Check:
    try:
        simple = _SIMPLE.get(form)
    except TypeError:
        simple = None
    if simple is not None:
        return simple
    origin = get_origin(form)
    if origin is not None:
        return _compile_generic(form, origin)
    if isinstance(form, typing.NewType):
        return check_of(form.__supertype__)
    if isinstance(form, TypeVar):
        if form.__constraints__:
            return _any_of([check_of(c) for c in form.__constraints__])
        return anything if form.__bound__ is None else check_of(form.__bound__)
    if type(form).__name__ == "TypeAliasType":  # the `type` statement of 3.12; may speak of itself
        return lambda value: fits(value, form.__value__)
    if typing.is_typeddict(form):
        return _typed_dict(form)
    return _is_a(form) if isinstance(form, type) else anything


def _compile_generic(form: Any, origin: Any) -> Check:
    args: tuple[Any, ...] = get_args(form)
    if origin in _WRAPPERS:
        return check_of(args[0]) if args else anything
    if origin is Union or origin is types.UnionType:
        return _any_of([check_of(arg) for arg in args])
    if origin is Literal:
        return lambda value: any(type(value) is type(arg) and value == arg for arg in args)
    if type(origin).__name__ == "TypeAliasType":
        return lambda value: fits(value, origin.__value__)
    if not isinstance(origin, type):
        return anything
    if origin is type or origin is _CALLABLE:
        return callable
    if origin is tuple:
        return _tuple(form, args)
    is_a = _is_a(origin)
    inner = [check_of(arg) for arg in args]
    if issubclass(origin, collections.abc.Mapping) and inner:
        return _mapping(is_a, inner[0], inner[1] if len(inner) > 1 else anything)
    if issubclass(origin, collections.abc.Iterable) and len(inner) == 1 and _is_standard(origin):
        return _collection(is_a, inner[0])
    return is_a


def _is_standard(origin: Any) -> bool:
    # the parameter of a user's own generic need not be the type of what iterating over it gives
    return origin.__module__ in ("builtins", "collections", "collections.abc", "typing")


def _is_a(cls: type[Any]) -> Check:
    if hasattr(cls, "__get_pydantic_core_schema__") and not hasattr(cls, "__pydantic_fields__"):
        return anything  # EmailStr, AwareDatetime: names for pydantic's checks, not the class of the value

    def is_a(value: object) -> bool:
        try:
            return isinstance(value, cls)
        except TypeError:  # a Protocol that is not for run time
            return True

    return is_a


def _any_of(checks: list[Check]) -> Check:
    if anything in checks:
        return anything
    return lambda value: any(check(value) for check in checks)


def _tuple(form: Any, args: tuple[Any, ...]) -> Check:
    if not args and not hasattr(form, "__args__"):  # bare typing.Tuple; tuple[()] is the empty one
        return _is_a(tuple)
    if len(args) == 2 and args[1] is Ellipsis:
        return _collection(_is_a(tuple), check_of(args[0]))
    if any(get_origin(arg) is typing.Unpack or isinstance(arg, typing.TypeVarTuple) for arg in args):
        return _is_a(tuple)
    checks = [check_of(arg) for arg in args]
    n = len(checks)
    return lambda value: (
        isinstance(value, tuple)
        and len(typing.cast("tuple[Any, ...]", value)) == n
        and all(check(item) for check, item in zip(checks, typing.cast("tuple[Any, ...]", value), strict=True))
    )


def _collection(is_a: Check, inner: Check) -> Check:
    if inner is anything:
        return is_a
    # only what can be read twice is looked into: an iterator would be used up

    def check(value: Any) -> bool:
        twice: bool = isinstance(value, collections.abc.Collection)
        return is_a(value) and (not twice or all(map(inner, cast("Any", value))))

    return check


def _mapping(is_a: Check, key: Check, item: Check) -> Check:
    return lambda value: is_a(value) and all(key(k) and item(v) for k, v in value.items())


def _typed_dict(form: Any) -> Check:
    hints = hints_of(form)
    listed: frozenset[str] = form.__required_keys__  # does not see Required[...] where annotations are strings
    required = {
        name
        for name, hint in hints.items()
        if get_origin(hint) is typing.Required or (get_origin(hint) is not typing.NotRequired and name in listed)
    }

    def check(value: Any) -> bool:
        return (
            isinstance(value, dict)
            and required <= typing.cast("dict[Any, Any]", value).keys()
            and all(k in hints and fits(v, hints[k]) for k, v in typing.cast("dict[Any, Any]", value).items())
        )

    return check


def hints_of(cls: type[Any]) -> dict[str, Any]:
    """The annotations of a class, `Any` for each that cannot be resolved (a name under TYPE_CHECKING, a local one)."""
    try:
        return typing.get_type_hints(cls, include_extras=True)
    except Exception:  # whatever the evaluation of an annotation raises
        return _hints_one_by_one(cls)


def _hints_one_by_one(cls: type[Any]) -> dict[str, Any]:
    hints: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        for name, form in vars(base).get("__annotations__", {}).items():
            one = types.SimpleNamespace(__annotations__={name: form})
            space = vars(sys.modules.get(base.__module__, types))
            try:
                hints[name] = typing.get_type_hints(one, space, dict(vars(base)), include_extras=True)[name]
            except Exception:
                hints[name] = Any
    return hints
