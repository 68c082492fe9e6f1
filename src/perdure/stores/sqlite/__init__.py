"""The SQLite store: one file, one writer thread, several processes."""

from perdure.stores.sqlite.store import SqliteStore

__all__ = ["SqliteStore"]
