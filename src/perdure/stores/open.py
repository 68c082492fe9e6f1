"""From a URL to a store."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from perdure.stores.contract import Store


def open_store(url: str) -> Store:
    """A store for the URL, not opened yet: `sqlite:///relative.db`, `sqlite:////absolute.db`, `memory://` or
    `postgresql://user@host/database`.

    Raises:
        ValueError: no store is known for it.
        NotSupported: its driver is not installed; the message says how to install it.
    """
    scheme, found, rest = url.partition("://")
    if found and scheme == "memory" and not rest.strip("/"):
        from perdure.stores.memory import MemoryStore  # who has a database need not load this

        return MemoryStore()
    if found and scheme == "sqlite" and len(rest) > 1 and rest.startswith("/"):
        from perdure.stores.sqlite import SqliteStore  # who stays in memory need not load a database

        return SqliteStore(rest[1:])
    if found and scheme in ("postgresql", "postgres") and rest:
        from perdure.stores.postgres import PostgresStore  # needs asyncpg

        return PostgresStore(url)
    raise ValueError(
        f"{url!r} is no store; known are sqlite:///relative.db, sqlite:////absolute.db, memory:// and "
        "postgresql://user@host/database"
    )
