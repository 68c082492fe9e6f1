"""What docs/write-your-own-store.md shows and tests/docs cannot run alone: its commands, and the repository of a store."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "write-your-own-store.md").read_text(encoding="utf-8")
FILE = re.compile(r"^`(?P<path>[\w/.]+)`\n\n(?:<!-- no-run -->\n)?```\w+\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^```sh\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
TREE = re.compile(r"^```text\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)

MYDB = """
from pathlib import Path

from perdure.stores.memory import MemoryStore

LOG = Path("log")


async def execute(url, sql):
    LOG.open("a").write(f"{url} {sql}\\n")


class MyStore(MemoryStore):
    def __init__(self, url, *, schema, system=None):
        super().__init__(system)
        LOG.open("a").write(f"{url} {schema}\\n")
"""


def shell(command: str, folder: Path) -> str:
    """What the command printed that ended well."""
    command = command.replace("python ", f"{sys.executable} ")
    done = subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True, check=False, timeout=50)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_suite_runs_as_the_page_says(tmp_path: Path) -> None:
    command = COMMAND.findall(PAGE)[0].strip()
    output = shell(f"{command} -p no:langsmith_plugin -q -k empty_batch", tmp_path)
    assert "1 passed" in output


def test_the_repository_of_the_page_runs_the_suite(tmp_path: Path) -> None:
    files = {found["path"]: found["text"] for found in FILE.finditer(PAGE)}
    assert sorted(files) == ["pyproject.toml", "tests/conftest.py", "tests/test_conformance.py"]
    (tree,) = TREE.findall(PAGE)
    shown = re.findall(r"^ +(\S+)", tree, re.MULTILINE)
    assert {*files, "src/perdure_mydb/__init__.py"} <= set(shown)
    for path, text in {**files, "src/perdure_mydb/__init__.py": MYDB}.items():
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")

    install, run = COMMAND.findall(PAGE)[1].strip().splitlines()
    extra = tomllib.loads(files["pyproject.toml"])["project"]["optional-dependencies"]["test"]
    assert (install, extra) == ("python -m pip install -e '.[test]'", ["perdure[testing]"])
    output = shell(f"{run} -p no:langsmith_plugin -q -k 'empty_batch or is_well'", tmp_path)
    assert "2 passed" in output
    log = (tmp_path / "log").read_text().splitlines()
    schemas = [line.split()[-1] for line in log if "create schema" in line]
    url = "mydb://localhost/test"
    assert log == [
        f"{url} {line}"
        for schema in schemas
        for line in (f"create schema {schema}", schema, f"drop schema {schema} cascade")
    ]
    assert len(set(schemas)) == 2
