"""The tests on the page about testing pass, as they stand there, without any other plugin."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.test_snippets import ROOT, Program, programs
from tests.testing.flows.test_plugin import pytest_on

PAGE = ROOT / "docs" / "testing.md"
TESTS = [program for program in programs(PAGE) if "def test_" in program.text]


@pytest.mark.parametrize("program", TESTS, ids=str)
def test_the_tests_of_the_page_pass(program: Program, tmp_path: Path) -> None:
    output, code = pytest_on(tmp_path, program.text, args=("-p", "no:asyncio", "-p", "no:anyio"))
    assert code == 0, output
    assert f"{program.text.count('def test_')} passed" in output
