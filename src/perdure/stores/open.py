"""From a URL to a store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from perdure.stores.contract import Store

_MIGRATE: Final = {"": True, "migrate=on": True, "migrate=off": False}


def open_store(url: str, *, read_only: bool = False) -> Store:
    """A store for the URL, not opened yet: `sqlite:///relative.db`, `sqlite:////absolute.db`, `memory://` or
    `postgresql://user@host/database`.

    With `?migrate=off` opening it leaves tables of an older version as they are, and is refused.

    Args:
        url: where the data is.
        read_only: whether it is to be opened for reading alone; see `to_read`.

    Raises:
        ValueError: no store is known for it.
        NotSupported: its driver is not installed; the message says how to install it.
    """
    store = _store(url)
    return to_read(store) if read_only else store


def to_read(store: Store) -> Store:
    """A store for the same database, not opened yet, with the reading half of the contract: nothing is made or written.

    A store that has no `read_only()` is given back as it is.
    """
    twin: Callable[[], Store] | None = getattr(store, "read_only", None)
    return store if twin is None else twin()


def _store(url: str) -> Store:
    scheme, found, rest = url.partition("://")
    if found and scheme == "memory" and not rest.strip("/"):
        from perdure.stores.memory import MemoryStore  # who has a database need not load this

        return MemoryStore()
    if found and scheme == "sqlite" and len(rest) > 1 and rest.startswith("/"):
        from perdure.stores.sqlite import SqliteStore  # who stays in memory need not load a database

        path, _, options = rest[1:].partition("?")
        if options not in _MIGRATE:
            raise ValueError(f"{url!r}: ?{options} is no option of a SQLite file; known are migrate=on and migrate=off")
        return SqliteStore(path, migrate=_MIGRATE[options])
    if found and scheme in ("postgresql", "postgres") and rest:
        from perdure.stores.postgres import PostgresStore  # needs asyncpg

        return PostgresStore(url)
    if found and scheme in ("mysql", "mariadb") and rest:
        from perdure.stores.mysql import MysqlStore  # needs asyncmy

        return MysqlStore(url)
    raise ValueError(
        f"{url!r} is no store; known are sqlite:///relative.db, sqlite:////absolute.db, memory://, "
        "postgresql://user@host/database and mysql://user@host/database"
    )
