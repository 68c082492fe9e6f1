"""What the rules have in common: what they look at, and what they say."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from perdure.lint.reach import Code, Reach
from perdure.lint.reader import Reader
from perdure.lint.scopes import Scope
from perdure.lint.state import State
from perdure.lint.values import Value
from perdure.lint.work import Work


@dataclass(frozen=True, slots=True)
class Flaw:
    """What a rule says of a node: its code, what is wrong, and what to write instead."""

    node: ast.AST
    code: str
    message: str
    instead: str


@dataclass(frozen=True, slots=True)
class Kit:
    """One piece of code, and all that is known around it."""

    code: Code
    reader: Reader
    reach: Reach
    state: State

    @property
    def work(self) -> Work:
        """What is handed on as work."""
        return self.reader.work

    def value(self, node: ast.expr) -> Value | None:
        """What the expression is."""
        return self.reader.value(node, self.code.module)

    def parent(self, node: ast.AST) -> ast.AST | None:
        """The node that holds it."""
        return self.code.module.scopes.parent.get(node)

    def ancestors(self, node: ast.AST) -> Iterator[ast.AST]:
        """The nodes around it, outwards, up to the function's own."""
        for above in self.code.module.scopes.ancestors(node):
            if above is self.code.node:
                return
            yield above

    def owner(self, node: ast.Name) -> Scope | None:
        """The scope whose name it is."""
        scope = self.code.module.scopes.of.get(node)
        return scope.find(node.id) if scope is not None else None

    def is_used(self, node: ast.Name) -> bool:
        """Whether what is assigned to this name is read anywhere."""
        owner = self.owner(node)
        return owner is None or node.id in self.state.read(self.code.module, owner)


Rule: TypeAlias = Callable[[Kit], Iterator[Flaw]]
