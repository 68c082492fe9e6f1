"""Random programs in simulated clusters keep every promise, whatever goes wrong; and the simulator finds planted bugs."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from perdure import delay, flow, receive, step
from perdure.testing.simulating import SimulationFailed, simulate
from perdure.testing.world import World
from tests.testing.simulation import plants
from tests.testing.simulation.many import simulated

FOUND = [int(line) for line in Path(__file__).with_name("seeds.txt").read_text().splitlines() if line[:1].isdigit()]
SEEDS = 200


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logger = logging.getLogger("perdure")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    yield
    logger.setLevel(before)


@pytest.mark.parametrize("first", range(0, SEEDS, 20))
async def test_no_promise_is_broken(first: int) -> None:
    assert (await simulated(list(range(first, first + 20)))).seeds == 20


async def test_what_has_found_a_bug_finds_it_no_more() -> None:
    await simulated(FOUND)


PLANTS = [plants.fence_not_checked, plants.key_forgotten, plants.gate_left_open, plants.unknown_is_done]


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
async def test_a_planted_bug_is_found(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    with pytest.raises(SimulationFailed) as failed:
        await simulated(list(range(300)))
    assert failed.value.why


STORY = (
    "import asyncio, logging; logging.getLogger('perdure').setLevel(100)\n"
    "from perdure.testing.simulating import simulate\n"
    "from tests.testing.simulation import programs\n"
    "from tests.testing.simulation.many import FLOWS\n"
    "def tells(world):\n"
    "    for seen in world.instances: print(seen.journal)\n"
    "    programs.invariant(world)\n"
    "asyncio.run(simulate(programs.program, flows=FLOWS, seeds=[7, 11], invariant=tells, effects=programs.ledger))"
)


def test_a_seed_makes_the_same_life_in_every_process() -> None:
    told = set[str]()
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", STORY], capture_output=True, text=True, check=True, timeout=50, env=environment
        )
        told.add(done.stdout)
    assert len(told) == 1
    assert told.pop()


@step
async def reserve(item: str) -> str:
    return f"{item} is reserved"


@flow
async def order(item: str) -> str:
    reserved = await reserve(item)
    await receive(str)
    await delay(30)
    return reserved


async def buys(world: World) -> None:
    handle = await world.start(order, "book", id="1")
    await world.sleep(20)
    await handle.send("paid", key="paid")
    await handle.result()


async def test_it_is_far_faster_than_time() -> None:
    begun = time.process_time()
    lived = await simulate(buys, flows=[order], seeds=range(10))
    assert lived.seconds / (time.process_time() - begun) > 300  # some 3,000 when the machine has nothing else to do
