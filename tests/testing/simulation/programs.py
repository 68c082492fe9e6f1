"""Random programs for the simulator: flows made by chance out of commands, with results that are known beforehand.

A program is plain JSON data, made by `made`; the flow `walk` does what it says, and `fits` tells whether what came of it
is one of the things that may. Names of messages and ids say at which command of which instance they belong.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import defaultdict
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, NoReturn

from perdure import (
    FlowCancelled,
    FlowFailed,
    Handle,
    InstanceNotFound,
    OutcomeUnknown,
    Outdated,
    Retry,
    State,
    StoreUnavailable,
    cancel,
    capture,
    continue_as_new,
    current,
    delay,
    expose,
    flow,
    handle,
    messages,
    new_uuid,
    now,
    receive,
    rng,
    run,
    send,
    start,
    step,
)
from perdure.testing.world import World

Node = dict[str, Any]


class Ledger:
    """What the steps have done, and what was wrong with it at once."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.tokens: defaultdict[str, set[int]] = defaultdict(set)
        """By place: the tokens that were used there."""
        self.applied: dict[str, Any] = {}
        """By idempotency key: with which arguments."""
        self.cleaned: set[str] = set()
        self.deleted: set[str] = set()
        self.wrong: list[str] = []
        self.next_token = itertools.count()

    def apply(self, *args: Any) -> None:
        key = current().key
        if self.applied.setdefault(key, args) != args:
            self.wrong.append(f"{current().step} of {current().id!r} ran with {args} and {self.applied[key]}")


ledger = Ledger()


@dataclass
class Add:
    n: int


class Failure(Exception):
    pass


# ---------------------------------------------------------------- steps


@step
async def work(n: int, s: float) -> int:
    ledger.apply(n, s)
    await asyncio.sleep(s)
    return n


@step
def plain(n: int) -> int:
    ledger.apply(n)
    return n


@step(retry=Retry(attempts=None, initial=0.2, maximum=3))
async def flaky(n: int, fails: int) -> int:
    ledger.apply(n, fails)
    await asyncio.sleep(0.05)
    if current().attempt <= fails:
        raise Failure(f"{n} fails")
    return n


@step(retry=Retry(attempts=2, initial=0.1))
async def hopeless(n: int) -> int:
    await asyncio.sleep(0.02)
    raise Failure(f"{n} is hopeless")


@step(at_most_once=True)
async def once(n: int, s: float) -> int:
    ledger.apply(n, s)
    await asyncio.sleep(s)
    return n


@step(timeout=0.3, retry=Retry(attempts=3, initial=0.1))
async def slow(n: int, s: float) -> int:
    await asyncio.sleep(s)
    return n


@step
async def draw() -> int:
    """Another one each time it runs."""
    return next(ledger.next_token)


@step
async def use(place: str, token: int) -> None:
    ledger.tokens[place].add(token)
    await asyncio.sleep(0.01)


@step(at_most_once=True)
async def use_once(place: str, token: int) -> None:
    ledger.tokens[place].add(token)


@step(retry=Retry(attempts=None, initial=0.1))
async def goes_on(n: int) -> int:
    """Keeps how far it came."""
    me = current()
    done = me.progress(int) or 0
    while done < n:
        await asyncio.sleep(0.05)
        done += 1
        me.heartbeat(done)
        if done % 2:
            raise Failure("half way")
    return done


@step
async def cleaned(id: str) -> None:
    ledger.cleaned.add(id)


# ---------------------------------------------------------------- flows


@flow(name="counter")
async def counter(left: int, total: int, per_run: int) -> int:
    """Adds up what it is sent, so many messages in all."""
    for _ in range(min(left, per_run)):
        total += (await receive(Add)).n
        left -= 1
        expose("total", total)
    if left:
        await continue_as_new(left, total, per_run)
    return total


@flow(name="listener")
async def listener(count: int) -> list[int]:
    return [await receive(int) for _ in range(count)]


@flow(name="sleeper")
async def sleeper() -> NoReturn:
    try:
        await work(0, 0.1)
        await receive(str, name="never")
    finally:
        await cleaned(current().id)
    raise AssertionError("nobody sends it anything")


