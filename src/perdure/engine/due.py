"""What one instance waits for by time: its operations in the order in which they are due. Sets no alarm itself."""

from __future__ import annotations

import heapq
import itertools
from typing import TYPE_CHECKING

from perdure.engine.operations import ASKED

if TYPE_CHECKING:
    from perdure.engine.operations import Op

_number = itertools.count()  # ties go by the order in which they were armed


class Due:
    """See the module. Operations that nobody wants any more are left out."""

    __slots__ = ("_heap",)

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Op]] = []

    def add(self, when: float, op: Op) -> bool:
        """The operation is due at this time; whether nothing is due before it."""
        heap = self._heap
        if len(heap) >= 64 and len(heap) & (len(heap) - 1) == 0:  # at powers of two: drop what is not wanted
            self._heap = heap = [item for item in heap if item[2].state == ASKED]
            heapq.heapify(heap)
        heapq.heappush(heap, (when, next(_number), op))
        return heap[0][2] is op

    def earliest(self) -> float | None:
        """When the first one is due."""
        heap = self._heap
        while heap and heap[0][2].state != ASKED:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def take(self, now: float) -> Op | None:
        """The first one, if it is due by now; it is not among them any more."""
        when = self.earliest()
        return heapq.heappop(self._heap)[2] if when is not None and when <= now else None
