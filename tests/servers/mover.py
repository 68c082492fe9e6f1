"""`python -m tests.servers.mover SOURCE TARGET`: a copy in a process of its own, which goes on page by page when it is told to.

Prints a line after each page that it has copied or compared, and waits for one.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from perdure.stores.moving import copy
from perdure.stores.open import open_store


def told(table: str, rows: int) -> None:
    """Asks whether to go on."""
    print(table, rows, flush=True)
    sys.stdin.readline()


async def main() -> None:
    """See the module."""
    source: Any = open_store(sys.argv[1])
    target: Any = open_store(sys.argv[2])
    await copy(source, target, told)


if __name__ == "__main__":
    asyncio.run(main())
