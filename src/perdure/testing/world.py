"""The outside of a simulated cluster, as the program that plays it and the invariant see it."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import Any

from perdure.api.flow import AnyFlow, name_of
from perdure.api.handle import Handle
from perdure.api.info import shown
from perdure.clock import Duration, seconds
from perdure.engine.engine import Engine
from perdure.engine.payloads import Payloads
from perdure.errors import FlowCancelled, FlowFailed
from perdure.model.records import Entry, Instance, State
from perdure.model.writes import Answer, Create
from perdure.stores.contract import Store
from perdure.testing.faults import Storm
from perdure.testing.timeline import timeline
from perdure.testing.watching import WatchedStore


@dataclass(frozen=True)
class Seen:
    """One instance as the store has it."""

    flow: str
    id: str
    state: State
    result: Any
    """What it returned, if it succeeded."""
    error: BaseException | None
    """What it raised, if it failed."""
    exposed: dict[str, Any]
    entries: tuple[Entry, ...]
    """Of its current run."""
    journal: str
    """The same in words, with what is pending, and how it ended."""


class World(Engine):
    """A client of the cluster, with all verbs of an `Engine`; its process is never killed, but its calls may be slow, fail or
    be done twice, as any client's. What it sends with a `key` may be sent again, and late.
    """

    def __init__(
        self, store: Store, watched: WatchedStore, storm: Storm, chance: random.Random, effects: Any, **options: Any
    ) -> None:
        super().__init__(store, execute=False, **options)
        self.chance = chance
        """All chance of the program; the same for a seed, whatever goes wrong."""
        self.effects = effects
        """What `simulate` was given: what the steps have done."""
        self._watched = watched
        self._storm = storm
        self._messages = 0
        self._again: set[asyncio.Task[None]] = set()
        self._starts: dict[tuple[str, str], None] = {}
        self._sends: dict[tuple[str, str, str], None] = {}
        self._results: dict[bytes, tuple[str, str, State, bytes | None]] = {}

    async def sleep(self, duration: Duration) -> None:
        """So much time has passed; it costs none."""
        await asyncio.sleep(seconds(duration))

    # ------------------------------------------------------------ the verbs that are not just an engine's

    async def send_one(self, flow: str, id: str, message: object, key: str | None, name: str | None) -> None:
        """See `Engine.send`."""
        if key is None:
            await super().send_one(flow, id, message, None, name)
            return
        self._messages += 1
        late, again = self._storm.message(self._messages)
        if late:
            await asyncio.sleep(late)
        await super().send_one(flow, id, message, key, name)
        self._sends[flow, id, key] = None
        if again is not None:
            task = asyncio.create_task(self._send_again(again, flow, id, message, key, name))
            self._again.add(task)
            task.add_done_callback(self._again.discard)

    async def _send_again(self, after: float, flow: str, id: str, message: object, key: str, name: str | None) -> None:
        await asyncio.sleep(after)
        await super().send_one(flow, id, message, key, name)

    def _started(self, write: Create, answer: Answer) -> Handle[Any]:
        handle = super()._started(write, answer)
        self._starts[write.flow, write.id] = None
        return handle

    async def result(self, flow: str, id: str, uid: bytes, timeout: float | None) -> Any:
        """See `Engine.result`."""
        try:
            value = await super().result(flow, id, uid, timeout)
        except (FlowFailed, FlowCancelled):
            self._was_told(flow, id, uid)
            raise
        self._was_told(flow, id, uid)
        return value

    def _was_told(self, flow: str, id: str, uid: bytes) -> None:
        row = self._watched.row(uid)
        if row is not None:
            self._results.setdefault(uid, (flow, id, row.state, row.outcome))

    # ------------------------------------------------------------ for the invariant

    @property
    def instances(self) -> tuple[Seen, ...]:
        """All instances, in the order of their creation."""
        return tuple(map(self._seen, self._watched.rows()))

    def instance(self, flow: AnyFlow | str, id: str) -> Seen:
        """The instance (flow, id).

        Raises:
            LookupError: there is none.
        """
        for row in self._watched.rows():
            if (row.flow, row.id) == (name_of(flow), id):
                return self._seen(row)
        raise LookupError(f"there is no instance {id!r} of {name_of(flow)}")

    def _seen(self, row: Instance) -> Seen:
        payloads = Payloads(None, 1 << 30)
        loaded = self._watched.loaded(row.uid)
        failed = row.state is State.FAILED
        done = row.state is State.SUCCEEDED and row.outcome is not None
        return Seen(
            flow=row.flow, id=row.id, state=shown(row),
            result=payloads.decode(row.outcome or b"") if done else None,
            error=payloads.decode_error(row.outcome or b"") if failed else None,
            exposed={key: payloads.decode(value) for key, value in self._watched.exposes(row.uid).items()},
            entries=tuple(loaded.entries),
            journal="\n".join(timeline(loaded, payloads)),
        )  # fmt: skip

    # ------------------------------------------------------------ for the simulation

    @property
    def sending(self) -> bool:
        """Whether something will be sent again."""
        return bool(self._again)

    def deceived(self) -> str | None:
        """Which acknowledgement was not true; None: all were."""
        watched = self._watched
        there = {(row.flow, row.id) for row in watched.rows()}
        for flow, id in self._starts:
            if (flow, id) not in there and not watched.is_gone(flow, id):
                return f"the start of {flow} {id!r} was acknowledged, and it is not there"
        for flow, id, key in self._sends:
            if not watched.knows_key(flow, id, key):
                return f"the message {key!r} for {flow} {id!r} was acknowledged, and it is not there"
        for uid, (flow, id, state, outcome) in self._results.items():
            row = watched.row(uid)
            if not state.ended:
                return f"the result of {flow} {id!r} was told, and it was {state.value}"
            if row is not None and (row.state, row.outcome) != (state, outcome) and row.edit is None:
                return f"{flow} {id!r} was said to have {state.value}, and has {row.state.value} now"
        return None
