"""What an engine is told once, as its parts need it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from perdure.api.current import FlowMiddleware
from perdure.api.flow import FlowFunction
from perdure.model.lanes import lane_of
from perdure.model.retry import Retry


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What the scheduler is told once. Durations are in seconds."""

    max_resident: int
    max_running: int
    unload_after: float | None
    lease: float
    stall_limit: float
    kill_hung: bool
    drain: float
    retention: float | None
    version: str
    default_retry: Retry | None
    step_middleware: tuple[FlowMiddleware, ...] = ()
    queues: tuple[str, ...] | None = ("",)
    """Which are served, "" for what names none; None: they do not count, and all are one."""

    def __post_init__(self) -> None:
        if self.lease <= 0 or self.stall_limit <= 0:
            raise ValueError("lease and stall_limit must be positive")
        if self.max_resident < 0 or self.max_running < 1:
            raise ValueError("max_resident must be at least 0, and max_running at least 1")

    def lane(self, flow: str, queue: str) -> str:
        """The lane of the flow on this queue."""
        return flow if self.queues is None else lane_of(flow, queue)

    def lanes(self, flows: Mapping[str, FlowFunction[..., Any]]) -> dict[str, str]:
        """The lanes that are served if these flows run here, each with the identity of the flow's code."""
        queues = ("",) if self.queues is None else self.queues
        versions = {name: flow.version or self.version for name, flow in flows.items()}
        return {lane_of(name, queue): version for queue in queues for name, version in versions.items()}
