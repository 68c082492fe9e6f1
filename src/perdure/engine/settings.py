"""What an engine is told once, as its parts need it."""

from __future__ import annotations

import msgspec

from perdure.api.current import FlowMiddleware
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

    def __post_init__(self) -> None:
        if self.lease <= 0 or self.stall_limit <= 0:
            raise ValueError("lease and stall_limit must be positive")
        if self.max_resident < 0 or self.max_running < 1:
            raise ValueError("max_resident must be at least 0, and max_running at least 1")
