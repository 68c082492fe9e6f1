"""Changed code asks whether a run is new enough for it: exactly those that had not come so far are, and stay so."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from perdure import (
    Handle,
    NotInFlow,
    OutcomeUnknown,
    Retry,
    State,
    capture,
    continue_as_new,
    flow,
    patched,
    receive,
    step,
)
from perdure.model.records import Entry, Kind
from tests.support.stores import Held, as_store
from tests.support.world import World, eventually


class Deploys:
    """Versions of the code of one flow, "order", one after the other; what their steps did is noted."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.ran: list[str] = []
        self.engine: Any = None
        self.versions = 0

    async def work(self, name: str) -> str:
        """A step of the flow."""
        return await capture(self._note, name, name=name)

    def _note(self, name: str) -> str:
        self.ran.append(name)
        return name

    async def deploy(self, body: Callable[..., Awaitable[Any]], **options: Any) -> Handle[Any]:
        """The old engine has died, and one with this code goes on with instance "1", which exists."""
        self.versions += 1
        code = flow(name="order")(body)  # type: ignore[arg-type]
        options = {"version": f"v{self.versions}"} | options
        if self.engine is None:
            self.engine = await self.world.engine(code, **options)
        else:
            self.engine = await self.world.restart(self.engine, code, **options)
        return await self.engine.start("order", id="1")

    async def taken(self, handle: Handle[Any]) -> None:
        """The instance has taken its messages and waits for another."""
        await eventually(lambda: self.world.inbox(handle), lambda inbox: not inbox)
        await self.world.parked(handle)

    async def patches(self, handle: Handle[Any]) -> list[str]:
        """Which changes the run is known to be new enough for."""
        return [e.name for e in await self.world.journal(handle) if e.kind == Kind.PATCHED]


@pytest.fixture
def deploys(world: World) -> Deploys:
    return Deploys(world)


async def recorded(deploys: Deploys, handle: Handle[Any], entries: int) -> list[Entry]:
    """The journal, when it has so many entries and the instance waits."""
    await deploys.world.parked(handle)
    journal = await deploys.world.journal(handle)
    assert len(journal) == entries, journal
    return journal


async def test_a_new_run_is_new_enough(deploys: Deploys) -> None:
    async def code() -> str:
        found = await deploys.work("new" if patched("tax") else "old")
        return found + await receive(str)

    handle = await deploys.deploy(code)
    (patch, *_) = await recorded(deploys, handle, 3)
    assert (patch.kind, patch.name, patch.seq) == (Kind.PATCHED, "tax", -1)
    handle = await deploys.deploy(code)
    await handle.send("!")
    assert await handle.result(timeout=10) == "new!"
    assert deploys.ran == ["new"]


@pytest.mark.parametrize("behind", ["step", "message"])
async def test_a_run_that_went_on_behind_the_change_is_not(deploys: Deploys, behind: str) -> None:
    async def before() -> str:
        found = await deploys.work("old")
        if behind == "message":
            found += await receive(str)
        return found + await receive(str)

    async def after() -> str:
        if patched("tax"):
            return await deploys.work("new")
        found = await deploys.work("old")
        if behind == "message":
            found += await receive(str)
        again = "new" if patched("tax") else "old"
        return f"{found} {await receive(str)} {again}"

    handle = await deploys.deploy(before)
    if behind == "message":
        await handle.send("1")
    await recorded(deploys, handle, 3 if behind == "message" else 2)
    for _ in range(2):
        handle = await deploys.deploy(after)
        await asyncio.sleep(0)
    await handle.send("2")
    assert await handle.result(timeout=10) == ("old1 2 old" if behind == "message" else "old 2 old")
    assert deploys.ran == ["old"]
    assert await deploys.patches(handle) == []


