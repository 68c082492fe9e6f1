"""`perdure check` as it is called: a process of its own, beside an engine that runs on the same file."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

import pytest

ROOT = Path(__file__).parents[3]
COMMAND = [sys.executable, "-m", "perdure.cli", "check"]

APP = """
import asyncio, os, sys, time
from perdure import Engine, SyncEngine, flow, receive, step

@step
async def charge(n: int) -> int:
    return n

@step
async def refund(n: int) -> int:
    return n

@flow
async def order(n: int) -> str:
    print("the flow's own words")
    hang()
    await {call}(n)
    return await receive(str)

@flow(name="mail")
async def mail() -> str:
    return await receive(str)

def hang():
    if "PERDURE_TEST_HANG" in os.environ:
        os.write(2, b"hangs\\n")
        time.sleep(60)

engine = Engine("sqlite:///shop.db", flows=[order{more}])

def make():
    return SyncEngine("sqlite:///shop.db", flows=[order, mail])

async def main():
    async with engine:
        for n in range(2):
            await engine.start(order, n, id=f"o-{{n}}")
        await engine.start(mail, id="m")
        while [i async for i in engine.find() if i.state.value != "suspended"]:
            await asyncio.sleep(0.01)
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        await engine.send(order, "o-1", "go")
        print(await engine.handle(order, "o-1").result(), flush=True)

if __name__ == "__main__":
    asyncio.run(main())
"""
OLD = APP.format(call="charge", more=", mail")
NEW = APP.format(call="refund", more="")


class Shop:
    """A folder with a program, and the program running."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.app = folder / "shop.py"
        self.app.write_text(OLD)
        self.process = subprocess.Popen(
            [sys.executable, "shop.py"], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "PYTHONDONTWRITEBYTECODE": "1"},
        )  # fmt: skip

    def __enter__(self) -> Shop:
        try:
            while self.line() != "ready":
                assert self.process.poll() is None, self.process.returncode
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            cast("IO[str]", stream).close()

    def line(self) -> str:
        return cast("IO[str]", self.process.stdout).readline().strip()

    def check(self, *args: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *args], cwd=self.folder, capture_output=True, text=True, timeout=30, check=False,
            env=self.environment(**environment),
        )  # fmt: skip

    def environment(self, **more: str) -> dict[str, str]:
        # without it Python may take the old bytecode for that of a file of the same size and second
        return os.environ | {"PYTHONDONTWRITEBYTECODE": "1"} | more

    def dump(self) -> list[str]:
        db = sqlite3.connect(f"file:{self.folder / 'shop.db'}?mode=ro", uri=True)
        try:
            return list(db.iterdump())
        finally:
            db.close()

    def replicas(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "shop.db-replicas").iterdir())

    def goes_on(self) -> str:
        """What the running program's flow returns in the end."""
        stdin = cast("IO[str]", self.process.stdin)
        stdin.write("\n")
        stdin.flush()
        return self.line()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    with Shop(tmp_path_factory.mktemp("shop")) as shop:
        yield shop


@pytest.fixture
def shop(running: Shop) -> Iterator[Shop]:
    """The program that runs, its source as it is; nothing that is done changes what it holds."""
    running.app.write_text(OLD)
    before, replicas = running.dump(), running.replicas()
    yield running
    assert running.dump() == before
    assert running.replicas() == replicas


def test_code_that_fits_exits_with_0(shop: Shop) -> None:
    done = shop.check("shop:engine")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.endswith("perdure check: 3 unfinished instances, 0 would be blocked\n")


def test_a_function_that_gives_an_engine_one_flow_and_a_url(shop: Shop) -> None:
    done = shop.check("shop:make", "--flow", "mail", "--database", f"sqlite:///{shop.folder / 'shop.db'}")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.endswith("perdure check: 1 unfinished instances, 0 would be blocked\n")


def test_code_that_does_not_fit_exits_with_1_and_names_the_lines(shop: Shop) -> None:
    shop.app.write_text(NEW)
    done = shop.check("shop:engine")
    line = NEW.splitlines().index("    await refund(n)") + 1
    assert done.returncode == 1
    *blocked, unserved = done.stdout.splitlines()
    assert [said.partition(": the journal holds step charge (entry 1), and the code asks for step refund")[0]
            for said in blocked] == [
        f"shop.py:{line}: order 'o-{n}' would be blocked: NonDeterminismError: operation 0" for n in range(2)
    ]  # fmt: skip
    assert unserved == "1 unfinished instances of 'mail': the engine has no such flow"
    assert done.stderr.endswith(
        "perdure check: 2 unfinished instances, 2 would be blocked, 1 of flows that the engine has not\n"
    )


