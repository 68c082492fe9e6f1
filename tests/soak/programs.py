"""The flows of the soak: `walk` does what a program says, one command after the other, and gives what came of each.

A program is plain JSON data, made by `making.py`, which also tells what may come of it. Each command has a place that no
other has; steps note in the ledger where they ran.
"""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from perdure import (
    Handle,
    OutcomeUnknown,
    Retry,
    Tx,
    cancel,
    capture,
    continue_as_new,
    current,
    delay,
    expose,
    exposed,
    flow,
    handle,
    messages,
    new_uuid,
    now,
    patched,
    receive,
    rng,
    run,
    send,
    start,
    start_many,
    step,
    transaction,
)
from tests.soak import ledger

Node = dict[str, Any]
NOTHING: Final[list[Any]] = []
"""The results that a program begins with."""
TABLE = "perdure_soak"
"""The table of the soak's own, beside the engine's: `transaction` writes there."""


TRIES: Final = 50


@dataclass
class Add:
    n: int


class Failure(Exception):
    pass


def note(place: str, value: object = "") -> None:
    me = current()
    ledger.note(place, me.key, me.attempt, value)


# ---------------------------------------------------------------- steps


@step
async def work(place: str, s: float) -> str:
    note(place)
    await asyncio.sleep(s)
    return place


@step
def thread(place: str, s: float) -> str:
    """In a thread."""
    note(place)
    time.sleep(s)
    return place


@step(retry=Retry(attempts=None, initial=0.05, maximum=0.5))
async def flaky(place: str, fails: int) -> str:
    note(place)
    if current().attempt <= fails:
        raise Failure(f"{place} fails")
    return place


@step(retry=Retry(attempts=2, initial=0.05))
async def hopeless(place: str) -> None:
    note(place)
    raise Failure(f"{place} is hopeless")


@step(at_most_once=True)
async def once(place: str, s: float) -> str:
    note(place)
    await asyncio.sleep(s)
    return place


@step(timeout=0.3, retry=Retry(attempts=2, initial=0.05))
async def slow(place: str, s: float) -> str:
    note(place)
    await asyncio.sleep(s)
    return place


@step
async def draw(place: str) -> str:
    """Another one each time it runs."""
    note(f"{place}/draw")
    return os.urandom(6).hex()


@step
async def use(place: str, token: str) -> None:
    note(place, token)


@step(retry=Retry(attempts=None, initial=0.05, maximum=0.2))
async def goes_on(place: str, n: int) -> int:
    """Keeps how far it came."""
    note(place)
    me = current()
    done = me.progress(int) or 0
    while done < n:
        done += 1
        me.heartbeat(done)
        if done % 2:
            raise Failure("half way")
    return done


@step
async def cleaned(place: str) -> None:
    note(place)


# ---------------------------------------------------------------- flows


@flow(name="soak.counter")
async def counter(left: int, total: int, per_run: int) -> int:
    """Adds up what it is sent, so many messages in all."""
    for _ in range(min(left, per_run)):
        total += (await receive(Add)).n
        left -= 1
    expose("total", total)
    if left:
        await continue_as_new(left, total, per_run)
    return total


@flow(name="soak.echo")
async def echo(parent: str, name: str, count: int) -> int:
    """Sends back what it is sent, and one more."""
    for _ in range(count):
        await send(walk, parent, await receive(int) + 1, name=name)
    return count


@flow(name="soak.sleeper")
async def sleeper() -> NoReturn:
    """Until it is cancelled."""
    try:
        expose("ready", True)
        await receive(str, name="never")
    finally:
        await cleaned(current().id)
    raise AssertionError("nobody sends it anything")


@flow(name="soak.broken")
async def broken(place: str) -> NoReturn:
    await work(place, 0.0)
    raise Failure(f"{place} is broken")


@flow(name="soak.walk")
async def walk(nodes: list[Node], results: list[Any]) -> list[Any]:
    """Does one command after the other."""
    left = list(nodes)
    while left:
        node = left.pop(0)
        if node["do"] == "again":
            await continue_as_new(left, [*results, "again"])
        results.append(await do(node))
    return results


