"""The rules over the files in `cases`, where a comment on each line says what must be found there.

`# PD101 alias` is a finding: `plain`, by another name (`alias`), in a function that the flow calls (`helper`), or in a
function, lambda or comprehension inside of it (`nested`). `# near PD101` is a line that looks like it, and is fine.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from perdure.lint import RULES, Report, check

CASES = Path(__file__).parent / "cases"
TEXTS = {str(file): file.read_text(encoding="utf-8") for file in sorted(CASES.glob("*.py"))}
IN_FLOWS = [code for code in RULES if code != "PD001"]

_MARK = re.compile(r"(near )?(PD\d{3})\b(?: (plain|alias|helper|nested)\b)?")


class Mark(NamedTuple):
    path: str
    line: int
    code: str
    kind: str


def marks() -> Iterator[Mark]:
    """What the comments say."""
    for path, text in TEXTS.items():
        for number, line in enumerate(text.splitlines(), 1):
            comment = line.partition("  # ")[2]
            for near, code, kind in _MARK.findall(comment):
                assert near or kind, f"{path}:{number}: what kind of {code}?"
                yield Mark(path, number, code, "near" if near else kind)


MARKS = list(marks())


@pytest.fixture(scope="module")
def report() -> Report:
    return check(TEXTS)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: Path(path).stem)
def test_the_marked_lines_are_found_and_no_others(report: Report, path: str) -> None:
    found = {(f.line, f.code) for f in report.findings if f.path == path}
    marked = {(m.line, m.code) for m in MARKS if m.path == path and m.kind != "near"}
    assert found - marked == set(), "found, and not marked"
    assert marked - found == set(), "marked, and not found"


@pytest.mark.parametrize("code", IN_FLOWS)
def test_every_rule_is_shown_by_another_name_in_a_helper_and_nested(code: str) -> None:
    assert {"alias", "helper", "nested"} <= {m.kind for m in MARKS if m.code == code}


@pytest.mark.parametrize("code", IN_FLOWS)
def test_every_rule_has_three_near_misses(code: str) -> None:
    assert Counter(m.code for m in MARKS if m.kind == "near")[code] >= 3


def test_every_finding_says_what_to_write_instead_and_how_the_flow_gets_there(report: Report) -> None:
    for finding in report.findings:
        assert finding.code in RULES
        assert finding.message
        assert finding.instead
        assert finding.calls


def found(*texts: str, **files: str) -> list[str]:
    """`line:column code [way]` of each finding in these texts, which are files `m0.py`, `m1.py`, or those named."""
    named = {f"m{n}.py": text for n, text in enumerate(texts)} | {f"{name}.py": text for name, text in files.items()}
    return [f"{f.path}:{f.line}:{f.column} {f.code} {' > '.join(f.calls)}" for f in check(named).findings]


FLOW = "import time\nfrom perdure import capture, flow, step\n"


def test_the_way_from_the_flow_to_the_line_is_named() -> None:
    text = (
        FLOW + "@flow\nasync def order():\n    await pay()\nasync def pay():\n    tax()\ndef tax():\n    time.time()\n"
    )
    assert found(text) == ["m0.py:9:5 PD101 order > pay > tax"]


def test_what_two_flows_reach_is_told_once_by_the_shorter_way() -> None:
    text = FLOW + (
        "@flow\nasync def far():\n    a()\n"
        "@flow\nasync def near():\n    b()\n"
        "def a():\n    b()\n"
        "def b():\n    time.time()\n"
    )
    assert found(text) == ["m0.py:12:5 PD101 near > b"]


def test_functions_that_call_each_other_end() -> None:
    text = FLOW + "@flow\nasync def f():\n    a()\ndef a():\n    b()\ndef b():\n    a()\n    time.time()\n"
    assert found(text) == ["m0.py:10:5 PD101 f > a > b"]


def test_columns_count_characters() -> None:
    text = FLOW + '@flow\nasync def f():\n    "äöü", time.time()\n'
    assert found(text) == ["m0.py:5:12 PD101 f"]


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_lines_are_counted_whatever_ends_them(ending: str) -> None:
    text = FLOW + "@flow\nasync def f():\n    time.time()\n"
    assert found(text.replace("\n", ending)) == ["m0.py:5:5 PD101 f"]


def test_another_librarys_flow_is_none() -> None:
    assert found("import time\nfrom prefect import flow\n@flow\nasync def f():\n    time.time()\n") == []


def test_the_names_of_a_star_import_are_known() -> None:
    assert found("from perdure import *\nfrom time import *\n@flow\nasync def f():\n    print()\n") == [
        "m0.py:5:5 PD601 f"
    ]


# ---------------------------------------------------------------- other files


HELPER = "import time\ndef helper():\n    time.time()\n"


@pytest.mark.parametrize(
    ("statement", "call"),
    [
        ("from app.lib import helper", "helper()"),
        ("from app.lib import helper as h", "h()"),
        ("from .lib import helper", "helper()"),
        ("from . import lib", "lib.helper()"),
        ("import app.lib", "app.lib.helper()"),
        ("import app.lib as l", "l.helper()"),
        ("from app import lib", "lib.helper()"),
        ("from app.again import helper", "helper()"),
        ("from app.star import *", "helper()"),
    ],
)
def test_functions_of_the_other_files_are_followed(statement: str, call: str) -> None:
    files = {
        "src/app/__init__": "",
        "src/app/lib": HELPER,
        "src/app/again": "from app.lib import helper",
        "src/app/star": "from .lib import *",
        "src/app/flows": f"{statement}\nfrom perdure import flow\n@flow\nasync def f():\n    {call}\n",
    }
    if statement == "from app.star import *":  # the names that star took itself are not looked for twice
        files["src/app/star"] = "from .lib import helper"
    assert found(**files) == ["src/app/lib.py:3:5 PD101 f > helper"]


def test_a_package_without_init_is_found() -> None:
    text = "import app.lib\nfrom perdure import flow\n@flow\nasync def f():\n    app.lib.helper()\n"
    assert found(**{"app/lib": HELPER, "app/flows": text}) == ["app/lib.py:3:5 PD101 f > helper"]


def test_a_decorator_of_the_users_own_module_is_perdures() -> None:
    files = {
        "durable": "from perdure import flow as workflow, step as activity\n",
        "app": "import time\nfrom durable import activity, workflow\n@workflow(name='x')\nasync def f():\n"
        "    time.time()\n    await a()\n@activity\ndef a():\n    time.time()\n",
    }
    assert found(**files) == ["app.py:5:5 PD101 f"]


def test_a_file_named_like_one_of_pythons_is_not_taken_for_it() -> None:
    assert found(FLOW + "@flow\nasync def f():\n    time.time()\n", time="def time(): pass\n") == ["m0.py:5:5 PD101 f"]


def test_files_that_import_each_other_end() -> None:
    assert (
        found(a="from b import x\n", b="from a import x\nfrom perdure import flow\n@flow\nasync def f():\n    x()\n")
        == []
    )


# ---------------------------------------------------------------- silence


def test_a_comment_silences_the_codes_that_it_names_on_its_line() -> None:
    body = [
        "time.time()  # perdure: ignore[PD101]",
        "time.time()  # perdure: ignore[PD601, PD1]",
        "time.time()  # perdure: ignore",
        "time.time()  # noqa: S311  # perdure:ignore[ PD101 ] as it is logged alone",
        "time.time()  # perdure: ignore[PD601]",
        "'# perdure: ignore[PD101]'",
        "time.time()",
        "max(",
        "    time.time(),",
        "    1,",
        ")  # perdure: ignore[PD101]",
    ]
    text = FLOW + "@flow\nasync def f():\n" + "".join(f"    {line}\n" for line in body)
    assert found(text) == ["m0.py:9:5 PD101 f", "m0.py:11:5 PD101 f", "m0.py:13:9 PD101 f"]


def test_a_comment_on_the_last_line_of_a_call_silences_it() -> None:
    text = FLOW + "@flow\nasync def f():\n    time.strftime(\n        '%H',\n    )  # perdure: ignore[PD101]\n"
    assert found(text) == []