@pytest.mark.parametrize("eager", [False, True])
async def test_a_run_that_waits_right_there_is_new_enough(deploys: Deploys, eager: bool) -> None:
    """What it waited for is not asked for any more, and its message goes to whoever asks now."""

    async def before() -> str:
        return await deploys.work("first") + await receive(str)

    async def after() -> str:
        first = await deploys.work("first")
        if patched("tax"):
            first += await deploys.work("new")
        return first + await receive(str)

    options: dict[str, Any] = {"max_resident": 0} if eager else {}
    handle = await deploys.deploy(before, **options)
    await recorded(deploys, handle, 2)
    handle = await deploys.deploy(after, **options)
    await handle.send("!")
    assert await handle.result(timeout=10) == "firstnew!"
    assert deploys.ran == ["first", "new"]
    assert await deploys.patches(handle) == ["tax"]


async def test_the_first_answer_holds_in_a_loop(deploys: Deploys) -> None:
    async def before() -> list[str]:
        return [await deploys.work("old") + await receive(str) for _ in range(4)]

    async def after() -> list[str]:
        return [await deploys.work("new" if patched("tax") else "old") + await receive(str) for _ in range(4)]

    handle = await deploys.deploy(before)
    await handle.send("1")
    await eventually(lambda: deploys.world.journal(handle), lambda journal: len(journal) == 4)
    for text in ("2", "3"):
        handle = await deploys.deploy(after)
        await handle.send(text)
        await deploys.taken(handle)
    await handle.send("4")
    assert await handle.result(timeout=10) == ["old1", "old2", "old3", "old4"]
    fresh = await deploys.engine.start("order", id="2")
    for text in "abcd":
        await fresh.send(text)
    assert await fresh.result(timeout=10) == ["newa", "newb", "newc", "newd"]


async def test_a_true_answer_holds_for_a_loop_that_goes_on(deploys: Deploys) -> None:
    async def code() -> list[str]:
        return [("new" if patched("tax") else "old") + await receive(str) for _ in range(3)]

    handle = await deploys.deploy(code, max_resident=0)
    for text in ("a", "b", "c"):
        await deploys.world.unloaded(handle)
        handle = await deploys.deploy(code, max_resident=0)
        await handle.send(text)
    assert await handle.result(timeout=10) == ["newa", "newb", "newc"]
    assert await deploys.patches(handle) == ["tax"]


async def test_a_step_that_was_begun_and_not_recorded_counts_as_not_done(deploys: Deploys) -> None:
    began = asyncio.Event()

    async def stuck() -> str:
        deploys.ran.append("old")
        began.set()
        await asyncio.Event().wait()
        return "old"

    async def before() -> str:
        return await capture(stuck, name="old")

    async def after() -> str:
        return await (deploys.work("new") if patched("tax") else capture(stuck, name="old"))

    await deploys.deploy(before)
    await began.wait()
    handle = await deploys.deploy(after)
    assert await handle.result(timeout=10) == "new"
    assert deploys.ran == ["old", "new"]


async def test_an_at_most_once_step_that_was_begun_counts_as_done(deploys: Deploys) -> None:
    began = asyncio.Event()

    async def stuck() -> str:
        began.set()
        await asyncio.Event().wait()
        return "old"

    async def before() -> str:
        return await capture(stuck, name="old", at_most_once=True)

    async def after() -> str:
        if patched("tax"):
            return await deploys.work("new")
        try:
            return await capture(stuck, name="old", at_most_once=True)
        except OutcomeUnknown:
            return "unknown" if not patched("tax") else "changed its mind"

    await deploys.deploy(before)
    await began.wait()
    handle = await deploys.deploy(after)
    assert await handle.result(timeout=10) == "unknown"
    assert deploys.ran == []
    assert await deploys.patches(handle) == []


