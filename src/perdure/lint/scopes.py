"""Which scope a name belongs to, and what binds it there; as Python's compiler decides it, without running anything."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

Kind = Literal["value", "part", "item", "enter", "import", "def", "param", "augmented", "other"]
Function = ast.FunctionDef | ast.AsyncFunctionDef
Place = tuple[int, int]

FUNCTIONS: Final = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
COMPREHENSIONS: Final = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_TYPE_ALIAS: Final = getattr(ast, "TypeAlias", ())  # since 3.12
_BINDERS: Final = (
    *FUNCTIONS, *COMPREHENSIONS, ast.ClassDef, ast.Global, ast.Nonlocal, ast.Import, ast.ImportFrom, ast.Assign,
    ast.AnnAssign, ast.AugAssign, ast.NamedExpr, ast.For, ast.AsyncFor, ast.comprehension, ast.withitem,
    ast.ExceptHandler, ast.MatchAs, ast.MatchStar, ast.MatchMapping,
    *((_TYPE_ALIAS,) if _TYPE_ALIAS else ()),
)  # fmt: skip


@dataclass(eq=False, slots=True)
class Binding:
    """One place that gives a name its value."""

    name: str
    node: ast.AST
    kind: Kind
    statement: ast.AST
    since: Place
    """From here on in the text the value holds."""
    value: ast.expr | None = None
    annotation: ast.expr | None = None
    by: Scope | None = None
    """The function that binds a name of an outer scope, by `global` or `nonlocal`."""


@dataclass(eq=False, slots=True)
class Scope:
    """The names of a module, class, function or comprehension."""

    kind: Literal["module", "class", "function", "comprehension"]
    node: ast.AST
    parent: Scope | None
    names: dict[str, list[Binding]] = field(default_factory=dict[str, list[Binding]])
    outer: dict[str, Literal["global", "nonlocal"]] = field(default_factory=dict[str, Literal["global", "nonlocal"]])
    stars: list[ast.ImportFrom] = field(default_factory=list[ast.ImportFrom])

    @property
    def root(self) -> Scope:
        """The module's scope."""
        scope = self
        while scope.parent is not None:
            scope = scope.parent
        return scope

    @property
    def function(self) -> Scope:
        """The scope whose code this is: itself, unless it is a comprehension."""
        scope = self
        while scope.kind == "comprehension" and scope.parent is not None:
            scope = scope.parent
        return scope

    def find(self, name: str) -> Scope | None:
        """The scope that the name means when it is used here; None: no scope of the module has it."""
        scope: Scope | None = self
        while scope is not None:
            how = scope.outer.get(name)
            if how == "global":
                return scope.root if name in scope.root.names else None
            if name in scope.names and (scope.kind != "class" or scope is self) and how is None:
                return scope
            scope = scope.parent
        return None


