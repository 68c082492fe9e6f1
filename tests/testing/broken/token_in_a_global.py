"""One flow leaves a token in a global for another, which a new process does not have."""
# ruff: noqa

from typing import Any

from perdure import flow, step

token = ""
calls: set[str] = set()


@step
async def fetch_token() -> str:
    return "t0k3n"


@step
async def call_api(token: str) -> str:
    calls.add(token)
    return f"called with {token}"


@flow
async def log_in() -> None:
    global token
    token = await fetch_token()  # <- here, PD401


@flow
async def broken() -> str:
    await log_in()
    return await call_api(token)  # <- PD401


@flow
async def log_in_and_tell() -> str:
    return await fetch_token()


@flow
async def mended() -> str:
    return await call_api(await log_in_and_tell())


ARGS = ()
OPTIONS: dict[str, Any] = {"effects": calls}
