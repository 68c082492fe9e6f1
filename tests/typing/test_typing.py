"""The types of the public face: what a user writes passes both checkers, and what must be refused is refused."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
MARK = "  # E"

pytestmark = pytest.mark.timeout(180)  # mypy without a cache reads every stub anew


def pyright(file: Path) -> dict[int, list[str]]:
    """What pyright strict says of the file: messages by line."""
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        report: dict[str, Any] = json.loads(done.stdout)
    except json.JSONDecodeError:
        pytest.fail(f"pyright did not run: {done.stdout}{done.stderr}")
    assert report["summary"]["filesAnalyzed"] == 1, report["summary"]
    found: dict[int, list[str]] = {}
    for said in report["generalDiagnostics"]:
        line = int(said["range"]["start"]["line"]) + 1
        found.setdefault(line, []).append(f"{said['severity']}: {said['message']}")
    return found


def described(found: dict[int, list[str]], lines: set[int]) -> str:
    return "\n".join(f"{line}: {message}" for line in sorted(lines) for message in found.get(line, ["nothing said"]))


def test_a_users_program_has_no_error_under_pyright_strict() -> None:
    found = pyright(HERE / "accepted.py")
    assert not found, described(found, set(found))


def test_a_users_program_has_no_error_under_mypy_strict() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--python-executable", sys.executable, str(HERE / "accepted.py")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_pyright_refuses_each_marked_line_and_no_other() -> None:
    file = HERE / "refused.py"
    lines = file.read_text(encoding="utf-8").splitlines()
    marked = {number for number, line in enumerate(lines, 1) if line.endswith(MARK)}
    assert marked
    found = pyright(file)
    accepted_wrongly = marked - set(found)
    refused_wrongly = set(found) - marked
    assert not accepted_wrongly, "not refused: " + "; ".join(lines[n - 1].strip() for n in sorted(accepted_wrongly))
    assert not refused_wrongly, "refused:\n" + described(found, refused_wrongly)
