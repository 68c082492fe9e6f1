"""Which expressions are work: handed to `capture`, a thread or the like, and so not run in the flow's loop."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from perdure.lint.modules import Module
from perdure.lint.scopes import FUNCTIONS, Function, Scope, every_arg
from perdure.lint.values import FLOW, STEP, Inside, Made, Outside, is_made, name_of, names

if TYPE_CHECKING:
    from perdure.lint.reader import Reader

_TAKES: Final[dict[str, tuple[int | str, ...]]] = {
    **dict.fromkeys(
        names(
            "perdure.{capture,transaction,step,flow} asyncio.to_thread anyio.to_thread.run_sync "
            "starlette.concurrency.run_in_threadpool fastapi.concurrency.run_in_threadpool asgiref.sync.sync_to_async "
            "concurrent.futures.ThreadPoolExecutor.{submit,map} concurrent.futures.ProcessPoolExecutor.{submit,map}"
        ),
        (0,),
    ),
    **dict.fromkeys(names("perdure.saga.{do,undo}"), (0, "undo")),
    "asyncio.AbstractEventLoop.run_in_executor": (1,),
    "threading.Thread": (1, "target"),
    "threading.Timer": (1, "function"),
    "multiprocessing.Process": (1, "target"),
    "perdure.receive": ("where",),  # asked once and never again: see there
}
"""Which arguments of these functions are work: by place, or by keyword."""


DEPTH: Final = 10
"""Through so many functions a parameter is followed."""


class Work:
    """Answers what is work; every answer about a parameter is kept."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._is_work: dict[tuple[ast.AST, str], bool] = {}
        self._hides: dict[ast.AST, bool] = {}
        self._depth = 0

    def of(self, call: ast.Call, module: Module) -> list[ast.expr]:
        """The arguments of the call that are work; of a `partial` and of a choice, what is in them."""
        found: list[ast.expr] = []
        stack = list(self._handed(call, module))
        while stack:
            node = stack.pop()
            if isinstance(node, ast.IfExp):
                stack += [node.body, node.orelse]
            elif isinstance(node, ast.Call) and node.args and self._is_partial(node, module):
                stack.append(node.args[0])
            else:
                found.append(node)
        return found

    def holds(self, node: ast.expr, module: Module) -> bool:
        """Whether the expression is work, or names it: `capture(node.method, ...)`."""
        passed = [node]
        for above in module.scopes.ancestors(node):
            if isinstance(above, ast.Call):
                handed = self.of(above, module)
                if any(expression in handed for expression in passed):
                    return True
                if not (above.args and above.args[0] is passed[-1] and self._is_partial(above, module)):
                    return False
            elif isinstance(above, ast.IfExp):
                if passed[-1] is above.test:
                    return False
            elif not isinstance(above, ast.Attribute | ast.keyword):
                return False
            if isinstance(above, ast.expr):
                passed.append(above)
        return False

    def hides(self, function: Function | ast.Lambda, module: Module) -> bool:
        """Whether a function that is made inside another one is used as work alone, or not at all."""
        if function not in self._hides:
            self._hides[function] = False
            self._hides[function] = self._is_hidden(function, module)
        return self._hides[function]

    def _is_hidden(self, function: Function | ast.Lambda, module: Module) -> bool:
        name = "" if isinstance(function, ast.Lambda) else function.name
        if isinstance(function, ast.Lambda):
            if self.holds(function, module):
                return True
            match module.scopes.parent.get(function):
                case ast.Assign(targets=[ast.Name(id=name)]):
                    pass
                case _:
                    return False
        owner = module.scopes.of[function].find(name)
        if owner is None:
            return True
        outside = (u for u in uses_of(name, owner, module) if function not in module.scopes.ancestors(u))
        return all(self._is_handed(use, module) for use in outside)

    def is_work(self, function: Inside, name: str) -> bool:
        """Whether the function only ever hands this parameter on as work."""
        key = function.node, name
        if key not in self._is_work and self._depth < DEPTH:
            self._is_work[key] = False
            module = function.module
            scope = module.scopes.inside[function.node]
            uses = [n for n in uses_of(name, scope, module) if not self._says_nothing(n, module)]
            self._depth += 1
            self._is_work[key] = bool(uses) and all(self._is_handed(n, module) for n in uses)
            self._depth -= 1
        return self._is_work.get(key, False)

    # ------------------------------------------------------------

    def _is_handed(self, node: ast.Name, module: Module) -> bool:
        """Whether it is work, or stands inside of work."""
        passed: list[ast.AST] = [node]
        for above in module.scopes.ancestors(node):
            if isinstance(above, ast.Call):
                handed = self.of(above, module)
                if any(expression in handed for expression in passed):
                    return True
            if isinstance(above, ast.FunctionDef | ast.AsyncFunctionDef) and self._is_made_for_work(above, module):
                return True
            passed.append(above)
        return False

    def _is_made_for_work(self, function: Function, module: Module) -> bool:
        """Whether a function in a function is no part of it: a step, or used as work."""
        if module.scopes.of[function].kind != "function":
            return False
        return not isinstance(self._reader.definition(function, module), Inside) or self.hides(function, module)

    def _says_nothing(self, node: ast.Name, module: Module) -> bool:
        """A use that does not run it: `fn.__name__`, `fn is None`, `@wraps(fn)`."""
        above = module.scopes.parent.get(node)
        match above:
            case ast.Attribute(attr=attr):
                return attr.startswith("__")
            case ast.Compare():
                return True
            case ast.Call(func=func):
                name = name_of(self._reader.value(func, module))
                return name in ("functools.wraps", "functools.update_wrapper", "builtins.callable")
            case _:
                return False

    def _is_partial(self, call: ast.Call, module: Module) -> bool:
        return name_of(self._reader.value(call.func, module)) == "functools.partial"

    def _handed(self, call: ast.Call, module: Module) -> Iterator[ast.expr]:
        value = self._reader.value(call.func, module)
        if is_made(value, STEP, FLOW):
            yield from (a for a in _given(call) if isinstance(self._reader.value(a, module), Inside))
        elif isinstance(value, Inside) and isinstance(value.node, FUNCTIONS):
            yield from (a for name, a in bound(call, value, self._reader, module) if self.is_work(value, name))
        elif isinstance(value, Outside):
            takes = _TAKES.get(value.name, ())
            yield from (a for place, a in enumerate(call.args) if place in takes)
            yield from (k.value for k in call.keywords if k.arg in takes)


