"""What the engine tells about instances and about itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, final

from perdure.clock import to_datetime
from perdure.model.lanes import queue_of
from perdure.model.records import Instance, State


def shown(row: Instance) -> State:
    """The state as people see it: a parked instance is suspended, whoever holds it."""
    return State.SUSPENDED if row.state is State.RUNNING and row.waiting else row.state


_LATEST: Final = 253402214400.0
"""The last day that a datetime can say in every time zone: 9999-12-31."""


@final
class Info:
    """One instance as `find` lists it."""

    __slots__ = ("created_at", "due_at", "flow", "id", "queue", "reason", "state")

    def __init__(self, row: Instance) -> None:
        self.flow = row.flow
        self.id = row.id
        self.queue = queue_of(row.lane)
        self.state = shown(row)
        self.due_at = None if row.due_at is None else to_datetime(min(row.due_at, _LATEST))
        self.created_at = to_datetime(row.created_at)
        self.reason = row.reason if row.state is State.BLOCKED else None

    def __repr__(self) -> str:
        return f"<{self.flow} {self.id!r} {self.state.value}{': ' + self.reason if self.reason else ''}>"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What `health()` saw; it raises `StoreUnavailable` or `LeaseLost` when flows cannot go on."""

    replica: str
    lease_left: timedelta
    paused: str | None
    """Why nothing is claimed or delivered now; None: nothing is wrong."""
    loop_lag: timedelta
    running: int
    parked: int
    blocked: int
    """Instances that this engine has set aside since it started."""
    hung: Sequence[int]
    """Processes that hold the database and do not go on; `kill_hung=True` would end them."""
