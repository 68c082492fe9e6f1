"""Time and chance that are the same at every replay."""

from __future__ import annotations

import asyncio
import random
from datetime import datetime
from typing import overload
from uuid import UUID

from perdure.api.scope import in_flow
from perdure.clock import Duration, seconds, to_datetime, to_epoch


@overload
async def delay(duration: Duration, /) -> None: ...
@overload
async def delay(*, until: datetime) -> None: ...
async def delay(duration: Duration | None = None, /, *, until: datetime | None = None) -> None:
    """The time has passed, on the store's clock, restarts or not; while it waits the flow costs a row.

    Args:
        duration: from now; not positive = at once.
        until: an aware instant; one in the past = at once.

    Raises:
        NotInFlow: called outside a flow's body (use `asyncio.sleep` there).
    """
    place = in_flow("delay()")
    loop = place.run.loop
    if (duration is None) == (until is None):
        raise TypeError("delay() takes a duration or until=")
    when = loop.time() + seconds(duration) if duration is not None else to_epoch(until)  # type: ignore[arg-type]
    done: asyncio.Future[None] = loop.create_future()
    handle = loop.call_at(max(when, loop.time()), lambda: done.done() or done.set_result(None))
    try:
        await done
    finally:
        handle.cancel()


def now() -> datetime:
    """Flow time, UTC: when the last thing that happened to this flow was recorded. Costs nothing.

    Raises:
        NotInFlow: called outside a flow's body.
    """
    return to_datetime(in_flow("now()").run.now())


def new_uuid() -> UUID:
    """A UUID (version 4) that is the same at every replay and no other call's. Costs nothing.

    Raises:
        NotInFlow: called outside a flow's body.
    """
    return UUID(int=rng().getrandbits(128), version=4)


def rng() -> random.Random:
    """A generator of random numbers, the same at every replay; each call gives another one. Costs nothing.

    Raises:
        NotInFlow: called outside a flow's body.
    """
    place = in_flow("rng()")
    return place.run.random(place)