@flow(name="walk")
async def walk(nodes: list[Node], results: list[Any]) -> list[Any]:
    """Does one command after the other."""
    left = list(nodes)
    while left:
        node = left.pop(0)
        if node["do"] == "again":
            await continue_as_new(left, [*results, "again"])
        results.append(await do(node))
        expose("done", len(results))
    return results


async def do(node: Node) -> Any:
    """What came of the command."""
    return await globals()[f"do_{node['do']}"](node)


async def do_work(node: Node) -> Any:
    return await work(node["n"], node["s"])


async def do_plain(node: Node) -> Any:
    return await plain(node["n"])


async def do_flaky(node: Node) -> Any:
    return await flaky(node["n"], node["fails"])


async def do_hopeless(node: Node) -> Any:
    try:
        return await hopeless(node["n"])
    except Failure as error:
        return str(error)


async def do_once(node: Node) -> Any:
    try:
        return await once(node["n"], node["s"])
    except OutcomeUnknown:
        return "unknown"


async def do_slow(node: Node) -> Any:
    try:
        return await slow(node["n"], node["s"])
    except TimeoutError:
        return "too slow"


async def do_draw(node: Node) -> Any:
    token = await draw()
    if not node["once"]:
        await use(node["place"], token)
        return ["drawn", token]
    try:
        await use_once(node["place"], token)
    except OutcomeUnknown:
        return ["unknown", token]
    return ["drawn", token]


async def do_goes_on(node: Node) -> Any:
    return await goes_on(node["n"])


async def do_delay(node: Node) -> Any:
    before = now()
    await delay(node["s"])
    passed = (now() - before).total_seconds()
    return "late enough" if passed >= node["s"] - 1e-5 else f"too early, after {passed}"


async def do_receive(node: Node) -> Any:
    return await receive(int, name=node["name"])


async def do_maybe(node: Node) -> Any:
    return await receive(int, name=node["name"], timeout=node["s"], default=None)


async def do_several(node: Node) -> Any:
    return sorted([await receive(int, name=node["name"]) for _ in range(node["count"])])


async def do_stream(node: Node) -> Any:
    return sorted(await messages(int, name=node["name"]).take(node["count"]).list())


async def do_all(node: Node) -> Any:
    return await asyncio.gather(*map(do, node["parts"]))


async def do_group(node: Node) -> Any:
    """One of them fails, and the others are cancelled."""

    async def failing() -> None:
        await delay(node["s"])
        raise Failure("the group")

    me = asyncio.current_task()
    assert me is not None
    requests = me.cancelling()
    try:
        async with asyncio.TaskGroup() as group:
            for part in node["parts"]:
                group.create_task(do(part))
            group.create_task(failing())
    except BaseExceptionGroup as error:
        if error.split(Failure)[1] is not None:
            raise
    while me.cancelling() > requests:  # before Python 3.13 a group that fails at its end leaves one behind
        me.uncancel()
    return "the group failed"


async def do_race(node: Node) -> Any:
    tasks = [asyncio.create_task(do(part)) for part in node["parts"]]
    done, left = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    first = next(i for i, task in enumerate(tasks) if task in done)
    return [first, tasks[first].result()]


async def do_limit(node: Node) -> Any:
    try:
        async with asyncio.timeout(node["s"]):
            return await do(node["part"])
    except TimeoutError:
        return "out of time"


async def do_lock(node: Node) -> Any:
    lock = asyncio.Semaphore(node["limit"])
    inside = 0

    async def one(part: Node) -> Any:
        nonlocal inside
        async with lock:
            inside += 1
            assert inside <= node["limit"]
            value = await do(part)
            inside -= 1
            return value

    return await asyncio.gather(*map(one, node["parts"]))


async def do_child(node: Node) -> Any:
    return await run(walk, node["parts"], [], id=node["id"])


async def do_started(node: Node) -> Any:
    """Waited for later, and by its handle."""
    child = await start(walk, node["parts"], [], id=node["id"])
    between = await do(node["between"])
    return [between, await child.result()]


async def do_detached(node: Node) -> Any:
    await start(walk, node["parts"], [], id=node["id"], detached=True)
    return "detached"


async def do_tell(node: Node) -> Any:
    """One sender's messages keep their order."""
    child = await start(listener, len(node["parts"]), id=node["id"])
    for i, part in enumerate(node["parts"]):
        await child.send(i)
        await do(part)
    return await child.result()


