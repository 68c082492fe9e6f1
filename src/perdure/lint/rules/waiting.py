"""PD501, PD502, PD503 and PD506: what is asked for and not awaited, and cancellations that go nowhere."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Final

from perdure.lint.rules.kit import Flaw, Kit
from perdure.lint.scopes import nodes_of
from perdure.lint.values import COROUTINE, FLOW, STEP, is_made, name_of, names

_CONSUMERS: Final = frozenset(
    names("builtins.{str,repr,int,float,bool,len,print,list,tuple,set,dict,sorted,sum,min,max,isinstance,iter,format}")
)
_TASKS: Final = frozenset(
    names("asyncio.{create_task,ensure_future} asyncio.AbstractEventLoop.create_task asyncio.tasks.create_task")
)
_CANCELLED: Final = frozenset(
    names("asyncio.{CancelledError,exceptions.CancelledError} concurrent.futures.CancelledError")
)
_ALL: Final = "builtins.BaseException"


# ---------------------------------------------------------------- PD501, PD506


def coroutines(kit: Kit) -> Iterator[Flaw]:
    """Steps, flows and durable calls whose coroutine is dropped, or taken for its result."""
    for node in kit.code.nodes:
        if isinstance(node, ast.Call) and is_made(kit.value(node), COROUTINE) and _is_wasted(node, kit):
            what = f"{_shown(node.func)}() is not awaited: "
            dropped = isinstance(kit.parent(node), ast.Expr | ast.Assign)
            why = "it does nothing" if dropped else "a coroutine stands here, not its result"
            yield Flaw(node, "PD501", what + why, f"await {_shown(node.func)}(...)")


def tasks(kit: Kit) -> Iterator[Flaw]:
    """Tasks that nobody waits for."""
    for node in kit.code.nodes:
        if isinstance(node, ast.Call) and name_of(kit.value(node.func)) in _TASKS and _is_dropped(node, kit):
            why = "nobody waits for this task: it is cancelled when the flow ends, and its error goes to the log alone"
            yield Flaw(node, "PD506", why, "keep it and await it, or use asyncio.TaskGroup")


def _shown(func: ast.expr, depth: int = 0) -> str:
    """The call as it is written, if that is short."""
    match func:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=attr) if depth < 5:
            return f"{_shown(value, depth + 1)}.{attr}"
        case ast.Call(func=inner) if depth < 5:
            return f"{_shown(inner, depth + 1)}(...)"
        case _:
            return "..."


def _is_dropped(node: ast.Call, kit: Kit) -> bool:
    match kit.parent(node):
        case ast.Expr():
            return True
        case ast.Assign(targets=[ast.Name() as target]) | ast.AnnAssign(target=ast.Name() as target):
            owner = kit.owner(target)
            outer = owner is None or (owner.node is not kit.code.node)
            return not outer and not kit.is_used(target)
        case _:
            return False


def _is_wasted(node: ast.Call, kit: Kit) -> bool:
    """Whether the coroutine can no longer be awaited, or is used as if it were a value."""
    if _is_dropped(node, kit):
        return True
    above = kit.parent(node)
    match above:
        case ast.Attribute(attr=attr):
            return attr not in ("send", "throw", "close", "cr_frame", "cr_running")
        case ast.Subscript(value=value):
            return value is node
        case ast.Compare() | ast.BinOp() | ast.UnaryOp() | ast.FormattedValue() | ast.Assert() | ast.AugAssign():
            return True
        case ast.BoolOp(values=values):
            return values[-1] is not node
        case ast.If(test=test) | ast.While(test=test) | ast.IfExp(test=test):
            return test is node
        case ast.For(iter=whole) | ast.AsyncFor(iter=whole) | ast.comprehension(iter=whole):
            return whole is node
        case ast.Starred():
            return True
        case ast.Return():
            return isinstance(kit.code.node, ast.AsyncFunctionDef) and len(kit.code.calls) == 1
        case ast.keyword():
            call = kit.parent(above)
            return isinstance(call, ast.Call) and _wants_value(call, kit)
        case ast.Call():
            return _wants_value(above, kit)
        case _:
            return False


def _wants_value(call: ast.Call, kit: Kit) -> bool:
    """Whether the callee takes a coroutine for a value: a step, a durable call, `str`."""
    value = kit.value(call.func)
    name = name_of(value)
    durable = name.startswith("perdure.") and is_made(kit.value(call), COROUTINE)
    return (
        name in _CONSUMERS or durable or name in ("perdure.expose", "perdure.logger.info") or is_made(value, STEP, FLOW)
    )


# ---------------------------------------------------------------- PD502


def shadows(kit: Kit) -> Iterator[Flaw]:
    """`reserve = await reserve(...)`: the name is the function's own, and has no value yet."""
    function = kit.code.node
    if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
        return
    scopes = kit.code.module.scopes
    scope = scopes.inside[function]
    for node in kit.code.nodes:
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
            continue
        name = node.func.id
        bindings = scope.names.get(name, [])
        if kit.owner(node.func) is not scope or any(b.kind in ("param", "import", "def", "other") for b in bindings):
            continue
        outer = scope.parent.find(name) if scope.parent is not None else None
        called = node.lineno, node.col_offset
        if outer is None or any(b.since <= called or _may_be_set(b.statement, node, kit) for b in bindings):
            continue
        line = getattr(bindings[0].node, "lineno", 0)
        why = f"{name} is a variable of this function, set in line {line}: this call raises UnboundLocalError"
        yield Flaw(node, "PD502", why, "give the result another name")


