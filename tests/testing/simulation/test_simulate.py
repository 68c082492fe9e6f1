"""`simulate`: what it promises to whoever writes a test with it."""

from __future__ import annotations

import asyncio
import random
from typing import Any, NoReturn

import pytest

from perdure import FlowFailed, State, current, delay, flow, receive, start, step
from perdure.testing import SimulationFailed, World, simulate
from perdure.testing.loops import apart
from perdure.testing.plays import Effects
from perdure.testing.simulating import fewest
from perdure.testing.trials import Setting, tried

charges: list[str] = []
applied: dict[str, int] = {}


@step
async def charge(order: str) -> str:
    """Not idempotent: a crash between the charge and its record charges again."""
    charges.append(order)
    await asyncio.sleep(2)
    return f"charged {order}"


@step
async def charge_by_key(order: str) -> str:
    applied[current().key] = applied.get(current().key, 0) + 1
    await asyncio.sleep(0.1)
    return f"charged {order}"


@flow
async def buys(order: str) -> str:
    await receive(str, name="paid")
    return await charge(order)


@flow
async def buys_by_key(order: str) -> str:
    await receive(str, name="paid")
    return await charge_by_key(order)


async def buy(world: World) -> None:
    handle = await world.start("buys", "a", id="a")
    await world.sleep(3 * world.chance.random())
    await handle.send("yes", key="paid", name="paid")
    assert await handle.result() == "charged a"


async def buy_by_key(world: World) -> None:
    for order in ("a", "b"):
        await world.start(buys_by_key, order, id=order)
    for order in ("a", "b"):
        await world.send(buys_by_key, order, "yes", key="paid", name="paid")


def everything_was_charged_once(world: World) -> None:
    assert {seen.id: seen.result for seen in world.instances} == {"a": "charged a", "b": "charged b"}
    assert len(world.effects) == 2


async def test_a_flow_that_is_right_comes_through() -> None:
    done = await simulate(
        buy_by_key, flows=[buys_by_key], seeds=range(30), effects=applied, invariant=everything_was_charged_once
    )
    assert done.seeds == 30
    assert done.faults > 50
    assert done.seconds > 60


def charged_once(world: World) -> bool:
    return len(charges) == 1


async def test_a_flow_that_is_wrong_is_told_with_the_faults_that_do_it_and_no_others() -> None:
    with pytest.raises(SimulationFailed) as caught:
        await simulate(buy, flows=[buys], seeds=range(200), effects=charges, invariant=charged_once, faults={"crash"})
    failed = caught.value
    assert failed.why == "the invariant raised AssertionError: it gave False"
    keys = {fault.key for fault in failed.faults}
    setting = Setting(
        program=buy, flows=(buys,), invariant=charged_once, effects=Effects.of(charges), given=charges, replicas=3,
        kinds=frozenset({"crash"}), limit=600.0, may_block=False, options={},
    )  # fmt: skip
    outcomes = [await apart(lambda k=key: tried(setting, failed.seed, only=frozenset(keys - {k}))) for key in keys]
    assert len(outcomes) >= 1
    assert all(trial.broken is None for trial in outcomes)
    text = str(failed)
    assert f"seed {failed.seed}: " in text
    assert all(str(fault) in text for fault in failed.faults)
    assert text.count("step charge of buys 'a' (1) begins") == 2
    assert text.endswith(f"simulate(..., seeds=[{failed.seed}])")


async def test_a_seed_does_the_same_again() -> None:
    found: list[SimulationFailed] = []
    seeds: Any = range(200)
    for _ in range(2):
        with pytest.raises(SimulationFailed) as caught:
            await simulate(buy, flows=[buys], seeds=seeds, effects=charges, invariant=charged_once)
        found.append(caught.value)
        seeds = [caught.value.seed]
    assert str(found[0]) == str(found[1])
    assert found[0].timeline == found[1].timeline


async def test_only_the_kinds_of_faults_that_are_asked_for_happen() -> None:
    done = await simulate(
        buy,
        flows=[buys],
        seeds=range(50),
        effects=charges,
        invariant=charged_once,
        faults={"message", "wake-up", "clock"},
    )
    assert done.faults > 10
    with pytest.raises(ValueError, match="known are crash, restart, pause"):
        await simulate(buy, flows=[buys], faults={"earthquake"})


async def test_without_faults_nothing_goes_wrong() -> None:
    done = await simulate(buy, flows=[buys], seeds=range(20), effects=charges, invariant=charged_once, faults=())
    assert done.faults == 0


# ---------------------------------------------------------------- what the program and the invariant may do


async def test_what_the_program_raises_fails_the_seed_and_is_the_cause() -> None:
    async def program(world: World) -> NoReturn:
        raise LookupError("of the program's own")

    with pytest.raises(SimulationFailed, match="the program raised LookupError: of the program's own") as caught:
        await simulate(program, flows=[buys], seeds=[7])
    assert isinstance(caught.value.__cause__, LookupError)
    assert "It needs no fault." in str(caught.value)


