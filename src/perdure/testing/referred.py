"""Which flows a flow refers to: so that a test need not say which children its flow will start. Runs nothing."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any, cast

from perdure.api.flow import AnyFlow, FlowFunction


def referred(flow: AnyFlow) -> list[AnyFlow]:
    """The flow itself, and all that its code names: as globals, in its closure, in modules that it names, and in what
    functions of the same package name that it calls.
    """
    found: dict[int, AnyFlow] = {}
    seen: set[int] = set()
    todo: list[Any] = [flow]
    while todo:
        value: Any = todo.pop()
        if _is_a(value, FlowFunction):
            function = cast("AnyFlow", value)
            if id(function) not in found:
                found[id(function)] = function
                todo.append(inspect.unwrap(function.fn))
        elif _is_a(value, FunctionType) and id(value) not in seen and _package(value) == _package(flow.fn):
            seen.add(id(value))
            todo.extend(_named(value))
    return list(found.values())


def _package(function: Any) -> str:
    return str(getattr(function, "__module__", None)).partition(".")[0]


def _named(function: FunctionType) -> Iterator[Any]:
    """What the function's code can reach by a name that stands in it."""
    names = dict.fromkeys(_names(function.__code__))
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # nothing is in it yet
            continue
    todo: list[dict[str, Any]] = [function.__globals__]
    seen: set[int] = set()
    while todo:
        space = todo.pop()
        for value in [space[name] for name in names if name in space]:
            if not _is_a(value, ModuleType):
                yield value
            elif id(value) not in seen:
                seen.add(id(value))
                todo.append(cast("ModuleType", value).__dict__)


def _is_a(value: Any, kind: type[Any]) -> bool:
    """As `isinstance`, which would ask the object too: it may be a proxy of anything."""
    return issubclass(cast("type[Any]", type(value)), kind)


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def place_of(flow: AnyFlow) -> str:
    """file:line of the flow's code."""
    code = getattr(inspect.unwrap(flow.fn), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if isinstance(code, CodeType) else repr(flow.fn)