class Scopes:
    """The scopes of one module: for every node its scope and its parent."""

    def __init__(self, tree: ast.Module) -> None:
        self.root = Scope("module", tree, None)
        self.of: dict[ast.AST, Scope] = {}
        self.inside: dict[ast.AST, Scope] = {tree: self.root}
        self.parent: dict[ast.AST, ast.AST] = {}
        self._nonlocal: list[tuple[Scope, Binding]] = []
        self._walk(tree, self.root)
        for scope, binding in self._nonlocal:
            owner = scope.find(binding.name)
            if owner is not None:
                owner.names[binding.name].append(binding)

    def adopt(self, node: ast.expr, parent: ast.AST, scope: Scope) -> None:
        """The expression, which was parsed out of a text, belongs to this scope."""
        self.parent[node] = parent
        self._walk(node, scope)

    def ancestors(self, node: ast.AST) -> Iterator[ast.AST]:
        """The node's parent, and so on outwards."""
        while (above := self.parent.get(node)) is not None:
            yield above
            node = above

    def statement(self, node: ast.AST) -> ast.AST:
        """The statement (or comprehension) that the node stands in."""
        while not isinstance(node, ast.stmt | ast.comprehension) and node in self.parent:
            node = self.parent[node]
        return node

    # ------------------------------------------------------------ the walk, with a stack of its own: sources nest deep

    def _walk(self, start: ast.AST, scope: Scope) -> None:
        stack = [(start, scope)]
        while stack:
            node, scope = stack.pop()
            self.of[node] = scope
            if isinstance(node, ast.Name | ast.Constant):
                continue
            inner = self._enter(node, scope) if isinstance(node, _BINDERS) else scope
            if inner is not scope:
                self.inside[node] = inner
            if inner is not scope or isinstance(node, ast.comprehension):
                following = list(self._children(node, scope, inner))
            else:
                following = [(child, scope) for child in ast.iter_child_nodes(node)]
            for child, _ in following:
                self.parent.setdefault(child, node)  # of `ctx` and operators, which are shared, nobody asks
            stack += reversed(following)

    def _enter(self, node: ast.AST, scope: Scope) -> Scope:
        """What the node binds is bound; the scope of its inside."""
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                self._add(scope, Binding(node.name, node, "def", node, _begin(node)))
                return self._function(node, scope)
            case ast.Lambda():
                return self._function(node, scope)
            case ast.ClassDef():
                self._add(scope, Binding(node.name, node, "def", node, _begin(node)))
                return Scope("class", node, scope)
            case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
                return Scope("comprehension", node, scope)
            case ast.Global() | ast.Nonlocal():
                for name in node.names:
                    scope.function.outer[name] = "global" if isinstance(node, ast.Global) else "nonlocal"
            case ast.ImportFrom() if node.names[0].name == "*":
                scope.stars.append(node)
            case ast.Import() | ast.ImportFrom():
                for alias in node.names:
                    name = alias.asname or alias.name.partition(".")[0]
                    self._add(scope, Binding(name, alias, "import", node, _end(node)))
            case ast.Assign() | ast.AnnAssign() | ast.AugAssign() | ast.NamedExpr():
                self._assigned(node, scope)
            case ast.For() | ast.AsyncFor():
                self._bind(scope, node.target, node.iter, "item", node, _end(node.iter))
            case ast.comprehension():
                self._bind(scope, node.target, node.iter, "item", node, (0, 0))
            case _:
                self._bind_in_place(node, scope)
        return scope

    def _bind_in_place(self, node: ast.AST, scope: Scope) -> None:
        """What `with`, `except` and `match` bind."""
        name = None
        match node:
            case ast.withitem(optional_vars=ast.expr() as target):
                since = _end(node.context_expr)
                self._bind(scope, target, node.context_expr, "enter", self.statement(node), since)
            case ast.ExceptHandler() | ast.MatchAs() | ast.MatchStar():
                name = node.name
            case ast.MatchMapping():
                name = node.rest
            case _ if isinstance(node, _TYPE_ALIAS):
                named, value = getattr(node, "name", None), getattr(node, "value", None)
                if isinstance(named, ast.Name):
                    self._add(scope, Binding(named.id, node, "value", node, _end(node), value=value))
            case _:
                pass
        if name is not None:
            self._add(scope, Binding(name, node, "other", self.statement(node), _begin(node)))

    def _function(self, node: Function | ast.Lambda, scope: Scope) -> Scope:
        inner = Scope("function", node, scope)
        for arg in every_arg(node.args):
            binding = Binding(arg.arg, arg, "param", node, (0, 0), annotation=arg.annotation)
            inner.names.setdefault(arg.arg, []).append(binding)
        return inner

    def _children(self, node: ast.AST, scope: Scope, inner: Scope) -> Iterable[tuple[ast.AST, Scope]]:
        """The children of a node that has a scope of its own, each with the scope in which it is evaluated."""
        if isinstance(node, ast.comprehension):
            whole = scope.node  # whose first iterable is evaluated outside of it
            first = isinstance(whole, COMPREHENSIONS) and whole.generators[0] is node
            yield node.iter, (scope.parent or scope) if first else scope
            yield from ((child, scope) for child in (node.target, *node.ifs))
            return
        if isinstance(node, COMPREHENSIONS):
            yield from ((child, inner) for child in ast.iter_child_nodes(node))
            return
        outside: list[ast.AST] = [*getattr(node, "decorator_list", ())]
        if isinstance(node, FUNCTIONS):
            outside += [*node.args.defaults, *(d for d in node.args.kw_defaults if d is not None)]
            for arg in every_arg(node.args):
                self.parent[arg] = node
                self.of[arg] = inner
                outside += [arg.annotation] if arg.annotation is not None else []
            outside += [node.returns] if not isinstance(node, ast.Lambda) and node.returns is not None else []
        elif isinstance(node, ast.ClassDef):
            outside += [*node.bases, *node.keywords]
        yield from ((child, scope) for child in outside)
        body: list[ast.AST] = [node.body] if isinstance(node, ast.Lambda) else [*getattr(node, "body", ())]
        yield from ((child, inner) for child in body)

    def _assigned(self, node: ast.Assign | ast.AnnAssign | ast.AugAssign | ast.NamedExpr, scope: Scope) -> None:
        since = _end(node)
        match node:
            case ast.Assign():
                for target in node.targets:
                    self._bind(scope, target, node.value, "value", node, since)
            case ast.AnnAssign(target=ast.Name(id=name)):
                binding = Binding(name, node, "value", node, since, node.value, node.annotation)
                self._add(scope, binding)
            case ast.AugAssign(target=ast.Name(id=name)):
                self._add(scope, Binding(name, node, "augmented", node, since))
            case ast.NamedExpr():
                binding = Binding(node.target.id, node, "value", self.statement(node), since, node.value)
                self._add(scope.function, binding)
            case _:
                pass

    def _bind(
        self, scope: Scope, target: ast.expr, value: ast.expr | None, kind: Kind, statement: ast.AST, since: Place
    ) -> None:
        match target:
            case ast.Name():
                self._add(scope, Binding(target.id, target, kind, statement, since, value))
            case ast.Starred():
                self._bind(scope, target.value, None, "part", statement, since)
            case ast.Tuple() | ast.List():
                values: list[ast.expr | None] = [None] * len(target.elts)
                given = value.elts if kind == "value" and isinstance(value, ast.Tuple | ast.List) else []
                if len(given) == len(values) and not _starred([*target.elts, *given]):
                    values = [*given]
                for part, its in zip(target.elts, values, strict=True):
                    self._bind(scope, part, its, "part" if its is None else "value", statement, since)
            case _:
                pass

    def _add(self, scope: Scope, binding: Binding) -> None:
        how = scope.outer.get(binding.name)
        if how is not None:
            binding.by = scope
        if how == "nonlocal":
            self._nonlocal.append((scope, binding))
            return
        owner = scope.root if how == "global" else scope
        owner.names.setdefault(binding.name, []).append(binding)


