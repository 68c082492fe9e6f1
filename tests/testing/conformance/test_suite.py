"""The suite as others use it: on a store that they name, in a test module of their own, beside whatever plugins; and it
finds what is wrong with a store.
"""

import inspect
import pkgutil
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from perdure.testing import conformance
from perdure.testing.conformance import suite

STORES = '''
from contextlib import asynccontextmanager
from pathlib import Path

from msgspec.structs import replace

from perdure.errors import LeaseLost
from perdure.stores.memory import MemoryStore
from perdure.stores.sqlite import SqliteStore


class Forgetful(MemoryStore):
    """Forgets the last message of every inbox, once it has three."""

    async def inbox(self, uids):
        return {uid: rows[:2] for uid, rows in (await super().inbox(uids)).items()}


class Unfenced(MemoryStore):
    """Takes what a dead replica writes."""

    async def commit(self, batch):
        try:
            return await super().commit(batch)
        except LeaseLost:
            return await super().commit(replace(batch, replica=None))


class Hangs(MemoryStore):
    """Never says that it is well."""

    async def check(self):
        import asyncio
        await asyncio.Event().wait()


@asynccontextmanager
async def fresh(system):
    """A store with something to make before it, and to remove afterwards."""
    log = Path("log")
    class Told(MemoryStore):
        async def open(self):
            log.write_text(log.read_text() + "open ")
        async def close(self):
            log.write_text(log.read_text() + "close ")
    log.write_text("made ")
    yield Told(system)
    log.write_text(log.read_text() + "removed")


def used(system):
    """One database for all tests."""
    return SqliteStore("used.db", system)
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a module `stores`."""
    (tmp_path / "stores.py").write_text(STORES)
    return tmp_path


def python(folder: Path, *args: str) -> tuple[int, str]:
    """How Python ended that was started in the folder, and what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", *args], cwd=folder, capture_output=True, text=True, check=False, timeout=50
    )
    return done.returncode, done.stdout + done.stderr


def run(folder: Path, store: str, *pytest_args: str) -> tuple[int, str]:
    """`run` in a process of its own."""
    code = "import sys; from perdure.testing.conformance import run; sys.exit(run(*sys.argv[1:]))"
    return python(folder, "-c", code, store, "-q", "-W", "error", *pytest_args)


def failed(output: str) -> set[str]:
    return set(re.findall(r"^(?:FAILED|ERROR) \S*::(\w+)", output, re.MULTILINE))


# -- on a store that is named


def test_a_good_store_passes_and_what_it_lacks_is_skipped_with_the_reason(folder: Path) -> None:
    code, output = run(folder, "memory://", "-rs")
    assert code == 0, output
    reasons = re.findall(r"^SKIPPED .*: (.*)$", output, re.MULTILINE)
    assert set(reasons) == {"this store declares no transactions"}
    assert not list(folder.glob(".*"))  # no cache is left


@pytest.mark.parametrize(
    ("store", "found"),
    [
        ("Forgetful", "test_messages_are_kept_in_the_order_of_arrival"),
        ("Unfenced", "test_a_batch_needs_a_fence_that_is_alive_and_of_its_epoch"),
    ],
)
def test_a_broken_store_fails(folder: Path, store: str, found: str) -> None:
    code, output = run(folder, f"stores:{store}", "--tb=no", "-k", "not agreement and not memory_store_says")
    assert code == 1, output
    assert found in failed(output)
    assert "test_a_journal_that_fits_is_whole" not in failed(output)


def test_a_failure_says_what_was_compared(folder: Path) -> None:
    _, output = run(folder, "stores:Forgetful", "-k", "messages_are_kept")
    assert re.search(r"AssertionError: assert \[b'm.*\] == \[b'm", output), output  # the shipped asserts are rewritten


def test_a_store_that_hangs_fails(folder: Path) -> None:
    shorter = "from perdure.testing.conformance import kit, run; kit.LIMIT_S = 0.1; print(run('stores:Hangs', '-k', 'is_well'))"
    _, output = python(folder, "-c", shorter)
    assert "TimeoutError" in output


def test_a_url_names_a_folder_of_each_test(folder: Path) -> None:
    code, output = run(folder, "sqlite:///{tmp}/x.db", "-k", "creation or closed")
    assert code == 0, output


def test_a_factory_may_make_something_before_and_remove_it_afterwards(folder: Path) -> None:
    code, output = run(folder, "stores:fresh", "-k", "needs_the_fence and empty_batch")
    assert code == 0, output
    assert (folder / "log").read_text() == "made open close removed"


def test_a_store_that_holds_instances_is_left_alone(folder: Path) -> None:
    assert run(folder, "stores:used", "-k", "a_client_creates_without")[0] == 0
    code, output = run(folder, "stores:used", "-k", "a_client_creates_without")
    assert code == 1
    assert "the store holds instances already" in output


@pytest.mark.parametrize("store", ["stores:Nothing", "nowhere:Store", "nosuch://x"])
def test_what_cannot_be_a_store_is_told_before_any_test_runs(folder: Path, store: str) -> None:
    code, output = run(folder, store)
    assert code == pytest.ExitCode.USAGE_ERROR
    assert "--perdure-store" in output
    assert store in output


def test_without_a_store_the_tests_say_what_is_missing(folder: Path) -> None:
    code, output = python(folder, *IN_PLACE, "-p", "no:asyncio")
    assert code == 1
    assert "say which store: --perdure-store=URL" in output


# -- in place, beside whatever plugins and conftests

IN_PLACE = [
    *("-m", "pytest", "-q", "-p", "no:langsmith_plugin", "-p", "no:cacheprovider", "--pyargs"),
    *("perdure.testing.conformance", "-p", "perdure.testing.conformance.plugin", "-k", "empty_batch or same_id"),
]
FUNCTION = ["-o", "asyncio_default_fixture_loop_scope=function"]


@pytest.mark.parametrize(
    "options",
    [
        [*FUNCTION, "-o", "asyncio_mode=auto"],
        [*FUNCTION, "-o", "asyncio_mode=strict", "--import-mode=importlib"],
        ["-p", "no:asyncio", "-o", "anyio_mode=auto"],
        ["-p", "no:asyncio", "-p", "no:anyio", "--strict-markers"],
    ],
    ids=["asyncio-auto", "asyncio-strict", "anyio-auto", "alone"],
)
def test_no_plugin_and_no_fixture_of_the_place_comes_between(folder: Path, options: list[str]) -> None:
    (folder / "conftest.py").write_text("import pytest\n@pytest.fixture\ndef kit():\n    raise RuntimeError\n")
    code, output = python(folder, *IN_PLACE, "--perdure-store=memory://", *options)
    assert code == 0, output
    assert "2 passed" in output


# -- in a test module of one's own


def test_all_tests_come_with_the_import_each_under_a_name_of_its_own() -> None:
    modules = [
        import_module(f"{conformance.__name__}.{found.name}")
        for found in pkgutil.iter_modules(conformance.__path__)
        if found.name.startswith("test_")
    ]
    names = [name for module in modules for name in vars(module) if name.startswith("test_")]
    assert sorted(names) == sorted(set(names))
    assert {"kit", *names} == set(suite.__all__)


def test_the_tests_are_plain_functions() -> None:
    assert not [name for name in suite.__all__ if inspect.iscoroutinefunction(getattr(suite, name))]
