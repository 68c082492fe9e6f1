"""PD504 and PD505: work that is made in a loop and takes the loop's variable along."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Final, TypeAlias

from perdure.lint.rules.kit import Flaw, Kit
from perdure.lint.scopes import COMPREHENSIONS, FUNCTIONS, own_nodes
from perdure.lint.values import Inside, name_of, names

_TAKERS: Final = frozenset(names("perdure.{capture,transaction,receive}"))
_Loop: TypeAlias = ast.AST


def loops(kit: Kit) -> Iterator[Flaw]:
    """Lambdas and functions over a variable of the loop that they are made in."""
    for node in kit.code.nodes:
        if not isinstance(node, ast.Call):
            continue
        taker = name_of(kit.value(node.func))
        if taker not in _TAKERS:
            continue
        for work in kit.work.of(node, kit.code.module):
            function = kit.value(work)
            if isinstance(function, Inside) and function.module is kit.code.module:
                yield from _work(node, work, function.node, taker, kit)


def _work(call: ast.Call, work: ast.expr, function: ast.AST, taker: str, kit: Kit) -> Iterator[Flaw]:
    if not isinstance(function, FUNCTIONS):
        return
    what = "this lambda" if isinstance(function, ast.Lambda) else f"{function.name}()"
    verb = taker.rpartition(".")[2]
    for loop in _loops_around(call, kit):
        turned = _free(function, loop, kit, targets=True)
        if _is_at_once(call, loop, kit):
            if turned and taker != "perdure.receive":
                why = (
                    f"{what} takes {turned[0]} past the journal: if the loop goes another way at replay, nobody notices"
                )
                yield Flaw(work, "PD505", why, f"pass it on: {verb}(function, {turned[0]})")
                return
            continue
        turned = turned or _free(function, loop, kit, targets=False)
        if turned:
            why = f"{what} is called when the loop has gone on, and sees the last {turned[0]} every time"
            instead = f"pass it on: {verb}(function, {turned[0]})"
            bind = f"bind it: lambda m, {turned[0]}={turned[0]}: ..."
            yield Flaw(work, "PD504", why, bind if taker == "perdure.receive" else instead)
            return


def _loops_around(node: ast.AST, kit: Kit) -> list[_Loop]:
    kinds = (ast.For, ast.AsyncFor, ast.While, *COMPREHENSIONS)
    return [above for above in kit.ancestors(node) if isinstance(above, kinds)]


def _is_at_once(call: ast.Call, loop: _Loop, kit: Kit) -> bool:
    """Whether the loop waits for it before it goes on."""
    for above in kit.ancestors(call):
        if above is loop:
            return False
        if isinstance(above, ast.Await):
            return True
    return False


def _free(function: ast.AST, loop: _Loop, kit: Kit, *, targets: bool) -> list[str]:
    """Names in the function that the loop sets anew at every turn: by its target, or else by its body."""
    scopes = kit.code.module.scopes
    inner = scopes.inside[function]
    found: list[str] = []
    for node in _all_nodes(function):
        if not isinstance(node, ast.Name) or not isinstance(node.ctx, ast.Load):
            continue
        owner = kit.owner(node)
        if owner is None or owner is inner or owner.kind == "module" or _is_within(owner.node, function, kit):
            continue
        for binding in owner.names[node.id]:
            by_target = binding.kind in ("item", "part") and (
                binding.statement is loop or binding.statement in getattr(loop, "generators", ())
            )
            by_body = binding.statement is not loop and loop in scopes.ancestors(binding.statement)
            if (by_target if targets else by_body) and binding.kind != "def":
                found.append(node.id)
    return found


def _all_nodes(function: ast.AST) -> Iterator[ast.AST]:
    """All nodes of the function's inside, without its defaults."""
    left = [function]
    while left:
        for node in own_nodes(left.pop()):
            yield node
            if isinstance(node, FUNCTIONS):
                left.append(node)


def _is_within(node: ast.AST, function: ast.AST, kit: Kit) -> bool:
    return node is function or function in kit.code.module.scopes.ancestors(node)