async def do_left(node: Node) -> Any:
    """Nobody waits for it: it is cancelled when this flow ends."""
    await start(sleeper, id=node["id"])
    return "left"


async def do_cancelled(node: Node) -> Any:
    child: Handle[Any] = await start(sleeper, id=node["id"], detached=node["detached"])
    await delay(node["s"])
    await (child.cancel("enough") if node["by_handle"] else cancel(sleeper, node["id"], "enough"))
    try:
        return await child.result()
    except FlowCancelled:
        return "cancelled"


async def do_add(node: Node) -> Any:
    await send(counter, node["to"], Add(node["n"]))
    return "added"


async def do_look(node: Node) -> Any:
    try:
        return (await handle(counter, node["id"]).state()).value
    except Exception as error:
        return type(error).__name__


async def do_capture(node: Node) -> Any:
    number = rng().random()
    return await capture(lambda given: given == number, number) and len(str(new_uuid())) == 36


# ---------------------------------------------------------------- what may come of it


def fits(node: Node, got: Any) -> bool:
    """Whether this may have come of the command."""
    match node["do"]:
        case "work" | "plain" | "flaky" | "goes_on":
            return got == node["n"]
        case "hopeless":
            return got == f"{node['n']} is hopeless"
        case "once":
            return got in (node["n"], "unknown")
        case "slow":
            return got in (node["n"], "too slow")  # the limit is by the store's clock, which may be moved
        case "draw":
            used = ledger.tokens[node["place"]]
            return used == {got[1]} if got[0] == "drawn" else used <= {got[1]}
        case "delay":
            return got == "late enough"
        case "receive":
            return got == node["value"]
        case "maybe":
            return got in (node["value"], None)
        case "tell":
            return got == list(range(len(node["parts"])))
        case "several" | "stream":
            return got == list(range(node["count"]))
        case "all" | "lock" | "child":
            return len(got) == len(node["parts"]) and all(map(fits, node["parts"], got))
        case "group":
            return got == "the group failed"
        case "race":
            return fits(node["parts"][got[0]], got[1])
        case "limit":
            return got == "out of time" or fits(node["part"], got)
        case "started":
            return fits(node["between"], got[0]) and all(map(fits, node["parts"], got[1]))
        case "look":
            return got in {*(state.value for state in State), "InstanceNotFound"}
        case "capture":
            return got is True
        case other:
            return got == {"add": "added"}.get(other, other)


# ---------------------------------------------------------------- making them


