"""The shard is the hash of a text, which each process makes another: only the lint sees it."""
# ruff: noqa

import zlib
from typing import Any

from perdure import flow, step

shards: set[int] = set()


@step
async def write(shard: int, customer: str) -> None:
    shards.add(shard)


@flow
async def broken(customer: str) -> None:
    await write(hash(customer) % 4, customer)  # <- PD105


@flow
async def mended(customer: str) -> None:
    await write(zlib.crc32(customer.encode()) % 4, customer)


ARGS = ("ada",)
OPTIONS: dict[str, Any] = {"effects": shards}
