"""Which flows a flow refers to: its children, so that a test need not register them one by one. Runs nothing."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any, cast

from perdure.api.flow import AnyFlow, FlowFunction


def flows_of(*roots: AnyFlow) -> list[AnyFlow]:
    """The flows, and those that their code names, directly or through plain functions of the program."""
    found: dict[int, AnyFlow] = {}
    seen: set[int] = set()
    left: list[Any] = list(roots)
    while left:
        thing: Any = left.pop(0)
        number = id(thing)
        if number in seen:
            continue
        seen.add(number)
        function: Any = inspect.unwrap(thing) if callable(thing) else None
        if isinstance(thing, FlowFunction):
            found[number] = cast("AnyFlow", thing)
        if isinstance(function, FunctionType):
            left.extend(_named(function))
    return list(found.values())


def _named(function: FunctionType) -> Iterator[Any]:
    """What the function's code names: globals, what its closure holds, attributes of modules that it names."""
    names = set(_names(function.__code__))
    values = [function.__globals__[name] for name in names if name in function.__globals__]
    for cell in function.__closure__ or ():
        try:
            values.append(cell.cell_contents)
        except ValueError:  # not bound yet
            continue
    for value in values:
        if isinstance(value, ModuleType):
            of_module = (getattr(value, name, None) for name in names)
            yield from (v for v in of_module if isinstance(v, FlowFunction))
        elif isinstance(value, FlowFunction | FunctionType):
            yield value


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
