"""Small flows as source text, each with a script of its life and with changes that a deploy may bring.

The script names what happens to an instance, in order: a step ends ("pay", or "pay(2)" if several hang), a message
comes (`Say`), somebody cancels (`Cancel`), so many seconds pass (a number). Every step gives a value that says which
call it is for; `shaky(n)` fails n times, `declined` always. What else a source may call: see `lives.namespace`.

A change is a list of replacements in the source. `seen` says at which places of the script the changed code meets an
instance that it cannot continue: `seen=2`, wherever two or more events have happened before; `seen={2}`, only there;
None, nowhere: what is recorded fits. `waits`: where it then waits for what never comes. `lint=True`: the changed code
does something else with the *same* durable calls, which no replay can see.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Say:
    """A message comes."""

    message: Any
    name: str | None = None


@dataclass(frozen=True)
class Cancel:
    """The instance is asked to end."""


Event = str | Say | Cancel | int


class Change:
    """One change of a flow's source; see the module."""

    def __init__(self, *edits: str, seen: int | set[int] | None, waits: Iterable[int] = (), lint: bool = False) -> None:
        assert len(edits) % 2 == 0
        self.edits = list(zip(edits[::2], edits[1::2], strict=True))
        self.seen = seen
        self.waits = set(waits)
        self.lint = lint


class Case:
    """One flow of the corpus. `begin`: the first place of its script where instances stop."""

    def __init__(self, name: str, source: str, *script: Event, begin: int = 0, **changes: Change) -> None:
        self.name = name
        self.source = textwrap.dedent(source).lstrip()
        self.script = script
        self.stops = range(begin, len(script))
        self.changes = changes

    def text(self, change: str | None) -> str:
        """The source, changed or not."""
        text = HEAD + self.source
        for old, new in self.changes[change].edits if change is not None else ():
            assert text.count(old) == 1, f"{self.name} {change}: {old!r} is not there once"
            text = text.replace(old, new)
        return text.replace("async def main():\n", "async def main():\n    begun()\n")

    def file(self, change: str | None) -> str:
        """The name under which the source is compiled."""
        return f"{self.name}.{change or 'original'}.py".replace(" ", "_")

    def seen(self, change: str) -> set[int]:
        """The places of the script where the changed code cannot go on."""
        seen = self.changes[change].seen
        if seen is None:
            return set()
        return seen if isinstance(seen, set) else set(self.stops[self.stops.index(seen) :])


HEAD = "import asyncio, contextlib, datetime, random, time, uuid\n"

