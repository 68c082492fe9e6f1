"""Random programs in simulated clusters keep every promise, whatever goes wrong; and the simulator finds planted bugs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from perdure import delay, flow, receive, step
from perdure.testing import World, simulate
from perdure.testing.trials import tried
from tests.testing.simulation import plants
from tests.testing.simulation.many import SETTING, simulated

FOUND = [int(line) for line in Path(__file__).with_name("seeds.txt").read_text().splitlines() if line[:1].isdigit()]
SEEDS = 200


@pytest.mark.parametrize("first", range(0, SEEDS, 20))
async def test_no_promise_is_broken(first: int) -> None:
    assert (await simulated(list(range(first, first + 20)))).seeds == 20


async def test_what_has_found_a_bug_finds_it_no_more() -> None:
    await simulated(FOUND)


@pytest.mark.parametrize("plant", plants.PLANTS, ids=lambda plant: plant.__name__)
def test_a_planted_bug_is_found(plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    assert any(tried(SETTING, seed).broken for seed in range(400))


STORY = """
from perdure.testing.trials import tried
from tests.testing.simulation.many import SETTING
for seed in range(3, 9):
    print(*tried(SETTING, seed, told=True).events, sep="\\n")
"""


def test_a_seed_does_the_same_in_every_process() -> None:
    told = set[str]()
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", STORY], capture_output=True, text=True, check=True, timeout=50, env=environment
        )
        told.add(done.stdout)
    assert len(told) == 1
    assert told.pop().count("\n") > 500


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
    assert lived.seconds / (time.process_time() - begun) > 1000
