"""A step that wants more memory than the process may have."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.fault(6)
def test_a_step_without_memory_has_failed_and_others_go_on(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.hungry", tmp_path / "flows.db"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=40,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [3, "no memory", sum(range(20))]
