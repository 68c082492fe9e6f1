"""What an expression is, as far as the text says: where a name was imported from, what was assigned to it, which class it
has. What is not known is None, and no rule speaks of it.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Callable, Iterator
from typing import Final, TypeGuard, TypeVar

from perdure.lint.modules import Module, Tree
from perdure.lint.scopes import FUNCTIONS, Binding, Function, Scope, every_arg, own_nodes
from perdure.lint.values import (
    AWAITED,
    CACHED,
    CACHES,
    COROUTINE,
    DICT,
    FACE,
    FLOW,
    GIVES,
    LIST,
    MANAGER,
    PROPERTIES,
    PROPERTY,
    SAME,
    SET,
    STEP,
    TRANSPARENT,
    File,
    Inside,
    Made,
    Outside,
    Value,
    is_made,
    name_of,
)
from perdure.lint.work import Work

K = TypeVar("K")

DEPTH: Final = 40
"""So many expressions are looked through one behind the other; what lies deeper is not known."""
_OPTIONS: Final = "perdure.Step.options"
_WRAPPERS: Final = {"perdure.step": STEP, "perdure.flow": FLOW, **dict.fromkeys(CACHES, CACHED)}
_SETS: Final = {
    "builtins.set." + name for name in ("union", "intersection", "difference", "symmetric_difference", "copy")
}
_LISTS: Final = {"builtins." + name for name in ("list", "tuple", "sorted", "iter", "reversed", "enumerate")}
_UNWRAPPED: Final = {"Annotated", "Final", "ClassVar", "Required", "NotRequired", "ReadOnly", "InitVar"}


class Reader:
    """Reads the files of one tree; every answer is kept."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.work = Work(self)
        self._known: dict[ast.AST, Value | None] = {}
        self._annotated: dict[ast.AST, Value | None] = {}
        self._named: dict[tuple[Module, str], Value | None] = {}
        self._definitions: dict[ast.AST, Value | None] = {}
        self._results: dict[ast.AST, Value | None] = {}
        self._attributes: dict[ast.ClassDef, dict[str, list[tuple[ast.expr | None, ast.expr | None]]]] = {}
        self._depth = 0

    def value(self, node: ast.expr, module: Module) -> Value | None:
        """What the expression is; None if that is not known."""
        if node in self._known:
            return self._known[node]
        if self._depth >= DEPTH:
            return None
        self._known[node] = None  # so that what is defined by itself ends
        found = self._known[node] = self._deeper(self._read, node, module)
        return found

    def _deeper(self, read: Callable[[K, Module], Value | None], what: K, module: Module) -> Value | None:
        if self._depth >= DEPTH:
            return None
        self._depth += 1
        try:
            return read(what, module)
        finally:
            self._depth -= 1

    def _read(self, node: ast.expr, module: Module) -> Value | None:
        match node:
            case ast.Name():
                return self._name(node, module)
            case ast.Attribute():
                return self.member(self.value(node.value, module), node.attr, module)
            case ast.Call():
                return self._call(node, module)
            case ast.Await():
                awaited = self.value(node.value, module)
                return awaited.item if isinstance(awaited, Made) and is_made(awaited, COROUTINE) else None
            case ast.NamedExpr():
                return self.value(node.value, module)
            case ast.Lambda():
                return Inside(node, module)
            case ast.Constant():
                return Made(Outside(f"builtins.{type(node.value).__name__}")) if node.value is not None else None
            case ast.JoinedStr():
                return Made(Outside("builtins.str"))
            case ast.UnaryOp() if not isinstance(node.op, ast.Not):
                return self.value(node.operand, module)
            case ast.Subscript():
                return self._part(node, module)
            case ast.BinOp() | ast.BoolOp() | ast.IfExp():
                return self._operation(node, module)
            case _:
                return self._display(node, module)

    # ------------------------------------------------------------ names

    def _name(self, node: ast.Name, module: Module) -> Value | None:
        scope = module.scopes.of.get(node)
        owner = scope.find(node.id) if scope is not None else None
        if scope is None or owner is None:
            return self._star(module, node.id) or self._builtin(node.id)
        bindings = [b for b in owner.names[node.id] if b.kind != "augmented"]
        same = owner.function is scope.function
        if not same or owner.kind == "comprehension":
            return self._last(bindings, module, owner)
        place = (node.lineno, node.col_offset)
        before = [b for b in bindings if b.since <= place]
        found = {self._bound(b, module) for b in before or bindings}
        if len(found) == 1:
            return found.pop()
        if not before or not _dominates(before[-1].statement, node, module):
            return None
        last = self._bound(before[-1], module)
        later = [b for b in bindings if b not in before and _in_one_loop(b.statement, node, module)]
        return last if all(self._bound(b, module) == last for b in later) else None

    def _last(self, bindings: list[Binding], module: Module, owner: Scope) -> Value | None:
        """What a name is for code that runs when its owner's text has run."""
        found = {self._bound(b, module) for b in bindings}
        if len(found) == 1:
            return found.pop()
        last = bindings[-1] if bindings else None
        if last is None or last.by is not None or last.statement not in getattr(owner.node, "body", ()):
            return None
        return self._bound(last, module)

    def named(self, module: Module, name: str) -> Value | None:
        """What a name of the module is for who imports it."""
        key = module, name
        if key not in self._named:
            self._named[key] = None
            self._named[key] = self._deeper(self._global, name, module)
        return self._named[key]

    def _global(self, name: str, module: Module) -> Value | None:
        root = module.scopes.root
        if name in root.names:
            return self._last([b for b in root.names[name] if b.kind != "augmented"], module, root)
        submodule = self.tree.submodule(module, name)
        return File(submodule) if submodule else self._star(module, name)

    def _star(self, module: Module, name: str) -> Value | None:
        for statement in module.scopes.root.stars:
            source = self.source(statement, module)
            if source is not None and source is not module and name in source.scopes.root.names:
                return self.named(source, name)
            if source is None and statement.module == "perdure" and f"perdure.{name}" in FACE:
                return Outside(f"perdure.{name}")
        return None

    def _builtin(self, name: str) -> Value | None:
        return Outside(f"builtins.{name}") if hasattr(builtins, name) else None

    def _bound(self, binding: Binding, module: Module) -> Value | None:
        node = binding.node
        match binding.kind:
            case "def":
                return self.definition(node, module)
            case "import":
                return self._imported(node, binding.statement, module)
            case "param":
                return self._parameter(node, binding, module)
            case "value":
                said = self.annotated(binding.annotation, module) if binding.annotation is not None else None
                return said or (self.value(binding.value, module) if binding.value is not None else None)
            case "item" | "enter" if binding.value is not None:
                whole = self.value(binding.value, module)
                if binding.kind == "item":
                    return whole.item if isinstance(whole, Made) else None
                return whole if isinstance(whole, Made) and not is_made(whole, COROUTINE) else None
            case _:
                return None

    def _imported(self, alias: ast.AST, statement: ast.AST, module: Module) -> Value | None:
        assert isinstance(alias, ast.alias)  # noqa: S101
        if isinstance(statement, ast.Import):
            name = alias.name if alias.asname else alias.name.partition(".")[0]
            return self._module(name, module)
        assert isinstance(statement, ast.ImportFrom)  # noqa: S101
        source = self.source(statement, module)
        if source is not None:
            return self.named(source, alias.name)
        if statement.level:
            return None
        return self._module(f"{statement.module}.{alias.name}", module)

    def source(self, statement: ast.ImportFrom, module: Module) -> Module | None:
        """The file that the statement imports from."""
        if statement.level:
            return self.tree.relative(module, statement.level, statement.module)
        name = statement.module or ""
        return None if _is_ours(name) else self.tree.find(module, name)

    def _module(self, name: str, module: Module) -> Value | None:
        if _is_ours(name):
            return Outside("perdure." + name.rpartition(".")[2] if "." in name else name)
        file = self.tree.find(module, name)
        return File(file) if file else Outside(name)

    def _parameter(self, arg: ast.AST, binding: Binding, module: Module) -> Value | None:
        function = binding.statement
        assert isinstance(arg, ast.arg) and isinstance(function, FUNCTIONS)  # noqa: PT018, S101
        said = self.annotated(arg.annotation, module) if arg.annotation is not None else None
        if arg is function.args.vararg:
            return Made(LIST, said)
        if arg is function.args.kwarg:
            return Made(DICT, said)
        cls = module.scopes.of[function].node
        if said is None and isinstance(cls, ast.ClassDef) and every_arg(function.args)[0] is arg:
            decorators = {name_of(self.value(d, module)) for d in getattr(function, "decorator_list", ())}
            if "builtins.staticmethod" in decorators:
                return None
            return Inside(cls, module) if "builtins.classmethod" in decorators else Made(Inside(cls, module))
        return said

    # ------------------------------------------------------------ definitions

    def definition(self, node: ast.AST, module: Module) -> Value | None:
        """What `def` or `class` makes, as its decorators leave it: None if one of them is not known."""
        if node not in self._definitions:
            self._definitions[node] = None
            if isinstance(node, ast.ClassDef):
                self._definitions[node] = Inside(node, module)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                self._definitions[node] = self._decorated(node, module)
        return self._definitions[node]

    def _decorated(self, node: Function, module: Module) -> Value | None:
        plain = Inside(node, module)
        kinds: list[str] = []
        runs_here, known, wrapped = True, True, False
        for decorator in node.decorator_list:
            value = self.value(decorator, module)
            name = name_of(value) or (
                value.by.name if isinstance(value, Made) and isinstance(value.by, Outside) else ""
            )
            if name in _WRAPPERS:
                kinds.append(_WRAPPERS[name])
                wrapped = wrapped or not known
            elif isinstance(value, Inside) and isinstance(value.node, FUNCTIONS):
                args = every_arg(value.node.args)
                runs_here = runs_here and not (args and self.work.is_work(value, args[0].arg))
            elif name not in TRANSPARENT | PROPERTY and not _of_property(decorator):
                known = False
        inside = plain if runs_here else None  # else one of them makes a step of the body
        if kinds and (known or kinds[0] == FLOW or (kinds[0] == STEP and not wrapped)):
            return Made(Outside(kinds[0]), inside)
        return inside if known else None  # what a decorator makes of it is not known

    def decorated_by(self, node: Function, module: Module, names: frozenset[str]) -> bool:
        """Whether one of these decorates the function."""
        return any(name_of(self.value(decorator, module)) in names for decorator in node.decorator_list)

    def result(self, function: Inside) -> Value | None:
        """What calling the function gives, by its annotation."""
        if function.node not in self._results:
            self._results[function.node] = None
            self._results[function.node] = self._result(function)
        return self._results[function.node]

    def _result(self, function: Inside) -> Value | None:
        node = function.node
        if isinstance(node, ast.ClassDef):
            return Made(function)
        returns = getattr(node, "returns", None)
        said = self.annotated(returns, function.module) if returns is not None else None
        if isinstance(node, ast.Lambda) or self.decorated_by(node, function.module, MANAGER):
            return None
        if any(isinstance(n, ast.Yield | ast.YieldFrom) for n in own_nodes(node)):
            return said if is_made(said, "builtins.list") else None
        return Made(Outside(COROUTINE), said) if isinstance(node, ast.AsyncFunctionDef) else said

    # ------------------------------------------------------------ attributes and calls

    def member(self, value: Value | None, name: str, module: Module) -> Value | None:
        """What the attribute of the value is."""
        match value:
            case Outside(base):
                file = None if _is_ours(base) else self.tree.find(module, f"{base}.{name}")
                return File(file) if file else _outside(base, name)
            case File(of):
                return self.named(of, name)
            case Inside(ast.ClassDef() as cls, of):
                return self._of_class(cls, of, name, instance=False)
            case Made(Inside(ast.ClassDef() as cls, of)):
                return self._of_class(cls, of, name, instance=True)
            case Made(Outside(by), item):
                if by in (STEP, FLOW) and name == "fn":
                    return item
                if by == STEP and name == "options":
                    return Made(Outside(_OPTIONS), item)
                return _outside(by, name)
            case _:
                return None

    def _of_class(self, cls: ast.ClassDef, module: Module, name: str, *, instance: bool) -> Value | None:
        for found, where in self.mro(cls, module):
            bindings = where.scopes.inside[found].names.get(name, [])
            if bindings:
                last = bindings[-1].node
                if instance and isinstance(last, ast.FunctionDef) and self.is_property(last, where):
                    return self.annotated(last.returns, where) if last.returns is not None else None
                return self._last(bindings, where, where.scopes.inside[found])
            if instance:
                for annotation, value in self._assigned(found, where).get(name, []):
                    said = self.annotated(annotation, where) if annotation is not None else None
                    return said or (self.value(value, where) if value is not None else None)
            for base in found.bases:
                outside = name_of(self.value(base, where))
                if outside and instance and not outside.startswith(("builtins.", "typing.", "abc.")):
                    return _outside(outside, name)
        return None

    def is_property(self, node: ast.AST, module: Module) -> bool:
        """Whether reading the attribute runs the function."""
        return isinstance(node, ast.FunctionDef) and self.decorated_by(node, module, PROPERTY)

    def mro(self, cls: ast.ClassDef, module: Module) -> Iterator[tuple[ast.ClassDef, Module]]:
        """The class and those of its bases that are among the files."""
        left, seen = [(cls, module)], set[ast.AST]()
        while left:
            cls, module = left.pop(0)
            if cls in seen:
                continue
            seen.add(cls)
            yield cls, module
            bases = (self.value(base.value if isinstance(base, ast.Subscript) else base, module) for base in cls.bases)
            left += [(b.node, b.module) for b in bases if isinstance(b, Inside) and isinstance(b.node, ast.ClassDef)]

    def _assigned(self, cls: ast.ClassDef, module: Module) -> dict[str, list[tuple[ast.expr | None, ast.expr | None]]]:
        """What the class's methods assign to attributes of the object, as (annotation, value)."""
        if cls in self._attributes:
            return self._attributes[cls]
        found = self._attributes[cls] = {}
        for method in cls.body:
            if not isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef) or not (args := every_arg(method.args)):
                continue
            for node in own_nodes(method):
                if isinstance(node, ast.Assign | ast.AnnAssign):
                    for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                        if _is_attribute_of(target, args[0].arg):
                            pair = getattr(node, "annotation", None), node.value
                            found.setdefault(target.attr, []).append(pair)
        return found

    def _call(self, node: ast.Call, module: Module) -> Value | None:
        callee = self.value(node.func, module)
        first = node.args[0] if node.args and not isinstance(node.args[0], ast.Starred) else None
        match callee:
            case Outside(name):
                return self._call_outside(node, name, first, module)
            case Inside():
                return self.result(callee)
            case Made(Outside(by), item) if by in (STEP, FLOW):
                given = self.result(item) if isinstance(item, Inside) else None
                return given if is_made(given, COROUTINE) else Made(Outside(COROUTINE), given)
            case Made(Outside(by), item) if by == CACHED:
                return self.result(item) if isinstance(item, Inside) else None
            case Made(Outside(by), item) if by == _OPTIONS:
                return Made(Outside(STEP), item)
            case Made(Outside(by)) if by in CACHES and first is not None:
                return self._wrapped(CACHED, first, module)
            case _:
                return None

    def _call_outside(self, node: ast.Call, name: str, first: ast.expr | None, module: Module) -> Value | None:
        if name in _WRAPPERS:
            if first is not None:
                return self._wrapped(_WRAPPERS[name], first, module)
            return Made(Outside(name)) if name in CACHES else Outside(name)  # a decorator
        if name == "functools.partial" and first is not None:
            return self.value(first, module)
        if name in ("typing.cast", "typing_extensions.cast") and first is not None:
            return self.annotated(first, module)
        if name in AWAITED:
            return Made(Outside(COROUTINE), self._awaited(node, name, first, module))
        if name in _SETS and isinstance(node.func, ast.Attribute):
            base = self.value(node.func.value, module)
            keeps = not name.endswith(("union", "symmetric_difference"))
            return Made(SET, base.item if keeps and isinstance(base, Made) else None)
        whole = self.value(first, module) if first is not None else None
        item = whole.item if isinstance(whole, Made) else None
        if name in ("builtins.set", "builtins.frozenset"):
            numbers = isinstance(first, ast.Call) and name_of(self.value(first.func, module)) == "builtins.range"
            return Made(SET, Made(Outside("builtins.int")) if numbers else item)
        if name in _LISTS:
            return Made(LIST, item)
        return Made(Outside(SAME.get(name, GIVES.get(name, name))))

    def _wrapped(self, by: str, function: ast.expr, module: Module) -> Made:
        value = self.value(function, module)
        return Made(Outside(by), value if isinstance(value, Inside) else None)

    def _awaited(self, node: ast.Call, name: str, first: ast.expr | None, module: Module) -> Value | None:
        """What the coroutine of a durable call will give."""
        returns = next((k.value for k in node.keywords if k.arg == "returns"), None)
        if returns is not None:
            return self.annotated(returns, module)
        if name == "perdure.receive" and len(node.args) == 1 and not any(k.arg == "default" for k in node.keywords):
            return self.annotated(node.args[0], module)
        if name in ("perdure.capture", "perdure.run", "perdure.transaction") and first is not None:
            work = self.value(first, module)
            work = work.item if isinstance(work, Made) and is_made(work, STEP, FLOW) else work
            given = self.result(work) if isinstance(work, Inside) else None
            return given.item if isinstance(given, Made) and is_made(given, COROUTINE) else given
        gives = AWAITED[name]
        return Made(Outside(gives)) if gives else None

    # ------------------------------------------------------------ displays and operators

    def _display(self, node: ast.expr, module: Module) -> Value | None:
        match node:
            case ast.Set():
                return Made(SET, self._common(node.elts, module))
            case ast.SetComp():
                return Made(SET, self.value(node.elt, module))
            case ast.List() | ast.Tuple():
                return Made(LIST, self._common(node.elts, module))
            case ast.ListComp() | ast.GeneratorExp():
                return Made(LIST, self.value(node.elt, module))
            case ast.Dict() | ast.DictComp():
                return Made(DICT)
            case _:
                return None

    def _common(self, nodes: list[ast.expr], module: Module) -> Value | None:
        found = {self.value(node, module) for node in nodes[:100]}
        return found.pop() if len(found) == 1 else None

    def _part(self, node: ast.Subscript, module: Module) -> Value | None:
        whole = self.value(node.value, module)
        if isinstance(whole, Made):
            sliced = isinstance(node.slice, ast.Slice)
            return whole if sliced else whole.item if is_made(whole, "builtins.list") else None
        return whole if isinstance(whole, Outside | Inside) else None  # a generic class

    def _operation(self, node: ast.BinOp | ast.BoolOp | ast.IfExp, module: Module) -> Value | None:
        if isinstance(node, ast.IfExp | ast.BoolOp):
            parts = [node.body, node.orelse] if isinstance(node, ast.IfExp) else node.values
            found = [self.value(part, module) for part in parts]
            if all(value == found[0] for value in found):
                return found[0]
            return Made(SET) if any(is_made(value, "builtins.set") for value in found) else None
        left, right = self.value(node.left, module), self.value(node.right, module)
        if isinstance(node.op, ast.BitOr | ast.BitAnd | ast.Sub | ast.BitXor):
            if isinstance(left, Made) and is_made(left, "builtins.set"):
                keeps = left == right or isinstance(node.op, ast.BitAnd | ast.Sub)
                return left if keeps else Made(SET)
            if self._is_view(node.left, module) or (self._is_view(node.right, module) and left is None):
                return Made(SET)
        if isinstance(node.op, ast.Div) and is_made(left, "pathlib.Path"):
            return left
        if isinstance(node.op, ast.Mod) and is_made(left, "builtins.str"):
            return left
        return left if left == right and not isinstance(left, Outside) else None

    def _is_view(self, node: ast.expr, module: Module) -> bool:
        """Whether it is `d.keys()` or `d.items()`, of which operators make sets."""
        match node:
            case ast.Call(func=ast.Attribute(attr="keys" | "items"), args=[], keywords=[]):
                return True
            case _:
                return False

    # ------------------------------------------------------------ annotations

    def annotated(self, node: ast.expr, module: Module) -> Value | None:
        """What a value of this annotation is."""
        if node not in self._annotated:
            self._annotated[node] = None
            self._annotated[node] = self._deeper(self._annotation, node, module)
        return self._annotated[node]

    def _annotation(self, node: ast.expr, module: Module) -> Value | None:
        match node:
            case ast.Constant(value=str() as text):
                parsed = self._parsed(node, text, module)
                return self.annotated(parsed, module) if parsed is not None else None
            case ast.Subscript():
                return self._generic(node, module)
            case ast.BinOp(op=ast.BitOr()):
                return self._union([node.left, node.right], module)
            case ast.Name() | ast.Attribute():
                value = self.value(node, module)
                if isinstance(value, Outside):
                    return Made(Outside(SAME.get(value.name, value.name)))
                return Made(value) if isinstance(value, Inside) and isinstance(value.node, ast.ClassDef) else None
            case _:
                return None

    def _parsed(self, node: ast.Constant, text: str, module: Module) -> ast.expr | None:
        if len(text) > 200 or node not in module.scopes.of:
            return None
        try:
            parsed = ast.parse(text, mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None
        if isinstance(parsed, ast.Constant):
            return None
        module.scopes.adopt(parsed, node, module.scopes.of[node])
        return parsed

    def _generic(self, node: ast.Subscript, module: Module) -> Value | None:
        base = self.value(node.value, module)
        args = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        if isinstance(base, Inside) and isinstance(base.node, ast.ClassDef):
            return Made(base)
        name = name_of(base)
        last = name.rpartition(".")[2]
        if not name or not args:
            return None
        if last in _UNWRAPPED:
            return self.annotated(args[0], module)
        if last in ("Optional", "Union"):
            return self._union(args, module)
        by = SAME.get(name, name)
        return Made(Outside(by), self.annotated(args[0], module) if by in ("builtins.set", "builtins.list") else None)

    def _union(self, parts: list[ast.expr], module: Module) -> Value | None:
        some = [part for part in parts if not (isinstance(part, ast.Constant) and part.value is None)]
        found = {self.annotated(part, module) for part in some}
        return found.pop() if len(found) == 1 else None


def _outside(base: str, name: str) -> Value:
    path = f"{base}.{name}"
    return Made(Outside(PROPERTIES[path])) if path in PROPERTIES else Outside(path)


def _is_attribute_of(target: ast.expr, name: str) -> TypeGuard[ast.Attribute]:
    return isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == name


def _is_ours(name: str) -> bool:
    return name == "perdure" or name.startswith("perdure.")


def _of_property(decorator: ast.expr) -> bool:
    return isinstance(decorator, ast.Attribute) and decorator.attr in ("setter", "getter", "deleter")


def _dominates(statement: ast.AST, node: ast.AST, module: Module) -> bool:
    """Whether the statement has run whenever the node does, if it stands before it."""
    above = module.scopes.parent.get(statement)
    child = node
    for ancestor in module.scopes.ancestors(node):
        if ancestor is statement:
            return True
        if ancestor is above:
            blocks = [getattr(ancestor, name, []) for name in ("body", "orelse", "handlers", "finalbody", "cases")]
            return any(isinstance(b, list) and statement in b and child in b for b in blocks)
        child = ancestor
    return False


def _in_one_loop(statement: ast.AST, node: ast.AST, module: Module) -> bool:
    loops = {a for a in module.scopes.ancestors(node) if isinstance(a, ast.For | ast.AsyncFor | ast.While)}
    return any(ancestor in loops for ancestor in module.scopes.ancestors(statement))
