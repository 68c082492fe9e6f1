"""The memory store: the contract in plain dicts. The reference for every other store, and durable in nothing."""

from perdure.stores.memory.store import MemoryStore

__all__ = ["MemoryStore"]
