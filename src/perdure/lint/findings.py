"""What a finding is, and the table of rules; pure data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong inside a flow: where, what, and what to write instead. Lines and columns count from 1."""

    path: str
    line: int
    column: int
    end_line: int
    end_column: int
    code: str
    message: str
    instead: str
    calls: tuple[str, ...] = ()
    """The flow, and the functions by which it gets to this line."""

    @property
    def text(self) -> str:
        """The message, the way from the flow to the line, and what to write instead."""
        way = f" [{' > '.join(self.calls)}]" if self.calls else ""
        return f"{self.message}{way}; {self.instead}"


RULES: Final[dict[str, str]] = {
    "PD001": "the file cannot be read as Python",
    "PD101": "a clock is read",
    "PD102": "the date or time of day is read",
    "PD103": "chance that no seed fixes",
    "PD104": "an id made by chance",
    "PD105": "the hash of a text, which each process makes another",
    "PD201": "the environment is read: variables, arguments, process, host, folder",
    "PD202": "a file is read or written, or the terminal is",
    "PD203": "the network or a database is used",
    "PD204": "the process is put to sleep",
    "PD205": "work is given to a thread of the loop",
    "PD206": "a thread, a pool or a thread's lock is used",
    "PD207": "another process, or a signal, is used",
    "PD301": "a set is iterated",
    "PD302": "a dict gets its order from a set",
    "PD303": "`as_completed` was taken from asyncio before perdure was imported",
    "PD401": "a global that changes is read, or is changed",
    "PD402": "a variable of the function around the flow that changes is read, or is changed",
    "PD403": "a cached function is called",
    "PD404": "a default argument is changed",
    "PD405": "a lock, event, queue or semaphore is shared with others",
    "PD501": "a coroutine is not awaited",
    "PD502": "a name is called before its own assignment",
    "PD503": "a cancellation is swallowed",
    "PD504": "work is asked for later and sees the loop's last turn",
    "PD505": "work takes a loop's variable past the journal",
    "PD506": "a task is not kept",
    "PD507": "a loop is run inside the flow's loop",
    "PD601": "something is printed",
    "PD602": "a logger that speaks during replay",
}
"""Every code, and what it finds."""