_ALL = [
    # ------------------------------------------------------------ one after the other
    Case(
        "chain",
        """
        async def main():
            a = await pay(1)
            b = await ship(2)
            c = await mail(3)
            return [a, b, c, await receive(str)]
        """,
        "pay", "ship", "mail", Say("end"),
        renamed=Change("ship(2)", "deliver(2)", seen=2),
        renamed_last=Change("mail(3)", "deliver(3)", seen=3),
        removed=Change("await ship(2)", "None", seen=2),
        removed_last=Change("await mail(3)", "None", seen=3),
        inserted_first=Change("a = await", "await book(9); a = await", seen=1),
        inserted=Change("b = await", "await book(9); b = await", seen=2),
        inserted_last=Change("c, await", "c, await book(9), await", seen=None),
        reordered=Change("pay(1)", "ship(2)", "b = await ship(2)", "b = await pay(1)", seen=1),
        argument=Change("pay(1)", "pay(7)", seen=1),
        one_more_argument=Change("ship(2)", "ship(2, 2)", seen=2),
        clock=Change("pay(1)", "pay(time.time())", seen=1),
        chance=Change("ship(2)", "ship(random.random())", seen=2),
        clock_in_the_result=Change("[a, b, c", "[a, b, c, time.time()", seen=None, lint=True),
        value_dropped=Change("[a, b, c", "[a, c", seen=None, lint=True),
        captured=Change("ship(2)", "capture(look, 2)", seen=2),
    ),
    Case(
        "values",
        """
        async def main():
            a = await pay(1)
            b = await ship(a)
            c = await mail(a, b)
            return [c, await receive(str)]
        """,
        "pay", "ship", "mail", Say("end"),
        other_value=Change("ship(a)", "ship(a.upper())", seen=2),
        swapped=Change("mail(a, b)", "mail(b, a)", seen=3),
        constant=Change("mail(a, b)", "mail(a, 'b')", seen=3),
        by_way_of_a_helper=Change(
            "async def main", "async def helper(x):\n    return await ship(x)\nasync def main", "b = await ship(a)",
            "b = await helper(a)", seen=None,
        ),
        in_a_task=Change("b = await ship(a)", "b = await asyncio.create_task(ship(a))", seen=2),
        branch_by_chance=Change("b = await", "if random.random() < 2: await log(0)\n    b = await", seen=2),
        branch_by_clock=Change("ship(a)", "(ship(a) if time.time() < 0 else deliver(a))", seen=2),
    ),
    Case(
        "loop",
        """
        LIMIT = 3
        async def main():
            found = []
            for n in range(LIMIT):
                found.append(await log(n))
            found.append(await ship(9))
            return [found, await receive(str)]
        """,
        "log(0)", "log(1)", "log(2)", "ship", Say("end"),
        fewer=Change("LIMIT = 3", "LIMIT = 2", seen=3),
        more=Change("LIMIT = 3", "LIMIT = 4", seen=4),
        backwards=Change("range(LIMIT)", "reversed(range(LIMIT))", seen=1),
        later_start=Change("range(LIMIT)", "range(1, LIMIT)", seen=1),
        all_at_once=Change(
            "for n in range(LIMIT):", "if True:", "found.append(await log(n))",
            "found += await asyncio.gather(*map(log, range(LIMIT)))", seen=1,
        ),
        unrolled=Change(
            "for n in range(LIMIT):", "if True:", "found.append(await log(n))",
            "found += [await log(0), await log(1), await log(2)]", seen=None,
        ),
        environment=Change("LIMIT = 3", "LIMIT = 3 if time.time() < 0 else 1", seen=2),
    ),
    Case(
        "branches",
        """
        async def main():
            amount = await receive(int)
            if amount > 100:
                a = await check(amount)
            else:
                a = await pay(amount)
            return [a, await receive(str)]
        """,
        Say(200), "check", Say("end"),
        limit_that_this_one_passes_too=Change("> 100", "> 150", seen=None),
        limit=Change("> 100", "> 250", seen=2),
        other_message=Change("receive(int)", "receive(float)", seen=1),
        named_message=Change("receive(int)", "receive(int, name='order')", seen=1, waits={0}),
        wider_message=Change("receive(int)", "receive(int, float)", seen=1),
        asked_by_where=Change("receive(int)", "receive(int, where=lambda n: n > 500)", seen=None, waits={0}),
        not_received=Change("await receive(int)", "200", seen=1),
        timeout=Change("receive(int)", "receive(int, timeout=60)", seen=2),
        timeout_last=Change("receive(str)", "receive(str, timeout=60)", seen=None),
        step_first=Change("amount = await", "await log(0); amount = await", seen=1),
        other_default=Change("[a, ", "[a, amount, ", seen=None, lint=True),
    ),
    # ------------------------------------------------------------ side by side
    Case(
        "gather",
        """
        async def main():
            found = await asyncio.gather(pay(1), pay(2), ship(3))
            return [*found, await mail(4)]
        """,
        "pay(2)", "ship", "pay(1)", "mail",
        swapped=Change("pay(1), pay(2)", "pay(2), pay(1)", seen=1),
        reordered=Change("pay(1), pay(2), ship(3)", "ship(3), pay(2), pay(1)", seen=2),
        removed=Change(", ship(3)", "", seen=2),
        inserted_last=Change("ship(3))", "ship(3), book(5))", seen=None),
        inserted_first=Change("gather(", "gather(book(5), ", seen=1),
        one_after_the_other=Change(
            "await asyncio.gather(pay(1), pay(2), ship(3))", "[await pay(1), await pay(2), await ship(3)]", seen=1
        ),
        collected=Change("ship(3))", "ship(3), return_exceptions=True)", seen=None),
        order_of_values=Change("[*found", "[*reversed(found)", seen=None, lint=True),
    ),
    Case(
        "group",
        """
        async def legs():
            return [await book(2), await ship(3)]
        async def main():
            async with asyncio.TaskGroup() as group:
                one = group.create_task(pay(1))
                two = group.create_task(legs())
            return [one.result(), two.result(), await mail(4)]
        """,
        "book", "pay", "ship", "mail",
        renamed=Change("ship(3)", "deliver(3)", seen=3),
        legs_swapped=Change("[await book(2), await ship(3)]", "[await ship(3), await book(2)]", seen=1),
        tasks_swapped=Change("pay(1)", "legs()", "two = group.create_task(legs())", "two = group.create_task(pay(1))", seen=1),
        task_removed=Change("two = group.create_task(legs())", "pass", "one = group.create_task(pay(1))",
                            "one = two = group.create_task(legs())", seen=1),
        task_added=Change("two = ", "group.create_task(log(0)); two = ", seen=1),
        task_added_last=Change("two = ", "two = group.create_task(legs()); three = ", "create_task(legs())\n",
                               "create_task(log(0))\n", seen=None),
        task_that_asks_for_nothing=Change("one = ", "group.create_task(asyncio.sleep(0)); one = ", seen=None),
        task_that_waits=Change("one = ", "group.create_task(asyncio.sleep(1)); one = ", seen=1),
        named_task=Change("create_task(pay(1))", "create_task(pay(1), name='paying')", seen=None),
        gathered=Change("async with asyncio.TaskGroup() as group:", "if True:",
                        "one = group.create_task(pay(1))", "one = asyncio.ensure_future(pay(1))",
                        "two = group.create_task(legs())", "two = asyncio.ensure_future(legs()); await asyncio.gather(one, two)",
                        seen=None),
    ),
    Case(
        "nested",
        """
        async def leg(n):
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(book(n)), group.create_task(pay(n))]
            return [t.result() for t in tasks]
        async def main():
            found = await asyncio.gather(leg(1), leg(2))
            return [found, await receive(str)]
        """,
        "pay(2)", "book(1)", "pay(1)", "book(2)", Say("end"),
        legs_swapped=Change("leg(1), leg(2)", "leg(2), leg(1)", seen=1),
        inner_swapped=Change("book(n)", "pay(n)", "pay(n))]", "book(n))]", seen=1),
        task_in_a_task=Change("leg(1), leg(2)", "asyncio.shield(leg(1)), leg(2)", seen=None),
        deeper=Change("gather(leg(1)", "gather(deep(1)", "async def main", "async def deep(n):\n"
                      "    return await asyncio.create_task(leg(n))\nasync def main", seen=1),
        step_before=Change("    async with", "    await log(n)\n    async with", seen=1),
        step_after=Change("    return [t", "    await log(n)\n    return [t", seen=None),
    ),
    Case(
        "first of three",
        """
        async def main():
            tasks = {asyncio.create_task(fetch(n)) for n in range(3)}
            done, rest = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in rest:
                task.cancel()
            first = [task.result() for task in done]
            return [*first, await mail(*first), await receive(str)]
        """,
        "fetch(1)", "mail", Say("end"),
        others=Change("range(3)", "range(1, 4)", seen=1),
        one_more=Change("range(3)", "range(4)", seen=None),
        one_less=Change("range(3)", "range(2)", seen=None),
        all=Change("FIRST_COMPLETED", "ALL_COMPLETED", seen=2),
        a_list=Change("{asyncio.create_task(fetch(n)) for n in range(3)}", "[asyncio.create_task(fetch(n)) for n in range(3)]",
                      seen=None),
        not_cancelled=Change("task.cancel()", "pass", seen=None),
        other_mail=Change("mail(*first)", "mail('first')", seen=2),
        renamed=Change("fetch(n)", "rate(n)", seen=1),
    ),
    Case(
        "as completed",
        """
        async def main():
            got = []
            for one in asyncio.as_completed([fetch(n) for n in range(3)]):
                got.append(await one)
                got.append(await log(len(got)))
            return [got, await receive(str)]
        """,
        "fetch(2)", "log(1)", "fetch(0)", "log(3)", "fetch(1)", "log(5)", Say("end"),
        one_more=Change("range(3)", "range(4)", seen=None),
        one_less=Change("range(3)", "range(2)", seen=1),
        backwards=Change("range(3)", "reversed(range(3))", seen=1),
        other_log=Change("log(len(got))", "log(0)", seen=2),
        no_log=Change("got.append(await log(len(got)))", "pass", seen=2),
        stops_early=Change("got.append(await one)", "got.append(await one)\n        if len(got) == 3: break", seen=4),
        in_order=Change("asyncio.as_completed([fetch(n) for n in range(3)])", "map(asyncio.ensure_future, map(fetch, range(3)))",
                        seen=1),
    ),
    Case(
        "workers",
        """
        async def main():
            queue = asyncio.Queue()
            for n in range(4):
                queue.put_nowait(n)
            found = []
            async def worker():
                while not queue.empty():
                    found.append(await fetch(queue.get_nowait()))
            await asyncio.gather(worker(), worker())
            return [found, await receive(str)]
        """,
        "fetch(1)", "fetch(2)", "fetch(0)", "fetch(3)", Say("end"),
        three=Change("worker(), worker()", "worker(), worker(), worker()", seen=2),
        one=Change("worker(), worker()", "worker()", seen=1),
        last_first=Change("asyncio.Queue()", "asyncio.LifoQueue()", seen=1),
        more_work=Change("range(4)", "range(6)", seen=None),
        less_work=Change("range(4)", "range(3)", seen=4),
        found_first=Change("[found,", "[found[0],", seen=None, lint=True),
    ),
    Case(
        "locks",
        """
        async def main():
            lock = asyncio.Lock()
            async def one(n):
                async with lock:
                    a = await book(n)
                return [a, await mail(n)]
            found = await asyncio.gather(one(1), one(2))
            return [found, await receive(str)]
        """,
        "book(1)", "book(2)", "mail(2)", "mail(1)", Say("end"),
        no_lock=Change("async with lock:", "if True:", seen=None),
        semaphore=Change("asyncio.Lock()", "asyncio.Semaphore(2)", seen=None),
        longer=Change("    return [a, await mail(n)]", "        return [a, await mail(n)]", seen=2),
        the_other_first=Change("one(1), one(2)", "one(2), one(1)", seen=1),
        event=Change("async with lock:", "if n == 2: await asyncio.sleep(0)\n        async with lock:", seen=None),
    ),
    Case(
        "signals inside",
        """
        async def main():
            event, turn = asyncio.Event(), asyncio.Condition()
            async def waits():
                await event.wait()
                return await ship(1)
            task = asyncio.create_task(waits())
            a = await pay(2)
            event.set()
            async with turn:
                b = await log(3)
                turn.notify_all()
            return [a, b, await task, await receive(str)]
        """,
        "pay", "ship", "log", Say("end"),
        set_earlier=Change("a = await", "event.set(); a = await", "    event.set()\n    async", "    async", seen=None),
        set_later=Change("    event.set()\n    async with", "    async with", "turn.notify_all()", "event.set()", seen=2),
        not_waited_for=Change("await event.wait()", "pass", seen=None),
        begun_later=Change("task = asyncio.create_task(waits())", "pass", "event.set()",
                           "event.set(); task = asyncio.create_task(waits())", seen=None),
        awaited_in_place=Change("task = asyncio.create_task(waits())", "pass", "await task", "await ship(1)", seen=2),
    ),
    # ------------------------------------------------------------ time
    Case(
        "late",
        """
        async def main():
            try:
                async with asyncio.timeout(10):
                    got = await receive(str)
            except TimeoutError:
                got = "late"
            a = await pay(1)
            return [got, a, await receive(int)]
        """,
        10, "pay", Say(5),
        longer=Change("timeout(10)", "timeout(20)", seen=1),
        other_wait=Change("receive(str)", "receive(bytes)", seen=None),
        step_instead=Change("receive(str)", "delay(1000)", seen=None),
        no_timeout=Change("asyncio.timeout(10)", "asyncio.timeout(None)", "got = await receive(str)", "got = await receive(int)",
                          seen=1, waits={0}),
        receive_s_own=Change("asyncio.timeout(10)", "contextlib.nullcontext()", "receive(str)", "receive(str, timeout=10)",
                             seen=1),
        other_word=Change("got = \"late\"", "got = \"too late\"", seen=None, lint=True),
        renamed=Change("pay(1)", "ship(1)", seen=2),
    ),
    Case(
        "in time",
        """
        async def main():
            async with asyncio.timeout(60):
                got = await receive(str)
                a = await pay(1)
            return [got, a, await ship(2)]
        """,
        Say("go"), "pay", "ship",
        longer=Change("timeout(60)", "timeout(90)", seen=None),
        no_timeout=Change("asyncio.timeout(60)", "contextlib.nullcontext()", seen=1),
        step_outside=Change("    a = await pay(1)", "a = await pay(1)", seen=None),
        step_first=Change("got = await receive(str)", "a = await pay(1)", "a = await pay(1)\n    return",
                          "got = await receive(str)\n    return",
                          seen=1),
        two_limits=Change("a = await", "async with asyncio.timeout(5): a = await", seen=2),
    ),
    Case(
        "step in time",
        """
        async def main():
            try:
                a = await asyncio.wait_for(fetch(1), 30)
            except TimeoutError:
                a = await check(1)
            return [a, await ship(2), await receive(str)]
        """,
        "fetch", "ship", Say("end"),
        shorter=Change("30", "20", seen=None),
        other_handler=Change("check(1)", "check(2)", seen=None),
        renamed=Change("fetch(1)", "rate(1)", seen=1),
        timeout=Change("asyncio.wait_for(fetch(1), 30)", "fetch(1)", seen=1),
    ),
    Case(
        "default",
        """
        async def main():
            got = await receive(int, timeout=30, default=None)
            word = await receive(str)
            return [got, word, await pay(1)]
        """,
        30, Say("w"), "pay",
        longer=Change("timeout=30", "timeout=40", seen=1),
        other_default=Change("default=None", "default=0", seen=None, lint=True),
        no_timeout=Change("receive(int, timeout=30, default=None)", "receive(str)", "word = await receive(str)", "word = 1", seen=1),
        no_wait=Change("await receive(int, timeout=30, default=None)", "None", seen=1),
        step_between=Change("word = await", "await log(0); word = await", seen=2),
    ),
    Case(
        "delays",
        """
        async def main():
            begin = now().timestamp()
            a = await pay(begin)
            await delay(100)
            b = await ship(2)
            await asyncio.sleep(50)
            return [a, b, await mail(3)]
        """,
        "pay", 100, "ship", 50, "mail",
        longer=Change("delay(100)", "delay(200)", seen=2),
        half_a_second_less=Change("delay(100)", "delay(99.5)", seen=2),
        wall_clock=Change("now().timestamp()", "time.time()", seen=1),
        system_date=Change("now().timestamp()", "datetime.datetime.now().isoformat()", seen=1),
        rounded=Change("pay(begin)", "pay(int(begin))", seen=1),
        removed=Change("await delay(100)", "pass", seen=2),
        slept=Change("delay(100)", "asyncio.sleep(100)", seen=None),
        delayed=Change("asyncio.sleep(50)", "delay(50)", seen=None),
        until_the_same=Change("delay(100)", "delay(until=now() + datetime.timedelta(seconds=100))", seen=None),
        until_a_wall_clock=Change(
            "delay(100)", "delay(until=datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=100))", seen=2,
            waits={0, 1},
        ),
        inserted=Change("b = await", "await delay(1); b = await", seen=3),
        step_after_the_last=Change("await mail(3)]", "await mail(3), await log(0)]", seen=None),
    ),
    # ------------------------------------------------------------ messages
    Case(
        "messages",
        """
        async def main():
            order = await receive(int)
            a = await pay(order)
            word = await receive(str, name="word")
            return [order, a, word, await log(word), await receive(float)]
        """,
        Say(7), "pay", Say("hello", "word"), "log", Say(1.5),
        argument=Change("pay(order)", "pay(order + 1)", seen=2),
        renamed_message=Change("name=\"word\"", "name=\"term\"", "await receive(float)", "0", seen=3, waits={0, 1, 2}),
        no_name=Change(", name=\"word\"", "", "await receive(float)", "0", seen=3, waits={0, 1, 2}),
        swapped=Change("order = await receive(int)", "word = await receive(str, name='word')", "word = await receive(str, name=\"word\")",
                       "order = await receive(int)", "pay(order)", "pay(word)", seen=1),
        both_at_once=Change("order = await receive(int)", "order, word = await asyncio.gather(receive(int), receive(str, name='word'))",
                            "word = await receive(str, name=\"word\")", "pass", seen=1),
        received_once_more=Change("[order,", "[order, await receive(str, name='word', timeout=5, default=None),", seen=4),
    ),
    Case(
        "lists",
        """
        async def main():
            numbers = await receive(list[int])
            a = await pay(*numbers)
            return [a, await receive(str)]
        """,
        Say([1, 2]), "pay", Say("end"),
        other_elements=Change("list[int]", "list[str]", "pay(*numbers)", "pay(1, 2)", seen=1, waits={0}),
        other_container=Change("list[int]", "tuple[int, ...]", seen=1, waits={0}),
    ),
    Case(
        "stream",
        """
        async def main():
            seen = []
            async for n in messages(int).take(3):
                seen.append(await log(n))
            return [*seen, await receive(str)]
        """,
        Say(1), "log(1)", Say(2), "log(2)", Say(3), "log(3)", Say("end"),
        fewer=Change("take(3)", "take(2)", seen=6),
        more=Change("take(3)", "take(4)", "await receive(str)", "0", seen=None, waits=range(7)),
        filtered=Change("take(3)", "where(lambda n: n != 2).take(3)", seen=4, waits={0, 1, 2, 3}),
        mapped=Change("take(3)", "map(lambda n: n + 1).take(3)", seen=2),
        skipped=Change("take(3)", "skip(1).take(2)", seen=2),
        argument=Change("log(n)", "log(n, 0)", seen=2),
        renamed=Change("log(n)", "book(n)", seen=2),
        taken=Change("async for n in messages(int).take(3):", "for n in range(3):", "log(n)", "log(await receive(int))", seen=2),
        listed=Change("async for n in messages(int).take(3):", "for n in await messages(int).take(3).list():", seen=2),
    ),
    Case(
        "stream with an end",
        """
        async def main():
            got = await messages(int).until(20).list()
            return [await log(*got), await receive(str)]
        """,
        Say(1), Say(2), 20, "log", Say("end"),
        longer=Change("until(20)", "until(30)", seen=3),
        first=Change("await messages(int).until(20).list()", "[await messages(int).until(20).first()]", seen=4),
        last=Change("await messages(int).until(20).list()", "[await messages(int).until(20).last()]", seen=4),
        strings=Change("messages(int)", "messages(str)", seen=4),
        take_one=Change("until(20)", "until(20).take(1)", seen=4),
    ),
    # ------------------------------------------------------------ other instances
    Case(
        "child",
        """
        @flow(name="invoice")
        async def invoice(n):
            a = await book(n)
            b = await mail(n)
            return f"invoice({n})#{a} {b}"
        async def main():
            a = await pay(1)
            b = await run(invoice, 2)
            return [a, b, await ship(3), await receive(str)]
        """,
        "pay", "book", "mail", "ship", Say("end"),
        argument=Change("run(invoice, 2)", "run(invoice, 5)", seen=1),
        renamed=Change("flow(name=\"invoice\")", "flow(name=\"bill\")", "f\"invoice(", "f\"bill(", seen=1),
        called=Change("run(invoice, 2)", "invoice(2)", seen=None),
        function_renamed=Change("def invoice(n)", "def bill(n)", "run(invoice, 2)", "run(bill, 2)", seen=None),
        detached=Change("run(invoice, 2)", "(await start(invoice, 2, detached=True)).result()", seen=1),
        removed=Change("b = await run(invoice, 2)", "b = 0", seen=1),
        with_an_id=Change("run(invoice, 2)", "run(invoice, 2, id=current().id + '-i')", seen=1),
        step_between=Change("b = await run", "await log(0); b = await run", seen=1),
        child_renamed_step=Change("await book(n)", "await log(n)", seen={2}),
        child_last_step=Change("await mail(n)", "await log(n)", seen=None),
        child_inserted=Change("a = await book(n)", "await log(n); a = await book(n)", seen={2}),
        in_place=Change("run(invoice, 2)", "invoice.fn(2)", seen=1),
        next_step=Change("ship(3)", "ship(4)", seen=4),
    ),
    Case(
        "helper",
        """
        @flow(name="worker")
        async def worker(n):
            return f"worker({n})#{await book(n)}"
        async def main():
            kid = await start(worker, 1, id=f"{current().id}-w")
            a = await pay(1)
            b = await kid.result()
            return [a, b, await ship(2), await receive(str)]
        """,
        "pay", "book", "ship", Say("end"),
        other_id=Change("-w", "-x", seen=0),
        argument=Change("start(worker, 1", "start(worker, 2", seen=0),
        detached=Change("-w\")", "-w\", detached=True)", seen=0),
        not_awaited=Change("b = await kid.result()", "b = 0", seen=2),
        awaited_first=Change("a = await pay(1)", "a = await kid.result()", "b = await kid.result()", "b = await pay(1)", seen=1),
        second_child=Change("a = await", "await start(worker, 7); a = await", seen=1),
        by_name=Change("start(worker, 1", "start('worker', 1", seen=None),
        by_handle=Change("b = await kid.result()", "b = await handle(worker, current().id + '-w').result()", seen=None),
        child_step=Change("book(n)", "log(n)", seen=None),
    ),
    Case(
        "child that fails",
        """
        @flow(name="fails")
        async def fails(n):
            await book(n)
            raise ValueError(f"fails({n})#")
        async def main():
            try:
                a = await run(fails, 1)
            except ValueError as error:
                a = str(error)
            return [a, await mail(a), await receive(str)]
        """,
        "book", "mail", Say("end"),
        not_caught=Change("except ValueError", "except KeyError", seen=2),
        error_named=Change("str(error)", "repr(error)", seen=2),
        retried=Change("a = str(error)", "a = await run(fails, 1)", seen=2),
        child_succeeds=Change("raise ValueError(f\"fails({n})#\")", "return f'fails({n})#'", seen=None),
    ),
    Case(
        "friends",
        """
        @flow(name="friend")
        async def friend():
            return await receive(int)
        async def main():
            other = f"{current().id}-f"
            there = await start(friend, id=other, detached=True)
            await send(friend, other, 5, key="once")
            a = await pay(1)
            return [a, await there.result(), await ship(2)]
        """,
        "pay", "ship",
        other_message=Change("other, 5", "other, 6", seen=0),
        other_key=Change("key=\"once\"", "key=\"twice\"", seen=0),
        no_key=Change(", key=\"once\"", "", seen=0),
        other_address=Change("send(friend, other", "send(friend, other + '2'", seen=0),
        wall_clock=Change("other, 5", "other, int(time.time())", seen=0),
        not_sent=Change("await send(friend, other, 5, key=\"once\")", "pass", seen=0),
        sent_twice=Change("a = await", "await send(friend, other, 5, key='again'); a = await", seen=1),
        cancelled=Change("await send(friend, other, 5, key=\"once\")", "await cancel(friend, other)", seen=0),
        sent_later=Change("    await send(friend, other, 5, key=\"once\")\n    a = await pay(1)",
                          "    a = await pay(1)\n    await send(friend, other, 5, key=\"once\")", seen=0),
        attached=Change(", detached=True", "", seen=0),
        state_read=Change("await ship(2)", "await there.state(), await ship(2)", seen=None),
    ),
    # ------------------------------------------------------------ failures
    Case(
        "retries",
        """
        async def main():
            a = await shaky(1)
            return [a, await pay(2), await receive(str)]
        """,
        "shaky", 10, "shaky", "pay", Say("end"),
        renamed=Change("shaky(1)", "fetch(1)", seen=1),
        argument=Change("shaky(1)", "shaky(2)", seen=1),
        removed=Change("await shaky(1)", "0", seen=1),
        other_policy=Change("shaky(1)", "stubborn(1)", seen=None),
        inserted=Change("a = await", "await log(0); a = await", seen=1),
        in_a_task=Change("await shaky(1)", "await asyncio.create_task(shaky(1))", seen=1),
        beside=Change("await shaky(1)", "(await asyncio.gather(shaky(1), log(0)))[0]", seen=1),
    ),
    Case(
        "at most once",
        """
        async def main():
            try:
                a = await once(1)
            except OutcomeUnknown:
                a = await check(1)
            return [a, await pay(2), await receive(str)]
        """,
        "once", "pay", Say("end"),
        renamed=Change("once(1)", "other_once(1)", seen=0),
        argument=Change("once(1)", "once(2)", seen=0),
        removed=Change("await once(1)", "0", seen=0),
        inserted=Change("a = await once", "await log(0); a = await once", seen=0),
        more_than_once=Change("once(1)", "once_or_more(1)", seen=None),
        not_caught=Change("except OutcomeUnknown", "except KeyError", seen=None),
        handler=Change("check(1)", "check(2)", seen=None),
        beside=Change("await once(1)", "(await asyncio.gather(log(0), once(1)))[1]", seen=0),
        later=Change("a = await once(1)", "a = await receive(str); a = await once(1)", "await receive(str)]", "0]", seen=0),
    ),
    Case(
        "finally",
        """
        async def main():
            try:
                a = await pay(1)
                b = await declined(2)
            except ValueError as error:
                b = str(error)
            finally:
                c = await undo(3)
            return [a, b, c, await receive(str)]
        """,
        "pay", "declined", "undo", Say("end"),
        not_caught=Change("except ValueError", "except KeyError", seen=None),
        no_undo=Change("await undo(3)", "0", seen=3),
        other_undo=Change("undo(3)", "undo(4)", seen=3),
        undo_before=Change("b = str(error)", "b = await mail(str(error))", seen=3),
        no_failure=Change("await declined(2)", "0", seen=2),
        undo_in_a_task=Change("await undo(3)", "await asyncio.shield(undo(3))", seen=3),
        shorter_message=Change("str(error)", "str(error)[:4]", seen=None, lint=True),
    ),
    Case(
        "compensation",
        """
        async def main():
            done = []
            try:
                for n in (1, 2, 3):
                    done.append(await book(n))
                await declined(4)
            except ValueError:
                for n in reversed(range(len(done))):
                    await undo(n)
            return await receive(str)
        """,
        "book(1)", "book(2)", "book(3)", "declined", "undo(2)", "undo(1)", "undo(0)", Say("end"),
        forwards=Change("reversed(range(len(done)))", "range(len(done))", seen=5),
        fewer=Change("(1, 2, 3)", "(1, 2)", seen=3),
        more=Change("(1, 2, 3)", "(1, 2, 3, 4)", seen=4),
        all_at_once=Change("for n in reversed(range(len(done))):", "if True:", "await undo(n)",
                           "await asyncio.gather(*(undo(n) for n in reversed(range(len(done)))))", seen=5),
        set_of_numbers=Change("(1, 2, 3)", "{1, 2, 3}", seen=None),
        counted_twice=Change("await undo(n)", "await undo(n); await undo(n)", seen=6),
    ),
    Case(
        "cancelled",
        """
        async def main():
            try:
                await pay(1)
                await receive(int)
            except asyncio.CancelledError:
                await undo(1)
                await mail(2)
                raise
        """,
        "pay", Cancel(), "undo", "mail",
        renamed=Change("undo(1)", "log(1)", seen=3),
        swapped=Change("undo(1)", "mail(2)", "    await mail(2)\n        raise", "    await undo(1)\n        raise", seen=3),
        survives=Change("raise", "return 'alive'", seen=None),
        not_caught=Change("except asyncio.CancelledError", "except KeyError", seen=3),
        step_before=Change("await receive", "await log(0); await receive", seen=None),
        begin=2,
    ),
    Case(
        "generator",
        """
        async def numbers():
            try:
                for n in range(3):
                    yield await fetch(n)
            finally:
                await undo(9)
        async def main():
            got = []
            async for value in numbers():
                got.append(value)
                if len(got) == 2:
                    break
            return [got, await mail(1), await receive(str)]
        """,
        "fetch(0)", "fetch(1)", "undo", "mail", Say("end"),
        one_more=Change("len(got) == 2", "len(got) == 3", seen=3),
        one_less=Change("len(got) == 2", "len(got) == 1", seen=2),
        no_finally=Change("await undo(9)", "pass", seen=3),
        other_finally=Change("undo(9)", "undo(8)", seen=3),
        closed_in_place=Change("async for value in numbers():", "source = numbers()\n    async for value in source:",
                               "return [got", "await source.aclose()\n    return [got", seen=3),
    ),
    # ------------------------------------------------------------ chance, time, state
    Case(
        "chance",
        """
        async def main():
            a = await pay(new_uuid())
            b = await ship(rng().randint(1, 10**9))
            c = await mail(2)
            return [a, b, c, await receive(str)]
        """,
        "pay", "ship", "mail", Say("end"),
        uuid4=Change("new_uuid()", "uuid.uuid4()", seen=1),
        random=Change("rng()", "random", seen=2),
        seeded=Change("rng()", "random.Random(7)", seen=2),
        drawn_before=Change("a = await", "rng(); a = await", seen=1),
        drawn_between=Change("b = await", "new_uuid(); b = await", seen=2),
        drawn_after=Change("c = await", "new_uuid(); c = await", seen=None),
        other_draw=Change("randint(1,", "randint(2,", seen=2),
        id_of_an_object=Change("mail(2)", "mail(id(object()))", seen=3),
        chance_in_the_result=Change("[a, b, c,", "[a, b, c, random.random(),", seen=None, lint=True),
        clock_decides_nothing=Change("c = await", "time.time() > 0 and 1; c = await", seen=None),
    ),
    Case(
        "lambdas",
        """
        async def main():
            a = await quietly(lambda: "one")
            b = await quietly(lambda: "two")
            return [a, b, await pay(3), await receive(str)]
        """,
        "pay", Say("end"),
        swapped=Change("a = await quietly(lambda: \"one\")", "b = await quietly(lambda: \"two\")",
                       "b = await quietly(lambda: \"two\")\n    return", "a = await quietly(lambda: \"one\")\n    return",
                       seen=None, lint=True),
        named=Change("(lambda: \"one\")", "(lambda: \"one\", name='one')", seen=0),
    ),
    Case(
        "exposed",
        """
        async def main():
            expose("at", "begin")
            a = await pay(1)
            expose("at", a)
            b = await ship(exposed("at"))
            return [b, await receive(str)]
        """,
        "pay", "ship", Say("end"),
        not_exposed=Change("expose(\"at\", a)", "pass", seen=2),
        other_value=Change("expose(\"at\", a)", "expose(\"at\", a.upper())", seen=2),
        other_key=Change("expose(\"at\", a)", "expose(\"to\", a)", seen=2),
        more_exposed=Change("expose(\"at\", a)", "expose(\"at\", a); expose('more', time.time())", seen=None),
        first_value=Change("\"begin\"", "time.time()", seen=None),
    ),
    Case(
        "dictionaries",
        """
        PRICES = {"a": 1, "b": 2}
        async def main():
            got = [await rate(name) for name in PRICES]
            got.append(await log(PRICES))
            return [*got, await receive(str)]
        """,
        "rate(a)", "rate(b)", "log", Say("end"),
        other_order=Change("{\"a\": 1, \"b\": 2}", "{\"b\": 2, \"a\": 1}", seen=1),
        sorted_backwards=Change("name in PRICES", "name in sorted(PRICES, reverse=True)", seen=1),
        argument_in_other_order=Change("log(PRICES)", "log(dict(reversed(PRICES.items())))", seen=3),
        one_more=Change("\"b\": 2", "\"b\": 2, \"c\": 3", seen=3),
        other_price=Change("\"b\": 2", "\"b\": 3", seen=3),
    ),
    # ------------------------------------------------------------ what exists only the first time
    Case(
        "cache",
        """
        cache = {}
        async def main():
            if current().id not in cache:
                cache[current().id] = await fetch(0)
            a = await pay(1)
            return [a, await receive(str)]
        """,
        "fetch", "pay", Say("end"),
        filled=Change("cache = {}", "cache = {str(n): 'found before' for n in range(9)}", seen=1),
        filled_and_used=Change("cache = {}", "cache = {str(n): 'found before' for n in range(9)}", "pay(1)",
                               "pay(cache[current().id])", seen=1),
        always=Change("if current().id not in cache:", "if True:", seen=None),
    ),
    Case(
        "client pool",
        """
        pool = []
        async def connect():
            await asyncio.sleep(0)
        async def main():
            if not pool:
                await asyncio.create_task(connect())
            a, b = await asyncio.gather(pay(1), pay(2))
            return [a, b, await receive(str)]
        """,
        "pay(2)", "pay(1)", Say("end"),
        there_already=Change("pool = []", "pool = [1]", seen=None),
        pays_to_connect=Change("asyncio.sleep(0)", "log(0)", seen=1),
        waits_to_connect=Change("asyncio.sleep(0)", "asyncio.sleep(1)", seen=1),
        connects_beside=Change("await asyncio.create_task(connect())", "keep = asyncio.create_task(connect())", seen=None),
    ),
    # ------------------------------------------------------------ anyio
    Case(
        "anyio",
        """
        async def main():
            found = {}
            async def one(n):
                found[n] = await fetch(n)
            async with anyio.create_task_group() as group:
                for n in (1, 2, 3):
                    group.start_soon(one, n)
            with anyio.move_on_after(30) as scope:
                await receive(int)
            a = await ship(sorted(found.values()))
            return [a, await receive(str)]
        """,
        "fetch(2)", "fetch(1)", "fetch(3)", 30, "ship", Say("end"),
        backwards=Change("(1, 2, 3)", "(3, 2, 1)", seen=2),
        longer=Change("move_on_after(30)", "move_on_after(40)", seen=4),
        no_limit=Change("with anyio.move_on_after(30) as scope:", "if False:", seen=4),
        asyncio_s_limit=Change("with anyio.move_on_after(30) as scope:", "with contextlib.suppress(TimeoutError):",
                               "await receive(int)", "async with asyncio.timeout(30): await receive(int)", seen=None),
        task_added=Change("(1, 2, 3)", "(1, 2, 3, 4)", seen=4),
        asyncio_s_group=Change("anyio.create_task_group()", "asyncio.TaskGroup()", "group.start_soon(one, n)",
                               "group.create_task(one(n))", seen=None),
        slept=Change("a = await", "await anyio.sleep(1); a = await", seen=5),
        limited=Change("async def one(n):", "limit = anyio.CapacityLimiter(1)\n    async def one(n):",
                       "found[n] = await fetch(n)", "async with limit: found[n] = await fetch(n)", seen=1),
    ),
]  # fmt: skip

