"""What a flow's code keeps in memory outside of its variables: data in globals, closures and classes, and caches.

A new process has none of it. Found by the names in the code, without running it; which of it the flow itself changes
is found by watching it run.
"""

from __future__ import annotations

import copy
import inspect
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any, Final, cast

from perdure import codec
from perdure.api.flow import AnyFlow, FlowFunction
from perdure.api.step import Step
from perdure.errors import NotEncodable
from perdure.testing.blame import FLOWS_OWN, Change, is_users, is_users_file

LARGEST: Final = 10_000
"""What is longer than so many characters is no variable but a table, and costs too much to be looked at all the time."""
_NOTHING: Final = object()
_ATOMS: Final = (int, float, complex, str, bytes, type(None))


class Memory:
    """What the flows' code names and could change, as it was when this was made.

    Args:
        outside: objects and functions that belong to the world, not to the process: they, and what the functions name,
            are left alone.
    """

    def __init__(self, flows: Iterable[AnyFlow], outside: Iterable[object] = ()) -> None:
        world: set[object] = set()
        for thing in outside:
            world.add(id(thing))
            if isinstance(function := _function(thing), FunctionType):
                for holder, name, value in _named(function):
                    world |= {(id(holder), name), None if isinstance(value, _ATOMS) else id(value)}
        self._seen = [spot for spot in _spots(flows) if not world & {id(spot.value), (id(spot.holder), spot.name)}]
        self._kept: list[_Spot] = []

    def __bool__(self) -> bool:
        return bool(self._seen)

    def look(self) -> tuple[object, ...]:
        """What is there now, to be compared."""
        return tuple(spot.look() for spot in self._seen)

    def learn(self, changes: Iterable[Change]) -> None:
        """From now on that is forgotten which the flow's own code has changed, and nobody else has: what steps change is
        the world.
        """
        by: dict[int, set[str]] = {}
        for change in changes:
            for number, (before, after) in enumerate(zip(change.before, change.after, strict=True)):
                if before != after:
                    by.setdefault(number, set()).add(change.who)
        self._kept = [self._seen[number] for number, who in by.items() if who == {FLOWS_OWN}]

    def names(self) -> list[str]:
        """What the flow's own code has changed."""
        return [spot.name for spot in self._kept]

    def kept(self) -> tuple[object, ...]:
        """What is in these now, to be compared."""
        return tuple(spot.look() for spot in self._kept)

    def forget(self) -> None:
        """What the flow's own code has changed is as it was when this was made, as in a new process."""
        for spot in self._kept:
            spot.restore()


class _Spot:
    """One place in memory that holds data: a name in a module, class or closure, or a default argument."""

    def __init__(self, holder: Any, name: str, value: Any) -> None:
        self.name = name
        self.value = value
        self.holder = holder
        self._copy = copy.deepcopy(value)

    def look(self) -> object:
        value = self._value()
        try:
            return _comparable(value)
        except (NotEncodable, RecursionError):
            return id(value)

    def restore(self) -> None:
        """The value of then is there, the same object where that could be changed."""
        then = copy.deepcopy(self._copy)
        value: Any = self.value
        if callable(getattr(value, "clear", None)):  # a list, dict, set, deque or bytearray
            value.clear()
            getattr(value, "update" if hasattr(value, "update") else "extend")(then)
        elif hasattr(value, "__dict__"):
            attributes = cast("dict[str, Any]", vars(value))
            attributes.clear()
            attributes.update(cast("dict[str, Any]", vars(then)))
        if self._value() is value:
            return
        holder: Any = self.holder
        if isinstance(holder, CellType):
            holder.cell_contents = value
        elif isinstance(holder, dict):
            cast("dict[str, Any]", holder)[self.name] = value
        else:
            setattr(holder, self.name, value)

    def _value(self) -> Any:
        holder: Any = self.holder
        if holder is None:
            return self.value
        if isinstance(holder, CellType):
            return _content(holder)
        if isinstance(holder, dict):
            return cast("dict[str, Any]", holder).get(self.name, _NOTHING)
        return getattr(holder, self.name, _NOTHING)


class _Cache(_Spot):
    """A function that keeps what it returned."""

    def __init__(self, holder: Any, name: str, value: Any) -> None:
        self.holder, self.name, self.value = holder, name, value

    def look(self) -> object:
        return self.value.cache_info()

    def restore(self) -> None:
        self.value.cache_clear()


def _comparable(value: Any) -> object:
    """The same for two values that hold the same data. Raises NotEncodable for what is no data."""
    if isinstance(value, dict):
        items = cast("dict[Any, Any]", value).items()
        return dict, tuple((_comparable(key), _comparable(item)) for key, item in items)
    if isinstance(value, list | tuple | set | frozenset | deque):
        return type(cast("list[Any]", value)), tuple(_comparable(item) for item in cast("list[Any]", value))
    return codec.encode(value)


def _spots(flows: Iterable[AnyFlow]) -> Iterator[_Spot]:
    """Everything that holds data and stands in the code of the flows, and of plain functions and classes named there."""
    found: set[tuple[int, str]] = set()
    left: list[Any] = list(flows)
    seen: set[int] = set()
    while left:
        function = _function(left.pop())
        if not isinstance(function, FunctionType) or id(function) in seen or not is_users(function.__code__):
            continue
        seen.add(id(function))
        for holder, name, value in _named(function):
            where = (id(value) if holder is None else id(holder), name)
            if where in found or isinstance(value, Step | ModuleType):
                continue
            found.add(where)
            if isinstance(value, type):
                left.extend(vars(value).values())
            elif callable(value):
                left.append(value)
                if hasattr(value, "cache_clear") and hasattr(value, "cache_info"):
                    yield _Cache(holder, name, value)
            elif _is_data(value):
                yield _Spot(holder, name, value)


def _function(thing: Any) -> Any:
    if isinstance(thing, FlowFunction):
        return inspect.unwrap(cast("AnyFlow", thing).fn)
    thing = getattr(thing, "__func__", thing)  # of a method
    return inspect.unwrap(thing) if callable(thing) else None


def _is_data(value: Any) -> bool:
    try:
        return len(repr(_comparable(value))) <= LARGEST
    except (NotEncodable, RecursionError):
        return False


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # nothing is in it yet
        return _NOTHING


def _named(function: FunctionType) -> Iterator[tuple[Any, str, Any]]:
    """What the function's code names: where it is (None: in a default argument), its name, and what it is now."""
    names = dict.fromkeys(_names(function.__code__))
    for value in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
        yield None, f"a default argument of {function.__name__}", value
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        if (value := _content(cell)) is not _NOTHING:
            yield cell, name, value
            yield from _inside(value, names)
    for name in names:
        if (value := function.__globals__.get(name, _NOTHING)) is not _NOTHING:
            yield function.__globals__, name, value
            yield from _inside(value, names)


def _inside(value: Any, names: Iterable[str]) -> Iterator[tuple[Any, str, Any]]:
    """What the names are in a module or class of the program's own."""
    if isinstance(value, ModuleType | type) and _is_users_own(value):
        for name in names:
            if name in vars(value):
                yield value, name, vars(value)[name]


def _is_users_own(thing: ModuleType | type) -> bool:
    module = thing if isinstance(thing, ModuleType) else sys.modules.get(thing.__module__)
    file = getattr(module, "__file__", None)
    return file is not None and is_users_file(file)


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
