"""The usual batch in one statement: one way to the server and back instead of four and more.

It is for what a flow writes that goes from step to step: it is created, its entries, its messages are taken, it waits, it
ends and nobody else has to do with it. The statement writes all of it, or fails on purpose; then the batch is written in
the general way (`writing`), which is the one that says what a batch means.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Final

from perdure.errors import LeaseLost, StoreRefused
from perdure.model.records import Entry
from perdure.model.writes import Answer, Batch, Create, Created, Finish, Finished, Take, Update
from perdure.stores.postgres.connection import After, Again, state_of
from perdure.stores.postgres.rows import BORN, ENTRY, arrays, by_columns, entry_columns

if TYPE_CHECKING:
    from perdure.stores.postgres.pool import Pool

ON_PURPOSE: Final = frozenset({"22012", "23505"})
"""Division by zero, and an entry whose place is taken: to look for that costs a third more."""
_ENDED: Final = "uid,state,outcome,ended_at,failed_seq"
_PARKED: Final = "uid,state,waiting,due_at"
_MADE: Final = f"{BORN},failed_seq"


class Plain:
    """A batch of nothing but what the module is for, as columns."""

    __slots__ = ("after", "answers", "ended", "entries", "made", "parked", "taken")

    def __init__(self, count: int) -> None:
        self.answers: list[Answer] = [None] * count
        self.entries: list[Entry] = []
        self.made: list[tuple[Any, ...]] = []
        self.parked: list[tuple[Any, ...]] = []
        self.ended: list[tuple[Any, ...]] = []
        self.taken: list[tuple[Any, ...]] = []
        self.after = After()

    @property
    def parts(self) -> tuple[bool, bool, bool, bool, bool]:
        """Which columns there are."""
        return bool(self.made), bool(self.entries), bool(self.parked), bool(self.ended), bool(self.taken)


_FINISHED: Final = Finished(())
_CREATED: Final = Created()


def plain(batch: Batch) -> Plain | None:
    """The batch as columns; None: there is something else in it."""
    if batch.replica is None:
        return None
    found = Plain(len(batch.writes))
    entries, answers = found.entries, found.answers
    creates: dict[bytes, Create] = {}
    images: dict[bytes, Update | Finish] = {}
    for number, write in enumerate(batch.writes):
        kind = type(write)
        if kind is Entry:
            entries.append(write)  # type: ignore[arg-type]
        elif isinstance(write, Update):
            images[write.uid] = write
        elif isinstance(write, Finish):
            if write.children:
                return None
            images[write.uid] = write
            answers[number] = _FINISHED
        elif isinstance(write, Create):
            if write.begun is None or write.initial or write.inbox or write.uid in creates:
                return None
            creates[write.uid] = write
            entries.append(write.begun)
            answers[number] = _CREATED
        elif isinstance(write, Take):
            found.taken.append((write.uid, write.mid))
        else:
            return None
    _rows(batch, creates, images, found)
    return found


def _rows(batch: Batch, creates: dict[bytes, Create], images: dict[bytes, Update | Finish], found: Plain) -> None:
    """What was created in this batch is written as it stands after it: a statement changes no row that it has made."""
    for uid in sorted(images):
        image = images[uid]
        if isinstance(image, Finish):
            found.after.anybody = True
            if uid not in creates:
                found.ended.append((uid, image.state.value, image.outcome, image.at, image.failed_seq))
        elif uid not in creates:
            found.parked.append((uid, "suspended" if image.waiting else "running", image.waiting, image.due_at))
    for c in sorted(creates.values(), key=lambda c: (c.flow, c.id)):
        state, owner, waiting, due_at, outcome, ended_at, failed_seq = (
            "running",
            batch.replica,
            False,
            None,
            None,
            None,
            None,
        )
        image = images.get(c.uid)
        if isinstance(image, Finish):
            state, owner, outcome, ended_at = image.state.value, None, image.outcome, image.at
            failed_seq = image.failed_seq
        elif image is not None:
            state, waiting, due_at = "suspended" if image.waiting else "running", image.waiting, image.due_at
        found.made.append(
            (c.uid, 0, c.flow, c.id, c.lane, state, owner, waiting, due_at, c.arguments, c.digest, c.parent, outcome, None,
             c.version, c.at, ended_at, failed_seq)
        )  # fmt: skip


@cache
def statement(made: bool, entries: bool, parked: bool, ended: bool, taken: bool) -> str:
    """The statement for a batch with these parts. Its parameters: replica, epoch, then how many rows are made, parked and ended, as
    far as there are any, then the columns of each part. Its answer: 0 if the fence does not hold, else 1.
    """
    parts = [
        "fence as materialized (select 1 from perdure.fence where replica = $1 and epoch = $2 and alive for share)"
    ]
    tests: list[str] = []
    number = 3
    column = 3 + sum((made, parked, ended))

    def part(columns: str, *texts: str, counted: str = "") -> None:
        nonlocal number, column
        rows = arrays(columns, column)
        parts.extend(text.replace("{v}", rows).replace("{uids}", f"${column}::bytea[]") for text in texts)
        column += columns.count(",") + 1
        if counted:
            tests.append(f"(select count(*) from {counted}) = ${number}")
            number += 1

    if made:
        picked = ",".join(f"v.{name}" for name in _MADE.split(","))
        part(
            _MADE,
            "made as (insert into perdure.place(flow, id, uid) select v.flow, v.id, v.uid from fence, {v}"
            " order by v.place on conflict do nothing returning 1)",
            f"born as (insert into perdure.instance({_MADE}) select {picked} from fence, {{v}} order by v.place)",
            counted="made",
        )
    if entries:
        picked = ",".join(f"v.{name}" for name in ENTRY.split(","))
        part(
            ENTRY,
            f"wrote as (insert into perdure.entry({ENTRY}) select {picked} from fence, {{v}})",
        )
    if parked:
        part(
            _PARKED,
            "parked as (update perdure.instance i set state = v.state, waiting = v.waiting, due_at = v.due_at"
            " from fence, {v} where i.uid = v.uid and coalesce(i.owner, '') = $1 returning 1)",
            counted="parked",
        )
    if ended:
        part(
            _ENDED,
            "ended as (update perdure.instance i set state = v.state, outcome = v.outcome, ended_at = v.ended_at,"
            " failed_seq = v.failed_seq, owner = null, waiting = false, due_at = null, reason = null from fence, {v}"
            " where i.uid = v.uid and coalesce(i.owner, '') = $1 and not i.watched returning 1)",
            "awake as (delete from perdure.wakeup w using fence where w.uid = any({uids}))",
            "asks as (select 1 from perdure.watch where asker = any({uids}) limit 1)",
            counted="ended",
        )
        tests.append("not exists (select 1 from asks)")
    if taken:
        part(
            "uid,mid",
            "took as (update perdure.inbox m set open = 0, name = null, type = '', body = null from fence, {v}"
            " where m.uid = v.uid and m.mid = v.mid and m.open + 0 > 0)",
        )
        parts.append(f"told as (delete from perdure.watch w using fence where w.mid = any(${column - 1}::bytea[]))")
    return (
        f"with {', '.join(parts)} select case when c.fences = 0 then 0 when {' and '.join(tests or ['true'])} then 1"
        " else 1 / (c.fences - c.fences) end from (select count(*) as fences from fence) c"
    )


async def write(pool: Pool, batch: Batch, plain: Plain) -> bool:
    """Whether the batch is on disk; False: nothing of it is, and it must be written in the general way.

    Raises:
        LeaseLost: the fence does not hold; nothing was written.
        CommitUnknown: it may have been written.
    """
    columns: list[Any] = by_columns(plain.made) if plain.made else []
    if plain.entries:
        columns += entry_columns(plain.entries)
    for part in (plain.parked, plain.ended, plain.taken):
        if part:
            columns += by_columns(part)
    counts = [len(part) for part in (plain.made, plain.parked, plain.ended) if part]
    args = (batch.replica, batch.epoch, *counts, *columns)
    try:
        ((done,),) = await pool.write_at_once(statement(*plain.parts), args)
    except (StoreRefused, Again) as error:
        if isinstance(error, Again) or state_of(error.__cause__ or error) in ON_PURPOSE:
            return False
        raise
    if not done:
        raise LeaseLost(f"replica {batch.replica} was taken over, or writes with an epoch that is over ({batch.epoch})")
    return True
