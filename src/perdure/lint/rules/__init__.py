"""The rules: each looks at one piece of code that runs in a flow, and says what is wrong with it."""

from typing import Final

from perdure.lint.rules import binding, order, outside, state, waiting
from perdure.lint.rules.kit import Flaw, Kit, Rule

__all__ = ["ALL", "Flaw", "Kit", "Rule"]

ALL: Final[tuple[Rule, ...]] = (
    outside.calls,
    outside.reads,
    order.sets,
    order.as_completed,
    state.changes,
    state.reads,
    state.shared,
    state.caches,
    waiting.coroutines,
    waiting.tasks,
    waiting.shadows,
    waiting.swallowed,
    binding.loops,
)
