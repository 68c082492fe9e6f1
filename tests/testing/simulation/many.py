"""`make simulate`: random programs in simulated clusters, many seeds, on all processors. The first failure is told whole."""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import sys
import time

from perdure.testing import Simulated, SimulationFailed, simulate
from perdure.testing.faults import KINDS
from perdure.testing.plays import Effects
from perdure.testing.trials import Setting
from tests.testing.simulation import programs

CHUNK = 20
FLOWS = (programs.walk, programs.counter, programs.listener, programs.sleeper)
SETTING = Setting(
    program=programs.program, flows=FLOWS, invariant=programs.invariant, effects=Effects.of(programs.ledger),
    given=programs.ledger, replicas=3, kinds=frozenset(KINDS), limit=600.0, may_block=False, options={},
)  # fmt: skip
"""The same, for one trial."""


async def simulated(seeds: list[int]) -> Simulated:
    """The random programs of these seeds were gone through."""
    return await simulate(
        programs.program, flows=FLOWS, seeds=seeds, invariant=programs.invariant, effects=programs.ledger
    )


def chunk(seeds: list[int]) -> tuple[Simulated | None, str]:
    """What these seeds gave, or what is told of the first that failed."""
    try:
        return asyncio.run(simulated(seeds)), ""
    except SimulationFailed as failed:
        return None, str(failed)


def main() -> int:
    """The exit code: 0 if no seed has failed."""
    reading = argparse.ArgumentParser(prog="make simulate ARGS=...")
    reading.add_argument("--seeds", type=int, default=10_000, help="how many")
    reading.add_argument("--first", type=int, default=0, help="the first of them")
    given = reading.parse_args()
    seeds = list(range(given.first, given.first + given.seeds))
    chunks = [seeds[i : i + CHUNK] for i in range(0, len(seeds), CHUNK)]
    done, faults, virtual, begun = 0, 0, 0.0, time.monotonic()
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        for found, told in pool.imap_unordered(chunk, chunks):
            if found is None:
                print(f"\n{told}", file=sys.stderr)
                return 1
            done, faults, virtual = done + found.seeds, faults + found.faults, virtual + found.seconds
            took = time.monotonic() - begun
            print(
                f"\r{done:,} of {len(seeds):,} seeds, {faults:,} faults, {virtual:,.0f} virtual s in {took:,.0f} s",
                end="",
                flush=True,
            )
    print()
    return 0