class Maker:
    """Makes programs by chance, and notes what the outside has to send."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.sends: list[tuple[str, str, int, str]] = []
        """(id, name, value, key)"""
        self.adds: defaultdict[str, list[int]] = defaultdict(list)
        """By counter: what is sent to it, by flows."""
        self.counters: list[str] = []
        self.detached: dict[str, list[Node]] = {}
        self._number = itertools.count()

    def nodes(self, id: str, size: int, depth: int = 0, *, sure: bool = True) -> list[Node]:
        return [self.node(id, depth, sure=sure) for _ in range(size)]

    def node(self, id: str, depth: int, *, sure: bool) -> Node:
        """A command; `sure`: it will be done, once."""
        small = [
            "work",
            "work",
            "plain",
            "flaky",
            "hopeless",
            "once",
            "slow",
            "draw",
            "goes_on",
            "delay",
            "receive",
            "maybe",
        ]
        small += ["several", "stream", "capture", "look", "cancelled"]
        if sure:
            small += ["add", "add", "left"]
        large = ["all", "lock", "race", "limit", "group", "child", "started", "tell"] + (["detached"] if sure else [])
        kind = self.chance.choice(small if depth >= 3 or self.chance.random() < 0.6 else large)
        node = {"do": kind, "n": next(self._number)}
        return node | getattr(self, f"_{kind}", self._nothing)(node, id, depth, sure)

    def _seconds(self, most: float) -> float:
        return round(most * self.chance.random() ** 3, 3)

    def _nothing(self, node: Node, id: str, depth: int, sure: bool) -> Node:
        return {}

    def _work(self, node: Node, id: str, depth: int, sure: bool) -> Node:
        return {"s": self._seconds(3.0)}

    _once = _slow = _work

    def _flaky(self, node: Node, id: str, depth: int, sure: bool) -> Node:
        return {"fails": self.chance.randrange(4)}

    def _goes_on(self, node: Node, id: str, depth: int, sure: bool) -> Node:
        return {"n": self.chance.randrange(1, 6)}

    def _draw(self, node: Node, id: str, depth: int, sure: bool) -> Node:
        return {"place": f"{id}/{node['n']}", "once": self.chance.random() < 0.5}

    def _delay(self, node: Node, id: str, depth: int, sure: bool) -> Node:
        return {"s": self._seconds(8.0)}

    def _receive(self, node: Node, id: str, depth: int, sure: bool) -> Node:
        name = f"m{node['n']}"
        self.sends.append((id, name, node["n"], name))
        return {"name": name, "value": node["n"]}

    def _maybe(self, node: Node, id: str, depth: int, sure: bool) -> Node:
        return self._receive(node, id, depth, sure) | {"s": self._seconds(5.0)}

    def _several(self, node: Node, id: str, depth: int, sure: bool) -> Node:
        name, count = f"m{node['n']}", self.chance.randrange(1, 6)
        self.sends += [(id, name, i, f"{name}/{i}") for i in range(count)]
        return {"name": name, "count": count}

    _stream = _several

    def _parts(self, id: str, depth: int, *, sure: bool) -> list[Node]:
        return self.nodes(id, self.chance.randrange(1, 4), depth + 1, sure=sure)

    def _all(self, node: Node, id: str, depth: int, sure: bool) -> Node:
        return {"parts": self._parts(id, depth, sure=sure)}

    def _lock(self, node: Node, id: str, depth: int, sure: bool) -> Node:
        return {"parts": self._parts(id, depth, sure=sure), "limit": self.chance.choice((1, 1, 2))}

    def _race(self, node: Node, id: str, depth: int, sure: bool) -> Node:
        return {"parts": self._parts(id, depth, sure=False)}

    def _group(self, node: Node, id: str, depth: int, sure: bool) -> Node:
        return {"parts": self._parts(id, depth, sure=False), "s": self._seconds(3.0)}

    def _limit(self, node: Node, id: str, depth: int, sure: bool) -> Node:
        return {"part": self.node(id, depth + 1, sure=False), "s": self._seconds(5.0)}

    def _child(self, node: Node, id: str, depth: int, sure: bool) -> Node:
        child = f"{id}.{node['n']}"
        return {"id": child, "parts": self._parts(child, depth, sure=sure)}

    def _started(self, node: Node, id: str, depth: int, sure: bool) -> Node:
        return self._child(node, id, depth, sure) | {"between": self.node(id, depth + 1, sure=sure)}

    def _tell(self, node: Node, id: str, depth: int, sure: bool) -> Node:
        return {"id": f"{id}.{node['n']}", "parts": self._parts(id, depth, sure=sure)}

    def _detached(self, node: Node, id: str, depth: int, sure: bool) -> Node:
        made = self._child(node, id, depth, sure)
        self.detached[made["id"]] = made["parts"]
        return made

    def _left(self, node: Node, id: str, depth: int, sure: bool) -> Node:
        return {"id": f"{id}.{node['n']}"}

    def _cancelled(self, node: Node, id: str, depth: int, sure: bool) -> Node:
        by_handle = self.chance.random() < 0.5
        detached = sure and self.chance.random() < 0.5
        return {"id": f"{id}.{node['n']}", "s": self._seconds(2.0), "by_handle": by_handle, "detached": detached}

    def _add(self, node: Node, id: str, depth: int, sure: bool) -> Node:
        to, n = self.chance.choice(self.counters), self.chance.randrange(1, 100)
        self.adds[to].append(n)
        return {"to": to, "n": n}

    def _look(self, node: Node, id: str, depth: int, sure: bool) -> Node:
        return {"id": self.chance.choice(self.counters)}


def made(chance: random.Random) -> tuple[Maker, dict[str, list[Node]], dict[str, str]]:
    """The maker, the programs by id, and what the outside does to some of them while they run."""
    maker = Maker(chance)
    maker.counters = [f"counter {i}" for i in range(chance.randrange(1, 3))]
    programs: dict[str, list[Node]] = {}
    meddled: dict[str, str] = {}
    for i in range(chance.randrange(1, 5)):
        id = f"w{i}"
        unsure = chance.random() < 0.2
        if unsure:
            meddled[id] = chance.choice(("cancel", "cancel", "delete"))
        elif chance.random() < 0.2:
            meddled[id] = "restart"
        nodes = maker.nodes(id, chance.randrange(1, 8), sure=not unsure)
        for _ in range(chance.choice((0, 0, 1, 2))):
            nodes.insert(chance.randrange(len(nodes) + 1), {"do": "again"})
        programs[id] = nodes
    return maker, programs, meddled


# ---------------------------------------------------------------- the outside


async def program(world: World) -> None:
    """Starts programs, sends what they wait for, cancels some, and looks at what came of them."""
    chance = world.chance
    maker, programs, meddled = made(chance)
    adds = {
        id: [*maker.adds[id], *(chance.randrange(100) for _ in range(chance.randrange(4)))] for id in maker.counters
    }
    jobs: list[Coroutine[Any, Any, None]] = []
    for id, nodes in programs.items():
        jobs.append(_play(world, id, nodes, 4 * chance.random() ** 2, meddled.get(id), 8 * chance.random()))
    for id, name, value, key in maker.sends:
        jobs.append(_send(world, 10 * chance.random() ** 2, id, name, value, key))
    for id in maker.counters:
        per_run = chance.randrange(1, 5)
        jobs.append(_count(world, id, adds[id], len(maker.adds[id]), per_run, 3 * chance.random()))
    async with asyncio.TaskGroup() as group:
        for job in jobs:
            group.create_task(job)
    for id, nodes in reversed(maker.detached.items()):  # those that others start come before these
        got = await world.handle(walk, id).result()
        assert all(map(fits, nodes, got)), f"{id} gave {got} for {nodes}"


async def _play(world: World, id: str, nodes: list[Node], after: float, verb: str | None, later: float) -> None:
    await world.sleep(after)
    started = await world.start(walk, nodes, [], id=id)
    if verb is not None:
        await world.sleep(later)
        await _meddle(world, verb, id)
    if verb == "delete":
        return
    try:
        got = await started.result()
    except FlowCancelled:
        assert verb == "cancel", f"{id} was cancelled"
        return
    except FlowFailed as error:
        raise AssertionError(f"{id} failed: {error}, doing {nodes}") from error
    assert len(got) == len(nodes), f"{id} gave {got} for {nodes}"
    for node, part in zip(nodes, got, strict=True):
        assert fits(node, part), f"{id} gave {part} for {node}"


async def _meddle(world: World, verb: str, id: str) -> None:
    if verb == "cancel":
        await world.cancel(walk, id, "from outside")
        return
    if verb == "delete":
        ledger.deleted.add(id)
    while True:
        try:
            # Who runs it gives it up; restarted it goes on as if nothing had been.
            await (world.delete(walk, id) if verb == "delete" else world.restart(walk, id))
        except (Outdated, TimeoutError, InstanceNotFound):  # it has gone on meanwhile, or was not given up, or is gone
            return
        except StoreUnavailable:
            await world.sleep(1)
        else:
            return


async def _send(world: World, after: float, id: str, name: str, value: int, key: str) -> None:
    await world.sleep(after)
    await world.send(walk, id, value, name=name, key=key)


async def _count(world: World, id: str, adds: list[int], by_flows: int, per_run: int, after: float) -> None:
    async def add(i: int, n: int) -> None:
        await world.sleep(world.chance.random() * 5)
        await world.send(counter, id, Add(n), key=f"outside {i}")

    await asyncio.gather(*(add(i, n) for i, n in enumerate(adds[by_flows:])))
    await world.sleep(after)
    total = await world.run(counter, len(adds), 0, per_run, id=id)
    assert total == sum(adds), f"{id} counted {total}, and was sent {adds}"


def invariant(world: World) -> None:
    """What must hold when everything has ended."""
    assert not ledger.wrong, ledger.wrong[0]
    for seen in world.instances:
        if seen.id.partition(".")[0] in ledger.deleted:
            continue  # a start that comes late begins a deleted instance anew
        assert seen.state in (State.SUCCEEDED, State.CANCELLED), seen.journal
        if seen.flow == "sleeper":
            requests = sum(entry.kind == "cancel" for entry in seen.entries)  # a second one cuts the cleaning off
            assert requests != 1 or seen.id in ledger.cleaned, f"{seen.id} did not clean up\n{seen.journal}"
