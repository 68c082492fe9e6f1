"""Edits an instance from outside: reads it, becomes its owner where a replica runs it, writes, and gives it back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Final

import msgspec

from perdure.errors import CommitUnknown, InstanceNotFound, LeaseLost, StoreUnavailable
from perdure.errors import Outdated as OutdatedError
from perdure.model.records import Instance, Loaded, Message, MessageKind
from perdure.model.writes import Batch, Edit, Edited, Outdated, OwnedBy, Send
from perdure.stores.contract import Store

logger = logging.getLogger("perdure")

POLL_SECONDS: Final = 0.02
ASK_AGAIN_SECONDS: Final = 2.0
PATIENCE_SECONDS: Final = 60.0
"""So long a replica has to give an instance up: its running steps may end, up to its `drain`."""


class Editor:
    """See the module. One per engine; needs no membership of its own."""

    def __init__(self, store: Store, now: Callable[[], float], changed: Callable[[], None]) -> None:
        self._store = store
        self._now = now
        self._changed = changed

    async def read(self, flow: str, id: str, uid: bytes | None = None) -> Loaded:
        """The instance with its whole journal, pending operations and untaken messages.

        Raises:
            InstanceNotFound.
        """
        if uid is None:
            row = await self._store.instance(flow, id)
            if row is None:
                raise InstanceNotFound(flow, id)
            uid = row.uid
        found = await self._store.load([uid])
        if not found:
            raise InstanceNotFound(flow, id)
        loaded = found[0]
        entries, more = list(loaded.entries), loaded.more
        while more:
            page, more = await self._store.entries(uid, loaded.instance.run, entries[-1].seq)
            entries += page
        return msgspec.structs.replace(loaded, entries=entries, more=False)

    async def make(self, seen: Instance, plan: Callable[[Loaded], Edit]) -> None:
        """The edit that `plan` makes of the instance as it is now is on disk; nobody ran it meanwhile.

        Raises:
            Outdated: it was edited, ended, began another run or took an edited message since it was `seen`.
            InstanceNotFound: it is gone.
            TimeoutError: its owner did not give it up.
        """
        if isinstance(await self._try(seen, plan, None, 0), OwnedBy):
            async with self._member() as (replica, epoch):
                deadline = asyncio.get_running_loop().time() + PATIENCE_SECONDS
                while isinstance(answer := await self._try(seen, plan, replica, epoch), OwnedBy):
                    try:
                        async with asyncio.timeout_at(deadline):
                            await self._given_up(seen, answer.replica, replica, epoch)
                    except TimeoutError:
                        raise TimeoutError(
                            f"replica {answer.replica}, which runs {seen.flow} {seen.id!r}, has not given it up within "
                            f"{PATIENCE_SECONDS:g} s; nothing was written"
                        ) from None
        self._changed()

    async def _try(
        self, seen: Instance, plan: Callable[[Loaded], Edit], replica: str | None, epoch: int
    ) -> Edited | OwnedBy:
        while True:
            loaded = await self.read(seen.flow, seen.id, seen.uid)
            row = loaded.instance
            edit = plan(loaded)
            untaken = {message.mid for message in loaded.inbox}
            same = (row.run, row.edit, row.ended_at) == (seen.run, seen.edit, seen.ended_at)
            if not same or not untaken.issuperset(edit.open):
                raise OutdatedError(
                    f"{seen.flow} {seen.id!r} is not as the panel shows it: it was edited, ended, was restarted, took an "
                    "edited message or began another run; await panel.refresh(), look, and edit again"
                )
            if row.owner is not None and row.owner != replica:
                return OwnedBy(row.owner)
            answer = await self._write(replica, epoch, edit)
            if not isinstance(answer, Outdated):
                return answer

    async def _write(self, replica: str | None, epoch: int, edit: Edit) -> Edited | OwnedBy | Outdated:
        while True:
            try:
                return await self._store.edit(replica, epoch, edit)
            except CommitUnknown as error:
                logger.warning("the answer to an edit was lost, it is made again: %s", error)
                await asyncio.sleep(POLL_SECONDS)

    @asynccontextmanager
    async def _member(self) -> AsyncGenerator[tuple[str, int]]:
        """A replica that runs nothing, for as long as the edit takes; whatever it still owns then is nobody's."""
        replica = self._store.system.new_replica_id()
        try:
            yield replica, await self._store.join(replica, PATIENCE_SECONDS * 2)
        finally:
            try:
                await self._store.leave(replica)
            except (StoreUnavailable, CommitUnknown, LeaseLost) as error:
                logger.warning("replica %s could not leave; others take over what it owns: %s", replica, error)

    async def _given_up(self, seen: Instance, owner: str, replica: str, epoch: int) -> None:
        """The instance was asked of its owner, which has it no more; or somebody else has edited it."""
        waited = ASK_AGAIN_SECONDS
        while True:
            if waited >= ASK_AGAIN_SECONDS:
                waited = 0.0
                row = Message(
                    self._store.system.new_uid(), MessageKind.EVICT, None, replica, MessageKind.EVICT, None, False, -1,
                    self._now(),
                )  # fmt: skip
                send = Send(seen.flow, seen.id, row, seen.uid)
                try:
                    await self._store.commit(Batch(replica, epoch, [send], self._now()))
                except CommitUnknown:
                    pass  # if it was lost it is asked again
                self._changed()
            await asyncio.sleep(POLL_SECONDS)
            waited += POLL_SECONDS
            rows = await self._store.instances([seen.uid])
            if not rows:
                raise InstanceNotFound(seen.flow, seen.id)
            if rows[0].owner != owner or rows[0].edit != seen.edit:
                return
