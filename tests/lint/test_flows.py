"""From the code of flows to what is wrong in them: the lint's own findings, out of the files that they reach."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, ModuleType

import pytest

from perdure.lint import check, flows
from perdure.lint.flows import findings_in, loaded_files
from perdure.lint.settings import NotALintSetting

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CASES = {str(file): file.read_text(encoding="utf-8") for file in sorted((HERE / "cases").glob("*.py"))}
HEAD = "import time\nfrom perdure import flow\n"
ORDER = "\n@flow\nasync def order():\n    {0}\n"


def codes(file: Path, *names: str) -> list[CodeType]:
    """The code of these functions, as the program that has loaded the file would have it; nothing of it runs."""

    def inside(code: CodeType) -> Iterator[CodeType]:
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                yield constant
                yield from inside(constant)

    return [c for c in inside(compile(file.read_text(encoding="utf-8"), file, "exec")) if c.co_name in names]


class Program:
    """Files that a program may have loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, texts: dict[str, str]) -> list[str]:
        """The paths of these files."""
        for name, text in texts.items():
            file = self.folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        return [str(self.folder / name) for name in texts]

    def found(self, files: list[str], *names: str) -> list[str]:
        """`file:line code way` of each finding in these flows of the first file."""
        found = findings_in(codes(Path(files[0]), *(names or ["order"])), files)
        return [f"{Path(f.path).relative_to(self.folder)}:{f.line} {f.code} {' > '.join(f.calls)}" for f in found]


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path)


# ---------------------------------------------------------------- what is found


@pytest.mark.parametrize("path", CASES, ids=lambda path: Path(path).stem)
def test_it_is_what_the_lint_finds_in_those_flows(path: str) -> None:
    of_flows = [f for f in check(CASES).findings if f.path == path and not f.calls[0].startswith("OrderFlow.")]
    flow_codes = codes(Path(path), *{f.calls[0] for f in of_flows})
    found = findings_in(flow_codes, CASES) if flow_codes else []
    assert {f.line: f.code for f in found if f.path == path} == {f.line: f.code for f in of_flows}


def test_other_flows_of_the_file_are_not_told_of(program: Program) -> None:
    text = HEAD + ORDER.format("time.time()") + "\n@flow\nasync def other():\n    time.time()\n    print()\n"
    assert program.found(program.write({"m.py": text})) == ["m.py:6 PD101 order"]
    assert program.found(program.write({"m.py": text}), "order", "other") == [
        "m.py:6 PD101 order",
        "m.py:10 PD101 other",
        "m.py:11 PD601 other",
    ]


def test_a_flow_is_known_by_its_place_however_it_is_made(program: Program) -> None:
    text = (
        "import time\nimport perdure\n\ndef make():\n"
        "    @perdure.flow(\n        name='order')\n    async def order():\n        time.time()\n    return order\n"
        "\nasync def plain():\n    time.time()\nbare = perdure.flow(plain)\n"
    )
    assert program.found(program.write({"m.py": text}), "order", "plain") == [
        "m.py:8 PD101 order",
        "m.py:12 PD101 plain",
    ]


HELPER = "import time\n\ndef age(x):\n    return time.time()\n"


@pytest.mark.parametrize(
    ("how", "where"),
    [
        ("from shop.util import age", "shop/util.py"),
        ("from shop import util\nage = util.age", "shop/util.py"),
        ("import shop.util\nage = shop.util.age", "shop/util.py"),
        ("from shop import age", "shop/__init__.py"),
        ("from util import age", "util.py"),
        ("from util import *", "util.py"),
    ],
)
def test_what_a_flow_reaches_in_other_files_is_found(program: Program, how: str, where: str) -> None:
    text = f"{how}\nfrom perdure import flow\n{ORDER.format('age(1)')}"
    files = program.write({"m.py": text, "shop/__init__.py": "", where: HELPER})
    assert program.found(files) == [f"{where}:4 PD101 order > age"]


def test_inside_of_a_package_imports_mean_what_python_makes_of_them(program: Program) -> None:
    text = HEAD + "from .util import age\nfrom late import age as other\n" + ORDER.format("age(1), other(1)")
    init = "from shop.util import age\n"
    files = program.write({"shop/m.py": text, "shop/__init__.py": init, "shop/util.py": HELPER, "shop/late.py": HELPER})
    assert program.found(files) == ["shop/util.py:4 PD101 order > age"]  # `late` is another one, which is not known