WORDS = '{"USD", "EUR", "DKK", "JPY", "GBP", "CHF", "SEK", "NOK"}'

_SETS = [
    # ------------------------------------------------------------ another hash seed: the same code, in another process
    Case(
        "rates of a set",
        f"""
        async def main():
            rates = {{c: await rate(c) for c in {WORDS}}}
            return [sorted(rates.items()), await receive(str)]
        """,
        *["rate"] * 8, Say("end"),
        another_seed=Change(seen=1),
    ),
    Case(
        "rates at once",
        f"""
        async def main():
            words = {WORDS}
            rates = dict(zip(words, await asyncio.gather(*map(rate, words))))
            return [sorted(rates.items()), await receive(str)]
        """,
        *["rate"] * 8, Say("end"),
        another_seed=Change(seen=1),
    ),
    Case(
        "rates in order",
        f"""
        async def main():
            rates = {{c: await rate(c) for c in sorted({WORDS})}}
            return [sorted(rates.items()), await log({WORDS}), await receive(str)]
        """,
        *["rate"] * 8, "log", Say("end"),
        another_seed=Change(seen=None),
    ),
    Case(
        "set of tasks",
        """
        async def main():
            tasks = {asyncio.create_task(fetch(n)) for n in range(6)}
            done, _ = await asyncio.wait(tasks)
            return [[await log(task.result()) for task in done], await receive(str)]
        """,
        "fetch(3)", "fetch(0)", "fetch(5)", "fetch(1)", "fetch(4)", "fetch(2)", *["log"] * 6, Say("end"),
        another_seed=Change(seen=None),
    ),
    Case(
        "labels of a set",
        f"""
        async def main():
            words = [*{WORDS}]
            found = [await log(n) for n in range(3)]
            return [words, found, await receive(str)]
        """,
        "log(0)", "log(1)", "log(2)", Say("end"),
        another_seed=Change(seen=None, lint=True),
    ),
]  # fmt: skip

CASES = {case.name: case for case in [*_ALL, *_SETS]}
RESEEDED = [case.name for case in _SETS]
