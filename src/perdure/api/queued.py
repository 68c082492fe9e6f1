"""Steps on a queue, where they run: each step that an engine is given is a flow there, with that step as its body.

The caller's side, which makes an instance of it and takes its outcome, is `engine/queued.py`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from types import ModuleType
from typing import Any

from perdure.api.flow import FlowFunction
from perdure.api.scope import finish, in_flow
from perdure.api.step import Step


def flow_name(step: str) -> str:
    """The name of the flow that the step of this name is, where it runs for others."""
    return f"perdure.step:{step}"


def step_flow(step: Step[..., Any]) -> FlowFunction[..., Any]:
    """The flow: it runs the step once, with the step's own policy and the caller's idempotency key."""
    spec = step.spec

    async def run(key: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        place = in_flow(f"step {step.name} for a queue")
        return await finish(place.run.step(place, spec.changed(queue=None, key=key), tuple(args), kwargs, None))

    return FlowFunction(run, flow_name(step.name), None, None)


def step_flows(steps: Iterable[Step[..., Any] | ModuleType]) -> dict[str, FlowFunction[..., Any]]:
    """These steps, or all of a module, as flows by name.

    Raises:
        TypeError: something is not a step, or is a method without its object.
        ValueError: two steps have the same name, or a module has none.
    """
    found: dict[str, Step[..., Any]] = {}
    for item in steps:
        if isinstance(item, ModuleType):
            members = [step for _, step in inspect.getmembers(item, lambda value: isinstance(value, Step))]
            if not members:
                raise ValueError(f"module {item.__name__} has no step in it")
        elif isinstance(item, Step):  # pyright: ignore[reportUnnecessaryIsInstance]
            members = [item]
        else:
            raise TypeError(f"{item!r} is not a step; decorate it with @step")
        for step in members:
            if next(iter(inspect.signature(step.fn).parameters), "") == "self":  # which a bound one does not show
                raise TypeError(f"{step!r} is a method; give it bound to the object that it shall run on here")
            if found.setdefault(step.name, step) is not step:
                raise ValueError(f"two steps are named {step.name!r}; give one of them another name=")
    return {flow_name(name): step_flow(step) for name, step in found.items()}
