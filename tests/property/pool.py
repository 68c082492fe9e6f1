"""A few long-lived processes, each with a hash seed of its own, that run jobs (see `worker`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


class Worker:
    """One process; a job is sent and its report read."""

    def __init__(self, hash_seed: int) -> None:
        environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed), "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.property.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env=environment,
            text=True,
        )

    def do(self, **job: Any) -> dict[str, Any]:
        """The report of the job; fails with the process's traceback if it broke."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, f"the process ended with {self.process.wait()}"
        report: dict[str, Any] = json.loads(line)
        assert "broken" not in report, report["broken"]
        return report

    def close(self) -> None:
        """The process has ended."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.kill()
        self.process.wait()


@contextmanager
def workers(*hash_seeds: int) -> Iterator[list[Worker]]:
    """Processes with these hash seeds."""
    pool = [Worker(seed) for seed in hash_seeds]
    try:
        yield pool
    finally:
        for worker in pool:
            worker.close()
