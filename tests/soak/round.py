"""One round: so many programs at a time on replicas that faults befall, until all have ended as it was foretold."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from perdure import Engine, FlowCancelled, FlowFailed, Handle, Outgoing, PerdureError, StoreUnavailable
from tests.soak import checks, programs
from tests.soak.cluster import Cluster
from tests.soak.faults import Fault, plan
from tests.soak.ledger import Ledger
from tests.soak.making import COUNTER, WALK, Maker, Program, Round, all_fit, unfitting
from tests.soak.server import Server

T = TypeVar("T")
SHOWN: Final = 8
"""So many instances are shown, of those that have not ended or ended wrong."""


class Stuck(Exception):
    """Nothing goes on any more, without any fault."""


@dataclass(frozen=True)
class Setting:
    """What a round is given."""

    seed: str
    prefix: str
    """All ids begin so."""
    mode: str
    programs: int
    at_once: int
    url: str
    server: Server | None
    folder: Path
    replicas: int = 3
    lease: float = 2.5
    transactions: bool = True
    calm_s: float = 20.0
    """So long without progress, and no new fault comes until there is some."""
    stuck_s: float = 40.0
    """So long without progress and without a fault, and it is stuck."""


@dataclass
class Report:
    """What a round has done, and what was wrong."""

    programs: int = 0
    instances: int = 0
    steps: int = 0
    messages: int = 0
    takeovers: int = 0
    leases_lost: int = 0
    repeated: int = 0
    """Calls of the client that raised, and were made again."""
    seconds: float = 0.0
    silence: float = 0.0
    """The longest time in which nothing went on, faults or not."""
    kinds: Counter[str] = field(default_factory=Counter[str])
    faults: Counter[str] = field(default_factory=Counter[str])
    wrong: list[str] = field(default_factory=list[str])

    def add(self, other: Report) -> None:
        """The other's numbers are in this one too."""
        for name, value in vars(other).items():
            mine = getattr(self, name)
            setattr(self, name, max(mine, value) if name == "silence" else mine + value)


