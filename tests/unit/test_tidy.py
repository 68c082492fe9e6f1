"""The house rules that no linter knows: the public names, the sizes, what an import may load."""

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

import perdure

ROOT = Path(__file__).parents[2]
SRC = ROOT / "src" / "perdure"

FILE_LINES = 600
FUNCTION_LINES = 70
CORE_STATEMENTS = 10_350  # engine, api, model, memory and SQLite: 6,500 run flows, the rest mends, keeps and moves them
MYSQL_STATEMENTS = 2_800
POSTGRES_STATEMENTS = 2_350

PUBLIC_NAMES = [
    "AlreadyStarted",
    "AnyFlow",
    "Codec",
    "Cron",
    "Current",
    "DoesNotFit",
    "DuplicateId",
    "Duration",
    "Engine",
    "EngineClosed",
    "Entries",
    "FlowCancelled",
    "FlowFailed",
    "FlowFunction",
    "FlowMiddleware",
    "FlowWarning",
    "ForkedEngine",
    "Handle",
    "Health",
    "Inbox",
    "Info",
    "InitialState",
    "InstanceNotFound",
    "LeaseLost",
    "NonDeterminismError",
    "NotDurable",
    "NotEncodable",
    "NotInFlow",
    "NotOurs",
    "NotRegistered",
    "NotSupported",
    "OutcomeUnknown",
    "Outdated",
    "Outgoing",
    "Panel",
    "PayloadTooLarge",
    "PerdureError",
    "Retry",
    "Spins",
    "State",
    "Step",
    "StepFailed",
    "Store",
    "StoreCorrupt",
    "StoreFull",
    "StoreRefused",
    "StoreUnavailable",
    "Stream",
    "SyncEngine",
    "SyncHandle",
    "SyncPanel",
    "Tx",
    "UnknownType",
    "WaitsForNothing",
    "cancel",
    "capture",
    "continue_as_new",
    "current",
    "delay",
    "expose",
    "exposed",
    "flow",
    "get_logger",
    "handle",
    "logger",
    "messages",
    "new_uuid",
    "now",
    "patched",
    "receive",
    "rng",
    "run",
    "send",
    "send_many",
    "start",
    "start_many",
    "step",
    "transaction",
    "type_name",
]


def sources(*rooms: str) -> Iterator[Path]:
    """Every Python file of the given rooms of the package, or of all of it."""
    for root in [SRC / room for room in rooms] or [SRC]:
        yield from sorted(root.rglob("*.py"))


def lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines()


def test_the_public_names_are_these_and_sorted() -> None:
    assert list(perdure.__all__) == sorted(perdure.__all__)
    assert list(perdure.__all__) == PUBLIC_NAMES


@pytest.mark.parametrize("name", PUBLIC_NAMES)
def test_every_public_name_is_there(name: str) -> None:
    assert hasattr(perdure, name)


def test_the_package_says_that_it_is_typed() -> None:
    assert (SRC / "py.typed").exists()


def test_no_file_is_too_long() -> None:
    long = {str(file.relative_to(ROOT)): len(lines(file)) for file in sources() if len(lines(file)) > FILE_LINES}
    assert not long, f"over {FILE_LINES} lines: {long}"


def test_no_function_is_too_long() -> None:
    long = {
        f"{file.relative_to(ROOT)}:{node.lineno} {node.name}": node.end_lineno - node.lineno + 1
        for file in sources()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > FUNCTION_LINES
    }
    assert not long, f"over {FUNCTION_LINES} lines: {long}"


def test_the_core_stays_small() -> None:
    core = list(sources("engine", "api", "stores", "model"))
    postgres = [file for file in core if "postgres" in file.parts]
    mysql = [file for file in core if "mysql" in file.parts]
    assert sum(map(statements, mysql)) < MYSQL_STATEMENTS
    assert sum(map(statements, postgres)) < POSTGRES_STATEMENTS
    assert sum(map(statements, set(core) - {*postgres, *mysql})) < CORE_STATEMENTS


def statements(file: Path) -> int:
    """Logical lines, without docstrings: what the formatter wraps over several lines counts once."""
    source = file.read_text(encoding="utf-8")
    logical = sum(token.type == tokenize.NEWLINE for token in tokenize.generate_tokens(io.StringIO(source).readline))
    docstrings = sum(
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for node in ast.walk(ast.parse(source))
    )
    return logical - docstrings


def test_nothing_is_left_for_later() -> None:
    mark = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")
    folders = [SRC, *(ROOT / name for name in ("tests", "examples", "benchmarks", "scripts"))]
    left = [
        f"{file.relative_to(ROOT)}:{number} {line.strip()}"
        for folder in folders
        for file in sorted(folder.rglob("*.py"))
        for number, line in enumerate(lines(file), 1)
        if mark.search(line)
    ]
    assert not left


def test_no_room_goes_in_by_the_front_door() -> None:
    """Taking a name from the public face inside the package runs every room; the layers contract does not see it."""
    wrong = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for file in sources()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom | ast.Import) and enters_by_the_front_door(node, file)
    ]
    assert not wrong


def enters_by_the_front_door(node: ast.ImportFrom | ast.Import, file: Path) -> bool:
    """`from perdure import errors` (or `from .. import errors`) takes a room, which is fine; `import Retry` a name."""
    if isinstance(node, ast.Import):
        return any(alias.name == "perdure" for alias in node.names)
    depth = len(file.relative_to(SRC).parts)
    from_face = node.module == "perdure" if node.level == 0 else node.module is None and node.level == depth
    rooms = {path.stem for path in SRC.iterdir()}
    return from_face and any(alias.name not in rooms for alias in node.names)


def test_importing_perdure_loads_nothing_optional() -> None:
    code = "import sys, perdure; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "perdure" in loaded
    optional = {"pydantic", "anyio", "rich", "hypothesis", "pytest", "langgraph", "pydantic_ai", "click"}
    assert not loaded & optional
