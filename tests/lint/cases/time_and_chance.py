"""PD1: clocks, dates, chance, ids."""

import builtins as b
import datetime as dt
import random
import secrets
import time
import uuid
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from random import choice as pick
from time import time as t
from uuid import UUID, uuid4 as make_id

import perdure
from perdure import capture, delay, flow, new_uuid, now, rng, step
from perdure import flow as durable


@flow
async def clocks(order: str) -> float:
    started = time.time()  # PD101 plain
    t()  # PD101 alias
    clock = time.perf_counter
    clock()  # PD101 alias
    time.strftime("%H")  # PD101 plain
    time.strftime("%H", (2025, 1, 1, 0, 0, 0, 0, 1, 0))  # near PD101
    time.localtime()  # PD101 plain
    time.localtime(0)  # near PD101
    now()  # near PD101
    await capture(time.time)  # near PD101
    await capture(lambda: time.time())  # near PD101
    await capture(stamp, time.monotonic_ns())  # PD101 plain
    later = lambda: t()  # PD101 nested
    later()
    kept = lambda: t()  # near PD101
    await capture(kept)

    def inner() -> float:
        return time.time()  # PD101 nested

    inner()

    def work() -> float:
        return time.time()  # near PD101

    await capture(work)
    await capture(partial(work))

    @step
    async def measured() -> float:
        return time.time()  # near PD101

    await measured()
    max([1, 2], key=aged)
    return started + age(1.0)


def age(of: float) -> float:
    return time.time() - of  # PD101 helper


def aged(of: float) -> float:
    return t() - of  # PD101 helper


def stamp(of: float) -> float:
    return time.time() - of  # near PD101


@step
def a_step() -> float:
    return stamp(time.time())  # near PD101


async def no_flow() -> float:
    return time.time()  # near PD101


@durable(timeout=5)
async def dates() -> None:
    datetime.now()  # PD102 plain
    dt.datetime.utcnow()  # PD102 alias
    dt.date.today()  # PD102 alias
    today = datetime.today
    today()  # PD102 alias
    datetime(2025, 1, 1)  # near PD102
    datetime.fromtimestamp(0, dt.UTC)  # near PD102
    await capture(datetime.now, dt.UTC)  # near PD102
    [datetime.now(dt.UTC) for _ in range(2)]  # PD102 nested
    await due_today()
    Dated("a")
    Dated("a", at=dt.datetime.min)  # near PD102


async def due_today() -> bool:
    await delay(1)
    return datetime.now(dt.UTC).hour == 0  # PD102 helper


@dataclass
class Dated:
    name: str
    at: datetime = field(default_factory=datetime.now)  # PD102 helper
    id: UUID = field(default_factory=lambda: uuid.uuid4())  # PD104 nested
    tags: list[str] = field(default_factory=list)  # near PD104


@perdure.flow(name="chance")
async def chance(items: list[str], seed: int) -> None:
    random.random()  # PD103 plain
    pick(items)  # PD103 alias
    secrets.token_hex()  # PD103 plain
    random.Random()  # PD103 plain
    random.Random(seed).choice(items)  # near PD103
    rng().choice(items)  # near PD103
    secrets.compare_digest("a", "b")  # near PD103
    generator = random.Random(seed)
    generator.shuffle(items)  # near PD103
    await capture(random.choice, items)  # near PD103
    items.sort(key=lambda _: random.random())  # PD103 nested
    sorted(items, key=shuffled)


def shuffled(item: str) -> float:
    return random.random()  # PD103 helper


@flow
async def ids(order: str) -> None:
    make_id()  # PD104 alias
    uuid.uuid1()  # PD104 plain
    uuid.uuid5(uuid.NAMESPACE_DNS, order)  # near PD104
    new_uuid()  # near PD104
    UUID(int=1)  # near PD104
    await capture(uuid.uuid4)  # near PD104
    Named(order)

    async def inner() -> None:
        uuid.uuid4()  # PD104 nested

    await inner()


class Named:
    def __init__(self, order: str) -> None:
        self.order = order
        self.id = make_id()  # PD104 helper


@flow
async def hashes(order: str, number: int, unknown) -> int:
    b.hash(order)  # PD105 alias
    hash(number)  # near PD105
    hash(unknown)  # near PD105
    await capture(hash, order)  # near PD105
    parts = lambda: hash(f"{order} {number}")  # PD105 nested
    return parts() + shard(order)


def shard(order: str) -> int:
    return hash(order) % 10  # PD105 helper
