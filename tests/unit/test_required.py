"""What a test lacks on this machine is told, and is a failure where it is required."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = """
import pytest
from tests.support.required import not_here

@pytest.fixture
def mysql():
    not_here("MariaDB", "no server at 127.0.0.1:3306")

@pytest.fixture
def pgbouncer():
    return "a URL"

@pytest.mark.parametrize("n", range(3))
def test_lacks(mysql, n): pass

def test_has(pgbouncer): pass
"""


def run(folder: Path, require: str, *args: str) -> tuple[int, list[str]]:
    """The exit code of pytest on those tests, and what it prints."""
    (folder / "conftest.py").write_text("from tests.conftest import *")
    (folder / "test_it.py").write_text(TESTS)
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-q", "-ra", "--disable-plugin-autoload", "-p", "xdist", "-p",
            "no:cacheprovider", "-c", os.devnull, "--rootdir", ".", *args,
        ],
        cwd=folder, env=os.environ | {"PERDURE_TEST_REQUIRE": require, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, (done.stdout + done.stderr).splitlines()


@pytest.mark.parametrize("workers", ["0", "2"])
def test_what_was_not_here_is_told_once_in_the_last_lines(tmp_path: Path, workers: str) -> None:
    code, said = run(tmp_path, "", "-n", workers)
    assert code == 0
    assert said[-2] == "not tested here: MariaDB (no server at 127.0.0.1:3306)"
    assert sum("MariaDB" in line for line in said) == 2  # and once among the skipped ones
    assert "1 passed, 3 skipped" in said[-1]


def test_what_is_not_here_is_a_failure_where_all_is_required(tmp_path: Path) -> None:
    code, said = run(tmp_path, "1")
    assert code == 1
    assert "1 passed, 3 errors" in said[-1]


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_service_that_no_test_ran_on_is_a_failure(tmp_path: Path, workers: str) -> None:
    code, said = run(tmp_path, "pgbouncer,postgresql", "-k", "has", "-n", workers)
    assert code == 1
    assert said[-2] == "PERDURE_TEST_REQUIRE names postgresql, and no test ran on it"
    assert "1 passed" in said[-1]


def test_a_service_that_a_test_ran_on_is_none(tmp_path: Path) -> None:
    assert run(tmp_path, "pgbouncer", "-k", "has")[0] == 0


def test_a_service_that_there_is_not_is_refused(tmp_path: Path) -> None:
    code, said = run(tmp_path, "postgres")
    assert code == pytest.ExitCode.USAGE_ERROR
    assert any("no service postgres" in line and "postgresql" in line for line in said)