async def test_an_invariant_may_be_async_and_use_every_verb() -> None:
    async def invariant(world: World) -> None:
        seen = world.instance(buys, "a")
        assert await world.handle(buys, "a").result() == seen.result == "charged a"
        assert seen.state is State.SUCCEEDED
        assert [entry.kind for entry in seen.entries] == ["begun", "receive", "step"]
        assert "✓ 1 step charge → 'charged a'" in seen.journal
        with pytest.raises(LookupError):
            world.instance(buys, "z")

    await simulate(buy, flows=[buys], seeds=range(3), effects=charges, invariant=invariant)


async def test_effects_are_emptied_before_each_seed_and_chance_is_the_seed_s() -> None:
    drawn: list[float] = []
    effects: list[int] = []

    async def program(world: World) -> None:
        assert world.effects is effects
        assert effects == []
        effects.append(1)
        drawn.append(world.chance.random())

    await simulate(program, flows=[buys], seeds=[1, 2, 1], effects=effects)
    assert drawn[0] == drawn[2] != drawn[1]


async def test_options_are_the_engines() -> None:
    sizes: list[int] = []

    class Halves:
        def encode(self, data: bytes) -> bytes:
            sizes.append(len(data))
            return data[::-1]

        def decode(self, data: bytes) -> bytes:
            return data[::-1]

    done = await simulate(
        buy, flows=[buys], seeds=[0], effects=charges, faults=(), codec=Halves(), lease=60, replicas=1, max_resident=0
    )
    assert done.seeds == 1
    assert sizes


async def test_days_cost_little() -> None:
    @flow
    async def sleepy() -> None:
        await delay(3 * 86400)

    async def program(world: World) -> None:
        await world.run(sleepy, id="one")

    done = await simulate(program, flows=[sleepy], seeds=[0], limit=4 * 86400, lease=86400, stall_limit=3600)
    assert done.seconds > 3 * 86400


# ---------------------------------------------------------------- what is always checked


async def test_what_is_blocked_is_told_unless_it_may_be() -> None:
    runs: list[str] = []

    @flow(name="fickle")
    async def fickle() -> None:
        runs.append("the flow's own code did this")
        await (charge("a") if len(runs) == 1 else charge_by_key("a"))
        await delay(20)

    async def program(world: World) -> None:
        await world.start(fickle, id="one")
        await world.sleep(30)

    with pytest.raises(SimulationFailed, match="fickle 'one' is blocked: NonDeterminismError"):
        await simulate(program, flows=[fickle], seeds=range(100), effects=runs, faults={"crash"})
    await simulate(program, flows=[fickle], seeds=range(30), effects=runs, faults={"crash"}, may_block=True)


async def test_what_is_stuck_is_told_with_its_journal() -> None:
    @flow(name="asks")
    async def asks() -> None:
        await charge_by_key("a")
        await asyncio.gather(hangs(), delay(1))

    @step
    async def hangs() -> None:
        await asyncio.Event().wait()

    async def program(world: World) -> None:
        await world.start(asks, id="one")

    with pytest.raises(SimulationFailed, match=r"asks 'one' does not go on\nasks 'one': running\n(.*\n)*.*charged a"):
        await simulate(program, flows=[asks], seeds=[3], faults=())


async def test_who_waits_for_a_message_is_not_stuck() -> None:
    async def program(world: World) -> None:
        await world.start(buys, "a", id="a")

    def invariant(world: World) -> None:
        assert world.instance(buys, "a").state is State.SUSPENDED

    await simulate(program, flows=[buys], seeds=range(3), invariant=invariant)


async def test_a_program_that_does_not_end_is_told() -> None:
    async def program(world: World) -> None:
        await (await world.start(buys, "a", id="a")).result()

    with pytest.raises(SimulationFailed, match="the program has not ended after 30 s\nbuys 'a': suspended"):
        await simulate(program, flows=[buys], seeds=[0], limit=30, faults=())


async def test_a_program_that_does_otherwise_the_next_time_is_told_so() -> None:
    dice = random.Random()

    async def program(world: World) -> None:
        if dice.getrandbits(1):
            raise LookupError("by chance of its own")

    with pytest.raises(SimulationFailed, match="something outside the seed decides"):
        for _ in range(60):
            try:
                await simulate(program, flows=[buys], seeds=range(30), faults=())
            except SimulationFailed as failed:
                if "outside the seed" in str(failed):
                    raise


async def test_what_fails_in_a_flow_reaches_the_program() -> None:
    @flow
    async def fails() -> None:
        child = await start(buys, "a", id="child")
        await child.cancel()
        raise LookupError("as it should")

    async def program(world: World) -> None:
        with pytest.raises(FlowFailed, match="as it should"):
            await world.run(fails, id="one")

    await simulate(program, flows=[fails, buys], seeds=range(5))


# ---------------------------------------------------------------- shrinking


@pytest.mark.parametrize("needed", [(), (3,), (0, 9), (1, 2, 8)])
def test_the_fewest_are_found(needed: tuple[int, ...]) -> None:
    wanted = {str(n) for n in needed}
    items = [str(n) for n in range(10)]
    assert set(fewest(items, lambda left: wanted <= set(left))) == wanted


def test_not_more_is_tried_than_allowed() -> None:
    tried: list[int] = []

    def fails(left: Any) -> bool:
        tried.append(len(left))
        return len(left) > 90

    left = fewest([str(n) for n in range(100)], fails, tries=20)
    assert len(tried) <= 21
    assert len(left) <= 100
