"""Python's cycle collector while an engine runs: fewer, larger collections, as long as nobody has set another pace.

Many flows in lockstep keep many young objects alive for one round each; at the default pace they are promoted by the
thousand and every few rounds the whole heap is looked at. Measured with 10,000 flows of 10 steps on SQLite: 17 thousand
steps/s at the default of 700, 30 thousand at 50,000. The engine itself leaves no cycles behind.
"""

from __future__ import annotations

import gc
from typing import Final

_DEFAULTS: Final = (700, 2_000)
"""The first threshold of CPython 3.11 and 3.12, and of 3.13."""
_YOUNG: Final = 50_000
_engines = 0
_before: tuple[int, int, int] | None = None


def engine_started() -> None:
    """The collector goes at the engine's pace, unless the program has set one."""
    global _engines, _before
    _engines += 1
    if _engines == 1 and gc.get_threshold()[0] in _DEFAULTS:
        _before = gc.get_threshold()
        gc.set_threshold(_YOUNG, *_before[1:])


def engine_stopped() -> None:
    """With the last engine the pace from before is back."""
    global _engines, _before
    _engines -= 1
    if _engines == 0 and _before is not None:
        if gc.get_threshold()[0] == _YOUNG:
            gc.set_threshold(*_before)
        _before = None