async def test_a_step_that_has_failed_and_is_tried_again_counts_as_done(deploys: Deploys) -> None:
    """Its attempts are on record: the old branch goes on with them, also when everything dies once more."""
    mended = False

    @step(name="old", retry=Retry(attempts=9, initial=100))
    async def shaky() -> str:
        deploys.ran.append("old")
        if not mended:
            raise ConnectionError
        return "old"

    async def before() -> str:
        return await shaky()

    async def after() -> str:
        return await (deploys.work("new") if patched("tax") else shaky())

    handle = await deploys.deploy(before)
    await eventually(lambda: deploys.world.pending(handle), lambda rows: bool(rows) and rows[0].next_at is not None)
    for _ in range(2):
        handle = await deploys.deploy(after)
        await deploys.world.parked(handle)
    mended = True
    deploys.world.clock.advance(100)
    assert await handle.result(timeout=10) == "old"
    assert deploys.ran == ["old", "old"]


async def test_each_id_has_its_own_answer(deploys: Deploys) -> None:
    async def first() -> str:
        return await deploys.work("a") + await receive(str)

    async def second() -> str:
        found = await deploys.work("a")
        if patched("second"):
            found += await deploys.work("b")
        return found + await receive(str)

    async def third() -> str:
        found = await deploys.work("new a" if patched("third") else "a")
        if patched("second"):
            found += await deploys.work("b")
        if patched("third, at the end"):
            found += await deploys.work("c")
        return found + await receive(str)

    handle = await deploys.deploy(first)
    await recorded(deploys, handle, 2)
    handle = await deploys.deploy(second)
    await handle.send("!", name="not for it")
    await eventually(lambda: deploys.patches(handle), lambda found: found == ["second"])
    await deploys.world.parked(handle)
    handle = await deploys.deploy(third)
    await handle.send("!")
    assert await handle.result(timeout=10) == "abc!"
    assert deploys.ran == ["a", "b", "c"]
    assert sorted(await deploys.patches(handle)) == ["second", "third, at the end"]
    fresh = await deploys.engine.start("order", id="2")
    await fresh.send("!")
    assert await fresh.result(timeout=10) == "new abc!"


async def test_tasks_that_ask_at_once_agree(deploys: Deploys) -> None:
    async def before() -> list[str]:
        return await asyncio.gather(*(work(n, new=False) for n in range(3)))

    async def work(n: int, *, new: bool) -> str:
        done = await deploys.work(f"{'new' if new else 'old'} {n}")
        return done + await receive(str, name=f"{n}")

    async def after() -> list[str]:
        async def one(n: int) -> str:
            return await work(n, new=patched("tax"))

        return await asyncio.gather(*(one(n) for n in range(3)))

    handle = await deploys.deploy(before)
    await recorded(deploys, handle, 4)
    handle = await deploys.deploy(after)
    for n in range(3):
        await handle.send("", name=f"{n}")
    assert await handle.result(timeout=10) == ["old 0", "old 1", "old 2"]
    fresh = await deploys.engine.start("order", id="2")
    for n in range(3):
        await fresh.send("", name=f"{n}")
    assert await fresh.result(timeout=10) == ["new 0", "new 1", "new 2"]


async def test_old_code_that_comes_back_is_set_aside_and_the_new_goes_on(deploys: Deploys) -> None:
    async def before() -> str:
        return await deploys.work("old") + await receive(str)

    async def after() -> str:
        return await deploys.work("new" if patched("tax") else "old") + await receive(str)

    handle = await deploys.deploy(after)
    await recorded(deploys, handle, 3)
    handle = await deploys.deploy(before)
    await handle.send("!")
    reason = await deploys.world.blocked(handle)
    assert "the journal holds step new" in reason
    assert "the code asks for step old" in reason
    handle = await deploys.deploy(after)
    assert await handle.result(timeout=10) == "new!"
    assert deploys.ran == ["new"]


async def test_code_that_asks_no_more_goes_on_with_runs_that_were_new_enough(deploys: Deploys) -> None:
    async def middle() -> str:
        return await deploys.work("new" if patched("tax") else "old") + await receive(str)

    async def cleaned_up() -> str:
        return await deploys.work("new") + await receive(str)

    handle = await deploys.deploy(middle)
    await recorded(deploys, handle, 3)
    handle = await deploys.deploy(cleaned_up)
    await handle.send("!")
    assert await handle.result(timeout=10) == "new!"
    assert deploys.ran == ["new"]


