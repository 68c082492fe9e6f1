"""The virtual machine: a clock that stands still, chance from a seed, no thread but for steps."""

import threading

import pytest

from perdure.engine.timers import EngineTime
from perdure.testing.virtual import START, VirtualClock, VirtualSystem


def test_the_clock_stands_still_until_it_is_moved() -> None:
    clock = VirtualClock()
    assert clock.wall() == START
    boot, moves = clock.boot(), list[float]()
    unwatch = clock.on_move(lambda: moves.append(clock.wall()))
    clock.move_to(START + 0.25)
    clock.move_to(START + 0.25)
    unwatch()
    clock.move_to(START + 1)
    assert moves == [START + 0.25] * 2
    assert clock.boot() - boot == 1
    with pytest.raises(ValueError, match="cannot be moved back"):
        clock.move_to(START)


def test_its_real_time_goes_on() -> None:
    clock = VirtualClock()
    before = clock.monotonic()
    while clock.monotonic() == before:
        pass
    assert clock.wall() == START


@pytest.mark.parametrize("when", [START + 1e-6, START + 1 / 3, START + 86_400 * 0.1, START + 1e9 / 7, START + 3e11 / 7])
def test_the_engines_time_is_exactly_the_clocks(when: float) -> None:
    clock = VirtualClock()
    time = EngineTime(clock)
    clock.move_to(when)
    assert time.now() == when  # a timer that is due then has fired then
    time.measured(clock.wall(), clock.boot())
    assert time.now() == when


def test_the_same_seed_gives_the_same_ids_and_chance() -> None:
    def drawn(seed: int) -> tuple[object, ...]:
        system = VirtualSystem(seed=seed)
        ids = [system.new_uid() for _ in range(3)]
        assert ids == sorted(set(ids))
        return (*ids, system.random(), system.random_bytes(4), system.new_replica_id(), system.process)

    assert drawn(1) == drawn(1)
    assert set(drawn(1)[:5]).isdisjoint(drawn(2)[:5])


def test_replicas_of_one_system_have_names_of_their_own() -> None:
    system = VirtualSystem()
    assert system.new_replica_id() != system.new_replica_id()


def test_what_is_repeated_never_is() -> None:
    threads = threading.active_count()
    repeating = VirtualSystem().repeat(lambda: pytest.fail("it was called"), 0.0, "never")
    repeating.hurry()
    assert not repeating.running
    repeating.stop()
    assert threading.active_count() == threads
