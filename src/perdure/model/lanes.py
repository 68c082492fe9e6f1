"""Queues and lanes. A queue is a name for who runs something; a lane is what a claim looks for: a flow on a queue.

Stores compare lanes and know nothing of queues. Only here it is known how a lane is written.
"""

from __future__ import annotations

from typing import Final

MARK: Final = "\x1f"
"""What a lane with a queue begins with, and no flow's name may."""


def lane_of(flow: str, queue: str) -> str:
    """The lane of the flow on this queue; without one ("") the flow's name itself, the same object."""
    return f"{MARK}{queue}{MARK}{flow}" if queue else flow


def queue_of(lane: str) -> str:
    """The queue in the lane; "" if it names none."""
    return lane[1:].partition(MARK)[0] if lane.startswith(MARK) else ""


def check_flow_name(name: str) -> None:
    """Nothing is wrong with the name of a flow that is to make a lane. Raises ValueError if it would be taken for one."""
    if name.startswith(MARK):
        raise ValueError(f"a flow's name cannot begin with {MARK!r}, as lanes with a queue do: {name[:40]!r}")