def bound(call: ast.Call, function: Inside, reader: Reader, module: Module) -> Iterator[tuple[str, ast.expr]]:
    """The call's arguments, by the names of the function's parameters."""
    args = getattr(function.node, "args", None)
    if not isinstance(args, ast.arguments):
        return
    places = [arg.arg for arg in (*args.posonlyargs, *args.args)]
    if _is_method(call, function, reader, module):
        places = places[1:]
    for place, given in enumerate(call.args):
        if isinstance(given, ast.Starred):
            break
        if place < len(places):
            yield places[place], given
        elif args.vararg is not None:
            yield args.vararg.arg, given
    known = {arg.arg for arg in every_arg(args)}
    yield from ((k.arg, k.value) for k in call.keywords if k.arg is not None and k.arg in known)


def uses_of(name: str, scope: Scope, module: Module) -> Iterator[ast.Name]:
    """Where the scope's name is read, in it and in all that it holds."""
    for node in ast.walk(scope.node):
        if isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Load):
            inner = module.scopes.of.get(node)
            if inner is not None and inner.find(name) is scope:
                yield node


def _given(call: ast.Call) -> Iterator[ast.expr]:
    yield from call.args
    yield from (k.value for k in call.keywords)


def _is_method(call: ast.Call, function: Inside, reader: Reader, module: Module) -> bool:
    """Whether the call itself passes the first argument."""
    scope = function.module.scopes.of.get(function.node)
    if scope is None or scope.kind != "class" or not isinstance(call.func, ast.Attribute):
        return False
    static = isinstance(function.node, ast.FunctionDef | ast.AsyncFunctionDef) and reader.decorated_by(
        function.node, function.module, frozenset({"builtins.staticmethod"})
    )
    return not static and isinstance(reader.value(call.func.value, module), Made)
