"""`perdure check`: which engine and database are meant, what is printed, how the process exits. Click is not known here."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import os
import re
import sys
import textwrap
import traceback
from collections.abc import Callable
from typing import Any, Final, Literal

from perdure.api.schedule import SCHEDULE
from perdure.engine.engine import Engine
from perdure.engine.sync_engine import SyncEngine
from perdure.errors import PerdureError
from perdure.testing.checking import Checked, Finding, check
from perdure.testing.record_source import Parts, opened_to_read, parts_of

Format = Literal["text", "json", "github"]
FORMATS: Final[tuple[Format, ...]] = ("text", "json", "github")

DATABASE_HELP = "the database, as a URL; by default the engine's"
FLOW_HELP = "only instances of the flow of this name"
FORMAT_HELP = "how findings are printed"

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
"""What a stored text could steer a terminal with."""


class CannotCheck(Exception):
    """What was asked for cannot be checked; the message says why, and what to do."""


def run(target: str, database: str | None, flow: str | None, form: Format, say: Callable[[str], object]) -> int:
    """What there is to say of unfinished instances is said, line by line, and a summary is on the standard error.

    What the user's own code prints, when it is imported and replayed, goes to the standard error too.

    Returns:
        0: today's code fits all of them; 1: it would block some; 2: it could not be checked.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            parts = parts_of(engine_of(target))
            _known(parts, flow)
            return asyncio.run(_check(parts, database, flow, form, say))
    except (CannotCheck, PerdureError, ValueError) as error:
        _note(f"perdure check: {error}")
    except (SystemExit, KeyboardInterrupt) as error:
        _note(f"perdure check: {type(error).__name__} came before everything was checked {error}".rstrip())
    except Exception:  # it must not exit with 1, which says something else
        _note(f"perdure check: this is a fault of Perdure or of the store\n{traceback.format_exc()}".rstrip())
    return 2


async def _check(
    parts: Parts, database: str | None, flow: str | None, form: Format, say: Callable[[str], object]
) -> int:  # fmt: skip
    checked, line = Checked(), _LINES[form]
    before: str | None = None
    async with opened_to_read(database or parts.store) as store:
        if form == "json":
            say("[")
        async for finding in check(parts, store, flow, checked=checked, progress=_progress()):
            if before is not None:
                say(before + "," if form == "json" else before)
            before = line(finding)
        if before is not None:
            say(before)
        if form == "json":
            say("]")
    _note(_summary(checked))
    return 1 if checked.blocks else 0


# ---------------------------------------------------------------- what is meant


def engine_of(target: str) -> Engine | SyncEngine:
    """The engine that `module:name` names, or that the callable of this name gives; the module is imported.

    Raises:
        CannotCheck: there is none.
    """
    module_name, found, name = target.partition(":")
    if not found or not module_name or not name:
        raise CannotCheck(f"{target!r} names no engine: write MODULE:NAME, as in shop.app:engine")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    engine = _named(_imported(module_name), module_name, name)
    if not isinstance(engine, Engine | SyncEngine) and callable(engine):
        try:
            engine = engine()
        except Exception as error:
            raise CannotCheck(f"{target}() raised {_told(error)}") from error
    if not isinstance(engine, Engine | SyncEngine):
        what = type(engine).__qualname__
        raise CannotCheck(f"{target} is no engine but a {what}: name an Engine, or a function that gives one")
    return engine


def _imported(name: str) -> object:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise CannotCheck(
                f"there is no module {error.name!r} in {os.getcwd()} nor on the path: call it where the program is called"
            ) from None
        raise CannotCheck(f"importing {name} raised {_told(error)}") from error
    except Exception as error:
        raise CannotCheck(f"importing {name} raised {_told(error)}") from error


def _named(found: Any, module: str, name: str) -> Any:
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise CannotCheck(f"{module} has no {name!r}: name its engine, as in {module}:engine") from None
    return found


def _told(error: Exception) -> str:
    """The error with its traceback, which leads to the line to mend."""
    lines = traceback.format_exception(error)
    return f"{type(error).__name__}: {error}\n{''.join(lines)}".rstrip()


def _known(parts: Parts, flow: str | None) -> None:
    known = sorted(parts.flows.keys() - {SCHEDULE})
    if not known:
        raise CannotCheck("the engine has no flows: give it those that shall be checked")
    if flow is not None and flow not in parts.flows:
        raise CannotCheck(f"no flow {flow!r} is registered with the engine; registered are: {', '.join(known)}")


# ---------------------------------------------------------------- what is said


def _note(text: str) -> None:
    sys.stderr.write(text + "\n")


def _progress() -> Callable[[Checked], object]:
    """Tells a person who waits; a log is spared."""
    if not sys.stderr.isatty():
        return lambda _: None
    return lambda checked: sys.stderr.write(f"\r{checked.replayed:,} instances, {checked.blocks:,} would be blocked\r")


def _summary(checked: Checked) -> str:
    parts = [f"{checked.replayed:,} unfinished instances", f"{checked.blocks:,} would be blocked"]
    if checked.fits_again:
        parts.append(f"{checked.fits_again:,} are blocked and fit again")
    if checked.not_served:
        parts.append(f"{checked.not_served.total():,} of flows that the engine has not")
    return f"perdure check: {', '.join(parts)}"


def _sentence(finding: Finding) -> str:
    if finding.verdict == "not served":
        return f"{finding.instances:,} unfinished instances of {finding.flow!r}: the engine has no such flow"
    name = f"{finding.flow} {finding.id!r}"
    if finding.verdict == "fits again":
        return f"{name} is blocked, and fits again"
    would = "stays blocked" if finding.state is not None and finding.state.value == "blocked" else "would be blocked"
    return f"{name} {would}: {finding.error}: {finding.message}"


def _as_text(finding: Finding) -> str:
    place = f"{_shown(finding.path)}:{finding.line}: " if finding.path else ""
    return _CONTROL.sub(" ", place + _sentence(finding))


def _as_json(finding: Finding) -> str:
    said = json.dumps(
        {
            "verdict": finding.verdict,
            "flow": finding.flow,
            "id": finding.id,
            "state": None if finding.state is None else finding.state.value,
            "error": finding.error,
            "message": finding.message,
            "recorded": finding.recorded,
            "asked": finding.asked,
            "filename": finding.path,
            "line": finding.line,
            "instances": finding.instances,
        },
        indent=2,
    )
    return textwrap.indent(said, "  ")


def _as_github(finding: Finding) -> str:
    level = {"blocks": "error", "fits again": "notice", "not served": "warning"}[finding.verdict]
    place = {"file": _shown(finding.path), "line": finding.line} if finding.path else {}
    said = ",".join(f"{name}={_escaped(str(value), of_property=True)}" for name, value in place.items())
    title = "title=perdure check"
    return f"::{level} {said + ',' if said else ''}{title}::{_escaped(_sentence(finding))}"


def _escaped(text: str, *, of_property: bool = False) -> str:
    text = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return text.replace(":", "%3A").replace(",", "%2C") if of_property else text


def _shown(path: str) -> str:
    """The path from here, if it is below."""
    here = os.getcwd() + os.sep
    return path.removeprefix(here)


_LINES: Final[dict[Format, Callable[[Finding], str]]] = {"text": _as_text, "json": _as_json, "github": _as_github}
