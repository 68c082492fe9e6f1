"""PD3: the order of what has none."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Final

from perdure.lint.rules.kit import Flaw, Kit
from perdure.lint.values import Made, Outside, is_made, name_of, names

_NO_ORDER: Final = frozenset(
    names("builtins.{sorted,set,frozenset,len,sum,min,max,any,all} collections.Counter math.fsum math.prod")
)
"""Who gets an iterable and does not care for its order."""
_KEEP_ORDER: Final = frozenset(
    names(
        "builtins.{list,tuple,iter,enumerate,map,filter,zip,next} collections.deque builtins.str.join functools.reduce "
        "itertools.{chain,islice,cycle,accumulate,groupby,batched,pairwise,product,permutations,combinations,starmap,"
        "takewhile,dropwhile,zip_longest,chain.from_iterable} builtins.bytes.join asyncio.as_completed"
    )
)
_FIXED: Final = frozenset(
    names(
        "builtins.{int,float,bool,complex} decimal.Decimal fractions.Fraction uuid.UUID datetime.timedelta "
        "asyncio.{Task,Future}"
    )
)
"""Of these a set has the same order in every process (tasks: in a flow)."""
_WHY: Final = "has another order in each process"
_INSTEAD: Final = "iterate sorted(...), or keep a list or the keys of a dict"


def sets(kit: Kit) -> Iterator[Flaw]:
    """Sets where their order can be seen."""
    for node in kit.code.nodes:
        match node:
            case ast.For() | ast.AsyncFor():
                if _is_loose(node.iter, kit) and not all(_is_blind(s, kit) for s in node.body + node.orelse):
                    yield _flaw(node.iter, "PD301")
            case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
                yield from _comprehension(node, kit)
            case ast.Starred() if isinstance(node.ctx, ast.Load) and not isinstance(kit.parent(node), ast.Set):
                if _is_loose(node.value, kit) and not _is_consumed(node, kit):
                    yield _flaw(node.value, "PD301")
            case ast.YieldFrom() if _is_loose(node.value, kit):
                yield _flaw(node.value, "PD301")
            case ast.Assign() if any(isinstance(t, ast.Tuple | ast.List) for t in node.targets):
                if _is_loose(node.value, kit) and not _is_single(node.targets[0]):
                    yield _flaw(node.value, "PD301")
            case ast.Call():
                yield from _call(node, kit)
            case _:
                pass


def _flaw(node: ast.AST, code: str) -> Flaw:
    what = "this set" if code == "PD301" else "this dict gets its order from a set, which"
    return Flaw(node, code, f"{what} {_WHY}", _INSTEAD)


def _is_single(target: ast.expr) -> bool:
    """`[one] = s`, or `(one,) = s`: there is but one order."""
    return isinstance(target, ast.Tuple | ast.List) and len(target.elts) == 1 and isinstance(target.elts[0], ast.Name)


def _is_loose(node: ast.expr, kit: Kit) -> bool:
    """Whether it is a set whose order is not the same in every process."""
    value = kit.value(node)
    if not isinstance(value, Made) or not is_made(value, "builtins.set"):
        return False
    if value.item is not None or not isinstance(node, ast.Name):
        return not _is_fixed(value.item)
    owner = kit.owner(node)
    added = [] if owner is None else kit.state.added(kit.code.module, owner, node.id)
    return not added or not all(_is_fixed(kit.value(each)) for each in added)


def _is_fixed(item: object) -> bool:
    return isinstance(item, Made) and isinstance(item.by, Outside) and item.by.name in _FIXED


def _comprehension(node: ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp, kit: Kit) -> Iterator[Flaw]:
    loose = [generator.iter for generator in node.generators if _is_loose(generator.iter, kit)]
    if not loose:
        return
    if not any(isinstance(n, ast.Await | ast.NamedExpr) or getattr(n, "is_async", 0) for n in ast.walk(node)):
        if isinstance(node, ast.SetComp) or _is_consumed(node, kit):
            return
        if isinstance(node, ast.DictComp):
            if not _is_looked_up(node, kit):
                yield _flaw(node, "PD302")
            return
    yield from (_flaw(each, "PD301") for each in loose)


def _is_consumed(node: ast.AST, kit: Kit) -> bool:
    """Whether it is given to who does not care for the order: `sorted(node)`, `x in node`."""
    above = kit.parent(node)
    if isinstance(above, ast.Call) and node is not above.func:
        return _is_orderless(above, kit) or (_is_lazy(above, kit) and _is_consumed(above, kit))
    return isinstance(above, ast.Compare) and len(above.ops) == 1 and isinstance(above.ops[0], ast.In | ast.NotIn)


def _is_orderless(call: ast.Call, kit: Kit) -> bool:
    name = name_of(kit.value(call.func))
    of_set = name.startswith("builtins.set.") and not name.endswith(".pop")
    return of_set or (name in _NO_ORDER and not any(keyword.arg == "key" for keyword in call.keywords))


def _is_lazy(call: ast.Call, kit: Kit) -> bool:
    return name_of(kit.value(call.func)) in _KEEP_ORDER


def _is_looked_up(node: ast.DictComp, kit: Kit) -> bool:
    """Whether the dict gets a name, by which it is only ever asked for single keys."""
    above = kit.parent(node)
    if not isinstance(above, ast.Assign) or len(above.targets) != 1 or not isinstance(above.targets[0], ast.Name):
        return False
    owner = kit.owner(above.targets[0])
    uses = [] if owner is None else kit.state.uses(kit.code.module, owner, above.targets[0].id)
    return bool(uses) and all(_is_look_up(use, kit) for use in uses)


def _is_look_up(use: ast.Name, kit: Kit) -> bool:
    match kit.parent(use):
        case ast.Subscript(value=value):
            return value is use
        case ast.Compare(ops=[ast.In() | ast.NotIn()]):
            return True
        case ast.Attribute(attr="get"):
            return True
        case ast.Call(func=func):
            return name_of(kit.value(func)) == "builtins.len"
        case _:
            return False


def _call(node: ast.Call, kit: Kit) -> Iterator[Flaw]:
    name = name_of(kit.value(node.func))
    if name == "builtins.set.pop" and isinstance(node.func, ast.Attribute) and _is_loose(node.func.value, kit):
        yield Flaw(node, "PD301", "pop() takes another element in each process", _INSTEAD)
    elif name in _KEEP_ORDER:
        if not _is_consumed(node, kit):
            yield from (_flaw(each, "PD301") for each in node.args if _is_loose(each, kit))
    elif name == "builtins.dict.fromkeys" and node.args and _is_loose(node.args[0], kit):
        yield _flaw(node, "PD302")


def _is_blind(statement: ast.stmt, kit: Kit, depth: int = 0) -> bool:
    """Whether the order in which the statement is done for several elements changes nothing."""
    match statement:
        case ast.Pass() | ast.Continue():
            return True
        case ast.Expr(value=ast.Constant()):
            return True
        case ast.If():
            if depth > 20 or _acts(statement.test):
                return False
            return all(_is_blind(s, kit, depth + 1) for s in statement.body + statement.orelse)
        case ast.Expr(value=ast.Call(func=ast.Attribute(attr="add" | "discard" | "remove"), args=args)):
            return not any(_acts(arg) for arg in args)
        case ast.AugAssign(op=ast.Add() | ast.Sub() | ast.BitOr() | ast.BitAnd(), value=value):
            return is_made(kit.value(value), "builtins.int", "builtins.set") and not _acts(value)
        case _:
            return False


def _acts(node: ast.expr) -> bool:
    return any(isinstance(n, ast.Await | ast.Yield | ast.YieldFrom | ast.NamedExpr) for n in ast.walk(node))


def as_completed(kit: Kit) -> Iterator[Flaw]:
    """`as_completed` by a name that was taken before perdure gave asyncio another one."""
    root = kit.code.module.scopes.root
    for node in kit.code.nodes:
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
            continue
        if name_of(kit.value(node.func)) != "asyncio.as_completed" or kit.owner(node.func) is not root:
            continue
        given = kit.value(node.args[0]) if node.args else None
        if isinstance(given, Made) and is_made(given.item, "asyncio.Task"):
            continue  # of tasks it keeps the order
        taken = min(binding.since for binding in root.names[node.func.id])
        if not any(_brings_perdure(statement) and _place(statement) < taken for statement in kit.code.module.tree.body):
            why = "was taken from asyncio before perdure was imported, and makes tasks in the order of addresses"
            yield Flaw(node, "PD303", f"this as_completed {why}", "call it as asyncio.as_completed(...)")


def _brings_perdure(statement: ast.stmt) -> bool:
    match statement:
        case ast.Import(names=imported):
            return any(alias.name.partition(".")[0] == "perdure" for alias in imported)
        case ast.ImportFrom(module=module, level=0):
            return (module or "").partition(".")[0] == "perdure"
        case _:
            return False


def _place(statement: ast.stmt) -> tuple[int, int]:
    return statement.end_lineno or 0, statement.end_col_offset or 0
