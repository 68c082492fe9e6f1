"""A child process that does not outlive its supervisor, and tells it when it is ready."""

import asyncio
import json
import os
import sys
from collections.abc import Callable
from typing import Any


def end_with_parent(end: Callable[[], object]) -> None:
    """`end` is called when the supervisor is gone, however it went: its end of our standard input closes with it."""
    loop = asyncio.get_running_loop()
    descriptor = sys.stdin.fileno()

    def readable() -> None:
        if not os.read(descriptor, 4096):
            loop.remove_reader(descriptor)
            end()

    loop.add_reader(descriptor, readable)


def say_ready(**facts: Any) -> None:
    """The supervisor can read that this process takes requests."""
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()
