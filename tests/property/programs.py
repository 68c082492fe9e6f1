"""A small language of flows: a program is a tree of plain JSON data, and one flow interprets it.

Every node writes into a trace what it saw, in which order. The trace is kept outside the flow, so that it can be
compared however the flow ends. Whatever may be ordered differently by another hash seed or memory layout ought to be
in this language.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import anyio

from perdure import (
    Retry,
    Tx,
    capture,
    current,
    expose,
    flow,
    messages,
    new_uuid,
    now,
    patched,
    receive,
    rng,
    run,
    send,
    start,
    step,
    transaction,
)

Node = dict[str, Any]

traces: dict[str, list[Any]] = {}
"""By instance id: what its flow saw so far, in this process."""

pace: random.Random | None = None
"""Steps take a little while by chance; None: they are done at once."""

colour: ContextVar[str] = ContextVar("colour", default="none")


@dataclass
class Ping:
    n: int


@dataclass
class Text:
    s: str


class Failure(Exception):
    pass


@step
async def work(label: str, value: object, fails: int) -> object:
    if pace is not None:
        await asyncio.sleep(pace.random() * 0.002)
    if current().attempt <= fails:
        raise Failure(label)
    return f"{label}={value}"


@step(name="work in a thread")
def plain(label: str, value: object) -> object:
    return f"{label}/{value}"


async def pay(tx: Tx, label: str, fails: int) -> str:
    await tx.execute("insert into paid values (?)", label)
    if fails:
        raise Failure(label)
    return f"{label} {await tx.fetch('select 1')}"


def doubled(n: int) -> int:
    return 2 * n


@flow(name="child")
async def child(label: str, fails: int) -> str:
    return str(await work(label, "child", fails))


def described(error: BaseException) -> Any:
    """The error without what differs from process to process (anyio names addresses in its cancellations)."""
    if isinstance(error, BaseExceptionGroup):
        return [type(error).__name__, [described(e) for e in error.exceptions]]
    return [type(error).__name__, *(str(a) for a in error.args if isinstance(error, Failure))]


def outcome(task: asyncio.Task[Any]) -> Any:
    """How the task ended."""
    if task.cancelled():
        return "cancelled"
    error = task.exception()
    return task.result() if error is None else described(error)


@flow(name="program")
async def program(node: Node) -> Any:
    trace = traces[current().id] = []
    return await Interpreter(trace).run(node)


class Interpreter:
    """Runs nodes; `do_x` is the meaning of {"do": "x"}."""

    def __init__(self, trace: list[Any]) -> None:
        self.trace = trace
        self.locks: dict[str, Any] = {}
        self.left: list[asyncio.Task[Any]] = []

    async def run(self, node: Node) -> Any:
        n = node["n"]
        self.trace.append([n, "begins"])
        try:
            value = await getattr(self, f"do_{node['do']}")(node)
        except BaseException as error:
            self.trace.append([n, described(error)])
            raise
        self.trace.append([n, "ends", value])
        return value

    def see(self, node: Node, *what: Any) -> None:
        self.trace.append([node["n"], *what])

    def coroutines(self, node: Node) -> list[Coroutine[Any, Any, Any]]:
        return [self.run(part) for part in node["parts"]]

    def tasks(self, node: Node) -> list[asyncio.Task[Any]]:
        return [asyncio.create_task(self.run(part), name=f"n{part['n']}") for part in node["parts"]]

    async def settle(self, node: Node, tasks: list[asyncio.Task[Any]]) -> list[Any]:
        """What became of the tasks."""
        found = await asyncio.gather(*tasks, return_exceptions=True)
        return [described(v) if isinstance(v, BaseException) else v for v in found]

    # -- leaves

    async def do_step(self, node: Node) -> Any:
        retry = Retry(attempts=node["attempts"], initial=1.0) if node["attempts"] > 1 else None
        return await work.options(retry=retry)(f"s{node['n']}", colour.get(), node["fails"])

    async def do_careful(self, node: Node) -> Any:
        return await work.options(at_most_once=True)(f"s{node['n']}", "once", node["fails"])

    async def do_thread(self, node: Node) -> Any:
        return await plain(f"s{node['n']}", node["n"])

    async def do_capture(self, node: Node) -> Any:
        return await capture(doubled, node["n"], id=f"id-{node['n']}" if node["named"] else None)

    async def do_sleep(self, node: Node) -> Any:
        await asyncio.sleep(node["seconds"])

    async def do_yield(self, node: Node) -> Any:
        for _ in range(node["times"]):
            await asyncio.sleep(0)

    async def do_draw(self, node: Node) -> Any:
        drawn = [str(new_uuid()), rng().random(), now().isoformat()]
        return [drawn, await capture(repr, drawn), str(new_uuid())]

    async def do_expose(self, node: Node) -> Any:
        expose("at", node["n"])

    async def do_raise(self, node: Node) -> Any:
        raise Failure(f"n{node['n']}")

    async def do_receive(self, node: Node) -> Any:
        where: Callable[[Any], bool] | None = (lambda m: isinstance(m, Ping) and m.n % 2 == 0) if node["even"] else None
        forms = {"ping": (Ping,), "text": (Text,), "both": (Ping, Text), "union": (Ping | Text,)}[node["form"]]
        if node["seconds"] is None:
            return repr(await receive(*forms, name=node["name"], where=where))
        if node["default"]:
            return repr(await receive(*forms, name=node["name"], where=where, timeout=node["seconds"], default=None))
        return repr(await receive(*forms, name=node["name"], where=where, timeout=node["seconds"]))

    async def do_stream(self, node: Node) -> Any:
        stream = messages(Ping, Text, name=node["name"]).until(node["seconds"]).take(node["take"])
        if node["how"] == "list":
            return [repr(v) for v in await stream.list()]
        if node["how"] == "first":
            return repr(await stream.first())
        async for value in messages(object, name=node["name"]).until(node["seconds"]):
            self.see(node, "read", repr(value))
            await work(f"r{node['n']}", repr(value), 0)
            if isinstance(value, Ping):
                break
        return None

    async def do_child(self, node: Node) -> Any:
        label = f"c{node['n']}"
        if node["how"] == "call":
            return await child(label, node["fails"])
        if node["how"] == "run":
            return await run(child, label, node["fails"])
        handle = await start(child, label, node["fails"], detached=node["how"] == "detached")
        self.see(node, "started")
        await asyncio.sleep(1)
        return await handle.result()

    async def do_patch(self, node: Node) -> Any:
        return patched(f"change {node['of']}")

    async def do_pay(self, node: Node) -> Any:
        return await transaction(pay, f"p{node['n']}", node["fails"])

    async def do_send(self, node: Node) -> Any:
        await send("elsewhere", "other", Ping(node["n"]))

    async def do_words(self, node: Node) -> Any:
        """Iterates over a set of strings: another hash seed may change the order, never a value."""
        words = {f"w{i}" for i in range(node["count"])}
        if node["together"]:
            found = dict(zip(words, await asyncio.gather(*(work(w, "word", 0) for w in words)), strict=True))
        else:
            found = {w: await work(w, "word", 0) for w in words}
        return sorted(found.items())

    # -- structures

    async def do_sequence(self, node: Node) -> Any:
        return [await self.run(part) for part in node["parts"]]

    async def do_gather(self, node: Node) -> Any:
        found = await asyncio.gather(*self.coroutines(node), return_exceptions=node["collect"])
        return [described(v) if isinstance(v, BaseException) else v for v in found]

    async def do_group(self, node: Node) -> Any:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(c) for c in self.coroutines(node)]
        return [t.result() for t in tasks]

    async def do_wait(self, node: Node) -> Any:
        tasks = set(self.tasks(node))
        rounds = 0
        while tasks:
            done, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED, timeout=node["seconds"])
            for task in done:
                self.see(node, "done", task.get_name(), outcome(task))
            rounds += 1
            if node["cancel"] or (not done and rounds > 2):
                for task in tasks:
                    task.cancel()
                return await self.settle(node, list(tasks))
        return None

    async def do_wait_gathers(self, node: Node) -> Any:
        gathers = {asyncio.gather(c, return_exceptions=True) for c in self.coroutines(node)}
        await asyncio.sleep(node["seconds"] or 0)
        while gathers:
            done, gathers = await asyncio.wait(gathers, return_when=asyncio.FIRST_COMPLETED)
            for found in done:
                self.see(node, "done", [described(v) if isinstance(v, BaseException) else v for v in found.result()])
                await work(f"g{node['n']}", "gathered", 0)

    async def do_completed(self, node: Node) -> Any:
        for i, future in enumerate(asyncio.as_completed(self.coroutines(node), timeout=node["seconds"])):
            try:
                self.see(node, "next", await future)
            except Failure as error:
                self.see(node, "next", described(error))
            if node["stop"] == i:
                break

    async def do_timeout(self, node: Node) -> Any:
        async with asyncio.timeout(node["seconds"]):
            return await self.run(node["part"])

    async def do_wait_for(self, node: Node) -> Any:
        return await asyncio.wait_for(self.run(node["part"]), node["seconds"])

    async def do_shield(self, node: Node) -> Any:
        return await asyncio.wait_for(asyncio.shield(self.run(node["part"])), node["seconds"])

    async def do_finally(self, node: Node) -> Any:
        try:
            return await self.run(node["part"])
        finally:
            await self.run(node["last"])

    async def do_catch(self, node: Node) -> Any:
        try:
            return await self.run(node["part"])
        except* Exception as error:
            self.see(node, "caught", described(error))
        return "caught"

    async def do_uncancel(self, node: Node) -> Any:
        """Runs on after a cancellation, as asyncio allows."""
        try:
            return await self.run(node["part"])
        except asyncio.CancelledError:
            await self.run(node["last"])
            raise

    async def do_cancel(self, node: Node) -> Any:
        task = asyncio.create_task(self.run(node["part"]))
        try:
            await self.run(node["last"])
        finally:
            task.cancel()
        return await self.settle(node, [task])

    async def do_leave(self, node: Node) -> Any:
        self.left.append(asyncio.create_task(self.run(node["part"])))

    async def do_poll(self, node: Node) -> Any:
        task = asyncio.create_task(self.run(node["part"]))
        turns = 0
        while not task.done():
            turns += 1
            await asyncio.sleep(0)
        return [turns, await self.settle(node, [task])]

    async def do_colour(self, node: Node) -> Any:
        token = colour.set(f"c{node['n']}")
        try:
            found = await self.run(node["part"])
        finally:
            colour.reset(token)
        return [found, colour.get()]

    async def do_locked(self, node: Node) -> Any:
        """Locks are taken in the order of depth, so that programs do not lock themselves up."""
        name = f"{node['depth']}"
        lock = self.locks.setdefault(name, asyncio.Semaphore(2) if node["depth"] % 2 else asyncio.Lock())
        async with lock:
            return await self.run(node["part"])

    async def do_event(self, node: Node) -> Any:
        event = asyncio.Event()

        async def waiter(part: Node) -> Any:
            await event.wait()
            return await self.run(part)

        waiting = [asyncio.create_task(waiter(part)) for part in node["parts"]]
        try:
            await self.run(node["part"])
        finally:
            event.set()
            found = await self.settle(node, waiting)
        return found

    async def do_queue(self, node: Node) -> Any:
        queue: asyncio.Queue[Any] = asyncio.Queue(node["size"])

        async def produce(part: Node) -> None:
            try:
                await queue.put(await self.run(part))
            finally:
                await queue.put(None)

        async def consume(number: int) -> None:
            while (value := await queue.get()) is not None:
                self.see(node, "consumer", number, "got", value)
                await work(f"q{node['n']}", number, 0)

        consumers = [consume(i) for i in range(len(node["parts"]))]
        found = await asyncio.gather(*consumers, *(produce(p) for p in node["parts"]), return_exceptions=True)
        return [described(v) if isinstance(v, BaseException) else v for v in found]

    async def numbers(self, node: Node) -> AsyncIterator[int]:
        try:
            for i in range(3):
                yield i
                await self.run(node["part"])
        finally:
            self.see(node, "generator closes")
            await work(f"f{node['n']}", "finally", 0)

    async def do_generator(self, node: Node) -> Any:
        if node["how"] == "aclosing":
            async with contextlib.aclosing(self.numbers(node)) as numbers:
                async for i in numbers:
                    if i == node["stop"]:
                        break
        elif node["how"] == "held":
            self.locks[f"held {node['n']}"] = held = self.numbers(node)
            async for i in held:
                if i == node["stop"]:
                    break
        else:
            async for i in self.numbers(node):
                if i == node["stop"]:
                    break
        await work(f"after {node['n']}", "", 0)

    async def do_wait_all(self, node: Node) -> Any:
        tasks = self.tasks(node)
        how = asyncio.FIRST_EXCEPTION if node["stop"] else asyncio.ALL_COMPLETED
        done, pending = await asyncio.wait(tasks, return_when=how)
        for task in [*done, *pending]:
            self.see(node, task.get_name(), outcome(task) if task.done() else "pending")
            task.cancel()
            await work(f"w{node['n']}", task.get_name(), 0)

    async def do_barrier(self, node: Node) -> Any:
        barrier = asyncio.Barrier(len(node["parts"]))

        async def arrive(part: Node) -> Any:
            try:
                await self.run(part)
            finally:
                number = await barrier.wait()
            return [number, await work(f"b{part['n']}", number, 0)]

        return await self.settle(node, [asyncio.create_task(arrive(part)) for part in node["parts"]])

    async def do_condition(self, node: Node) -> Any:
        condition = asyncio.Condition()
        turn = 0

        async def one(number: int, part: Node) -> Any:
            nonlocal turn
            async with condition:
                await condition.wait_for(lambda: turn >= number)
                try:
                    return await self.run(part)
                finally:
                    turn += 1
                    condition.notify_all()

        return await self.settle(node, [asyncio.create_task(one(*row)) for row in enumerate(node["parts"])])

    @contextlib.asynccontextmanager
    async def resource(self, part: Node) -> AsyncIterator[Any]:
        found = await self.run(part)
        try:
            yield found
        finally:
            await work(f"release {part['n']}", "", 0)

    async def do_stack(self, node: Node) -> Any:
        async with contextlib.AsyncExitStack() as stack:
            return [await stack.enter_async_context(self.resource(part)) for part in node["parts"]]

    async def do_callback(self, node: Node) -> Any:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[float] = loop.create_future()
        loop.call_later(node["seconds"], lambda: done.done() or done.set_result(loop.time()))
        await self.run(node["part"])
        return await done

    # -- anyio

    async def do_any_start(self, node: Node) -> Any:
        async def serve(part: Node, *, task_status: Any) -> None:
            task_status.started(await work(f"ready {part['n']}", "", 0))
            await self.run(part)

        async with anyio.create_task_group() as group:
            for part in node["parts"]:
                self.see(node, "started", await group.start(serve, part))
            if node["stop"]:
                group.cancel_scope.cancel()

    async def do_any_locks(self, node: Node) -> Any:
        lock, limit, event = anyio.Lock(), anyio.Semaphore(2), anyio.Event()

        async def one(part: Node) -> None:
            async with limit:
                async with lock:
                    await work(f"l{part['n']}", "locked", 0)
                try:
                    await self.run(part)
                finally:
                    event.set()

        async with anyio.create_task_group() as group:
            for part in node["parts"]:
                group.start_soon(one, part)
            await event.wait()
            self.see(node, "event")

    async def do_any_group(self, node: Node) -> Any:
        async with anyio.create_task_group() as group:
            for part in node["parts"]:
                group.start_soon(self.run, part)
            if node["part"] is not None:
                await self.run(node["part"])
                group.cancel_scope.cancel()
        return group.cancel_scope.cancelled_caught

    async def do_any_move_on(self, node: Node) -> Any:
        with anyio.move_on_after(node["seconds"]) as limit:
            return await self.run(node["part"])
        return limit.cancelled_caught

    async def do_any_fail(self, node: Node) -> Any:
        with anyio.fail_after(node["seconds"]):
            return await self.run(node["part"])

    async def do_any_shield(self, node: Node) -> Any:
        with anyio.CancelScope(shield=True):
            return await self.run(node["part"])

    async def do_any_stream(self, node: Node) -> Any:
        sender, receiver = anyio.create_memory_object_stream[Any](node["size"])

        async def produce(part: Node, to: Any) -> None:
            async with to:
                await to.send(await self.run(part))

        async with anyio.create_task_group() as group, receiver:
            for part in node["parts"]:
                group.start_soon(produce, part, sender.clone())
            sender.close()
            async for value in receiver:
                self.see(node, "received", value)
                await work(f"m{node['n']}", "message", 0)
