"""PD303: here `as_completed` is taken when perdure is imported already."""

import perdure
from asyncio import as_completed

from perdure import flow


@flow
async def completed(work: list[perdure.Step[[], int]]) -> None:
    for future in as_completed([one() for one in work]):  # near PD303
        await future
