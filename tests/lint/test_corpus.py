"""Any source is looked at to the end, and fast; what is right gives no finding."""

from __future__ import annotations

import ast
import os
import random
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.lint import Report, check

ROOT = Path(__file__).parents[2]
LARGEST = 150_000
CORPUS = sorted(
    file
    for file in Path(os.__file__).parent.rglob("*.py")
    if "site-packages" not in file.parts and file.stat().st_size <= LARGEST
)
FLOW, STEP = "@flow_of_the_test", "@step_of_the_test"
IMPORT = "\nfrom perdure import flow as flow_of_the_test, step as step_of_the_test\n"


def as_flows(text: str, chance: random.Random, share: float) -> str:
    """The text, with some of its functions made flows, and a few made steps."""
    lines = text.split("\n")
    marks: dict[int, str] = {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and chance.random() < share:
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            marks[first] = " " * node.col_offset + (STEP if chance.random() < 0.1 else FLOW)
    return "\n".join(f"{marks[n]}\n{line}" if n in marks else line for n, line in enumerate(lines, 1)) + IMPORT


def text_of(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace")


def look(*texts: str) -> Report:
    return check({f"m{n}.py": text for n, text in enumerate(texts)})


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(CORPUS), st.randoms(use_true_random=False), st.sampled_from([0.05, 0.3, 1.0]))
def test_functions_of_the_standard_library_as_flows(file: Path, chance: random.Random, share: float) -> None:
    try:
        text = as_flows(text_of(file), chance, share)
    except (SyntaxError, ValueError):  # some are wrong on purpose
        text = text_of(file)
    report = look(text)
    assert report.flows == text.count(FLOW)
    for finding in report.findings:
        assert 1 <= finding.line <= text.count("\n") + 1
        assert finding.column >= 1


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(CORPUS), st.data())
def test_pieces_of_files(file: Path, data: st.DataObject) -> None:
    lines = text_of(file).splitlines()
    begin = data.draw(st.integers(0, len(lines)))
    end = data.draw(st.integers(begin, min(len(lines), begin + 60)))
    look("\n".join(lines[begin:end]) + IMPORT)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=200))
def test_any_text(text: str) -> None:
    look(text, "from m0 import *\nfrom perdure import flow\n@flow\nasync def f(): " + repr(text))


IN_A_FLOW = "from perdure import capture, flow\nimport time\n@flow\nasync def f(x, s: set[str]):\n"
DEEP = {
    "sum": "    for n in " + "s | " * 3000 + "s: pass",
    "dots": "    x" + ".a" * 3000 + "()",
    "calls": "    x" + ".a()" * 2000,
    "brackets": "    " + "max(" * 90 + "time.time()" + ")" * 90,
    "elifs": "    for n in s:\n        if x: pass\n" + "        elif x: pass\n" * 2000,
    "lambdas": "    await capture(" + "lambda: " * 800 + "x)",
    "ands": "    " + "x and " * 3000 + "x",
    "compared": "    " + "x < " * 3000 + "x",
    "annotation": "    y: " + "int | " * 3000 + "int = 1\n    for z in y: pass",
    "text annotation": "    y: '" + "set[" * 60 + "str" + "]" * 60 + "'\n    for z in y: pass",
    "nots": "    " + "not " * 1500 + "x",
    "statements": "    x()\n" * 20_000,
}


@pytest.mark.parametrize("what", DEEP)
def test_deep_and_long_sources(what: str) -> None:
    look(IN_A_FLOW + DEEP[what] + "\n")


@pytest.mark.parametrize("what", ["calls", "imports", "bases", "names", "decorators"])
def test_long_chains_of_definitions(what: str) -> None:
    n = 1500
    chains = {
        "calls": "\n".join(f"def f{i}(w): return f{i + 1}(w)" for i in range(n)) + f"\ndef f{n}(w): w()\n",
        "bases": "class f0: pass\n" + "\n".join(f"class f{i + 1}(f{i}): pass" for i in range(n)),
        "names": "f0 = time.time\n" + "\n".join(f"f{i + 1} = f{i}" for i in range(n)),
        "decorators": "def f0(w): return w\n" + "\n".join(f"@f{i}\ndef f{i + 1}(w): return w" for i in range(n)),
    }
    body = f"    f0(lambda: 1)\n    f{n}(lambda: 1).x\n"
    if what == "imports":
        files = {f"m{i}.py": f"from m{i + 1} import f\n" for i in range(n)} | {f"m{n}.py": "def f(): pass\n"}
        check(files | {"flows.py": IN_A_FLOW + "    f()\nfrom m0 import f\n"})
    else:
        look("import time\n" + chains[what] + "\n" + IN_A_FLOW + body)


def test_a_file_that_is_no_python_does_not_stop_the_others() -> None:
    report = look("def (:\n", "x = '\0'\n", IN_A_FLOW + "    time.time()\n")
    assert [(f.path, f.code) for f in report.findings] == [
        ("m0.py", "PD001"), ("m1.py", "PD001"), ("m2.py", "PD101"),
    ]  # fmt: skip


def test_a_hundred_kilobytes_of_flows_take_well_under_a_second() -> None:
    case = text_of(Path(__file__).parent / "cases" / "time_and_chance.py")
    text = case
    while len(text) < 100_000:
        text += case
    took: list[float] = []
    for _ in range(3):
        begun = time.process_time()
        assert look(text).findings
        took.append(time.process_time() - begun)
    assert min(took) < 1


# ---------------------------------------------------------------- no false alarms


def findings_in(folder: str) -> list[str]:
    files = {str(file.relative_to(ROOT)): text_of(file) for file in sorted((ROOT / folder).rglob("*.py"))}
    report = check(files, ROOT)
    assert report.flows
    return [f"{f.path}:{f.line} {f.code}" for f in report.findings]


@pytest.mark.parametrize("folder", ["examples", "src"])
def test_there_is_nothing_to_find(folder: str) -> None:
    assert findings_in(folder) == []
