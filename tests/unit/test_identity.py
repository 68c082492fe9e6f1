"""The code identity: the same for the same code wherever and however it runs, another one for any other code."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from perdure.engine.identity import code_identity

SRC = Path(__file__).parents[2] / "src"

MAIN = """\
import sys
import {first}
import {second}
import space.inner
{more}

if __name__ == "__main__":
    from perdure.engine.identity import code_identity

    print(code_identity(None))
"""


class Program:
    """A small program in a folder: a script, two modules, a namespace package, and an environment of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.installed = folder / "env" / "site-packages"
        (folder / "app" / "space").mkdir(parents=True)
        (self.installed / "thing-1.0.dist-info").mkdir(parents=True)
        (self.installed / "thing.py").write_text("A = 1\n")
        (folder / "app" / "one.py").write_text("def price():\n    return 1\n")
        (folder / "app" / "two.py").write_text("import thing\n")
        (folder / "app" / "space" / "inner.py").write_text("B = 2\n")
        self.write_main()

    def write_main(self, first: str = "one", second: str = "two", more: str = "", top: str = "") -> None:
        text = top + MAIN.format(first=first, second=second, more=more)
        (self.folder / "app" / "main.py").write_text(text)

    def identity(self, *, seed: str = "0", cwd: Path | None = None, perdure: Path = SRC) -> str:
        """What a process of its own says."""
        done = subprocess.run(
            [sys.executable, str(self.folder / "app" / "main.py")],
            env=os.environ
            | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(map(str, [self.installed, perdure]))},
            cwd=cwd or self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path / "here")


def test_a_given_version_is_the_identity() -> None:
    assert code_identity("2025-06") == "2025-06"
    assert code_identity("") == ""


def test_it_is_short_and_the_same_again() -> None:
    identity = code_identity(None)
    assert len(identity) == 16
    assert int(identity, 16) >= 0
    assert code_identity(None) == identity


def test_hash_seed_and_working_directory_change_nothing(program: Program, tmp_path: Path) -> None:
    identity = program.identity()
    assert program.identity(seed="1") == identity
    assert program.identity(seed="4242", cwd=tmp_path) == identity


def test_the_place_of_the_checkout_changes_nothing(program: Program, tmp_path: Path) -> None:
    identity = program.identity()
    elsewhere = tmp_path / "quite" / "another"
    shutil.copytree(program.folder, elsewhere)
    moved = Program.__new__(Program)
    moved.folder, moved.installed = elsewhere, elsewhere / "env" / "site-packages"
    assert moved.identity() == identity


