"""PD4: what outlives the flow, or is shared with others."""

import asyncio
import functools
import json
from asyncio import Lock as Mutex
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable
from functools import cache as remembered
from functools import lru_cache

import anyio
import somebody

import shop_state
from perdure import Engine, capture, expose, flow, step, transaction
from shop_state import GATE, LIMITS, RATES, VISITS
from shop_state import VISITS as visitors

SEEN: list[str] = []
COUNT = 0
LIMIT = 3
ANSWERS = {"a": 1}
ANSWERS["b"] = 2  # when the module is loaded: it stays so
TABLE = defaultdict(list)
engine: Engine | None = None
HANDLERS: dict[str, object] = {}
STARTED: dict[str, int] = {}
total = 0


class Totals:
    value = 0

    def __init__(self) -> None:
        self.values: list[int] = []
        self.name = ""


totals = Totals()


def prepare(to: Engine) -> None:
    global engine, total
    engine = to
    total = 7
    SEEN.append("prepared")


def handles(name: str):
    def keep(fn):
        HANDLERS[name] = fn
        return fn

    return keep


@handles("a")
def handle_a() -> None: ...


def main() -> None:
    STARTED["a"] = 1


@flow
async def looks_up(order: str) -> None:
    HANDLERS[order]  # near PD401
    STARTED[order]  # PD401 plain


if __name__ == "__main__":
    main()


@flow
async def writes(order: str) -> None:
    global COUNT
    COUNT += 1  # PD401 plain
    SEEN.append(order)  # PD401 plain
    visitors.append(order)  # PD401 alias
    shop_state.VISITS.append(order)  # PD401 alias
    TABLE[order].append(1)  # PD401 plain
    TABLE[order] = [1]  # PD401 plain
    Totals.value += 1  # PD401 plain
    totals.values.append(1)  # PD401 plain
    totals.name = order  # PD401 plain
    del TABLE[order]  # PD401 plain
    mine: list[str] = []
    mine.append(order)  # near PD401
    own = Totals()
    own.values.append(1)  # near PD401
    own.name = order  # near PD401
    await capture(SEEN.append, order)  # near PD401
    await capture(lambda: SEEN.append(order))  # near PD401

    def inner() -> None:
        SEEN.clear()  # PD401 nested
        mine.append(order)  # near PD401

    inner()
    noted(order)


def noted(order: str) -> None:
    SEEN.append(order)  # PD401 helper


@flow
async def reads(order: str) -> int:
    if total > LIMIT:  # PD401 plain
        expose("total", total)  # near PD401: said once
    LIMITS[order]  # PD401 alias
    RATES["EUR"]  # near PD401
    ANSWERS[order]  # near PD401
    await kept(engine, order)  # near PD401
    return len(VISITS)  # near PD401: nothing of the linted files changes it in a function but a flow


@step
async def kept(to: Engine | None, order: str) -> None:
    SEEN.append(order)  # near PD401


def make_flow(services: dict[str, int], ran: list[str]) -> Callable[[], Awaitable[None]]:
    calls = 0
    found: list[str] = []
    log = found
    known = {"a"}

    def count() -> None:
        found.append("x")

    @flow(name="made")
    async def made(order: str) -> None:
        nonlocal calls
        calls += 1  # PD402 plain
        found.append(order)  # PD402 plain
        log.append(order)  # PD402 alias
        services[order] = 1  # PD402 plain
        ran.append(order)  # PD402 plain
        order in known  # near PD402
        services["a"]  # near PD402
        await capture(ran.append, order)  # near PD402
        await capture(count)  # near PD402
        local = 0

        def inner() -> None:
            nonlocal local, calls
            local += 1  # near PD402
            calls += 1  # PD402 nested

        inner()
        helps(order)

    def helps(order: str) -> None:
        found.append(order)  # PD402 helper

    @flow(name="sees")
    async def sees() -> int:
        return len(found)  # PD402 plain

    return made


@lru_cache(maxsize=None)
def settings() -> dict[str, str]:
    return json.load(open_settings())


def open_settings() -> object:
    return somebody.reads()


@remembered
def rate(currency: str) -> float:
    return LIMITS[currency]  # PD401 helper


@functools.cache
def fibonacci(n: int) -> int:
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)


later = lru_cache(open_settings)


@flow
async def cached(n: int) -> None:
    settings()  # PD403 plain
    rate("EUR")  # PD403 plain
    later()  # PD403 alias
    fibonacci(n)  # near PD403
    own = functools.cache(pow)
    own(n, 2)  # near PD403
    await capture(settings)  # near PD403
    await capture(lambda: rate("EUR"))  # near PD403
    [settings() for _ in range(2)]  # PD403 nested
    configured()


def configured() -> bool:
    return bool(settings())  # PD403 helper


Kept = dict


@flow
async def defaults(order: str, seen: list[str] = []) -> None:
    seen.append(order)  # PD404 plain
    gathers(order)
    looks(order)
    makes(order)
    fills(order)
    await capture(gathers, order)

    def inner(of: list[str] = [], to: deque[str] = deque()) -> None:
        of.append(order)  # PD404 nested
        to.append(order)  # PD404 nested

    inner()


def gathers(order: str, into: dict[str, int] = {}) -> None:
    into[order] = 1  # PD404 helper


def fills(order: str, *, into: dict[str, int] = Kept()) -> None:
    into[order] = 1  # PD404 alias


def looks(order: str, known: list[str] = ["a"]) -> bool:
    return order in known  # near PD404


def makes(order: str, into: list[str] | None = None) -> list[str]:
    into = into or []
    into.append(order)  # near PD404
    return into


def called_by_a_step(order: str, into: list[str] = []) -> None:
    into.append(order)  # near PD404


LOCK = Mutex()
QUEUE: asyncio.Queue[int] = asyncio.Queue()
EVENT = anyio.Event()


@flow
async def primitives() -> None:
    async with LOCK:  # PD405 alias
        pass
    await QUEUE.put(1)  # PD405 plain
    async with GATE:  # PD405 plain
        pass
    mine = asyncio.Lock()
    async with mine:  # near PD405
        pass
    await capture(QUEUE.put, 2)  # near PD405
    await capture(lambda: EVENT.set())  # near PD405

    async def inner() -> None:
        EVENT.set()  # PD405 nested
        async with mine:  # near PD405
            pass

    await inner()
    await woken()


async def woken() -> None:
    await QUEUE.get()  # PD405 helper


@flow
async def transacts(order: str) -> None:
    await transaction(lambda tx: SEEN.append(order))  # near PD401
