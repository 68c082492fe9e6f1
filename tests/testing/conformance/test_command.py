"""`perdure conformance`: the suite on a database, as a command."""

import subprocess
import sys


def perdure(*args: str, before: str = "pass") -> "subprocess.CompletedProcess[str]":
    program = f"import sys; {before}; sys.argv = ['perdure', *{list(args)!r}]; from perdure.cli import main; main()"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=False)


def test_it_exits_as_pytest_does_and_passes_options_on() -> None:
    good = perdure("conformance", "sqlite:///{tmp}/x.db", "-q", "-k", "test_paging")
    assert good.returncode == 0, good.stdout
    assert "passed" in good.stdout
    assert perdure("conformance", "nonsense://", "-q").returncode != 0


def test_without_pytest_it_says_what_is_missing() -> None:
    bare = perdure("conformance", "memory://", before="sys.modules['pytest'] = None")
    assert bare.returncode == 1
    assert "pip install 'perdure[testing]'" in bare.stderr
