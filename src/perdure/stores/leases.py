"""When a replica may call another's lease over: the rule that keeps a woken machine from taking over all the others."""

from __future__ import annotations


class Lease:
    """One's own lease as one knows it, on the clock that counts suspended time."""

    __slots__ = ("_since", "length", "until")

    def __init__(self, now: float, length: float) -> None:
        self.length = length
        self.until = now + length
        self._since = now

    def renewed(self, now: float, length: float) -> None:
        """The lease runs on from now; if it had been over, the time of having held it starts anew."""
        if now > self.until:
            self._since = now
        self.length = length
        self.until = now + length

    def may_judge(self, now: float) -> bool:
        """Whether others may be called hung by their lease: one's own is good, and was for one full lease.

        Who was stopped together with all others (a suspended machine, a paused container) finds every lease over when
        it wakes first; the others must get the chance to renew before anything is taken from them.
        """
        return now <= self.until and now - self._since >= self.length