class Playing:
    """A round under way."""

    def __init__(self, setting: Setting, client: Engine, cluster: Cluster, ledger: Ledger) -> None:
        self.report = Report()
        self.setting = setting
        self.ledger = ledger
        self.cluster = cluster
        self.ended = 0
        self._client = client
        self._cancelled_twice: set[str] = set()
        self._waiting: set[str] = set()
        """Programs that were begun and whose end is not known."""
        self._calm = False

    async def play(self) -> None:
        """All programs have ended and been looked at."""
        setting = self.setting
        made = Maker(setting.seed, setting.prefix, programs=setting.programs, transactions=setting.transactions).made()
        self.report.kinds, self.report.messages = made.kinds, made.sends
        faults = asyncio.create_task(self._faults())
        watch = asyncio.create_task(self._watch())
        work = asyncio.create_task(self._programs(made))
        try:
            await asyncio.wait((work, watch), return_when=asyncio.FIRST_COMPLETED)
            if watch.done():
                watch.result()
            work.result()
        finally:
            for task in (faults, work, watch):
                task.cancel()
            await asyncio.gather(faults, work, watch, return_exceptions=True)
        await self._check(made)

    # -- faults

    async def _faults(self) -> None:
        """Befalls them as it is planned, until there is no need; what has begun is ended."""
        setting, begun, running = self.setting, time.monotonic(), set[asyncio.Task[None]]()
        planned = plan(
            setting.seed,
            setting.mode,
            replicas=setting.replicas,
            lease=setting.lease,
            server=setting.server is not None,
        )
        try:
            for fault in planned:
                await asyncio.sleep(max(0.0, begun + fault.at - time.monotonic()))
                while self._calm:
                    await asyncio.sleep(0.1)
                    begun += 0.1
                running.add(asyncio.create_task(self.cluster.do(fault)))
        finally:
            await asyncio.gather(*running)

    async def _watch(self) -> None:
        """Raises when nothing goes on any more."""
        seen, since, calm_since = (0, 0), time.monotonic(), 0.0
        while True:
            await asyncio.sleep(0.5)
            now, progress = time.monotonic(), (self.ended, self.ledger.read())
            if fallen := self.cluster.fallen():
                raise Stuck("; ".join(fallen) + "\n" + await self.cluster.told())
            self.report.silence = max(self.report.silence, now - since)
            if progress != seen:
                seen, since, self._calm = progress, now, False
            elif not self._calm and now - since > self.setting.calm_s:
                self._calm, calm_since = True, now
            elif self.cluster.active:
                calm_since = now
            elif self._calm and now - calm_since > self.setting.stuck_s:
                raise Stuck(await self._stuck())

    async def _stuck(self) -> str:
        store = checks.store_of(self._client)
        rows = await store.find(flow=None, states=checks.NOT_ENDED, since=None, after=None, limit=1000)
        ours = [row for row in rows if row.id.startswith(self.setting.prefix)]
        told = [
            f"nothing has gone on for {self.setting.stuck_s:g} s without faults; {len(ours)} instances have not ended"
        ]
        told += [await self._panel(row.flow, row.id) for row in ours[:SHOWN]]
        told.append(f"the client waits for {sorted(self._waiting)[:20]}")
        return "\n".join([*told, await self.cluster.told()])

    async def _panel(self, flow: str, id: str) -> str:
        try:
            return str(await self._client.panel(flow, id))
        except PerdureError as error:
            return f"{flow} {id!r} cannot be shown: {error}"

    # -- programs

    async def _programs(self, made: Round) -> None:
        room = asyncio.Semaphore(self.setting.at_once)

        async def one(program: Program) -> None:
            async with room:
                self._waiting.add(program.id)
                await self._program(program)
                self._waiting.discard(program.id)
                self.ended += 1

        await _together(map(one, made.programs))
        await _together(self._counter(made, id) for id in made.counters)
        await _together(self._detached(id, nodes) for id, nodes in made.detached.items())
        await self._all_ended()

    async def _program(self, program: Program) -> None:
        chance = random.Random(f"outside {self.setting.seed} {program.id}")
        sends = [self._send(after, items) for after, items in _bundles(program, chance)]
        await _together([self._life(program), *sends])

    async def _life(self, program: Program) -> None:
        """The program was started, has ended, and was looked at."""
        await asyncio.sleep(program.after)
        handle = await self._surely(
            lambda: self._client.start(programs.walk, program.nodes, programs.NOTHING, id=program.id)
        )
        if program.ends == "waits":
            while not (await self._surely(handle.exposed)).get("ready"):
                await asyncio.sleep(0.3)
        if program.ends in ("waits", "cancelled"):
            await asyncio.sleep(program.cancel_after)
            before = self.report.repeated
            await self._surely(lambda: handle.cancel("from outside"))
            if self.report.repeated != before:
                self._cancelled_twice.add(program.id)
        problem = await self._outcome(program, handle)
        if not problem and program.ends != "cancelled":
            shown = await self._surely(handle.exposed)
            unlike = {key: shown.get(key) for key, value in program.exposes.items() if shown.get(key) != value}
            problem = f"exposes {unlike}, not {program.exposes}" if unlike else ""
        if problem:
            await self._wrong(WALK, program.id, problem)

    async def _outcome(self, program: Program, handle: Handle[list[Any]]) -> str:
        """What is wrong with the end of the program, when it has come."""
        try:
            got = await self._surely(handle.result)
        except FlowCancelled:
            return "" if program.ends in ("waits", "cancelled") else "was cancelled"
        except FlowFailed as error:
            return "" if _as_foretold(program, error) else f"failed: {error}"
        unfit = list(unfitting(program.nodes, got))
        return f"ended with {got}: {unfit}" if unfit or program.ends in ("fails", "waits") else ""

    async def _send(self, after: float, items: list[Outgoing]) -> None:
        """The messages are sent, one alone or several together."""
        await asyncio.sleep(after)
        self.report.messages += len(items)
        if len(items) > 1:
            await self._surely(lambda: self._client.send_many(programs.walk, items))
        else:
            (item,) = items
            await self._surely(
                lambda: self._client.send(programs.walk, item.id, item.message, key=item.key, name=item.name)
            )

    async def _counter(self, made: Round, id: str) -> None:
        """The sum is the one that flows have sent, and one number from here."""
        sent = [*made.counters[id], 7]
        await self._surely(lambda: self._client.send(programs.counter, id, programs.Add(7), key="outside"))
        await self._surely(lambda: self._client.start(programs.counter, len(sent), 0, made.per_run[id], id=id))
        total = await self._surely(lambda: self._client.handle(programs.counter, id).result())
        if total != sum(sent):
            await self._wrong(COUNTER, id, f"counted {total} and was sent {sum(sent)}")

    async def _detached(self, id: str, nodes: list[dict[str, Any]]) -> None:
        try:
            got = await self._surely(lambda: self._client.handle(programs.walk, id).result())
        except (FlowFailed, FlowCancelled) as error:
            await self._wrong(WALK, id, str(error))
        else:
            if not all_fit(nodes, got):
                await self._wrong(WALK, id, f"ended with {got}: {list(unfitting(nodes, got))}")

    async def _all_ended(self) -> None:
        """Those too that nobody waits for. Who waits for ever is noticed by the watch."""
        store = checks.store_of(self._client)
        while True:
            with suppress(PerdureError):
                rows = await store.find(flow=None, states=checks.NOT_ENDED, since=None, after=None, limit=1000)
                if not any(row.id.startswith(self.setting.prefix) for row in rows):
                    return
            await asyncio.sleep(0.3)

    async def _surely(self, call: Callable[[], Awaitable[T]]) -> T:
        """What the call gives, made again after an error of the store, as it is told that one may."""
        while True:
            try:
                return await call()
            except (FlowFailed, FlowCancelled):
                raise
            except PerdureError as error:
                if not isinstance(error, StoreUnavailable):
                    raise
                self.report.repeated += 1
                await asyncio.sleep(0.2)

    async def _wrong(self, flow: str, id: str, problem: str) -> None:
        told = f"{flow} {id!r} {problem}"
        if len(self.report.wrong) < SHOWN:
            told += "\n" + await self._panel(flow, id)
        self.report.wrong.append(told)

    # -- the end

    async def _check(self, made: Round) -> None:
        setting, report = self.setting, self.report
        rows: list[tuple[str, int]] = []
        if setting.transactions:
            rows = await self._client.run(programs.rows, setting.prefix, id=f"{setting.prefix}rows", timeout=60)
        await self.cluster.stop()
        self.ledger.read()
        report.instances, wrong = await checks.journals(self._client, self.ledger, setting.prefix)
        wrong += checks.effects(made, self.ledger, setting.prefix, self._cancelled_twice)
        wrong += checks.written(made, rows) if setting.transactions else ()
        report.programs, report.steps = len(made.programs), self.ledger.lines
        report.wrong += wrong


