"""The corpus of broken flows: what is meant to catch each does, and names the right line; the mended twin passes all.

A line marked `# <- here` is the one that `crash_everywhere` names first; `# <- PD101` is what the lint finds there.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from perdure.lint import check
from perdure.testing.crashing import PromiseBroken, Stuck, crash_everywhere

BROKEN = Path(__file__).parents[1] / "broken"
MARK = re.compile(r"# <- (?P<marks>.*)$")
CASES = sorted(file.stem for file in BROKEN.glob("*.py"))


def case(name: str) -> ModuleType:
    return importlib.import_module(f"tests.testing.broken.{name}")


def marks(name: str) -> dict[str, set[int]]:
    """Lines by what stands in their marks."""
    found: dict[str, set[int]] = {}
    for number, line in enumerate((BROKEN / f"{name}.py").read_text(encoding="utf-8").splitlines(), 1):
        if (mark := MARK.search(line)) is not None:
            for one in mark["marks"].split(", "):
                found.setdefault(one, set()).add(number)
    return found


CRASHED = [name for name in CASES if "here" in marks(name)]


def line_of(place: str) -> int:
    path, _, line = place.rpartition(":")
    assert BROKEN in Path(path).resolve().parents
    return int(line)


@pytest.mark.parametrize("name", CRASHED)
async def test_a_crash_shows_what_is_broken(name: str) -> None:
    module: Any = case(name)
    with pytest.raises(PromiseBroken) as broken:
        await crash_everywhere(module.broken, *module.ARGS, **module.OPTIONS)
    assert {line_of(broken.value.lines[0])} == marks(name)["here"], str(broken.value)
    assert all(len(line) <= 130 for line in str(broken.value).splitlines())
    assert "a library" not in str(broken.value)  # all is done by somebody


@pytest.mark.parametrize("name", CASES)
def test_the_lint_finds_what_it_can(name: str) -> None:
    found: dict[str, set[int]] = {}
    for finding in check({f"{name}.py": (BROKEN / f"{name}.py").read_text(encoding="utf-8")}).findings:
        found.setdefault(finding.code, set()).add(finding.line)
    assert found == {code: lines for code, lines in marks(name).items() if code != "here"}


@pytest.mark.parametrize("crashes", [1, 2])
@pytest.mark.parametrize("name", CASES)
async def test_the_mended_flow_passes(name: str, crashes: int) -> None:
    module: Any = case(name)
    await crash_everywhere(module.mended, *module.ARGS, **module.OPTIONS, crashes=crashes)


@pytest.mark.filterwarnings("ignore:.*was never awaited", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", sorted(set(CASES) - set(CRASHED) - {"shared_lock", "other_answer"}))
async def test_what_only_the_lint_sees(name: str) -> None:
    module: Any = case(name)
    await crash_everywhere(module.broken, *module.ARGS, **module.OPTIONS)


async def test_a_shared_lock_is_stuck_without_any_crash() -> None:
    module: Any = case("shared_lock")
    (line,) = marks("shared_lock")["PD405"]
    with pytest.raises(Stuck, match=rf"WaitsForNothing.*shared_lock\.py:{line}"):
        await crash_everywhere(module.broken, *module.ARGS, **module.OPTIONS)
