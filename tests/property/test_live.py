"""Generated programs on a real engine, with steps and messages at moments of chance; then their journal is replayed.

Once the flow stays in memory, once it is unloaded whenever it waits.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, note

from perdure import Engine, State
from perdure.model.records import Loaded
from perdure.stores.memory import MemoryStore
from tests.property import programs
from tests.property.pool import Worker, workers
from tests.property.programs import Ping, Text, child, program, traces
from tests.property.simulation import Saved
from tests.property.strategies import PLANS, PROGRAMS, Node
from tests.property.test_replay import EXAMPLES, checked, loose
from tests.property.worker import packed
from tests.support.clock import manual_system

ROUNDS = 150
"""A program that has not ended after so many moments is cancelled."""


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with workers(7) as pool:
        yield pool[0]


async def live(node: Node, plan: dict[str, Any], *, eager: bool) -> tuple[Loaded, list[Any]]:
    """The journal and the trace of one life of the program."""
    chance = random.Random(plan["seed"])
    clock, system = manual_system()
    store = MemoryStore(system)
    to_send = list(plan["messages"])
    programs.pace = chance
    engine = Engine(store, flows=[program, child], drain=0, **({"max_resident": 1} if eager else {}))
    if eager:
        msgspec.structs.force_setattr(engine._settings, "max_resident", 0)
    try:
        async with engine:
            handle = await engine.start(program, node, id="one")
            for number in range(ROUNDS + 50):
                row = await store.instance(program.name, "one")
                if row is None or row.state.ended or row.state is State.BLOCKED:
                    break
                if number == ROUNDS or number == plan["cancel_after"]:
                    await handle.cancel()
                if to_send and chance.random() < 0.2:
                    kind, value, name = to_send.pop(0)
                    await handle.send(Ping(value) if kind == "ping" else Text(str(value)), name=name)
                if chance.random() < 0.5:
                    clock.advance(chance.choice([0.25, 1, 4, 30]))
                await asyncio.sleep(0.002)
            row = await store.instance(program.name, "one")
            assert row is not None
            trace = json.loads(json.dumps(traces["one"]))  # as the worker's comes back
            return (await store.load([row.uid]))[0], trace
    finally:
        programs.pace = None


@pytest.mark.timeout(0 if EXAMPLES else 120)
@pytest.mark.parametrize("eager", [False, True])
def test_what_a_real_engine_recorded_replays_alike(worker: Worker, eager: bool) -> None:
    @checked(60)
    @given(node=PROGRAMS, plan=PLANS)
    def check(node: Node, plan: dict[str, Any]) -> None:
        loaded, trace = asyncio.run(live(node, plan, eager=eager))
        row = loaded.instance
        note(f"{row.state} {row.reason}, {len(loaded.entries)} entries")
        assert "NonDeterminismError" not in (row.reason or "")
        saved = Saved(row.uid, row.arguments, loaded.entries[-1].at, loaded.entries, loaded.pending, loaded.inbox)
        nothing = {"seed": 0, "messages": [], "cancel_after": None}
        report = worker.do(
            do="replay", saved=packed(saved), plan=nothing, only=True, paged=bool(len(saved.entries) % 2)
        )
        if report["state"] == "blocked: NonDeterminismError":
            assert loose(node), report["problem"]
        elif row.state.ended:
            assert report["trace"] == trace
            assert report["state"] == row.state.value
            assert report["started"] == []
        else:
            assert report["trace"] == trace[: len(report["trace"])]

    check()
