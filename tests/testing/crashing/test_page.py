"""The tests on the page pass, and the one that fails there fails with what the page shows."""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from perdure.testing import PromiseBroken
from tests.docs.test_snippets import ROOT, Program, programs

PAGE = ROOT / "docs" / "testing-crashes.md"
PROGRAMS = programs(PAGE)
NAME = "test_shop.py"


def shown() -> str:
    """The first block of the page that is a text: a failure as pytest shows it."""
    found = re.search(r"^```text\n(?P<text>.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert found is not None
    return found["text"].rstrip()


def found_in(program: Program, folder: Path) -> list[Any]:
    (file := folder / NAME).write_text("\n".join(program.lines[program.line - 1 :]), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("test_shop", file)
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    return [test for name, test in inspect.getmembers(module) if name.startswith("test_")]


@pytest.mark.parametrize("program", PROGRAMS[1:], ids=str)
def test_the_tests_of_the_page_pass(program: Program, tmp_path: Path) -> None:
    (test,) = found_in(program, tmp_path)
    asyncio.run(test())


def test_the_failure_is_as_the_page_shows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (test,) = found_in(PROGRAMS[0], tmp_path)
    with pytest.raises(PromiseBroken) as broken:
        asyncio.run(test())
    assert str(broken.value) == shown()
