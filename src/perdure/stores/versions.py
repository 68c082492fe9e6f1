"""Versions of a store's tables: what is asked of a store that has them, and what is said of one that is not as it should be.

The rule by which every store keeps old and new code apart: a migration runs alone, in one transaction with the death of
all fences; and whoever writes without a fence looks at the version in the same transaction.
"""

from __future__ import annotations

from typing import Final, Protocol

import msgspec

from perdure.errors import NotOurs

UNFINISHED: Final = 1_000_000_000
"""Is added to the version of a store that a copy is being made to: newer than any, so that every Perdure leaves it alone."""


class Versions(msgspec.Struct, frozen=True):
    """Which version the tables have, and which is known here."""

    found: int
    """0: there are none."""
    known: int


class Migrating(Protocol):
    """What a store may offer for `perdure migrate`. It need not be open, and is not afterwards."""

    async def versions(self) -> Versions:
        """Which version the tables have; nothing is written.

        Raises:
            NotOurs: a newer one, or they are another program's.
        """
        ...

    async def migrate(self) -> Versions:
        """The tables are there, in the version that is known here; gives which they had. What `open` does too."""
        ...


def refused(shown: str, versions: Versions) -> NotOurs:
    """The error for tables of a version that this Perdure does not work on; `shown` says where they are."""
    found, known = versions.found, versions.known
    if found >= UNFINISHED:
        return NotOurs(
            f"{shown} holds a copy that is not finished: wait for `perdure copy`; if it was broken off, call it again"
        )
    if found > known:
        return NotOurs(
            f"{shown} was written by a newer Perdure (store version {found}, known here: {known}); upgrade this one"
        )
    what = f"is of store version {found}, and {known} is needed" if found else "holds no Perdure store yet"
    return NotOurs(f"{shown} {what}: call `perdure migrate` as a user who may change its tables")
