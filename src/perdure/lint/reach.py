"""Which code runs in a flow's loop: the flows, the functions in them, and the functions of the linted files that they call."""

from __future__ import annotations

import ast
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from perdure.lint.modules import Module
from perdure.lint.reader import Reader
from perdure.lint.scopes import FUNCTIONS, own_nodes
from perdure.lint.values import CACHED, CALLS_BACK, FLOW, Inside, Made, Outside, is_made, name_of, names

_ENTERED: Final = ("__enter__", "__exit__", "__aenter__", "__aexit__")
_MADE: Final = ("__new__", "__init__", "__post_init__")
_HANDLERS: Final = frozenset(names("perdure.{signal,query,update}"))


@dataclass(frozen=True, slots=True)
class Code:
    """A function, lambda or expression that runs in a flow's loop."""

    node: ast.AST
    module: Module
    calls: tuple[str, ...]
    """The flow, and the functions by which it gets here."""
    nodes: tuple[ast.AST, ...]
    """What runs in it, in the order of the text."""


class Reach:
    """All code of a tree that runs in flows, each piece once, with the shortest way to it."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.codes: dict[ast.AST, Code] = {}
        self.flows = 0
        self._left: deque[Code] = deque()
        for module in reader.tree.modules:
            for function, name in self._flows(module):
                self.flows += 1
                self._add(function, (name,))
        while self._left:
            self._follow(self._left.popleft())

    def is_inside(self, node: ast.AST) -> bool:
        """Whether the function runs in a flow's loop."""
        return node in self.codes

    # ------------------------------------------------------------ flows

    def _flows(self, module: Module) -> Iterator[tuple[Inside, str]]:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.decorator_list:
                value = self.reader.definition(node, module)
                if isinstance(value, Made) and is_made(value, FLOW) and isinstance(value.item, Inside):
                    yield value.item, node.name
            elif isinstance(node, ast.ClassDef) and (node.bases or node.decorator_list):
                yield from self._class_flow(node, module)
            elif isinstance(node, ast.Call) and node.args and "flow" in module.text:
                value = self.reader.value(node, module)
                if isinstance(value, Made) and is_made(value, FLOW) and isinstance(value.item, Inside):
                    yield value.item, getattr(value.item.node, "name", "lambda")

    def _class_flow(self, cls: ast.ClassDef, module: Module) -> Iterator[tuple[Inside, str]]:
        """The methods that a class flow runs in its loop."""
        marks = {name_of(self.reader.value(decorator, module)) for decorator in cls.decorator_list}
        family = list(self.reader.mro(cls, module))
        for one, where in family:
            for base in one.bases:
                marks.add(name_of(self.reader.value(base.value if isinstance(base, ast.Subscript) else base, where)))
        if not marks & {"perdure.Flow", "perdure.flow"}:
            return
        for one, where in family:
            for method in one.body:
                if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef):
                    handles = self.reader.decorated_by(method, where, _HANDLERS)
                    value = self.reader.definition(method, where)
                    if isinstance(value, Inside) and (handles or method.name in ("__init__", "run")):
                        yield value, f"{cls.name}.{method.name}"

    # ------------------------------------------------------------ calls

    def _add(self, function: Inside, calls: tuple[str, ...]) -> None:
        if function.node not in self.codes and isinstance(function.node, FUNCTIONS):
            self._put(Code(function.node, function.module, calls, tuple(own_nodes(function.node))))

    def _put(self, code: Code) -> None:
        self.codes[code.node] = code
        self._left.append(code)

    def _follow(self, code: Code) -> None:
        reader, module = self.reader, code.module
        for node in code.nodes:
            if isinstance(node, ast.Call):
                self._follow_call(node, code)
            elif isinstance(node, ast.Lambda):
                if not reader.work.hides(node, module):
                    self._add(Inside(node, module), code.calls)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                value = reader.definition(node, module)
                plain = value.item if isinstance(value, Made) and is_made(value, CACHED) else value
                if isinstance(plain, Inside) and not reader.work.hides(node, module):
                    self._add(plain, (*code.calls, node.name))
            elif isinstance(node, ast.withitem):
                value = reader.value(node.context_expr, module)
                if isinstance(value, Made) and isinstance(value.by, Inside):
                    self._add_methods(value.by, _ENTERED, code.calls)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                self._follow_property(node, code)

    def _follow_call(self, node: ast.Call, code: Code) -> None:
        reader, module = self.reader, code.module
        value = reader.value(node.func, module)
        if isinstance(value, Made) and is_made(value, CACHED):
            value = value.item
        if isinstance(value, Inside):
            self._called(value, code.calls)
            if isinstance(value.node, ast.ClassDef):
                self._make(node, value, code.calls)
        elif isinstance(value, Outside) and value.name in CALLS_BACK:
            for given in (*node.args, *(k.value for k in node.keywords)):
                function = reader.value(given, module)
                if isinstance(function, Inside) and not isinstance(given, ast.Lambda):
                    self._called(function, code.calls)
        elif isinstance(node.func, ast.Attribute) and node.func.attr == "sort":
            for keyword in node.keywords:
                function = reader.value(keyword.value, module)
                if isinstance(function, Inside) and not isinstance(function.node, ast.ClassDef):
                    self._called(function, code.calls)

    def _called(self, function: Inside, calls: tuple[str, ...]) -> None:
        node = function.node
        if isinstance(node, ast.ClassDef):
            self._add_methods(function, _MADE, (*calls, node.name))
        elif isinstance(node, ast.Lambda):
            self._add(function, calls)
        else:
            cls = function.module.scopes.of[node].node
            name = f"{cls.name}.{node.name}" if isinstance(cls, ast.ClassDef) else node.name
            self._add(function, (*calls, name))

    def _add_methods(self, cls: Inside, methods: tuple[str, ...], calls: tuple[str, ...]) -> None:
        for name in methods:
            method = self.reader.member(Made(cls), name, cls.module)
            if isinstance(method, Inside):
                self._add(method, calls)

    def _follow_property(self, node: ast.Attribute, code: Code) -> None:
        owner = self.reader.value(node.value, code.module)
        if not (isinstance(owner, Made) and isinstance(owner.by, Inside) and isinstance(owner.by.node, ast.ClassDef)):
            return
        for cls, module in self.reader.mro(owner.by.node, owner.by.module):
            for method in cls.body:
                if isinstance(method, ast.FunctionDef) and method.name == node.attr:
                    if self.reader.is_property(method, module):
                        self._called(Inside(method, module), code.calls)
                    return

    # ------------------------------------------------------------ what making an object calls

    def _make(self, call: ast.Call, cls: Inside, calls: tuple[str, ...]) -> None:
        """Factories of fields that the call does not give run as well: `id: UUID = field(default_factory=uuid4)`."""
        assert isinstance(cls.node, ast.ClassDef)  # noqa: S101
        if any(isinstance(a, ast.Starred) for a in call.args) or any(k.arg is None for k in call.keywords):
            return
        given = {keyword.arg for keyword in call.keywords}
        scopes = cls.module.scopes
        place = 0
        for field in cls.node.body:
            if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
                continue
            place += 1
            factory = _factory(field.value)
            if factory is None or field.target.id in given or place <= len(call.args) or field in self.codes:
                continue
            made = ast.copy_location(ast.Call(func=factory, args=[], keywords=[]), factory)
            scopes.of[made], scopes.parent[made] = scopes.of[factory], field
            nodes = (made, *(n for n in ast.walk(factory) if not isinstance(factory, ast.Lambda)))
            self.codes[field] = code = Code(made, cls.module, (*calls, cls.node.name), nodes)
            self._left.append(code)


def _factory(value: ast.expr | None) -> ast.expr | None:
    if not isinstance(value, ast.Call):
        return None
    return next((k.value for k in value.keywords if k.arg in ("default_factory", "factory")), None)
