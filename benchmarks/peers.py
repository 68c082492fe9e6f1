"""The environment in which the peer runs: made once from requirements-bench.txt, apart from ours."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.runner import ROOT

REQUIREMENTS = ROOT / "requirements-bench.txt"
ENVIRONMENT = ROOT / ".venv-bench"
WORK = ROOT / "benchmarks" / "dbos_work.py"
INSTALL_LIMIT_S = 300


class PeerMissing(Exception):
    """DBOS cannot be had here; the text says why."""


def pinned() -> str:
    """The peer as it is named in the requirements: `dbos==1.2.3`."""
    lines = REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if line.startswith("dbos=="))


def python() -> Path:
    """The interpreter that has DBOS; installs it if that was not done yet.

    Raises:
        PeerMissing: it could not be installed; go on without the comparison.
    """
    interpreter, stamp = ENVIRONMENT / "bin" / "python", ENVIRONMENT / "installed.txt"
    wanted = f"{sys.version}\n{REQUIREMENTS.read_text(encoding='utf-8')}"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted and interpreter.is_file():
        return interpreter
    print(f"Installing {pinned()} into {ENVIRONMENT.name} ...", flush=True)
    shutil.rmtree(ENVIRONMENT, ignore_errors=True)
    pip = [str(interpreter), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", str(REQUIREMENTS)]
    base = os.path.realpath(sys.executable)
    for command in ([base, "-m", "venv", str(ENVIRONMENT)], pip):
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=INSTALL_LIMIT_S)
        except subprocess.TimeoutExpired:
            raise PeerMissing(f"installing took more than {INSTALL_LIMIT_S} s") from None
        except subprocess.CalledProcessError as problem:
            errors = [line for line in str(problem.stderr).splitlines() if line.startswith("ERROR")]
            raise PeerMissing(errors[-1] if errors else f"{command[2]} failed") from None
    stamp.write_text(wanted, encoding="utf-8")
    return interpreter