async def do(node: Node) -> Any:
    """What came of the command."""
    return await globals()[f"do_{node['do']}"](node)


async def do_all_of(nodes: list[Node]) -> list[Any]:
    return list(await asyncio.gather(*map(do, nodes)))


async def do_work(node: Node) -> Any:
    return await work(node["at"], node["s"])


async def do_thread(node: Node) -> Any:
    return await thread(node["at"], node["s"])


async def do_flaky(node: Node) -> Any:
    return await flaky(node["at"], node["fails"])


async def do_hopeless(node: Node) -> Any:
    try:
        return await hopeless(node["at"])
    except Failure as error:
        return str(error)


async def do_once(node: Node) -> Any:
    try:
        return await once(node["at"], node["s"])
    except OutcomeUnknown:
        return "unknown"


async def do_slow(node: Node) -> Any:
    try:
        return await slow(node["at"], node["s"])
    except TimeoutError:
        return "too slow"


async def do_draw(node: Node) -> Any:
    token = await draw(node["at"])
    await use(node["at"], token)
    return token


async def do_progress(node: Node) -> Any:
    return await goes_on(node["at"], node["n"])


async def do_delay(node: Node) -> Any:
    before = now()
    await delay(node["s"])
    passed = (now() - before).total_seconds()
    return "late enough" if passed >= node["s"] - 1e-5 else f"too early, after {passed}"


async def do_sleeps(node: Node) -> Any:
    """Plain asyncio.sleep, several at a time: the shortest wins."""
    tasks = [asyncio.create_task(asyncio.sleep(s, i)) for i, s in enumerate(node["several"])]
    done, left = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in left:
        task.cancel()
    return min(task.result() for task in done)


async def do_receive(node: Node) -> Any:
    return await receive(int, name=node["name"])


async def do_maybe(node: Node) -> Any:
    return await receive(int, name=node["name"], timeout=node["s"], default=None)


async def do_typed(node: Node) -> Any:
    """By its type and what is in it, without a name."""
    return (await receive(Add, where=lambda add: add.n == node["value"])).n


async def do_several(node: Node) -> Any:
    return sorted([await receive(int, name=node["name"]) for _ in range(node["count"])])


async def do_stream(node: Node) -> Any:
    return sorted(await messages(int, name=node["name"]).take(node["count"]).list())


async def do_gather(node: Node) -> Any:
    return await do_all_of(node["parts"])


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


async def do_shield(node: Node) -> Any:
    """Not waited for so long, and waited for afterwards."""
    task = asyncio.ensure_future(do(node["part"]))
    try:
        return await asyncio.wait_for(asyncio.shield(task), node["s"])
    except TimeoutError:
        return await task


async def do_lock(node: Node) -> Any:
    semaphore = asyncio.Semaphore(node["limit"])
    inside = 0

    async def one(part: Node) -> Any:
        nonlocal inside
        async with semaphore:
            inside += 1
            assert inside <= node["limit"]
            value = await do(part)
            inside -= 1
            return value

    return list(await asyncio.gather(*map(one, node["parts"])))


async def do_queue(node: Node) -> Any:
    """What some tasks make is taken by this one."""
    queue: asyncio.Queue[tuple[int, Any]] = asyncio.Queue(1)

    async def make(i: int, part: Node) -> None:
        await queue.put((i, await do(part)))

    async with asyncio.TaskGroup() as group:
        for i, part in enumerate(node["parts"]):
            group.create_task(make(i, part))
        made = [await queue.get() for _ in node["parts"]]
    return [value for _, value in sorted(made, key=lambda pair: pair[0])]


async def do_child(node: Node) -> Any:
    return await run(walk, node["parts"], NOTHING, id=node["id"])


async def do_started(node: Node) -> Any:
    """Waited for later, and by its handle."""
    child = await start(walk, node["parts"], NOTHING, id=node["id"])
    between = await do(node["between"])
    return [between, await child.result()]


