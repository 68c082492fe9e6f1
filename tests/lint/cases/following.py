"""What is followed from a flow, and what is not: PD101 shows it."""

import functools
import time
from collections.abc import Awaitable, Callable
from contextlib import contextmanager
from typing import Any, Protocol

import perdure
import somebody
from perdure import Flow, capture, query, saga, signal, step, update


def journaled(fn: Callable[[], float]) -> Callable[[], Awaitable[float]]:
    @functools.wraps(fn)
    async def run() -> float:
        return await capture(fn)

    return run


def logged(fn: Callable[..., float]) -> Callable[..., float]:
    @functools.wraps(fn)
    def run(*args: float) -> float:
        return fn(*args)

    return run


async def outside(work: Callable[[], float]) -> float:
    return await capture(work)


async def outside_too(work: Callable[[], float]) -> float:
    return await capture(lambda: work())


def inside(work: Callable[[], float]) -> float:
    return work()


careful_step = step(retry=None)
durable = perdure.flow(timeout=3)


@perdure.flow
@somebody.decorator
async def flow_under_another_decorator() -> float:
    return time.time()  # PD101 plain


@somebody.decorator
@step
async def step_under_another_decorator() -> float:
    return time.time()  # near PD101


@perdure.flow
async def calls_it() -> None:
    step_under_another_decorator()  # near PD501


@journaled
def a() -> float:
    return time.time()  # near PD101


@logged
def b() -> float:
    return time.time()  # PD101 helper


@somebody.decorator
def c() -> float:
    return time.time()  # near PD101


@careful_step
def d() -> float:
    return time.time()  # PD101 helper: by d.fn()


@contextmanager
def e():
    time.time()  # PD101 helper
    yield


class Base:
    def base(self) -> float:
        return time.time()  # PD101 helper

    @property
    def age(self) -> float:
        return time.time()  # PD101 helper

    @staticmethod
    def fixed() -> float:
        return time.time()  # PD101 helper

    @classmethod
    def made(cls) -> "Base":
        time.time()  # PD101 helper
        return cls()


class Derived(Base):
    clock = time.time

    def derived(self) -> float:
        return self.base() + self.clock()  # PD101 alias


class Service(Protocol):
    def now(self) -> float: ...


shared = Derived()


@durable
async def follows(service: Service, unknown: Any) -> None:
    await a()
    b()
    c()
    await d()
    with e():
        pass
    await outside(lambda: time.time())  # near PD101
    await outside_too(lambda: time.time())  # near PD101
    inside(lambda: time.time())  # PD101 nested
    shared.derived()
    shared.age
    Derived.fixed()
    Derived.made()
    service.now()  # near PD101
    unknown.time()  # near PD101
    d.fn()
    partial = functools.partial(rounded, 1)
    partial()
    async with saga() as steps:
        await steps.do(lambda: time.time(), undo=lambda: time.time())  # near PD101


def rounded(n: int) -> float:
    return round(time.time(), n)  # PD101 helper


async def body() -> float:
    return time.time()  # PD101 helper


registered = perdure.flow(name="registered")(body)


class OrderFlow(Flow[str, int]):
    def __init__(self) -> None:
        self.at = time.time()  # PD101 plain

    async def run(self, order: str) -> int:
        return int(self.age())

    def age(self) -> float:
        return time.time()  # PD101 helper

    @signal
    def note(self) -> None:
        time.time()  # PD101 plain

    @query
    def asked(self) -> float:
        return time.time()  # PD101 plain

    @update
    async def change(self) -> float:
        return time.time()  # PD101 plain

    @step
    async def charge(self) -> float:
        return time.time()  # near PD101

    def unused(self) -> float:
        return time.time()  # near PD101
