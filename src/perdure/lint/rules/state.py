"""PD4: state that outlives the flow, or that others share."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Final

from perdure.lint.known import READ
from perdure.lint.modules import Module
from perdure.lint.rules.kit import Flaw, Kit
from perdure.lint.scopes import FUNCTIONS, Scope, own_nodes
from perdure.lint.state import Change
from perdure.lint.values import CACHED, CONTAINERS, DATA, Inside, Made, Outside, is_made, name_of, names

_PRIMITIVES: Final = frozenset(
    names(
        "asyncio.{Lock,Event,Condition,Semaphore,BoundedSemaphore,Barrier,Queue,LifoQueue,PriorityQueue} "
        "anyio.{Lock,Event,Condition,Semaphore,CapacityLimiter}"
    )
)
_PURE: Final = (
    "math.", "cmath.", "decimal.", "fractions.", "re.", "string.", "json.loads", "json.dumps", "itertools.", "functools.", "operator.",
    "hashlib.", "zlib.", "base64.", "statistics.", "textwrap.", "datetime.timedelta", "builtins.str.", "builtins.int.",
    "builtins.float.", "builtins.bytes.", "builtins.list.", "builtins.dict.", "builtins.set.",
)  # fmt: skip
_IMPURE_BUILTINS: Final = frozenset(names("builtins.{open,input,print,eval,exec,globals,locals,vars,id,hash,object}"))
_CHANGED: Final = "is changed here: other flows see it, and each replay does it again"
_KEEP: Final = "keep it in a variable of the flow, or in a step"


def changes(kit: Kit) -> Iterator[Flaw]:
    """What the code changes outside of its flow."""
    for node in kit.code.nodes:
        change = kit.state.at(kit.code.module, node)
        owner = kit.owner(change.root) if change is not None else None
        if change is None or owner is None or not _counts(change, owner, kit):
            continue
        name = change.root.id
        if owner.node is kit.code.node and _is_default(owner, name, kit):
            why = f"the default of {name} is one object for all calls in all flows, and is changed here"
            yield Flaw(node, "PD404", why, f"write {name}=None, and make a new one in the function")
        elif owner.kind == "module":
            what = f"{name}.{change.attribute}" if change.attribute else f"the global {name}"
            yield Flaw(node, "PD401", f"{what} {_CHANGED}", _KEEP)
        elif owner.kind == "function" and owner.node is not kit.code.node and not kit.reach.is_inside(owner.node):
            yield Flaw(node, "PD402", f"{name}, which is a variable around the flow, {_CHANGED}", _KEEP)


def _counts(change: Change, owner: Scope, kit: Kit) -> bool:
    """Whether it is certain that something is changed."""
    node = change.node
    if change.how == "method":
        assert isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)  # noqa: PT018, S101
        return is_made(kit.value(node.func.value), *CONTAINERS) or (
            change.attribute is None and is_made(kit.value(change.root), *CONTAINERS)
        )
    if change.how == "part" and isinstance(node, ast.Subscript) and isinstance(node.value, ast.Attribute):
        return name_of(kit.value(node.value)) not in READ  # of which another rule speaks
    return True


def _is_default(owner: Scope, name: str, kit: Kit) -> bool:
    """Whether the name is a parameter whose default can be changed."""
    if not isinstance(owner.node, FUNCTIONS) or len(owner.names[name]) != 1:
        return False
    args = owner.node.args
    places = [*args.posonlyargs, *args.args]
    pairs = [*zip(places[len(places) - len(args.defaults) :], args.defaults, strict=True)]
    keywords = [(arg, d) for arg, d in zip(args.kwonlyargs, args.kw_defaults, strict=True) if d is not None]
    return any(arg.arg == name and is_made(kit.value(default), *CONTAINERS) for arg, default in [*pairs, *keywords])


def reads(kit: Kit) -> Iterator[Flaw]:
    """What the code reads of others' changes; each name once."""
    module = kit.code.module
    own = {change.root.id for node in kit.code.nodes if (change := kit.state.at(module, node)) is not None}
    for node in kit.code.nodes:
        if not isinstance(node, ast.Name | ast.Attribute) or not isinstance(node.ctx, ast.Load):
            continue
        place = _place(node, kit)
        if place is None or _name(node) in own:
            continue
        where, owner, name = place
        change = _change(node, where, owner, name, kit)
        if change is None or kit.work.holds(node, module):
            continue
        own.add(_name(node))
        by = getattr(change.by.node, "name", "a lambda")
        line = getattr(change.node, "lineno", 0)
        there = "" if where is module else f" of {where.path}"
        code, what = ("PD401", "the global") if owner.kind == "module" else ("PD402", "the variable around the flow,")
        why = f"{what} {name} may be another at replay: {by}() changes it in line {line}{there}"
        yield Flaw(node, code, why, "give it to the flow as an argument, or read it by await capture(...)")