def _may_be_set(statement: ast.AST, node: ast.AST, kit: Kit) -> bool:
    """Whether an earlier turn of a loop may have set the name: the call stands under a condition, and the loop holds both."""
    around = list(kit.ancestors(node))
    if statement in around:
        return False
    conditions = 0
    for above in around:
        conditions += isinstance(above, ast.If | ast.IfExp | ast.BoolOp | ast.Try | ast.Match)
        if isinstance(above, ast.For | ast.AsyncFor | ast.While) and above in kit.ancestors(statement):
            return conditions > 0
    return False


# ---------------------------------------------------------------- PD503


def swallowed(kit: Kit) -> Iterator[Flaw]:
    """Handlers that let neither a cancellation nor the next run through."""
    for node in kit.code.nodes:
        if isinstance(node, ast.Try) or type(node).__name__ == "TryStar":
            yield from _try(node, kit)
        elif isinstance(node, ast.With | ast.AsyncWith):
            for item in node.items:
                yield from _suppress(item.context_expr, node, kit)


def _try(node: ast.AST, kit: Kit) -> Iterator[Flaw]:
    body: list[ast.stmt] = getattr(node, "body", [])
    if not _waits(body):
        return
    passed_on = False
    handlers: list[ast.ExceptHandler] = getattr(node, "handlers", [])
    for handler in handlers:
        caught = _caught(handler.type, kit)
        everything = handler.type is None or _ALL in caught
        if not everything and not caught & _CANCELLED:
            continue
        if _lets_through(handler, kit):
            passed_on = True
        elif everything and (not passed_on or _asks_for_next_run(body, kit)):
            yield _flaw(handler, "this handler catches BaseException")
        elif not everything and not _is_awaited_cancelled(body, kit) and not _leaves(handler.body):
            yield _flaw(handler, "this handler catches CancelledError")
    for each in nodes_of(getattr(node, "finalbody", [])):
        if isinstance(each, ast.Return) or (
            isinstance(each, ast.Break | ast.Continue) and not _in_a_loop(each, node, kit)
        ):
            why = "leaving a finally this way swallows every exception, cancellations too"
            yield Flaw(each, "PD503", why, "leave after the try")


def _in_a_loop(node: ast.AST, within: ast.AST, kit: Kit) -> bool:
    """Whether a loop around the node lies inside of `within`."""
    for above in kit.ancestors(node):
        if above is within:
            return False
        if isinstance(above, ast.For | ast.AsyncFor | ast.While):
            return True
    return False


def _flaw(node: ast.AST, what: str) -> Flaw:
    why = f"{what} and does not raise it again: the flow cannot be cancelled, unloaded or begun anew here"
    return Flaw(node, "PD503", why, "catch Exception, or raise at the handler's end")


def _suppress(call: ast.expr, node: ast.With | ast.AsyncWith, kit: Kit) -> Iterator[Flaw]:
    if isinstance(call, ast.Call) and name_of(kit.value(call.func)) == "contextlib.suppress" and _waits(node.body):
        caught = {name_of(kit.value(arg)) for arg in call.args}
        if _ALL in caught or (caught & _CANCELLED and not _is_awaited_cancelled(node.body, kit)):
            yield _flaw(call, f"this suppress catches {'BaseException' if _ALL in caught else 'CancelledError'}")


def _waits(body: list[ast.stmt]) -> bool:
    """Whether a cancellation can come in it: something is awaited there."""
    return any(
        isinstance(node, ast.Await | ast.AsyncFor | ast.AsyncWith) or getattr(node, "is_async", 0)
        for node in nodes_of(body)
    )


def _caught(node: ast.expr | None, kit: Kit) -> set[str]:
    parts = node.elts if isinstance(node, ast.Tuple) else [node] if node is not None else []
    return {name_of(kit.value(part)) for part in parts}


def _lets_through(handler: ast.ExceptHandler, kit: Kit) -> bool:
    """Whether it raises, or keeps the exception and the function raises it later."""
    inside = list(nodes_of(handler.body))
    if any(isinstance(node, ast.Raise) for node in inside):
        return True
    if handler.name is None:
        return False
    kept = {
        target.id
        for node in inside
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Name) and node.value.id == handler.name
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    return any(
        isinstance(node, ast.Raise) and isinstance(node.exc, ast.Name) and node.exc.id in kept
        for node in kit.code.nodes
    )


def _leaves(body: list[ast.stmt]) -> bool:
    """Whether the flow ends here by a return, which a flow may do when it is cancelled."""
    return isinstance(body[-1], ast.Return)


def _asks_for_next_run(body: list[ast.stmt], kit: Kit) -> bool:
    return any(
        isinstance(node, ast.Call) and name_of(kit.value(node.func)) == "perdure.continue_as_new"
        for node in nodes_of(body)
    )


def _is_awaited_cancelled(body: list[ast.stmt], kit: Kit) -> bool:
    """`task.cancel()` and then `await task` alone: the cancellation is the task's."""
    match body:
        case [ast.Expr(value=ast.Await(value=ast.Name(id=name)))]:
            cancelled = name
        case _:
            return False
    for node in kit.code.nodes:
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="cancel")) if name == cancelled:
                return True
            case _:
                pass
    return False
