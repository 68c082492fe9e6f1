"""The services' ledgers: what each was asked and what it did, a JSON line each, written before the answer."""

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One request as its service saw it.

    `key` is the idempotency key of the step that asked, `attempt` the step's attempt, `generation` counts the lives of
    the order service. `effect`: this request changed the world; `repeat`: it had been changed so before.
    """

    op: str
    order: str
    key: str = ""
    attempt: int = 0
    generation: int = 0
    status: int = 200
    effect: bool = False
    repeat: bool = False
    transaction: str = ""
    amount: str = ""
    currency: str = ""
    tracking: str = ""
    units: int = 0


class Ledger:
    """An append-only file of records."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def append(self, record: Record) -> None:
        """The record is in the file, and there also if this process dies now."""
        given = {name: value for name, value in dataclasses.asdict(record).items() if value not in ("", None)}
        line = json.dumps(given, ensure_ascii=False).encode() + b"\n"
        if os.write(self._fd, line) != len(line):
            raise OSError("the ledger took only a part of a line")

    def close(self) -> None:
        """The file is closed."""
        os.close(self._fd)


def read_ledger(path: Path) -> list[Record]:
    """All records, in the order in which they were written."""
    with path.open(encoding="utf-8") as lines:
        records: list[dict[str, Any]] = [json.loads(line) for line in lines]
    return [Record(**record) for record in records]
