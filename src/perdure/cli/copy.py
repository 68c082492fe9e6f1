"""`perdure copy`: which stores are meant, and how the process exits. Click and rich are not known here."""

from __future__ import annotations

import asyncio
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import cast

from perdure.errors import NotSupported, PerdureError
from perdure.stores.moving import Moved, Moving, copy
from perdure.stores.open import open_store


def run(source: str, target: str, told: Callable[[str, int], object], show: Callable[[Sequence[Moved]], object]) -> int:
    """The target holds what the source holds, and what was compared has been shown.

    Returns:
        0: all is the same on both sides, and the target may be used; 1: something differs, and it may not; 2: it was not
        copied.
    """
    try:
        if source == target:
            raise ValueError("source and target are the same")
        moved = asyncio.run(copy(_moving(source), _moving(target), told))
    except (PerdureError, ValueError) as error:
        sys.stderr.write(f"perdure copy: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("perdure copy: broken off; the target stays unfinished until it is copied to again\n")
        return 2
    except Exception:  # it must not exit with 1, which says something else
        sys.stderr.write(f"perdure copy: this is a fault of Perdure or of a store\n{traceback.format_exc()}")
        return 2
    show(moved)
    if all(each.same for each in moved):
        return 0
    sys.stderr.write("perdure copy: what was copied is not what was read; the target is unfinished and stays refused\n")
    return 1


def _moving(url: str) -> Moving:
    store = open_store(url)
    if not hasattr(store, "dump"):
        raise NotSupported(f"the store of {url.partition('://')[0]}:// can neither be copied nor copied to")
    return cast("Moving", store)
