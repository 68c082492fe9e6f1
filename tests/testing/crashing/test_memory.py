"""What the flow's own code keeps outside of its variables is gone after a crash, as with a real process; what steps
change is the world, and stays.
"""

from __future__ import annotations

import functools
from collections import Counter, defaultdict, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from perdure import capture, current, flow, receive, step
from perdure.testing.crashing import PromiseBroken, crash_everywhere

asked: dict[str, str] = {}
prices: dict[str, int] = {}
counted: Counter[str] = Counter()
queue: deque[int] = deque([1, 2, 3])
by_name: defaultdict[str, list[int]] = defaultdict(list)
number = 0


@dataclass
class Settings:
    retries: int = 3
    seen: list[str] = field(default_factory=list[str])


class Registry:
    names: set[str] = set()


settings = Settings()


@step
async def ask(item: str) -> int:
    asked[current().key] = item
    return 10


async def price_of(item: str) -> int:
    if item not in prices:
        prices[item] = await ask(item)
    return prices[item]


@flow
async def one_item(item: str) -> int:
    return await price_of(item)


@flow
async def two_items() -> int:
    """The second child asks for nothing, as long as the process of the first lives."""
    return await one_item("book") + await one_item("book")


@pytest.fixture(autouse=True)
def as_before() -> None:
    prices.clear()
    asked.clear()


async def test_a_flow_that_would_survive_only_in_one_process_is_caught() -> None:
    with pytest.raises(PromiseBroken) as broken:
        await crash_everywhere(two_items, effects=asked)
    assert "prices" in str(broken.value)
    assert prices == {}


async def test_each_run_begins_with_what_was_there_before() -> None:
    prices["book"] = 5
    assert await crash_everywhere(two_items, effects=asked) == 10
    assert prices == {"book": 5}
    assert asked == {}


def count() -> None:
    global number
    number += 1


def to_dict() -> None:
    prices[f"{len(prices)}"] = 1


def to_counter() -> None:
    counted["x"] += 1


def to_deque() -> None:
    queue.popleft()


def to_default() -> None:
    by_name["x"].append(1)


def to_object() -> None:
    settings.seen.append("x")


def to_attribute() -> None:
    settings.retries += 1


def to_class() -> None:
    Registry.names.add(f"{len(Registry.names)}")


def to_default_argument(seen: list[int] = []) -> None:  # noqa: B006
    seen.append(len(seen))


@functools.lru_cache
def cached() -> int:
    return 1


def look() -> tuple[object, ...]:
    return (
        number, dict(prices), Counter(counted), list(queue), dict(by_name), list(settings.seen), settings.retries,
        set(Registry.names), list(to_default_argument.__defaults__ or ()), cached.cache_info().currsize,
    )  # fmt: skip


CHANGES = [
    count, to_dict, to_counter, to_deque, to_default, to_object, to_attribute, to_class, to_default_argument, cached,
]  # fmt: skip
change: Callable[[], object] = count


@flow
async def keeps() -> None:
    change()
    await receive(str)
    await ask("x")


@pytest.mark.parametrize("how", CHANGES, ids=lambda how: how.__name__)
async def test_everything_is_as_before_afterwards(how: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.change", how)
    before = look()
    identities = [id(thing) for thing in (prices, counted, queue, by_name, settings, settings.seen)]
    await crash_everywhere(keeps, effects=asked, messages=["go"])
    assert look() == before
    assert [id(thing) for thing in (prices, counted, queue, by_name, settings)] == identities[:-1]


@flow
async def reads_what_it_counted() -> int:
    global number
    number += 1
    mine = number
    await receive(str)
    await ask(f"{mine}")
    return number


async def test_a_counter_in_a_global() -> None:
    with pytest.raises(PromiseBroken) as broken:
        await crash_everywhere(reads_what_it_counted, effects=asked, messages=["go"])
    assert "changes number" in str(broken.value)
    assert number == 0


async def test_a_variable_of_the_function_around_the_flow() -> None:
    known: dict[str, int] = {}

    @flow
    async def remembers(item: str) -> None:
        known[item] = await ask(item)

    @flow
    async def uses() -> int:
        await remembers("book")
        return known["book"]

    with pytest.raises(PromiseBroken, match="KeyError") as broken:
        await crash_everywhere(uses, effects=asked)
    assert "changes known" in str(broken.value)
    assert known == {}


# ------------------------------------------------------------ the world stays

stock = {"book": 3}


@step
async def take(item: str) -> int:
    if current().key not in asked:
        asked[current().key] = item
        stock[item] -= 1
    return stock[item]


@step
async def left(item: str) -> int:
    return stock[item]


@flow
async def takes_two() -> int:
    await take("book")
    await take("book")
    return await left("book")


registry: dict[str, object] = {}


@step
async def register(item: str) -> None:
    registry[item] = True


@step
async def is_registered(item: str) -> bool:
    return item in registry


@flow
async def registers_in_what_it_began() -> bool:
    registry.setdefault("begun", True)
    await register("pen")
    return await is_registered("pen")


async def test_what_steps_change_as_well_stays() -> None:
    assert await crash_everywhere(registers_in_what_it_began)
    registry.clear()


async def test_what_steps_change_stays() -> None:
    def reset() -> None:
        asked.clear()
        stock["book"] = 3

    assert await crash_everywhere(takes_two, effects=(reset, lambda: dict(stock))) == 1


@flow
async def captures() -> list[int]:
    """The flow names the list, and changes it in captured work alone."""
    await capture(fetched.append, 1)
    await capture(fetched.append, 2)
    return await capture(lambda: sorted(set(fetched)))


fetched: list[int] = []


async def test_what_captured_work_changes_stays() -> None:
    assert await crash_everywhere(captures) == [1, 2]
    assert set(fetched) == {1, 2}
    fetched.clear()


lines: list[str] = []


@flow
async def writes_effects() -> None:
    lines.append("begun")
    await ask("x")


@pytest.mark.parametrize("effects", [lines, (lambda: lines.clear(), lambda: list(lines))])
async def test_effects_are_the_world_also_if_the_flow_alone_changes_them(effects: Any) -> None:
    with pytest.raises(PromiseBroken, match="The flow's own code did this twice, and once without a crash") as broken:
        await crash_everywhere(writes_effects, effects=effects)
    assert broken.value.point.startswith("killed before commit 2")


class Bank:
    """A fake that the flow calls, and that keeps what it was told."""

    def __init__(self) -> None:
        self.paid: dict[str, int] = {}

    async def pay(self, key: str, cents: int) -> None:
        self.paid[key] = cents


bank = Bank()


@step
async def pay(cents: int) -> None:
    await bank.pay(current().key, cents)


@flow
async def pays() -> int:
    await pay(1)
    return await capture(lambda: len(bank.paid))


async def test_a_fake_service_stays() -> None:
    assert await crash_everywhere(pays, effects=bank.paid) == 1


async def test_the_flow_may_refer_to_what_is_no_data() -> None:
    lock = object()
    made: list[Any] = [lock]

    async def of(value: Awaitable[int]) -> int:
        return await value

    @flow
    async def refers() -> int:
        assert made[0] is lock
        return await of(ask("x"))

    assert await crash_everywhere(refers, effects=asked) == 10
    assert made == [lock]