def test_only_what_is_reached_is_read(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    text = HEAD + "from near import age\n" + ORDER.format("age(1)")
    files = program.write({"m.py": text, "near.py": HELPER, "far.py": HELPER})
    seen: list[str] = []
    read = flows.read

    def spy(paths: list[Path], folder: Path) -> object:
        seen.extend(path.name for path in paths)
        return read(paths, folder)

    monkeypatch.setattr(flows, "read", spy)
    assert program.found(files) == ["near.py:4 PD101 order > age"]
    assert seen == ["m.py", "near.py"]


def test_what_is_not_loaded_is_not_followed(program: Program) -> None:
    text = "from util import age\n" + HEAD + ORDER.format("age(1)")
    files = program.write({"m.py": text, "util.py": HELPER})
    assert program.found(files[:1]) == []


def test_no_more_is_read_than_the_limits_say(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "from util import age\n" + HEAD + ORDER.format("age(time.time())")
    files = program.write({"m.py": text, "util.py": HELPER})
    assert len(program.found(files)) == 2
    monkeypatch.setattr(flows, "FILES", 1)
    assert program.found(files) == ["m.py:7 PD101 order"]
    monkeypatch.undo()
    monkeypatch.setattr(flows, "BYTES", len(text))
    assert program.found(files) == ["m.py:7 PD101 order"]


REGISTRY = "from perdure import flow\nSEEN = {}\n\ndef keep(name):\n    SEEN[name] = 1\n" + ORDER.format(
    "return SEEN['x']"
)


def test_who_else_calls_a_function_at_import_is_known(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    files = program.write({"m.py": REGISTRY, "plugin.py": "import m\nm.keep('x')\n", "other.py": "import m\n"})
    assert program.found(files) == []
    assert program.found([files[0], files[2]]) == ["m.py:9 PD401 order"]
    monkeypatch.setattr(flows, "FILES", 2)  # then it could be in the one that is left out
    assert program.found([files[0], files[2], files[1]]) == []


# ---------------------------------------------------------------- what is not told


def test_a_comment_silences_a_line(program: Program) -> None:
    text = ORDER.format("time.time()  # perdure: ignore[PD1] it is only logged")
    assert program.found(program.write({"m.py": HEAD + text})) == []


def test_pyproject_is_respected(program: Program) -> None:
    files = program.write({"app/m.py": HEAD + ORDER.format("print(time.time())")})
    assert len(program.found(files)) == 2
    (program.folder / "pyproject.toml").write_text('[tool.perdure.lint]\nignore = ["PD601"]\n')
    assert program.found(files) == ["app/m.py:6 PD101 order"]
    (program.folder / "pyproject.toml").write_text('[tool.perdure.lint]\nselect = ["PD6"]\n')
    assert program.found(files) == ["app/m.py:6 PD601 order"]
    (program.folder / "pyproject.toml").write_text('[tool.perdure.lint]\nselect = ["PD9"]\n')
    with pytest.raises(NotALintSetting, match="PD9"):
        program.found(files)


@pytest.mark.parametrize("name", ["<stdin>", "<string>", "gone.py", "."])
def test_without_a_source_there_is_nothing(name: str) -> None:
    code = compile("async def order(): ...", name, "exec").co_consts[0]
    assert isinstance(code, CodeType)
    assert findings_in([code], []) == []


@pytest.mark.parametrize(
    "text", ["def (", "x = 1\0", "\ndef f():\n" + "(" * 300 + ")" * 300, "", "# moved\n\n", "\udcff"]
)
def test_a_file_that_cannot_be_read_or_has_changed_gives_nothing(program: Program, text: str) -> None:
    files = program.write({"m.py": HEAD + ORDER.format("time.time()")})
    flow_codes = codes(Path(files[0]), "order")
    Path(files[0]).write_bytes(text.encode(errors="surrogateescape"))
    assert findings_in(flow_codes, files) == []


# ---------------------------------------------------------------- which files may be read


def test_the_programs_own_modules_may_be_read_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lazy(ModuleType):
        def __getattr__(self, name: str) -> object:
            raise AssertionError("nothing of the user's is run")

    monkeypatch.setitem(sys.modules, "lazy", Lazy("lazy"))
    monkeypatch.setitem(sys.modules, "odd", None)  # type: ignore[arg-type]
    own = loaded_files("tests")
    assert own[__file__] == __name__
    assert not {"ast", "pytest", "perdure", "perdure.lint.flows"} & set(own.values())
    assert "pytest" in loaded_files("pytest").values()  # a program that is installed itself