def test_what_the_program_prints_is_not_in_the_report(shop: Shop) -> None:
    shop.app.write_text(NEW)
    done = shop.check("shop:engine", "--format", "json")
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert [(one["verdict"], one["flow"], one["id"], one["instances"]) for one in found] == [
        ("blocks", "order", "o-0", 1), ("blocks", "order", "o-1", 1), ("not served", "mail", "", 1),
    ]  # fmt: skip
    line = NEW.splitlines().index("    await refund(n)") + 1
    assert (found[0]["recorded"], found[0]["asked"]) == ("step charge", "step refund")
    assert (found[0]["filename"], found[0]["line"], found[0]["state"]) == (str(shop.app), line, "suspended")
    assert "the flow's own words" in done.stderr


def test_no_findings_as_json(shop: Shop) -> None:
    assert json.loads(shop.check("shop:engine", "--format", "json").stdout) == []


def test_annotations_for_github(shop: Shop) -> None:
    shop.app.write_text(NEW)
    done = shop.check("shop:engine", "--format", "github")
    line = NEW.splitlines().index("    await refund(n)") + 1
    first, _, last = done.stdout.splitlines()
    assert first.startswith(f"::error file=shop.py,line={line},title=perdure check::order 'o-0' would be blocked: ")
    assert last.startswith("::warning title=perdure check::1 unfinished instances of 'mail'")


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["shop"], "'shop' names no engine: write MODULE:NAME"),
        (["nowhere:engine"], "there is no module 'nowhere'"),
        (["shop:other"], "shop has no 'other'"),
        (["shop:order.name"], "shop:order.name is no engine but a str"),
        (["shop:hang"], "shop:hang is no engine but a NoneType"),
        (
            ["shop:engine", "--flow", "none"],
            "no flow 'none' is registered with the engine; registered are: mail, order",
        ),
        (["shop:engine", "--database", "sqlite:///none.db"], "there is no database file"),
        (["shop:engine", "--database", "memory://"], "a memory store lives in its own process alone"),
        (["shop:engine", "--database", "shop.db"], "'shop.db' is no store"),
        (["shop:engine", "--database", "sqlite:///shop.py"], "is damaged (file is not a database)"),
    ],
)
def test_what_cannot_be_checked_exits_with_2(shop: Shop, args: list[str], told: str) -> None:
    done = shop.check(*args)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith("perdure check: ")
    assert told in done.stderr
    assert not (shop.folder / "none.db").exists()


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("import nothing_at_all", "importing shop raised ModuleNotFoundError: No module named 'nothing_at_all'"),
        ("1 / 0", 'shop.py", line 1'),
        ("import sys; sys.exit(0)", "SystemExit came before everything was checked"),
        ("from perdure import Engine; engine = Engine('sqlite:///shop.db')", "the engine has no flows"),
        ("def engine(): raise KeyError('no settings')", "shop:engine() raised KeyError: 'no settings'"),
        (f"{OLD}\ndef hang(): sys.exit(0)", "SystemExit came before everything was checked"),
    ],
)
def test_a_program_that_cannot_be_used_exits_with_2(shop: Shop, source: str, told: str) -> None:
    shop.app.write_text(source)
    done = shop.check("shop:engine")
    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr


@contextlib.contextmanager
def hanging(shop: Shop) -> Iterator[subprocess.Popen[str]]:
    """A check in the middle of the program's own code."""
    environment = shop.environment(PERDURE_TEST_HANG="1")
    command = [*COMMAND, "shop:engine"]
    with subprocess.Popen(command, cwd=shop.folder, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            while cast("IO[str]", process.stderr).readline() != "hangs\n":
                assert process.poll() is None
            yield process
        finally:
            process.kill()


def test_a_check_that_is_killed_leaves_nothing(shop: Shop) -> None:
    with hanging(shop) as process:
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    assert shop.check("shop:engine").returncode == 0


def test_an_interrupted_one_exits_with_2(shop: Shop) -> None:
    shop.app.write_text(f"{OLD}\nhang()")
    with hanging(shop) as process:
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 2
        assert "KeyboardInterrupt came before everything was checked" in cast("IO[str]", process.stderr).read()


def test_a_person_who_waits_sees_how_far_it_is(shop: Shop) -> None:
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [*COMMAND, "shop:engine"], cwd=shop.folder, env=shop.environment(), stdout=subprocess.PIPE, stderr=theirs, check=False
    )  # fmt: skip
    os.close(theirs)
    told = os.read(ours, 10_000).decode()
    os.close(ours)
    assert (done.returncode, done.stdout) == (0, b"")
    assert "3 instances, 0 would be blocked\r" in told


def test_a_database_without_an_engine_is_left_as_it_is(tmp_path: Path) -> None:
    with Shop(tmp_path) as shop:
        assert shop.goes_on() == "go"
        shop.process.wait(30)
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        done = shop.check("shop:engine")
        assert done.returncode == 0, done.stderr
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_the_engine_goes_on_as_if_nobody_had_looked(running: Shop) -> None:
    assert running.check("shop:engine").returncode == 0
    assert running.goes_on() == "go"