def test_the_order_of_imports_changes_nothing(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    (program.folder / "app" / "loads.py").write_text(
        "import os\n\nfor name in sorted(['one', 'two'], reverse='BACK' in os.environ):\n    __import__(name)\n"
    )
    program.write_main(first="loads")
    identity = program.identity()
    monkeypatch.setenv("BACK", "1")
    assert program.identity() == identity


def test_a_script_s_first_line_changes_nothing(program: Program) -> None:
    program.write_main(top="#!/usr/bin/python3\n")
    identity = program.identity()
    program.write_main(top="#!/opt/another/place/bin/python\n")
    assert program.identity() == identity


@pytest.mark.parametrize("file", ["one.py", "two.py", "space/inner.py", "main.py"])
@pytest.mark.parametrize("change", ["\nC = 3\n", "\n# only a comment\n"])
def test_any_change_of_the_program_s_own_code_changes_it(program: Program, file: str, change: str) -> None:
    identity = program.identity()
    with (program.folder / "app" / file).open("a") as opened:
        opened.write(change)
    assert program.identity() != identity


def test_the_name_of_a_module_counts(program: Program) -> None:
    app = program.folder / "app"
    (app / "loads.py").write_text(
        "import pathlib\n\nfor file in pathlib.Path(__file__).parent.glob('part*.py'):\n    __import__(file.stem)\n"
    )
    program.write_main(more="import loads")
    (app / "part1.py").write_text("D = 4\n")
    identity = program.identity()
    (app / "part1.py").rename(app / "part2.py")
    assert program.identity() != identity


def test_what_is_loaded_of_the_standard_library_changes_nothing(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    (program.folder / "app" / "loads.py").write_text(
        "import os\n\nif 'MORE' in os.environ:\n    import ctypes, email.message, multiprocessing.pool, xml.sax\n"
    )
    program.write_main(more="import loads")
    identity = program.identity()
    monkeypatch.setenv("MORE", "1")
    assert program.identity() == identity


def test_what_is_not_loaded_changes_nothing_until_it_is(program: Program) -> None:
    identity = program.identity()
    (program.folder / "app" / "late.py").write_text("D = 4\n")
    assert program.identity() == identity
    program.write_main(more="import late")
    with_late = program.identity()
    (program.folder / "app" / "late.py").write_text("D = 5\n")
    assert len({identity, with_late, program.identity()}) == 3


def test_of_installed_packages_names_and_versions_count_alone(program: Program) -> None:
    identity = program.identity()
    (program.installed / "thing.py").write_text("A = 2  # not by an installer\n")
    assert program.identity() == identity
    (program.installed / "thing-1.0.dist-info").rename(program.installed / "thing-1.1.dist-info")
    upgraded = program.identity()
    (program.installed / "other-0.1.dist-info").mkdir()
    assert len({identity, upgraded, program.identity()}) == 3


def test_perdure_counts_by_its_sources_only_if_it_is_not_installed(program: Program, tmp_path: Path) -> None:
    checkout, installed = tmp_path / "checkout", tmp_path / "env" / "site-packages"
    for place in (checkout, installed):
        shutil.copytree(SRC / "perdure", place / "perdure", ignore=shutil.ignore_patterns("__pycache__"))
    before = [program.identity(perdure=place) for place in (checkout, installed)]
    for place in (checkout, installed):
        with (place / "perdure" / "clock.py").open("a") as opened:
            opened.write("# changed\n")
    after = [program.identity(perdure=place) for place in (checkout, installed)]
    assert before[0] != after[0]
    assert before[1] == after[1]


def test_a_child_of_multiprocessing_says_the_same(program: Program) -> None:
    program.write_main(more="import multiprocessing.pool\nimport perdure.engine.identity\nimport tell\n")
    (program.folder / "app" / "tell.py").write_text(
        "from perdure.engine.identity import code_identity\n\n\ndef tell():\n    return code_identity(None)\n"
    )
    with (program.folder / "app" / "main.py").open("a") as script:
        script.write(
            "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n        print(pool.apply(tell.tell))\n"
        )
    parent, child = program.identity().splitlines()
    assert parent == child


ODD = '''
import os
import sys
import types
import zipimport


class Angry:
    """Put into sys.modules; whoever looks at it gets an error."""

    def __getattribute__(self, name):
        raise RuntimeError(name)


class Lazy(types.ModuleType):
    """A lazy module: whoever asks it for anything imports something."""

    def __getattr__(self, name):
        import one_more


class NoDict:
    __slots__ = ()


def module(name, **names):
    made = types.ModuleType(name)
    vars(made).update(names)
    return made


gone = os.path.join(os.path.dirname(__file__), "gone.py")
open(gone, "w").close()
import gone as _
os.remove(gone)
os.mkfifo(gone + ".pipe")
sys.path.insert(0, os.path.join(os.path.dirname(__file__), "packed.zip"))
import packed
sys.path += [None, 7, "/nowhere/site-packages", gone]
sys.modules |= {
    "odd.none": None,
    "odd.angry": Angry(),
    "odd.lazy": Lazy("odd.lazy"),
    "odd.slots": NoDict(),
    "odd.number": 7,
    7: module("seven"),
    "odd.file.none": module("odd", __file__=None),
    "odd.file.bytes": module("odd", __file__=b"/x"),
    "odd.file.folder": module("odd", __file__=os.path.dirname(__file__)),
    "odd.file.zero": module("odd", __file__="/x\\0y.py"),
    "odd.file.pipe": module("odd", __file__=gone + ".pipe"),
    "odd.file.surrogate": module("odd", __file__="/x\\udc80y.py"),
    "odd.name.\\udc80": module("odd"),
    "odd.file.c": module("odd", __file__="/x/y.cpython-311-x86_64-linux-gnu.so"),
}
'''


def test_odd_modules_are_named_or_left_out(program: Program) -> None:
    app = program.folder / "app"
    with zipfile.ZipFile(app / "packed.zip", "w") as archive:
        archive.writestr("packed.py", "E = 6\n")
    (app / "one_more.py").write_text("print('imported')\n")
    (app / "odd.py").write_text(ODD)
    identity = program.identity()
    program.write_main(more="import odd")
    with_odd = program.identity()
    assert with_odd != identity
    (app / "gone.py.pipe").unlink()
    assert program.identity() == with_odd
    assert "imported" not in with_odd


def test_parts_that_an_installed_package_makes_as_it_runs_change_nothing(program: Program) -> None:
    identity = program.identity()
    (program.installed / "thing.py").write_text(
        "import sys, types\nsys.modules['thing.made'] = types.ModuleType('made')\n"
    )
    assert program.identity() == identity


def test_it_takes_less_than_20_ms_with_500_modules(tmp_path: Path) -> None:
    body = "# a line as long as lines in programs are\n" * 200
    for i in range(500):
        (tmp_path / f"module_{i}.py").write_text(f"NUMBER = {i}\n{body}")
    (tmp_path / "main.py").write_text(
        "import time\n"
        "from perdure.engine.identity import code_identity\n"
        "for i in range(500):\n"
        "    __import__(f'module_{i}')\n"
        "took = []\n"
        "for _ in range(20):\n"
        "    begun = time.perf_counter()\n"
        "    code_identity(None)\n"
        "    took.append(time.perf_counter() - begun)\n"
        "print(min(took))\n"
    )
    done = subprocess.run([sys.executable, str(tmp_path / "main.py")], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.020
