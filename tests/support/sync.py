"""What tests of `SyncEngine` share: two flows, every call, and waiting without a loop."""
# pyright: reportPrivateUsage=false

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from perdure import Outgoing, capture, flow, receive
from perdure.engine.sync_engine import SyncEngine, SyncHandle, SyncPanel

LIMIT_S = 20


def engine_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "perdure-engine"]


def until(condition: Callable[[], object]) -> None:
    """The condition holds; fails if it does not in time."""
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.002)


def waiting(engine: SyncEngine) -> int:
    """How many calls wait for an answer."""
    assert engine._life is not None
    return len(engine._life._answers)


@flow(name="adds")
async def adds(a: int, b: int = 10) -> int:
    return await capture(lambda: a + b)


@flow(name="waits")
async def waits() -> str:
    return await receive(str)


def every_call(engine: SyncEngine) -> dict[str, Callable[[], Any]]:
    """Each method that asks the engine's thread, called as a user may."""
    return {
        "start": lambda: engine.start(adds, 1, id="1"),
        "run": lambda: engine.run(adds, 1, id="1"),
        "start_many": lambda: engine.start_many(adds, [("1", 1)]),
        "send": lambda: engine.send(waits, "1", "it"),
        "send_many": lambda: engine.send_many(waits, [Outgoing("1", "it")]),
        "handle": lambda: engine.handle(adds, "1"),
        "find": lambda: engine.find(adds),
        "cancel": lambda: engine.cancel(adds, "1"),
        "health": lambda: engine.health(),
        "panel": lambda: engine.panel(adds, "1"),
        "restart": lambda: engine.restart(adds, "1"),
        "delete": lambda: engine.delete(adds, "1"),
        "schedule": lambda: engine.schedule(adds, 60, 1, id="1"),
        "unschedule": lambda: engine.unschedule("1"),
    }


def every_handle_call(handle: SyncHandle[Any]) -> dict[str, Callable[[], Any]]:
    return {
        "result": lambda: handle.result(timeout=LIMIT_S),
        "send": lambda: handle.send("it"),
        "state": lambda: handle.state(),
        "exposed": lambda: handle.exposed(),
        "cancel": lambda: handle.cancel(),
    }


def every_panel_call(panel: SyncPanel[Any]) -> dict[str, Callable[[], Any]]:
    return {
        "save": lambda: panel.save(),
        "restart": lambda: panel.restart(),
        "succeed": lambda: panel.succeed(),
        "fail": lambda: panel.fail(ValueError("no")),
        "postpone": lambda: panel.postpone(1),
        "delete": lambda: panel.delete(),
        "refresh": lambda: panel.refresh(),
    }