async def do_many(node: Node) -> Any:
    ids = [f"{node['id']}.{i}" for i in range(len(node["parts"]))]
    children = await start_many(walk, [(id, [part], NOTHING) for id, part in zip(ids, node["parts"], strict=True)])
    return [(await child.result())[0] for child in children]


async def do_detached(node: Node) -> Any:
    await start(walk, node["parts"], NOTHING, id=node["id"], detached=True)
    return "detached"


async def do_broken(node: Node) -> Any:
    """A child's failure, as its own class."""
    try:
        return await run(broken, node["at"], id=node["id"])
    except Failure as error:
        return str(error)


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
    except Exception as error:
        return type(error).__name__


async def do_talk(node: Node) -> Any:
    """A child and this flow send to each other in turn."""
    child = await start(echo, current().id, node["at"], node["count"], id=node["id"])
    said: list[int] = []
    for i in range(node["count"]):
        await child.send(10 * i)
        said.append(await receive(int, name=node["at"]))
    return [*said, await child.result()]


async def do_add(node: Node) -> Any:
    await send(counter, node["to"], Add(node["n"]))
    return "added"


async def do_post(node: Node) -> Any:
    """To another program, which waits for it."""
    await send(walk, node["to"], node["value"], name=node["name"])
    return "posted"


async def do_look(node: Node) -> Any:
    try:
        return (await handle(counter, node["id"]).state()).value
    except Exception as error:
        return type(error).__name__


async def do_capture(node: Node) -> Any:
    """What replay gives must be what was there first."""
    seen = [rng().random(), str(new_uuid()), now().isoformat()]
    return await capture(lambda given: given == seen, seen)


async def do_expose(node: Node) -> Any:
    expose(node["at"], node["value"])
    return exposed(node["at"])


async def do_patched(node: Node) -> Any:
    if patched(node["at"]):
        return await do(node["new"])
    raise AssertionError(f"the journal of {node['at']} is older than its own code")


async def do_transaction(node: Node) -> Any:
    return await in_time(written, node["at"], node["n"])


async def do_fails(node: Node) -> NoReturn:
    raise Failure(f"{node['at']} fails")


async def do_waits(node: Node) -> NoReturn:
    """Until the flow is cancelled."""
    try:
        expose("ready", True)
        await receive(str, name="never")
    finally:
        await cleaned(node["at"])
    raise AssertionError("nobody sends it anything")


# ---------------------------------------------------------------- transactions


async def in_time(work: Any, *args: Any) -> Any:
    """What the transaction gives, made again if it took too long: the process was stopped in it, or the machine is slow.
    Nothing was written then.
    """
    for _ in range(TRIES):
        try:
            return await transaction(work, *args)
        except TimeoutError:
            await delay(0.2)
    return await transaction(work, *args)


async def written(tx: Tx, place: str, n: int) -> int:
    # The values are in the text: how a parameter is written differs from database to database.
    await tx.execute(f"insert into {TABLE} (place, n) values ('{place}', {n})")
    return n


@flow(name="soak.prepare")
async def prepare() -> None:
    """The soak's table is there."""
    await in_time(_prepared)


async def _prepared(tx: Tx) -> None:
    await tx.execute(f"create table if not exists {TABLE} (place varchar(200) not null, n integer not null)")


@flow(name="soak.rows")
async def rows(prefix: str) -> list[tuple[str, int]]:
    """What is in the table at places that begin so."""
    return await in_time(_rows, prefix)


async def _rows(tx: Tx, prefix: str) -> list[tuple[str, int]]:
    found = await tx.fetch(f"select place, n from {TABLE} where place like '{prefix}%'")
    return [(str(row["place"]), int(row["n"])) for row in found]


FLOWS = (walk, counter, echo, sleeper, broken, prepare, rows)
COMMANDS = sorted(
    {name.removeprefix("do_") for name in list(globals()) if name.startswith("do_")} - {"all_of"} | {"again"}
)
