"""Where recordings and checks read: the parts of an engine that is not entered, and a database opened to be read alone.

It writes nothing and knows nothing of what is read.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from perdure import codec
from perdure.api.flow import FlowFunction
from perdure.engine.engine import Engine
from perdure.engine.payloads import Payloads
from perdure.engine.sync_engine import SyncEngine
from perdure.errors import NotSupported
from perdure.stores.contract import Store
from perdure.stores.memory import MemoryStore
from perdure.stores.open import open_store, to_read


@dataclass(frozen=True, slots=True)
class Parts:
    """What an engine was given."""

    store: Store
    flows: Mapping[str, FlowFunction[..., Any]]
    payloads: Payloads
    hook: codec.Codec | None
    """Its `codec=`."""
    version: str


def parts_of(engine: Engine | SyncEngine) -> Parts:
    """What the engine was given; nothing of it is entered or changed."""
    # The one place that looks into an engine: it tells these to nobody, since all its own verbs need it entered.
    if isinstance(engine, SyncEngine):
        engine = engine._make()  # pyright: ignore[reportPrivateUsage]
    payloads = engine._payloads  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    return Parts(
        engine._store,  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        engine._flows,  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        payloads,
        payloads._hook,  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        engine._settings.version,  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    )


@asynccontextmanager
async def opened_to_read(store: Store | str) -> AsyncGenerator[Store]:
    """The store, open for as long as the block runs; it is only read, beside whoever writes to it.

    A store of the user's own is opened as an engine would.

    Raises:
        ValueError: no store is known for the URL.
        NotSupported: it is in the memory of one process; ask the engine that has it.
        StoreUnavailable, NotOurs, StoreCorrupt: there is no such database, or it cannot be read.
    """
    if isinstance(store, str):
        store = open_store(store)
    if isinstance(store, MemoryStore):
        raise NotSupported("a memory store lives in its own process alone; name a database that can be opened here")
    store = to_read(store)
    await store.open()
    try:
        yield store
    finally:
        await store.close()
