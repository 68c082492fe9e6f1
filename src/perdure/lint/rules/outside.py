"""PD1, PD2, PD6 and part of PD5: calls and names that are known to be wrong in a flow."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from perdure.lint.known import BLOCKING_LOCKS, LOCK, PRINTS, READ, called
from perdure.lint.rules.kit import Flaw, Kit
from perdure.lint.scopes import nodes_of
from perdure.lint.values import CALLS_BACK, Made, Outside, is_made, name_of


def calls(kit: Kit) -> Iterator[Flaw]:
    """Clocks, chance, ids, files, networks, threads, processes, prints."""
    for node in kit.code.nodes:
        if isinstance(node, ast.Call):
            yield from _call(node, kit)
        elif isinstance(node, ast.With) and any(isinstance(n, ast.Await) for n in nodes_of(node.body)):
            for item in node.items:
                value = kit.value(item.context_expr)
                if is_made(value, *BLOCKING_LOCKS) and isinstance(value, Made) and isinstance(value.by, Outside):
                    why = f"a {value.by.name} is held while the flow waits: it {LOCK.why}"
                    yield Flaw(item.context_expr, LOCK.code, why, LOCK.instead)


def _call(node: ast.Call, kit: Kit) -> Iterator[Flaw]:
    name = name_of(kit.value(node.func))
    if name == "builtins.hash" and node.args and is_made(kit.value(node.args[0]), "builtins.str", "builtins.bytes"):
        yield Flaw(node, "PD105", "hash() of a text is another in each process", "use zlib.crc32 or hashlib")
    known = called(name)
    functions = [name] if known else []
    if name in CALLS_BACK:
        given = [name_of(kit.value(a)) for a in (*node.args, *(k.value for k in node.keywords if k.arg == "key"))]
        functions += [each for each in given if called(each)]
    for function in functions:
        known = called(function)
        if known is None or (function == name and not _counts(node, known.below)):
            continue
        if known.code in PRINTS and (_elsewhere(node, kit) or _spared(node, kit)):
            continue
        yield Flaw(node, known.code, f"{function.removeprefix('builtins.')}() {known.why}", known.instead)


def _counts(node: ast.Call, below: int | None) -> bool:
    return below is None or len(node.args) + len(node.keywords) < below


def _elsewhere(node: ast.Call, kit: Kit) -> bool:
    """Whether it prints into an object of the flow's own."""
    files = [keyword.value for keyword in node.keywords if keyword.arg == "file"]
    return any(name_of(kit.value(file)) not in ("sys.stdout", "sys.stderr") for file in files)


def _spared(node: ast.Call, kit: Kit) -> bool:
    """Whether somebody has asked `current().replaying` before."""
    conditions = [above.test for above in kit.ancestors(node) if isinstance(above, ast.If)]
    return any(isinstance(n, ast.Attribute) and n.attr == "replaying" for test in conditions for n in ast.walk(test))


def reads(kit: Kit) -> Iterator[Flaw]:
    """The environment and the like, which are read without a call."""
    for node in kit.code.nodes:
        if isinstance(node, ast.Name | ast.Attribute):
            name = name_of(kit.value(node))
            known = READ.get(name)
            if known is not None and not kit.work.holds(node, kit.code.module):
                yield Flaw(node, known.code, f"{name} {known.why}", known.instead)
