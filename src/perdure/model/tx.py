"""The user's side of a transaction on the flow's own database, as a protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class Tx(Protocol):
    """The flow's own database, inside the transaction that also writes the flow's entry."""

    async def execute(self, sql: str, /, *args: object) -> None:
        """The statement is done, in this transaction. Parameters are the database's own: `?` on SQLite."""
        ...

    async def fetch(self, sql: str, /, *args: object) -> Sequence[Mapping[str, Any]]:
        """The rows that the statement gives, each by column name."""
        ...
