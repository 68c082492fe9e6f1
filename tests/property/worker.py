"""A process with a hash seed of its own that runs programs: one JSON line in, one JSON line out.

A job is {"do": "first", "program", "plan"} or {"do": "replay", "saved", "plan", "only",
"paged"}.
"""

from __future__ import annotations

import base64
import faulthandler
import gc
import json
import logging
import sys
import traceback
from typing import Any

import msgspec

from tests.property.simulation import Saved, Simulation, fresh

JOB_SECONDS = 20
"""A job that takes longer hangs: the process ends and says where."""
UID = bytes(range(16))


def packed(saved: Saved) -> str:
    return base64.b64encode(msgspec.msgpack.encode(saved)).decode()


def unpacked(text: str) -> Saved:
    return msgspec.msgpack.decode(base64.b64decode(text), type=Saved)


def first(program: Any, plan: dict[str, Any]) -> dict[str, Any]:
    """The live run, and what is left of it when it is cut: `cuts` are places between 0 and 1."""
    simulation = Simulation(fresh(program, UID), plan)
    simulation.run()
    report = simulation.report()
    report["whole"] = packed(simulation.cut(len(simulation.writes)))
    places = sorted(simulation.boundaries)
    report["cuts"] = [cut_at(simulation, places[min(int(c * len(places)), len(places) - 1)]) for c in plan["cuts"]]
    report["entries"] = len(simulation.marks)
    return report


def cut_at(simulation: Simulation, n: int) -> dict[str, Any]:
    following = [mark for mark in simulation.marks if mark[0] >= n]
    if following:
        _, length, asked, key = following[0]
        expected = [length, sorted([*asked, key] if key else asked)]
    else:
        expected = None
    return {"at": n, "saved": packed(simulation.cut(n)), "expected": expected, "left": simulation.plan_left(n)}


def replay(saved: Saved, plan: dict[str, Any], *, only: bool, paged: bool) -> dict[str, Any]:
    simulation = Simulation(saved, plan, paged=paged)
    if only:
        simulation.replay_only()
    else:
        simulation.run()
    report = simulation.report()
    report["whole"] = packed(simulation.cut(len(simulation.writes)))
    return report


def answer(job: dict[str, Any]) -> dict[str, Any]:
    if job["do"] == "first":
        return first(job["program"], job["plan"])
    return replay(unpacked(job["saved"]), job["plan"], only=job["only"], paged=job["paged"])


def main() -> None:
    logging.disable(logging.CRITICAL)
    gc.disable()
    for number, line in enumerate(sys.stdin):
        faulthandler.dump_traceback_later(JOB_SECONDS, exit=True)
        try:
            report = answer(json.loads(line))
        except BaseException:
            report = {"broken": traceback.format_exc()}
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps(report), flush=True)
        if number % 20 == 0:
            gc.collect()


if __name__ == "__main__":
    main()
