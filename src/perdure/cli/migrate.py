"""`perdure migrate`: what is done to which store, what is said, how the process exits. Click is not known here."""

from __future__ import annotations

import asyncio
import sys
import traceback
from collections.abc import Callable
from typing import cast

from perdure.errors import NotSupported, PerdureError
from perdure.stores.open import open_store
from perdure.stores.versions import Migrating, Versions


def run(url: str, check: bool, say: Callable[[str], object]) -> int:
    """The tables are those that this version of Perdure needs, and it is said what was done; with `check`, only said.

    Returns:
        0: they are, or were; 1, with `check`: something is missing; 2: it cannot be done or told.
    """
    try:
        versions = asyncio.run(_migrate(url, check))
    except (PerdureError, ValueError) as error:
        sys.stderr.write(f"perdure migrate: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("perdure migrate: broken off; each version was applied whole, or not at all\n")
        return 2
    except Exception:  # it must not exit with 1, which says something else
        sys.stderr.write(f"perdure migrate: this is a fault of Perdure or of the store\n{traceback.format_exc()}")
        return 2
    had = f"the tables are of version {versions.found}" if versions.found else "there are no tables"
    missing = range(versions.found + 1, versions.known + 1)
    if not missing:
        say(f"nothing to do: {had}")
        return 0
    which = ", ".join(map(str, missing))
    if check:
        say(f"missing: {which} ({had}); call perdure migrate without --check")
        return 1
    say(
        f"applied: {which} ({'there were none' if not versions.found else f'the tables were of version {versions.found}'})"
    )
    return 0


async def _migrate(url: str, check: bool) -> Versions:
    store = open_store(url)
    if not hasattr(store, "migrate"):
        raise NotSupported("this store has no tables to migrate")
    migrating = cast("Migrating", store)
    return await (migrating.versions() if check else migrating.migrate())
