"""The control panel: one instance, to look into and to mend."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast, final

from perdure import codec
from perdure.api.info import shown
from perdure.clock import Duration, seconds, to_datetime, to_epoch
from perdure.engine import mending, rendering
from perdure.engine.mending import Outcome, Staged, Verb
from perdure.engine.names import check_name
from perdure.engine.operations import new_message
from perdure.errors import InstanceNotFound, StoreUnavailable
from perdure.model.lanes import queue_of
from perdure.model.records import PUSHED, Entry, Kind, Loaded, Message, MessageKind, State

if TYPE_CHECKING:
    from perdure.api.handle import Handle
    from perdure.engine.editing import Editor
    from perdure.engine.payloads import Payloads
    from perdure.system import System

R_co = TypeVar("R_co", covariant=True)

logger = logging.getLogger("perdure")


class Panel(Generic[R_co]):
    """One instance as it was when it was read. Edits are staged in it, and written by the next awaited method, at once.

    Needs no code of the flow: values of types that are not loaded here are shown as plain data. The methods that write
    first become the instance's owner: who runs it gives it up, after its running steps have ended. They make one change
    of it all or none, and refuse (`Outdated`) if the instance was edited, ended or began another run meanwhile.

    Raises, from what writes:
        Outdated: `await panel.refresh()`, look, and edit again.
        InstanceNotFound: it was deleted.
        TimeoutError: whoever runs it did not give it up within a minute; nothing was written.
        StoreUnavailable: nothing was written. (Of a cancelled call it is not known: refresh, and look.)
    """

    __slots__ = ("_editor", "_handle", "_loaded", "_now", "_payloads", "_staged", "_system", "entries", "inbox")

    def __init__(
        self, loaded: Loaded, editor: Editor, payloads: Payloads, system: System, now: Callable[[], float],
        handle: Handle[R_co],
    ) -> None:  # fmt: skip
        self._loaded = loaded
        self._staged = Staged()
        self._editor = editor
        self._payloads = payloads
        self._system = system
        self._now = now
        self._handle = handle
        self.entries = Entries(self)
        self.inbox = Inbox(self)

    def __repr__(self) -> str:
        return f"<panel of {self.flow} {self.id!r}: {self.state.value}>"

    def __str__(self) -> str:
        return rendering.text_of(self._loaded, self._payloads)

    @property
    def flow(self) -> str:
        return self._loaded.instance.flow

    @property
    def id(self) -> str:
        return self._loaded.instance.id

    @property
    def args(self) -> tuple[Any, ...]:
        """The arguments of the run; set them to stage others."""
        data = self._staged.arguments
        shown: Any = self._payloads.show(self._loaded.instance.arguments if data is None else data)
        return tuple(cast("list[Any]", shown)) if isinstance(shown, list) else (shown,)  # bytes, if they cannot be read

    @args.setter
    def args(self, args: tuple[Any, ...]) -> None:
        if not isinstance(cast("object", args), tuple):
            raise TypeError(f"args is a tuple of all arguments; for one of them write ({args!r},)")
        self._staged.arguments = self._payloads.encode(list(args), f"arguments of {self.flow}")

    @property
    def state(self) -> State:
        return shown(self._loaded.instance)

    @property
    def queue(self) -> str:
        """The queue that it runs on; empty: none."""
        return queue_of(self._loaded.instance.lane)

    @property
    def due_at(self) -> datetime | None:
        """When it goes on by itself."""
        due_at = self._loaded.instance.due_at
        return None if due_at is None else to_datetime(due_at)

    @property
    def reason(self) -> str | None:
        """Of a blocked instance: the first difference, with the line of code."""
        return self._loaded.instance.reason if self.state is State.BLOCKED else None

    @property
    def result(self) -> R_co | None:
        """What a succeeded instance returned."""
        row = self._loaded.instance
        value: Any = self._payloads.show(row.outcome) if row.state is State.SUCCEEDED and row.outcome else None
        return value

    @property
    def error(self) -> BaseException | None:
        """What a failed instance raised."""
        row = self._loaded.instance
        return self._payloads.show_error(row.outcome or b"") if row.state is State.FAILED else None

    @property
    def pending(self) -> Sequence[Mapping[str, Any]]:
        """Operations begun and not recorded, as far as the store knows of them: failed attempts, at-most-once intents."""
        show, show_error = self._payloads.show, self._payloads.show_error
        return [
            {
                "id": mending.shown_id(row.key),
                "kind": row.kind,
                "name": row.name,
                "attempts": row.attempt,
                "begun": row.intent,
                "next_at": None if row.next_at is None else to_datetime(row.next_at),
                "error": None if row.error is None else show_error(row.error),
                "progress": None if row.progress is None else show(row.progress),
            }
            for row in self._loaded.pending
        ]

    # ------------------------------------------------------------ what writes

    async def save(self) -> None:
        """The staged edits are on disk, all of them or none; an instance that had begun and has not ended goes on with them
        at once. With nothing staged nothing happens.
        """
        if self._staged:
            await self._write(Verb.SAVE)

    async def restart(self) -> Handle[R_co]:
        """The staged edits are on disk and the instance goes on, whether it had ended, waits or is blocked.

        Of one that failed, the entry whose exception escaped and all after it are gone, so that it is tried again; of
        one that was cancelled, the request and all after it. Messages that those had taken are in the inbox again. What
        was recorded before is not run again. Other instances stay as they are: a child that failed or was cancelled is
        restarted by itself, and first.
        """
        await self._write(Verb.RESTART)
        return self._handle

    async def succeed(self, result: Any = None, /) -> None:
        """The instance has ended with this result; who waits for it gets it. Its unfinished children are cancelled."""
        await self._write(Verb.SUCCEED, outcome=self._payloads.encode(result, f"result of {self.flow}"))

    async def fail(self, error: BaseException, /) -> None:
        """The instance has ended with this exception. Its unfinished children are cancelled."""
        await self._write(Verb.FAIL, outcome=self._payloads.encode_error(error, self.flow))

    async def postpone(self, duration: Duration | None = None, /, *, until: datetime | None = None) -> None:
        """As `restart`, and it goes on at that time, at the earliest; messages do not wake it before."""
        if duration is not None and until is None:
            due_at = self._now() + seconds(duration)
        elif until is not None and duration is None:
            due_at = to_epoch(until)
        else:
            raise TypeError("postpone() takes a duration or until=")
        await self._write(Verb.POSTPONE, due_at=due_at)

    async def delete(self) -> None:
        """The instance and all that belongs to it is gone, as if it had never been; the id may be started again.

        Its unfinished children are cancelled, and who waits for it gets InstanceNotFound.
        """
        await self._write(Verb.DELETE)

    async def refresh(self) -> None:
        """The panel shows the instance as it is now; staged edits are dropped."""
        row = self._loaded.instance
        self._loaded = await self._editor.read(row.flow, row.id, row.uid)
        self._staged = Staged()

    async def _write(self, verb: Verb, *, outcome: bytes | None = None, due_at: float | None = None) -> None:
        edit_id, at, staged = self._system.new_uid(), self._now(), self._staged
        await self._editor.make(
            self._loaded.instance,
            lambda loaded: mending.plan(loaded, staged, verb, edit_id, at, outcome=outcome, due_at=due_at),
        )
        self._staged = Staged()
        if verb is not Verb.DELETE:
            try:
                await self.refresh()
            except (StoreUnavailable, InstanceNotFound) as error:  # it is written, whatever came after
                logger.warning("%r is edited, and cannot be shown as it is now: %s", self, error)

    # ------------------------------------------------------------ for Entries and Inbox

    @property
    def loaded(self) -> Loaded:
        """What was read."""
        return self._loaded

    @property
    def staged(self) -> Staged:
        """The edits that wait for being written."""
        return self._staged

    @property
    def payloads(self) -> Payloads:
        """The way from values to bytes."""
        return self._payloads

    def new_message(self, message: object, key: str | None, name: str | None) -> Message:
        """The message as a row."""
        if key is not None:
            check_name(key, "key")
        if name is not None:
            check_name(name, "name")
        body = self._payloads.encode(message, f"message to {self.flow} {self.id!r}")
        return new_message(self._system.new_uid(), codec.tag_of(message), body, key, name, self._now())


@final
class Entries:
    """The recorded outcomes of an instance's operations, by id; edits are staged.

    An id is the one that the code gave (`id=`), the operation's path (`3`, `4.0`: see `print(panel)`), or its name if
    there is only one of that name.
    """

    __slots__ = ("_panel",)

    def __init__(self, panel: Panel[Any]) -> None:
        self._panel = panel

    def _recorded(self) -> list[Entry]:
        return [e for e in self._panel.loaded.entries if e.kind not in PUSHED and e.kind != Kind.PATCHED]

    def __getitem__(self, id: str, /) -> Any:
        """The value, or the exception, that the operation ended with.

        Raises:
            KeyError: it has no outcome (yet).
        """
        panel = self._panel
        key = self._key(id)
        outcome = panel.staged.entries.get(key)
        if outcome is None:
            entry = next((e for e in self._recorded() if e.key == key and e.kind != Kind.AGAIN), None)
            outcome = Outcome(remove=True) if entry is None else Outcome(entry.outcome, entry.failed)
        if outcome.remove:
            raise KeyError(f"{id!r} has no outcome")
        if outcome.failed:
            return panel.payloads.show_error(outcome.data or b"")
        return None if outcome.data is None else panel.payloads.show(outcome.data)

    def _key(self, id: str) -> str:
        staged = self._panel.staged.entries
        return "=" + id if "=" + id in staged else mending.key_of(self._panel.loaded, id)

    def __contains__(self, id: object, /) -> bool:
        try:
            self[str(id)]
        except KeyError:
            return False
        return True

    def __iter__(self) -> Iterator[str]:
        """The ids, in the order of the journal."""
        return iter([mending.shown_id(entry.key) for entry in self._recorded()])

    def __len__(self) -> int:
        return len(self._recorded())

    def set(self, id: str, value: object, /) -> None:
        """Staged: the operation has this outcome. One that was not asked for yet gets it when it is.

        An id that means no operation here, or several of that name, is taken for one that the code will give by `id=`.

        Raises:
            ValueError: what it is has no outcome to set (a timer, a start, a send).
            NotEncodable, PayloadTooLarge.
        """
        self._stage(id, Outcome(self._panel.payloads.encode(value, id)))

    def fail(self, id: str, error: BaseException, /) -> None:
        """Staged: the operation has ended with this exception. See `set`, and what that raises."""
        self._stage(id, Outcome(self._panel.payloads.encode_error(error, id), failed=True))

    def remove(self, id: str, /) -> None:
        """Staged: the step runs again, in its place, and nothing else of the instance before it has ended.

        What comes after it in the journal stays as it is. Of an operation that is not recorded yet, its failed attempts
        are forgotten; of an outcome that was put there by hand, that.

        Raises:
            KeyError: there is no such entry.
            ValueError: it is no step.
        """
        self._stage(id, Outcome(remove=True))

    def _stage(self, id: str, outcome: Outcome) -> None:
        check_name(id, "id")
        loaded = self._panel.loaded
        try:
            key = mending.key_of(loaded, id)
        except KeyError as error:
            if outcome.remove or isinstance(error, mending.Ambiguous):
                raise
            key = "=" + id
        entry = next((e for e in self._recorded() if e.key == key), None)
        if entry is not None and entry.seq >= 0:
            runs_again = entry.kind in (Kind.STEP, Kind.AGAIN)
            if outcome.remove and not runs_again:
                raise ValueError(
                    f"{id!r} is a {entry.kind}, and only steps run again; give it another outcome with set()"
                )
            if not outcome.remove and entry.kind not in mending.SETTABLE:
                raise ValueError(f"{id!r} is a {entry.kind}, which has no outcome to set")
        self._panel.staged.entries[key] = outcome


@final
class Inbox:
    """The messages that nobody has taken yet, oldest first; edits are staged."""

    __slots__ = ("_panel",)

    def __init__(self, panel: Panel[Any]) -> None:
        self._panel = panel

    def _rows(self) -> list[Message]:
        loaded, staged = self._panel.loaded, self._panel.staged
        rows = [m for m in loaded.inbox if m.kind == MessageKind.MESSAGE and m.mid not in staged.removed]
        return [staged.replaced.get(m.mid, m) for m in rows] + staged.added

    def append(self, message: object, /, *, key: str | None = None, name: str | None = None) -> None:
        """Staged: the message comes after the others."""
        self._panel.staged.added.append(self._panel.new_message(message, key, name))

    def __len__(self) -> int:
        return len(self._rows())

    def __getitem__(self, index: int, /) -> Any:
        """The message's value."""
        return self._value(self._rows()[index])

    def __iter__(self) -> Iterator[Any]:
        """The messages' values."""
        return map(self._value, self._rows())

    def _value(self, row: Message) -> Any:
        return None if row.body is None else self._panel.payloads.show(row.body)

    def replace(self, index: int, message: object, /, *, key: str | None = None) -> None:
        """Staged: this message stands in the other's place, under its name."""
        old = self._rows()[index]
        new = self._panel.new_message(message, key if key is not None else old.key, old.name)
        staged = self._panel.staged
        if old in staged.added:
            staged.added[staged.added.index(old)] = new
        else:
            staged.replaced[old.mid] = mending.in_place_of(old, new)

    def remove(self, index: int, /) -> None:
        """Staged: the message was never sent; its key may come again."""
        old = self._rows()[index]
        staged = self._panel.staged
        if old in staged.added:
            staged.added.remove(old)
        else:
            staged.replaced.pop(old.mid, None)
            staged.removed.add(old.mid)

    def clear(self) -> None:
        """Staged: no message is there."""
        staged = self._panel.staged
        staged.added.clear()
        staged.replaced.clear()
        staged.removed.update(m.mid for m in self._panel.loaded.inbox if m.kind == MessageKind.MESSAGE)
