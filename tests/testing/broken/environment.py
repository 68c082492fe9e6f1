"""The environment is read in the flow; the process that replays may have another: only the lint sees it."""
# ruff: noqa

import os
from typing import Any

from perdure import capture, flow, step

sent: set[str] = set()


@step
async def send_to(region: str) -> None:
    sent.add(region)


@flow
async def broken() -> None:
    await send_to(os.environ.get("REGION", "eu"))  # <- PD201


@flow
async def mended() -> None:
    await send_to(await capture(os.environ.get, "REGION", "eu"))


ARGS = ()
OPTIONS: dict[str, Any] = {"effects": sent}
