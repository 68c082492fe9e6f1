"""What `state.py` imports: globals of another file."""

import asyncio

VISITS: list[str] = []
RATES = {"EUR": 1.0}
LIMITS: dict[str, int] = {}
GATE = asyncio.Semaphore(2)


def load(limits: dict[str, int]) -> None:
    LIMITS.update(limits)
