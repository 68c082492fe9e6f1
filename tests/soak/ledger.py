"""What the steps did, kept outside of the engine: one line for each time a step ran, in a file that all replicas append to.

A line says where in a program the step stands (`place`), its idempotency key, the attempt, what it was given, and the
process. `Ledger.read` is for the driver.
"""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

_file = -1


@dataclass
class Effects:
    """What was done at one place."""

    lines: int = 0
    values: dict[str, set[str]] = field(default_factory=dict[str, set[str]])
    """By idempotency key: what the step was given."""
    attempts: set[int] = field(default_factory=set[int])


class Ledger:
    """Reads the file on, as it grows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines = 0
        self.places: defaultdict[str, Effects] = defaultdict(Effects)
        self._read = 0
        path.touch()

    def read(self) -> int:
        """All that is in the file now is known; gives how many lines that is."""
        with self.path.open("rb") as file:
            file.seek(self._read)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.decode().splitlines():
            place, key, attempt, value, _process = line.split("\t")
            effects = self.places[place]
            effects.lines += 1
            effects.values.setdefault(key, set()).add(value)
            effects.attempts.add(int(attempt))
            self.lines += 1
        return self.lines


def write_to(path: Path) -> None:
    """`note` writes to this file from now on, in this process."""
    global _file
    _file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def note(place: str, key: str, attempt: int, value: object) -> None:
    """The effect has happened, in one write: whole or not at all."""
    os.write(_file, f"{place}\t{key}\t{attempt}\t{value}\t{os.getpid()}\n".encode())