def own_nodes(function: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when the function does: not those of functions in it, but their decorators and defaults."""
    return nodes_of([function.body] if isinstance(function, ast.Lambda) else getattr(function, "body", []))


def nodes_of(body: Sequence[ast.AST]) -> Iterator[ast.AST]:
    """See `own_nodes`: of these statements."""
    stack = [*reversed(body)]
    while stack:
        node = stack.pop()
        yield node
        if isinstance(node, FUNCTIONS):
            outside: list[ast.AST] = [*getattr(node, "decorator_list", ()), *node.args.defaults]
            stack += reversed([*outside, *(d for d in node.args.kw_defaults if d is not None)])
        else:
            stack += reversed(list(ast.iter_child_nodes(node)))


def every_arg(args: ast.arguments) -> list[ast.arg]:
    """All parameters, in the order of the text."""
    some = [args.vararg] if args.vararg else []
    more = [args.kwarg] if args.kwarg else []
    return [*args.posonlyargs, *args.args, *some, *args.kwonlyargs, *more]


def _starred(nodes: list[ast.expr]) -> bool:
    return any(isinstance(node, ast.Starred) for node in nodes)


def _begin(node: ast.AST) -> Place:
    return getattr(node, "lineno", 0), getattr(node, "col_offset", 0)


def _end(node: ast.AST) -> Place:
    return getattr(node, "end_lineno", 0) or 0, getattr(node, "end_col_offset", 0) or 0
