"""Who reads and who changes which name, in all files."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Literal

from perdure.lint.modules import Module
from perdure.lint.reader import Reader
from perdure.lint.scopes import Scope, nodes_of
from perdure.lint.values import File, names

MUTATORS: Final = frozenset(
    names(
        "append appendleft extend extendleft insert add update discard remove pop popleft popitem clear setdefault sort "
        "reverse rotate subtract difference_update intersection_update symmetric_difference_update"
    )
)


@dataclass(eq=False, slots=True)
class Change:
    """One place that changes what a name stands for."""

    node: ast.AST
    root: ast.Name
    how: Literal["again", "part", "method"]
    """The name gets another value; a part of it does; a method changes it."""
    by: Scope
    """The function that does it."""
    attribute: str | None
    """Which attribute of it, if it is one of an object's."""


@dataclass(eq=False, slots=True)
class _Index:
    uses: dict[tuple[Scope, str], list[ast.Name]] = field(default_factory=lambda: defaultdict(list))
    changes: dict[tuple[Scope, str], list[Change]] = field(default_factory=lambda: defaultdict(list))
    at: dict[ast.AST, Change] = field(default_factory=dict[ast.AST, Change])


class State:
    """Indexes each file once, when it is asked about."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._indexes: dict[Module, _Index] = {}
        self._setting_up: set[str] | None = None

    def uses(self, module: Module, owner: Scope, name: str) -> list[ast.Name]:
        """Where the scope's name is read."""
        return self._index(module).uses.get((owner, name), [])

    def read(self, module: Module, owner: Scope) -> set[str]:
        """Which of the scope's names are read anywhere."""
        return {name for name in owner.names if self.uses(module, owner, name)}

    def changes(self, module: Module, owner: Scope, name: str) -> list[Change]:
        """Where the scope's name is changed by a function, which may happen at any time."""
        found = self._index(module).changes.get((owner, name), [])
        return [change for change in found if change.by.kind == "function" and not self._at_import(change.by)]

    def at(self, module: Module, node: ast.AST) -> Change | None:
        """What the node changes."""
        return self._index(module).at.get(node)

    def added(self, module: Module, owner: Scope, name: str) -> list[ast.expr]:
        """What `add` and `update` put into the set of that name."""
        changes = self._index(module).changes.get((owner, name), [])
        calls = [c.node for c in changes if isinstance(c.node, ast.Call)]
        return [arg for call in calls if _method(call) in ("add", "update") for arg in call.args]

    def origin(self, module: Module, owner: Scope, name: str) -> tuple[Module, Scope, str]:
        """Where a name that was imported from another of the files comes from."""
        for _ in range(5):
            bindings = owner.names.get(name, [])
            statement = bindings[-1].statement if bindings else None
            alias = bindings[-1].node if bindings else None
            if not isinstance(statement, ast.ImportFrom) or not isinstance(alias, ast.alias):
                break
            source = self._reader.source(statement, module)
            if source is None or alias.name not in source.scopes.root.names:
                break
            module, owner, name = source, source.scopes.root, alias.name
        return module, owner, name

    def of_file(self, node: ast.Attribute, module: Module) -> tuple[Module, Scope, str] | None:
        """Where `node` comes from, if it is `module.name` of one of the files."""
        value = self._reader.value(node.value, module)
        if isinstance(value, File) and node.attr in value.module.scopes.root.names:
            return value.module, value.module.scopes.root, node.attr
        return None

    def _at_import(self, scope: Scope) -> bool:
        """Whether the function runs while modules are loaded, as what fills a registry does: `@register` above a class."""
        while scope.parent is not None and scope.parent.kind not in ("module", "class"):
            scope = scope.parent
        if self._setting_up is None:
            self._setting_up = {name for module in self._reader.tree.modules for name in _called_at_import(module)}
        return getattr(scope.node, "name", "") in self._setting_up

    # ------------------------------------------------------------

    def _index(self, module: Module) -> _Index:
        if module not in self._indexes:
            self._indexes[module] = index = _Index()
            for node, scope in module.scopes.of.items():
                if isinstance(node, ast.Name):
                    owner = scope.find(node.id)
                    if owner is not None and isinstance(node.ctx, ast.Load):
                        index.uses[owner, node.id].append(node)
                    elif owner is not None and node.id in scope.outer:
                        self._put(index, Change(node, node, "again", scope.function, None), owner)
                elif isinstance(node, ast.Subscript | ast.Attribute) and not isinstance(node.ctx, ast.Load):
                    self._change(index, node, node, scope, "part")
                elif isinstance(node, ast.Call) and _method(node) in MUTATORS and isinstance(node.func, ast.Attribute):
                    self._change(index, node, node.func.value, scope, "method")
        return self._indexes[module]

    def _change(
        self, index: _Index, node: ast.AST, target: ast.expr, scope: Scope, how: Literal["part", "method"]
    ) -> None:
        attribute = None
        while isinstance(target, ast.Subscript | ast.Attribute):
            attribute = target.attr if isinstance(target, ast.Attribute) else None
            target = target.value
        owner = scope.find(target.id) if isinstance(target, ast.Name) else None
        if owner is not None and isinstance(target, ast.Name):
            self._put(index, Change(node, target, how, scope.function, attribute), owner)

    def _put(self, index: _Index, change: Change, owner: Scope) -> None:
        index.at[change.node] = change
        index.changes[owner, change.root.id].append(change)


def _called_at_import(module: Module) -> Iterator[str]:
    """Names of functions that decorate or are called where the module itself runs; not under `if __name__ ...`."""
    for node in nodes_of(module.tree.body):
        called: list[ast.expr] = [*getattr(node, "decorator_list", ())]
        if isinstance(node, ast.Call):
            main = (above.test for above in module.scopes.ancestors(node) if isinstance(above, ast.If))
            if not any(isinstance(n, ast.Name) and n.id == "__name__" for test in main for n in ast.walk(test)):
                called.append(node)
        for one in called:
            function = one.func if isinstance(one, ast.Call) else one
            if isinstance(function, ast.Name | ast.Attribute):
                yield function.id if isinstance(function, ast.Name) else function.attr


def _method(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else ""