async def test_the_next_run_is_new_enough(deploys: Deploys) -> None:
    async def before(run: int = 0) -> str:
        await deploys.work("old")
        return await receive(str)

    async def after(run: int = 0) -> str:
        await deploys.work("new" if patched("tax") else "old")
        await receive(str)
        if run == 1:
            return "end"
        return await continue_as_new(run + 1)

    handle = await deploys.deploy(before)
    await recorded(deploys, handle, 2)
    handle = await deploys.deploy(after)
    await handle.send("on")
    await eventually(lambda: deploys.world.row(handle), lambda row: row.run == 1)
    await handle.send("on")
    assert await handle.result(timeout=10) == "end"
    assert deploys.ran == ["old", "new"]


async def test_an_answer_that_was_not_written_is_given_again(deploys: Deploys) -> None:
    """Everything dies before the entry is on disk: then nothing that came of it is, either."""

    async def before() -> str:
        return await deploys.work("first") + await receive(str)

    async def after() -> str:
        first = await deploys.work("first")
        if patched("tax"):
            deploys.ran.append("asked")
            first += await deploys.work("new")
        return first + await receive(str)

    handle = await deploys.deploy(before)
    await recorded(deploys, handle, 2)
    store = Held(deploys.world.store())
    deploys.world.store = lambda: as_store(store)  # type: ignore[method-assign]
    store.hold(lambda write: isinstance(write, Entry) and write.kind == Kind.PATCHED)
    handle = await deploys.deploy(after)
    await handle.send("!")
    await store.held()
    assert deploys.ran == ["first", "asked"]
    handle = await deploys.deploy(after)
    store.let_go()
    assert await handle.result(timeout=10) == "firstnew!"
    assert deploys.ran == ["first", "asked", "asked", "new"]


async def test_it_costs_no_commit_of_its_own(deploys: Deploys) -> None:
    async def code() -> list[bool]:
        return [patched(f"{n}") for n in range(20)] + [bool(await deploys.work("step"))]

    handle = await deploys.deploy(code)
    assert await handle.result(timeout=10) == [True] * 21
    assert deploys.engine._member.committer.batches <= 4


async def test_ids_and_places_are_checked(deploys: Deploys) -> None:
    with pytest.raises(NotInFlow, match=r"patched\(\) was called outside a flow"):
        patched("tax")

    async def code() -> list[str]:
        said: list[str] = []
        for id in ("", "x" * 256, 7):
            try:
                patched(id)  # type: ignore[arg-type]
            except (ValueError, TypeError) as error:
                said.append(type(error).__name__)
        try:
            await capture(patched, "tax")
        except NotInFlow as error:
            said.append(str(error))
        return [*said, str(patched("x" * 255))]

    handle = await deploys.deploy(code)
    first, second, third, inside, last = await handle.result(timeout=10)
    assert (first, second) == ("ValueError", "ValueError")
    assert third in ("TypeError", "ValueError")
    assert "inside a step" in inside
    assert last == "True"


async def test_an_instance_that_was_cancelled_meanwhile_is_asked_nothing(deploys: Deploys) -> None:
    """The unloaded flow's code runs once more to end; what it asks then changes nothing."""
    asked: list[bool] = []

    async def code() -> str:
        try:
            return await receive(str)
        finally:
            asked.append(patched("at the end"))

    handle = await deploys.deploy(code, max_resident=0)
    await deploys.world.unloaded(handle)
    assert await deploys.patches(handle) == []
    assert await handle.state() is State.SUSPENDED
    await handle.send("!")
    assert await handle.result(timeout=10) == "!"
    assert asked[-1] is True
    assert await deploys.patches(handle) == ["at the end"]
