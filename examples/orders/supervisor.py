"""Runs the order business, kills its order service again and again, and lets `reconcile` say whether it matters."""

import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from examples.orders.flow import order_flow
from examples.orders.ledger import read_ledger
from examples.orders.model import Case, order_to_json
from examples.orders.reconcile import End, Facts
from examples.orders.wire import Client, NoAnswer, NotSent, bound
from perdure import Engine, FlowFailed, State

ENDED: Final = (State.SUCCEEDED, State.FAILED, State.CANCELLED)
FIRST_KILL, LAST_KILL = 0.10, 0.85
POLL_S: Final = 0.05
READY_S: Final = 30.0
STALL_S: Final = 30.0
STOP_S: Final = 15.0


class Trouble(Exception):
    """The business cannot go on as planned."""


class Show(Protocol):
    """Where progress is shown."""

    def progress(self, ended: int, posted: int, kills: int) -> None:
        """So many orders have ended."""
        ...

    def note(self, text: str) -> None:
        """Something worth a line happened."""
        ...


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked for."""

    cases: Sequence[Case]
    kills: int
    seed: int
    directory: Path

    @property
    def database(self) -> Path:
        """The order service's SQLite file."""
        return self.directory / "orders.db"


@dataclass(slots=True)
class Run:
    """What has happened so far."""

    posted: int = 0
    ended: int = 0
    kills: int = 0
    posts_repeated: int = 0
    seconds: float = 0.0
    restarts_s: list[float] = field(default_factory=list[float])
    troubles: list[str] = field(default_factory=list[str])


def kill_points(orders: int, kills: int) -> list[int]:
    """After how many ended orders each kill comes: spread evenly over the run."""
    if kills == 1:
        return [orders // 2]
    return [int(orders * (FIRST_KILL + (LAST_KILL - FIRST_KILL) * n / (kills - 1))) for n in range(kills)]


class Child:
    """A child process that says when it is ready; its log is a file."""

    def __init__(self, process: Process, log: Path) -> None:
        self.process = process
        self.log = log

    @staticmethod
    async def spawn(module: str, *arguments: str, log: Path, env: dict[str, str]) -> "Child":
        """The process has been started."""
        with log.open("ab") as errors:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", module, *arguments, stdin=PIPE, stdout=PIPE, stderr=errors,
                env={**os.environ, **env}, cwd=Path(__file__).parents[2], start_new_session=True,
            )  # fmt: skip
        return Child(process, log)

    async def ready(self) -> dict[str, Any]:
        """What the process said when it was ready."""
        stdout = self.process.stdout
        line = b""
        if stdout is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(READY_S):
                    line = await stdout.readline()
        if not line:
            raise Trouble(f"{self.log.stem} did not become ready; its log ends:\n{self.tail()}")
        return json.loads(line)

    def tail(self) -> str:
        """The end of its log."""
        return self.log.read_text(encoding="utf-8", errors="replace")[-2000:].strip() or "(empty)"

    def strike(self) -> None:
        """The process has SIGKILL on its way."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()

    async def kill(self) -> None:
        """The process is dead: SIGKILL, nothing in it had a chance to say goodbye."""
        self.strike()
        await self.process.wait()

    async def stop(self) -> None:
        """The process has ended by itself after SIGTERM; `Trouble` if it would not, or not well."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_S):
                code = await self.process.wait()
        except TimeoutError:
            await self.kill()
            raise Trouble(f"{self.log.stem} did not end within {STOP_S:.0f} s of SIGTERM") from None
        if code != 0:
            raise Trouble(f"{self.log.stem} ended with {code}; its log ends:\n{self.tail()}")


