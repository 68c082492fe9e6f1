"""When a failed step is tried again: the rule as a value, decided without a clock."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Final, final

from perdure.clock import Duration, seconds

ErrorFilter = tuple[type[Exception], ...] | Callable[[Exception], bool]
_EVERY: Final[tuple[type[Exception], ...]] = (Exception,)


@final
class Retry:
    """A failed step is tried again by this rule.

    Attempt n + 1 starts `initial * backoff ** (n - 1)` seconds after the n-th failed, at most `maximum` (a year if none
    is given), lengthened by a random part of up to `jitter` times that. An error with an attribute `retry_after`
    (seconds or `timedelta`) asks for at least that pause. `attempts` counts all attempts, None = without end. Only
    errors that `retry_on` accepts (types, or a function) are tried again, and never those of `give_up_on`; what is not
    an `Exception` never is. Count and next time survive a crash.
    """

    __slots__ = ("attempts", "backoff", "give_up_on", "initial", "jitter", "maximum", "retry_on")

    def __init__(
        self,
        *,
        attempts: int | None = 15,
        initial: Duration = 1.0,
        backoff: float = 2.0,
        maximum: Duration | None = None,
        jitter: float = 0.0,
        retry_on: ErrorFilter = _EVERY,
        give_up_on: tuple[type[Exception], ...] = (),
    ) -> None:
        self.attempts: Final = attempts
        self.initial: Final = seconds(initial)
        self.backoff: Final = backoff
        self.maximum: Final = None if maximum is None else seconds(maximum)
        self.jitter: Final = jitter
        self.retry_on: Final[ErrorFilter] = retry_on
        self.give_up_on: Final = give_up_on
        if attempts is not None and attempts < 1:
            raise ValueError(f"attempts={attempts}: at least 1 (the first one counts), or None for no end")
        if self.initial < 0 or backoff < 1 or jitter < 0 or (self.maximum is not None and self.maximum < 0):
            raise ValueError("initial, maximum and jitter must not be negative, and backoff not below 1")

    @property
    def says_which(self) -> bool:
        """Whether `retry_on` was given, so that an at-most-once step may use it."""
        return self.retry_on is not _EVERY

    def accepts(self, error: BaseException) -> bool:
        """Whether this error is of a kind to try again."""
        if not isinstance(error, Exception) or isinstance(error, self.give_up_on):
            return False
        rule = self.retry_on
        return rule(error) if callable(rule) else isinstance(error, rule)

    def delay(self, failed: int, error: BaseException, random: Callable[[], float]) -> float | None:
        """Seconds until the next attempt, after `failed` attempts the last of which raised `error`; None: give up."""
        if (self.attempts is not None and failed >= self.attempts) or not self.accepts(error):
            return None
        try:
            delay = self.initial * self.backoff ** (failed - 1)
        except OverflowError:
            delay = float("inf")
        delay = min(delay, self.maximum if self.maximum is not None else _LONGEST)
        if self.jitter:
            delay += delay * self.jitter * random()
        return max(delay, _suggested(error))


_LONGEST: Final = 365 * 86400.0


def _suggested(error: BaseException) -> float:
    after = getattr(error, "retry_after", None)
    if isinstance(after, timedelta):
        return max(0.0, after.total_seconds())
    return max(0.0, float(after)) if isinstance(after, int | float) else 0.0
