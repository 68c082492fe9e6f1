"""What the pages say runs: every Python snippet, the first crash of the README, every public name, every link.

A block marked `<!-- continues -->` goes on where the one before ended; one marked `<!-- no-run -->` is no program.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import perdure

ROOT = Path(__file__).parents[2]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *DOCS]
LIMIT_S = 30

_BLOCK = re.compile(r"(?:^<!-- (?P<mark>[\w-]+) -->\n)?^```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(?P<text>.+)$", re.MULTILINE)


@dataclass
class Program:
    """Blocks that share a namespace, each on the lines on which its page has it, so that a traceback names those."""

    page: Path
    line: int
    lines: list[str] = field(default_factory=list[str])

    def add(self, line: int, code: str) -> None:
        self.lines += [""] * (line - 1 - len(self.lines)) + code.splitlines()

    @property
    def text(self) -> str:
        return "\n".join(self.lines) + "\n"

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def programs(page: Path) -> list[Program]:
    """The page's programs, in its order."""
    text = page.read_text(encoding="utf-8")
    found: list[Program] = []
    for block in _BLOCK.finditer(text):
        mark = block["mark"]
        assert mark in (None, "continues", "no-run"), f"{page.name}: unknown mark {mark!r}"
        line = text.count("\n", 0, block.start("code")) + 1
        if mark == "no-run":
            continue
        if mark is None:
            found.append(Program(page, line))
        found[-1].add(line, block["code"])
    return found


def child_of(program: Path, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", str(program)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("program", [p for page in PAGES for p in programs(page)], ids=str)
def test_the_snippet_runs(program: Program, tmp_path: Path) -> None:
    file = tmp_path / program.page.with_suffix(".py").name
    file.write_text(program.text, encoding="utf-8")
    with child_of(file, tmp_path) as child:
        try:
            _, errors = child.communicate(timeout=LIMIT_S)
        finally:
            child.kill()
    assert child.returncode == 0, f"{program}\n{errors}"


def test_every_python_block_is_found() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert len(_BLOCK.findall(text)) == len(re.findall(r"^\s*```py", text, re.MULTILINE)), page.name


def test_the_first_crash_of_the_readme_is_survived(tmp_path: Path) -> None:
    hello = next(p for p in programs(ROOT / "README.md") if "hello.db" in p.text)
    file = tmp_path / "hello.py"
    file.write_text(hello.text, encoding="utf-8")

    with child_of(file, tmp_path) as child:
        assert child.stdout is not None
        before = [child.stdout.readline() for _ in range(3)]
        child.send_signal(signal.SIGKILL)
        before += child.stdout.readlines()
    with child_of(file, tmp_path) as child:
        after, errors = child.communicate(timeout=LIMIT_S)
    assert child.returncode == 0, errors
    assert "took over the instances of" in errors

    def numbers(lines: list[str]) -> list[int]:
        return [int(line.split()[1]) for line in lines if line.startswith("step ")]

    *ran, answer = after.splitlines()
    assert answer == "the sum is 385"
    done = numbers(before)
    assert numbers(ran)[0] in (done[-1] + 1, done[-1])  # the last one may not have been recorded
    assert numbers(ran) == list(range(numbers(ran)[0], 11))

    with child_of(file, tmp_path) as child:
        assert child.communicate(timeout=LIMIT_S)[0] == "the sum is 385\n"


def test_every_public_name_is_in_the_pages() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in DOCS)
    assert not [name for name in perdure.__all__ if not re.search(rf"\b{name}\b", text)]


def anchors(page: Path) -> set[str]:
    """What a link may name in the page, by the rule of the usual renderers."""
    text = _FENCED.sub("", page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", h["text"].lower()).strip().replace(" ", "-") for h in _HEADING.finditer(text)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_inside_the_pages_resolve(page: Path) -> None:
    for link in _LINK.finditer(_FENCED.sub("", page.read_text(encoding="utf-8"))):
        path, _, anchor = link["target"].partition("#")
        if "://" in path:
            continue
        target = page if not path else (page.parent / path).resolve()
        assert target.exists(), f"{page.name}: {link['target']}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link['target']}"


def test_every_page_is_reached_from_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    linked = {link["target"].partition("#")[0] for link in _LINK.finditer(index)}
    assert {str(page.relative_to(ROOT / "docs")) for page in DOCS} - {"index.md"} <= linked
