"""The command as it is called: its paths, settings, formats and exit codes; real processes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from perdure.lint import RULES

WRONG = "import time\nfrom perdure import flow\n\n\n@flow\nasync def order(n: int) -> None:\n    time.time()\n    print(n)\n"
RIGHT = "from perdure import delay, flow\n\n\n@flow\nasync def order(n: int) -> None:\n    await delay(n)\n"
NO_PYTHON = "def (:\n"

BY_ARGPARSE = [sys.executable, "-m", "perdure.lint"]
BY_CLICK = [sys.executable, "-m", "perdure.cli", "lint"]
BOTH = pytest.mark.parametrize("command", [BY_ARGPARSE, BY_CLICK], ids=["python -m perdure.lint", "perdure lint"])


def call(folder: Path, command: list[str], *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*command, *args], cwd=folder, capture_output=True, text=True, timeout=60, check=False)


def codes(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line.split(" ")[1] for line in done.stdout.splitlines()]


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "wrong.py").write_text(WRONG)
    (tmp_path / "app" / "right.py").write_text(RIGHT)
    return tmp_path


@BOTH
def test_findings_are_lines_as_of_flake8_and_exit_with_1(shop: Path, command: list[str]) -> None:
    done = call(shop, command, "app")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert all(re.fullmatch(r"app/wrong\.py:\d+:\d+: PD\d{3} .+ \[order\]; .+", line) for line in lines)
    assert [line.partition(" ")[0] for line in lines] == ["app/wrong.py:7:5:", "app/wrong.py:8:5:"]
    assert done.stderr == "perdure lint: 2 flows in 2 files, 2 findings\n"


@BOTH
def test_nothing_found_exits_with_0_and_says_how_much_was_looked_at(shop: Path, command: list[str]) -> None:
    done = call(shop, command, "app/right.py")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "perdure lint: 1 flow in 1 file, 0 findings\n"


@BOTH
def test_a_path_that_is_not_there_exits_with_2(shop: Path, command: list[str]) -> None:
    done = call(shop, command, "app", "elsewhere")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "perdure lint: there is no elsewhere\n"


@BOTH
def test_a_file_that_is_no_python_exits_with_2_and_does_not_stop_the_rest(shop: Path, command: list[str]) -> None:
    (shop / "app" / "broken.py").write_text(NO_PYTHON)
    (shop / "app" / "bytes.py").write_bytes(b"# \xff\n")
    done = call(shop, command, "app", "--select", "PD6")
    assert done.returncode == 2
    assert codes(done) == ["PD001", "PD001", "PD601"]
    assert done.stdout.startswith("app/broken.py:1:5: PD001 ")


@BOTH
def test_without_a_path_it_is_the_current_folder(shop: Path, command: list[str]) -> None:
    assert codes(call(shop, command)) == ["PD101", "PD601"]


def test_what_is_hidden_installed_or_built_is_not_looked_at(shop: Path) -> None:
    for folder in (".hidden", "node_modules", "build", "env/lib"):
        (shop / folder).mkdir(parents=True)
        (shop / folder / "wrong.py").write_text(WRONG)
    (shop / "env" / "pyvenv.cfg").write_text("")
    assert len(codes(call(shop, BY_ARGPARSE))) == 2
    assert len(codes(call(shop, BY_ARGPARSE, "build"))) == 2  # asked for by name


def test_a_path_outside_of_the_current_folder_is_shown_whole(shop: Path) -> None:
    (shop / "other").mkdir()
    done = call(shop / "other", BY_ARGPARSE, "../app/wrong.py")
    assert done.stdout.splitlines()[0].startswith(f"{shop / 'app' / 'wrong.py'}:7:5: PD101 ")


@BOTH
def test_select_and_ignore_take_codes_and_beginnings(shop: Path, command: list[str]) -> None:
    assert codes(call(shop, command, "app", "--select", "PD6")) == ["PD601"]
    assert codes(call(shop, command, "app", "--ignore", "PD601,PD3")) == ["PD101"]
    assert codes(call(shop, command, "app", "--select", "PD1", "--select", "PD6", "--ignore", "PD101")) == ["PD601"]


@BOTH
@pytest.mark.parametrize("code", ["PD9", "F401", "pd101"])
def test_a_code_that_is_none_exits_with_2(shop: Path, command: list[str], code: str) -> None:
    done = call(shop, command, "app", "--ignore", code)
    assert (done.returncode, done.stdout) == (2, "")
    assert code in done.stderr


# ---------------------------------------------------------------- pyproject.toml


def test_pyproject_ignores_and_the_command_line_adds_to_it(shop: Path) -> None:
    (shop / "pyproject.toml").write_text('[tool.perdure.lint]\nignore = ["PD601"]\n')
    assert codes(call(shop, BY_ARGPARSE, "app")) == ["PD101"]
    assert codes(call(shop, BY_ARGPARSE, "app", "--ignore", "PD1")) == []
    assert codes(call(shop.parent, BY_ARGPARSE, str(shop / "app"))) == ["PD101"]  # it is the path's, not the caller's


def test_select_on_the_command_line_replaces_that_of_pyproject(shop: Path) -> None:
    (shop / "pyproject.toml").write_text('[tool.perdure.lint]\nselect = ["PD1"]\n')
    assert codes(call(shop, BY_ARGPARSE, "app")) == ["PD101"]
    assert codes(call(shop, BY_ARGPARSE, "app", "--select", "PD6")) == ["PD601"]


def test_a_pyproject_that_says_nothing_of_it_changes_nothing(shop: Path) -> None:
    (shop / "pyproject.toml").write_text("[project]\nname = 'shop'\n")
    assert codes(call(shop, BY_ARGPARSE, "app")) == ["PD101", "PD601"]


@pytest.mark.parametrize(
    "text",
    [
        "[tool.perdure.lint]\nignore = 'PD601'\n",
        "[tool.perdure.lint]\nignore = [601]\n",
        "[tool.perdure.lint]\nignore = ['PD999']\n",
        "[tool.perdure.lint]\nexclude = ['app']\n",
        "[tool.perdure]\nlint = 1\n",
        "[tool.perdure.lint\n",
    ],
)
def test_a_pyproject_that_makes_no_sense_exits_with_2(shop: Path, text: str) -> None:
    (shop / "pyproject.toml").write_text(text)
    done = call(shop, BY_ARGPARSE, "app")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("perdure lint: ")
    assert "Traceback" not in done.stderr


# ---------------------------------------------------------------- formats


@BOTH
def test_json_has_the_fields_of_ruffs_and_the_way(shop: Path, command: list[str]) -> None:
    done = call(shop, command, "app", "--format", "json")
    assert done.returncode == 1
    first, second = json.loads(done.stdout)
    assert first["filename"] == "app/wrong.py"
    assert first["location"] == {"row": 7, "column": 5}
    assert first["end_location"] == {"row": 7, "column": 16}
    assert (first["code"], first["calls"]) == ("PD101", ["order"])
    assert first["message"]
    assert first["instead"]
    assert second["code"] == "PD601"


def test_json_of_nothing_is_an_empty_list(shop: Path) -> None:
    assert json.loads(call(shop, BY_ARGPARSE, "app/right.py", "--format", "json").stdout) == []


@BOTH
def test_github_gets_annotations(shop: Path, command: list[str]) -> None:
    done = call(shop, command, "app", "--format", "github")
    assert done.returncode == 1
    first = done.stdout.splitlines()[0]
    place = "file=app/wrong.py,line=7,endLine=7,col=5,endColumn=16,title=perdure PD101"
    assert first.startswith(f"::error {place}::PD101 time.time() ")


def test_github_annotations_are_escaped(shop: Path) -> None:
    (shop / "app" / "a,b:100%.py").write_text(WRONG)
    done = call(shop, BY_ARGPARSE, "app/a,b:100%.py", "--format", "github")
    assert done.stdout.startswith("::error file=app/a%2Cb%3A100%25.py,line=7")


# ---------------------------------------------------------------- what it needs, and what it does not do


BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocked())
"""


