"""The usual batch in one message to the server, instead of ten ways there and back.

It is for what a flow writes that goes from step to step: it is created, its entries, its messages are taken, it waits, it
ends and nobody else has to do with it. The message writes all of it, or fails on purpose; then the batch is written in
the general way (`writing`), which is the one that says what a batch means.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from perdure.model.records import Entry
from perdure.model.writes import Answer, Batch, Create, Created, Finish, Finished, Take, Update
from perdure.stores.mysql.connection import DUPLICATE, After, Again, Lost, code_of, meant
from perdure.stores.mysql.literals import literals
from perdure.stores.mysql.pool import BEGIN
from perdure.stores.mysql.rows import BORN, insert, of_entries
from perdure.stores.mysql.sending import ASLEEP
from perdure.stores.mysql.writing import ANSWERED, ENTRIES, FINISH, PLACE, TAKE, UPDATE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from perdure.stores.mysql.literals import Texts
    from perdure.stores.mysql.pool import Pool

_MADE: Final = f"{BORN},failed_seq"
MADE: Final = insert("instance", _MADE)
# Only what nobody was ever to be told of ends here without more.
ENDED: Final = f"{FINISH} and i.watched = 0"
_FAILS: Final = "(select 1 union all select 2)"
"""One value is wanted, and this has two: the error is ON_PURPOSE. It is not evaluated where another branch is taken."""
FENCED: Final = (
    "select if((select count(*) from perdure_fence where replica = %s and epoch = %s and alive = 1 lock in share mode) = 1,"
    f" 1, {_FAILS})"
)
FOUND: Final = f"select if(row_count() = %s, 1, {_FAILS})"
NOBODY_ASKS: Final = f"select if(exists (select 1 from perdure_watch where asker in %s), {_FAILS}, 1)"
ON_PURPOSE: Final = frozenset({1242, DUPLICATE})
"""And an entry or instance whose place is taken."""
UNSENT: Final = frozenset({0, 2006})
"""The connection was gone before the message was sent whole."""


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


class _Message:
    """The statements of one message, which ends with the commit: one that does not find what it expects fails on purpose,
    and no statement is done after one that fails.
    """

    __slots__ = ("_texts", "statements")

    def __init__(self, texts: Texts) -> None:
        self._texts = texts
        self.statements: list[bytes] = []

    def run(self, sql: str, *args: object) -> None:
        """The statement is done."""
        self.statements.append(self._texts.filled(sql, literals(args)))

    def insert(self, sql: str, rows: Sequence[Sequence[object]]) -> None:
        """The rows are inserted."""
        text = b",".join([b"(%s)" % b",".join(literals(row)) for row in rows])
        self.statements.append(self._texts.filled(sql, [text]))

    def each(self, sql: str, columns: str, rows: Sequence[Sequence[object]], *args: object) -> None:
        """The statement is done with these rows as a table."""
        table = self._texts.table(columns, list(map(literals, rows)))
        self.statements.append(self._texts.filled(sql, [table, *literals(args)]))


def _message(texts: Texts, batch: Batch, plain: Plain) -> bytes:
    message = _Message(texts)
    message.run(FENCED, batch.replica, batch.epoch)
    if plain.made:
        message.insert(PLACE, [(row[2], row[3], row[0]) for row in plain.made])
        message.insert(MADE, plain.made)
    if plain.entries:
        message.insert(ENTRIES, of_entries(plain.entries))
    if plain.parked:
        message.each(UPDATE, "uid,state,waiting,due_at", plain.parked, batch.replica)
        message.run(FOUND, len(plain.parked))
    if plain.ended:
        message.each(ENDED, "uid,state,outcome,ended_at,failed_seq", plain.ended, batch.replica)
        message.run(FOUND, len(plain.ended))
        uids = [row[0] for row in plain.ended]
        message.run(ASLEEP, uids)
        message.run(NOBODY_ASKS, uids)
    if plain.taken:
        message.each(TAKE, "uid,mid", plain.taken)
        message.run(ANSWERED, [row[1] for row in plain.taken])
    return BEGIN + b";".join([*message.statements, b"commit"])


async def write(pool: Pool, batch: Batch, plain: Plain) -> bool:
    """Whether the batch is on disk; False: nothing of it is, and it must be written in the general way.

    Raises:
        CommitUnknown: it may have been written.
    """
    try:
        text = _message(pool.texts, batch, plain)
    except ValueError as error:
        raise meant(error, pool.address) from error
    async with pool.connection() as connection:
        if not connection.takes(text):
            return False
        try:
            await pool.ask(connection, text)
        except Exception as error:
            if code_of(error) not in UNSENT and isinstance(meant(error, pool.address), Lost):
                raise pool.unknown(connection, error) from error
            told = await pool.rolled_back(connection, error)
            if code_of(error) in ON_PURPOSE or isinstance(told, Again | Lost):
                return False
            if told is error:
                raise
            raise told from error
    return True