def _name(node: ast.Name | ast.Attribute) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr


def _place(node: ast.Name | ast.Attribute, kit: Kit) -> tuple[Module, Scope, str] | None:
    """The scope outside of the flow whose name it is."""
    if isinstance(node, ast.Attribute):
        return kit.state.of_file(node, kit.code.module)
    owner = kit.owner(node)
    if owner is None or owner.kind not in ("module", "function"):
        return None
    if owner.kind == "function" and (owner.node is kit.code.node or kit.reach.is_inside(owner.node)):
        return None
    return kit.state.origin(kit.code.module, owner, node.id)


def _change(node: ast.AST, module: Module, owner: Scope, name: str, kit: Kit) -> Change | None:
    """Who changes it, if it is data: what a program sets up once (a client, an engine) is no state of a flow."""
    changes = [change for change in kit.state.changes(module, owner, name) if change.by is not owner]
    if not changes:
        return None
    above = kit.parent(node)
    wanted = above.attr if isinstance(above, ast.Attribute) else None
    for change in changes:
        if change.attribute is not None:
            if change.how == "part" and change.attribute == wanted and not isinstance(above, ast.Call):
                return change
        elif _is_data(module, owner, name, CONTAINERS if change.how != "again" else DATA, kit):
            return change
    return None


def _is_data(module: Module, owner: Scope, name: str, kinds: frozenset[str], kit: Kit) -> bool:
    for binding in owner.names[name]:
        if binding.annotation is not None and is_made(kit.reader.annotated(binding.annotation, module), *kinds):
            return True
        value = binding.value if binding.kind == "value" else None
        if value is not None and is_made(kit.reader.value(value, module), *kinds):
            return True
    return False


def shared(kit: Kit) -> Iterator[Flaw]:
    """Locks, events and queues that others hold as well."""
    said = set[str]()
    for node in kit.code.nodes:
        if not isinstance(node, ast.Name | ast.Attribute) or _name(node) in said:
            continue
        value = kit.value(node)
        if not is_made(value, *_PRIMITIVES) or _place(node, kit) is None or kit.work.holds(node, kit.code.module):
            continue
        if isinstance(kit.parent(node), ast.Attribute | ast.withitem):
            said.add(_name(node))
            kind = value.by.name if isinstance(value, Made) and isinstance(value.by, Outside) else ""
            why = f"this {kind} was made outside the flow: who wakes another flow by it gets NotDurable"
            yield Flaw(node, "PD405", why, "make it inside the flow; to reach another flow, send it a message")


def caches(kit: Kit) -> Iterator[Flaw]:
    """Calls of functions that remember, in this process, what they gave."""
    for node in kit.code.nodes:
        if not isinstance(node, ast.Call):
            continue
        value = kit.value(node.func)
        if not isinstance(value, Made) or not is_made(value, CACHED) or _is_own(node.func, kit):
            continue
        if isinstance(value.item, Inside) and _is_pure(value.item, kit, 0):
            continue
        name = getattr(value.item.node, "name", "this function") if isinstance(value.item, Inside) else "this function"
        why = f"{name}() is cached: what it gives depends on what this process has done before"
        yield Flaw(node, "PD403", why, "put the call in a step, or give its result to the flow as an argument")


def _is_own(node: ast.expr, kit: Kit) -> bool:
    """Whether the cache itself was made in the flow."""
    owner = kit.owner(node) if isinstance(node, ast.Name) else None
    return owner is not None and owner.kind == "function" and kit.reach.is_inside(owner.node)


def _is_pure(function: Inside, kit: Kit, depth: int) -> bool:
    """Whether all that the function does can be seen to depend on its arguments alone."""
    node, module = function.node, function.module
    if not isinstance(node, ast.FunctionDef | ast.Lambda) or depth > 5:
        return False
    for each in own_nodes(node):
        if isinstance(each, ast.Global | ast.Nonlocal | ast.Yield | ast.YieldFrom | ast.Await | ast.With | ast.Import):
            return False
        if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Load):
            scope = module.scopes.of.get(each)
            owner = scope.find(each.id) if scope is not None else None
            if owner is None or owner.kind != "module":
                continue
            if kit.state.changes(*kit.state.origin(module, owner, each.id)):
                return False
        if isinstance(each, ast.Call) and not _is_pure_call(each, module, node, kit, depth):
            return False
    return True


def _is_pure_call(call: ast.Call, module: Module, within: ast.AST, kit: Kit, depth: int) -> bool:
    value = kit.reader.value(call.func, module)
    value = value.item if isinstance(value, Made) and is_made(value, CACHED) else value
    if isinstance(value, Inside):
        return value.node is within or _is_pure(value, kit, depth + 1)
    name = name_of(value)
    if name.count(".") == 1 and name.startswith("builtins."):
        return name not in _IMPURE_BUILTINS
    return name.startswith(_PURE)