def without(*names: str) -> str:
    return BLOCKED.format(names=names)


def test_the_lint_needs_neither_click_nor_rich(shop: Path) -> None:
    program = without("click", "rich") + "from perdure.lint.command import main\nsys.exit(main(['app']))\n"
    assert codes(call(shop, [sys.executable, "-c", program])) == ["PD101", "PD601"]


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_the_command_says_what_is_missing(shop: Path, missing: str) -> None:
    program = without(missing, "") + "from perdure.cli import main\nmain()\n"
    done = call(shop, [sys.executable, "-c", program])
    assert done.returncode == 1
    assert f"{missing} is not installed" in done.stderr
    assert "pip install 'perdure[cli]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_nothing_of_the_linted_files_is_run(shop: Path) -> None:
    ran = shop / "ran"
    (shop / "app" / "acts.py").write_text(f"open({str(ran)!r}, 'w')\n{WRONG}")
    assert len(codes(call(shop, BY_ARGPARSE, "app"))) == 4
    assert not ran.exists()


def test_the_installed_command_is_the_same() -> None:
    """The entry point in pyproject.toml names a function that is there."""
    pyproject = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    assert 'perdure = "perdure.cli:main"' in pyproject
    from perdure.cli import main

    assert callable(main)


def test_every_rule_is_in_the_page() -> None:
    page = (Path(__file__).parents[2] / "docs" / "lint.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (PD\d{3}) \| (.+?) \| .+ \| .+ \|$", page, re.MULTILINE)
    assert dict(rows) == RULES


def test_the_page_shows_what_the_lint_says(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "lint.md").read_text(encoding="utf-8")
    source = re.search(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    shown = re.search(r"^```console\n\$ perdure lint orders.py\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert source is not None
    assert shown is not None
    (tmp_path / "orders.py").write_text(source[1])
    done = call(tmp_path, BY_CLICK, "orders.py")
    assert done.stdout + done.stderr == shown[1]
