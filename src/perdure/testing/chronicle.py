"""What happened in a simulated cluster, in words and in order: who, when, what. Decides nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

from perdure.engine.payloads import Payloads
from perdure.engine.rendering import clean, entry_of
from perdure.model.records import Entry, MessageKind
from perdure.model.writes import (
    Batch,
    Continue,
    Create,
    Created,
    Existing,
    Expose,
    Finish,
    PendingPut,
    Release,
    Send,
    Sent,
    Write,
)

QUIET: Final = frozenset(
    {"reap", "wakeups", "claim", "claim_blocked", "instances", "inbox", "find", "exposed", "instance"}
)
"""Calls that are worth a line only if something came of them."""


class Event(NamedTuple):
    """One line."""

    at: float
    who: str
    text: str

    def __str__(self) -> str:
        return f"{self.at:9.3f}  {self.who:<8} {self.text}"


class Chronicle:
    """See the module. One of which nothing is wanted costs next to nothing."""

    def __init__(self, now: Callable[[], float], named: Callable[[bytes], str], *, wanted: bool) -> None:
        self._now = now
        self._named = named
        self._payloads = Payloads(None, 1 << 30)
        self.wanted = wanted
        self.events: list[Event] = []

    def note(self, who: str, text: str) -> None:
        """This happened now."""
        if self.wanted:
            self.events.append(Event(self._now(), who, text))

    def arrived(self, who: str, method: str, args: Any, answer: Any, error: BaseException | None) -> None:
        """The call was at the store, and this came of it."""
        if not self.wanted:
            return
        if error is not None:
            self.note(who, f"{method}: refused, {type(error).__name__}: {error}")
        elif method == "commit":
            for line in self._written(args[0], answer):
                self.note(who, line)
        elif method in ("claim", "claim_blocked"):
            for row in answer[0]:
                self.note(who, f"{method}: {row.flow} {row.id!r}, which is {row.state.value}")
        elif method == "wakeups":
            for uid in answer:
                self.note(who, f"is called for {self._named(uid)}")
        elif method == "reap":
            if answer.taken:
                self.note(who, f"takes over from {', '.join(answer.taken)}")
        elif method == "load":
            for loaded in answer:
                row = loaded.instance
                self.note(
                    who, f"loads {row.flow} {row.id!r} with {len(loaded.entries)} entries, {len(loaded.inbox)} messages"
                )
        elif method not in QUIET:
            self.note(who, method)

    def _written(self, batch: Batch, answers: list[Any]) -> Iterator[str]:
        for write, answer in zip(batch.writes, answers, strict=True):
            text = self._write(write, answer)
            if text:
                yield text
        yield f"commit of {len(batch.writes)} writes"

    def _write(self, write: Write, answer: Any) -> str:
        match write:
            case Entry():
                return f"{self._named(write.uid)}: {write.seq} {entry_of(write, self._payloads).strip()}"
            case Create():
                how = "was there" if isinstance(answer, Existing) else "is created"
                inbox = f" with {len(answer.inbox)} messages" if isinstance(answer, Created) and answer.inbox else ""
                return f"{write.flow} {write.id!r} {how}{', owned' if write.owned else ''}{inbox}"
            case Send():
                return self._send(write, answer)
            case Release():
                return f"{self._named(write.uid)}: released, {write.state.value} {clean(write.reason or '')}".rstrip()
            case Finish():
                return f"{self._named(write.uid)}: {write.state.value}"
            case Continue():
                return f"{self._named(write.uid)}: run {write.run} begins"
            case PendingPut(pending=row):
                intent = "may have begun" if row.intent else f"{row.attempt} failed attempts"
                return f"{self._named(row.uid)}: {row.key} {row.name}, {intent}"
            case Expose():
                return f"{self._named(write.uid)}: exposes {write.key!r}"
            case _:
                return ""

    def _send(self, write: Send, answer: Any) -> str:
        message = write.message
        what = "message" if message.kind == MessageKind.MESSAGE else message.kind
        name = "".join(f" {word}" for word in (message.name, message.key) if word)
        known = ", known before" if isinstance(answer, Sent) and not answer.new else ""
        return f"{what}{name} for {write.flow} {write.id!r}{known}"