def _as_foretold(program: Program, error: FlowFailed) -> bool:
    cause = error.__cause__
    return (
        program.ends == "fails"
        and str(cause) == f"{program.nodes[-1]['at']} fails"
        and isinstance(cause, programs.Failure)
    )


def _bundles(program: Program, chance: random.Random) -> Iterator[tuple[float, list[Outgoing]]]:
    """Messages alone, twice, or several together, each with the time from the program's beginning."""
    several: list[Outgoing] = []
    for message in program.messages:
        value: Any = message.value if message.name is not None else programs.Add(message.value)
        item = Outgoing(message.to, value, key=message.key, name=message.name)
        if chance.random() < 0.3:
            several.append(item)
        else:
            yield message.after, [item]
        if message.twice:
            yield message.after + chance.random(), [item]
    if several:
        yield 2 * chance.random(), several


async def _together(jobs: Iterable[Coroutine[Any, Any, None]]) -> None:
    """All are done; when one fails the others are cancelled, and its error raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            for job in jobs:
                group.create_task(job)
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None


async def played(setting: Setting, progress: Callable[[Playing], None] | None = None) -> Report:
    """The round is over, its processes are gone; what was wrong is in the report."""
    setting.folder.mkdir(parents=True)
    ledger = Ledger(setting.folder / "ledger")
    cluster = Cluster(
        setting.folder, setting.url, ledger.path, lease=setting.lease, replicas=setting.replicas, seed=setting.seed,
        server=setting.server,
    )  # fmt: skip
    begun = time.monotonic()
    telling: asyncio.Task[None] | None = None
    report = Report()
    try:
        async with Engine(setting.url, execute=False, version="soak") as client:
            cluster.start()
            playing = Playing(setting, client, cluster, ledger)
            report = playing.report
            if progress is not None:
                telling = asyncio.create_task(_tell(playing, progress))
            await playing.play()
    except Exception as error:
        report.wrong.append(f"{type(error).__name__}: {error}")
    finally:
        if telling is not None:
            telling.cancel()
        cluster.kill()
    _of_cluster(report, cluster, setting.mode)
    report.seconds = time.monotonic() - begun
    return report


async def _tell(playing: Playing, progress: Callable[[Playing], None]) -> None:
    while True:
        await asyncio.sleep(1.0)
        progress(playing)


def _of_cluster(report: Report, cluster: Cluster, mode: str) -> None:
    report.faults, report.takeovers, report.leases_lost = cluster.done, cluster.takeovers, cluster.leases_lost
    report.wrong += [*cluster.wrong, *cluster.errors()]
    if mode in ("database", "none") and report.takeovers + report.leases_lost:
        report.wrong.append(
            f"{report.takeovers} replicas were taken over and {report.leases_lost} leases lost, though no process ended or stopped"
        )


def planned(setting: Setting, seconds: float) -> Iterable[Fault]:
    """The faults of the first seconds."""
    found = plan(
        setting.seed, setting.mode, replicas=setting.replicas, lease=setting.lease, server=setting.server is not None
    )
    for fault in found:
        if fault.at > seconds:
            return
        yield fault