class Business:
    """One run of the order business."""

    def __init__(self, plan: Plan, show: Show) -> None:
        self.plan = plan
        self.run = Run()
        self._show = show
        self._rng = random.Random(plan.seed)
        self._points = kill_points(len(plan.cases), plan.kills)
        self._window = max(8, len(plan.cases) // 10)
        self._room = asyncio.Condition()
        self._env: dict[str, str] = {}
        self._children: list[Child] = []

    async def go(self) -> None:
        """All orders have ended and all processes are gone; what went wrong is in `run.troubles`."""
        started = time.monotonic()
        with contextlib.ExitStack() as stack:
            port = stack.enter_context(bound(share=True))  # ours as long as we hold it, whoever listens there
            self._env["ORDERS_URL"] = f"http://127.0.0.1:{port.getsockname()[1]}"
            try:
                await self._trade()
            except* Trouble as group:
                self.run.troubles += [str(error) for error in _leaves(group)]
            finally:
                self.run.seconds = time.monotonic() - started
                for child in self._children:
                    child.strike()
                for child in self._children:
                    await child.kill()

    async def _trade(self) -> None:
        """Services and order service run until all orders have ended, and are stopped then."""
        arguments = ("--directory", str(self.plan.directory), "--seed", str(self.plan.seed))
        services = await self._spawn("services", *arguments)
        addresses = await services.ready()
        self._env |= {f"{name.upper()}_URL": address for name, address in addresses.items()}
        shop = Client(self._env["ORDERS_URL"], timeout=5.0)
        payments = Client(addresses["payments"])
        service = await self._open()
        try:
            async with asyncio.TaskGroup() as group:
                feeding = group.create_task(self._post_all(shop))
                service = await self._watch(shop, service)
                await feeding
            await self._callbacks_taken(payments)
        finally:
            await shop.aclose()
            await payments.aclose()
        await service.stop()
        await services.stop()

    async def _spawn(self, name: str, *arguments: str) -> Child:
        log = self.plan.directory / f"{name}.log"
        child = await Child.spawn(f"examples.orders.{name}", *arguments, log=log, env=self._env)
        self._children.append(child)
        return child

    async def _open(self) -> Child:
        """The order service takes orders."""
        began = time.monotonic()
        self._env["GENERATION"] = str(self.run.kills + 1)
        port = self._env["ORDERS_URL"].rpartition(":")[2]
        service = await self._spawn("service", "--database", str(self.plan.database), "--port", port)
        await service.ready()
        self.run.restarts_s.append(time.monotonic() - began)
        return service

    async def _watch(self, shop: Client, service: Child) -> Child:
        """All orders have ended; gives the order service that is alive then. Kills it at every point on the way."""
        total, moved = len(self.plan.cases), time.monotonic()
        while self.run.ended < total:
            if service.process.returncode is not None:
                raise Trouble(f"the order service ended with {service.process.returncode}:\n{service.tail()}")
            ended = await self._ended(shop)
            if ended != self.run.ended:
                moved = time.monotonic()
                async with self._room:
                    self.run.ended = ended
                    self._room.notify_all()
            elif time.monotonic() - moved > STALL_S:
                raise Trouble(f"no order has ended for {STALL_S:.0f} s; the service's log ends:\n{service.tail()}")
            self._show.progress(ended, self.run.posted, self.run.kills)
            if self.run.kills < self.plan.kills and ended >= self._points[self.run.kills]:
                service = await self._strike(service)
                moved = time.monotonic()
            else:
                await asyncio.sleep(POLL_S)
        return service

    async def _strike(self, service: Child) -> Child:
        """The order service is killed at some instant from now, and started again."""
        await asyncio.sleep(self._rng.uniform(0, 0.1))
        await service.kill()
        self._children.remove(service)
        self.run.kills += 1
        service = await self._open()
        back = f"back after {self.run.restarts_s[-1]:.2f} s"
        self._show.note(f"kill -9 number {self.run.kills} at {self.run.ended:,} orders; {back}")
        return service

    async def _ended(self, shop: Client) -> int:
        """How many orders have ended, as the order service says; as before if it does not answer."""
        try:
            answer = await shop.request("GET", "/progress")
        except (NotSent, NoAnswer):
            return self.run.ended
        states: dict[str, int] = answer.json() if answer.status == 200 else {}
        return max(self.run.ended, sum(states.get(state.value, 0) for state in ENDED))

    async def _post_all(self, shop: Client) -> None:
        """Every order has been posted, so many at a time that each kill finds flows at every stage."""
        async with asyncio.TaskGroup() as group:
            for number, case in enumerate(self.plan.cases):
                async with self._room:
                    await self._room.wait_for(lambda number=number: number < self._limit())
                group.create_task(self._post(shop, case))
                self.run.posted += 1

    def _limit(self) -> int:
        """How many orders may have been posted by now; the last waits for the last kill."""
        waiting = self.run.kills < self.plan.kills
        return min(self.run.ended + self._window, len(self.plan.cases) - waiting)

    async def _post(self, shop: Client, case: Case) -> None:
        """The order service has taken the order; asking again is safe, so it is asked until it answers."""
        for attempt in itertools.count():
            try:
                answer = await shop.request("POST", "/orders", order_to_json(case.order))
            except (NotSent, NoAnswer):
                pass
            else:
                if answer.status == 202:
                    return
                if answer.status != 503:
                    raise Trouble(f"order {case.order.id} was answered with {answer.status}: {answer.body[:500]!r}")
            self.run.posts_repeated += 1
            await asyncio.sleep(min(0.5, 0.05 * 2**attempt))

    async def _callbacks_taken(self, payments: Client) -> None:
        """No callback is on its way any more."""
        try:
            async with asyncio.timeout(STOP_S):
                while (await payments.request("GET", "/outstanding")).json()["callbacks"]:
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise Trouble("payments still waits for callbacks to be taken") from None


def _leaves(group: BaseExceptionGroup[Trouble]) -> list[Trouble]:
    """The single troubles in a group."""
    found: list[Trouble] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


async def gather_facts(plan: Plan, run: Run) -> Facts:
    """What the store and the ledgers say, read when everything has stopped."""
    troubles = list(run.troubles)
    ends: dict[str, End] = {}
    try:
        async with Engine(f"sqlite:///{plan.database}", execute=False) as engine:
            ends = {ident: end async for ident, end in _ends(engine)}
    except Exception as error:  # whatever it is, it belongs into the report
        troubles.append(f"the store cannot be read: {error!r}")
    ledgers = [read_ledger(plan.directory / f"{name}.jsonl") for name in ("payments", "logistics", "email")]
    return Facts(plan.cases, ends, *ledgers, kills=run.kills, kills_wanted=plan.kills, troubles=troubles)


async def _ends(engine: Engine) -> AsyncIterator[tuple[str, End]]:
    """The end of every flow in the file."""
    async for info in engine.find(order_flow):
        if info.state not in ENDED:
            yield info.id, End(info.state.value)
            continue
        try:
            result = await engine.handle(order_flow, info.id).result(timeout=10)
        except FlowFailed as error:
            cause = error.__cause__
            yield info.id, End(info.state.value, error=type(cause).__name__, message=str(cause))
        except Exception as error:
            yield info.id, End(info.state.value, message=repr(error))
        else:
            yield info.id, End(info.state.value, result=result)
