"""What every workload's program uses: the meter, memory, and the end with the process that started it."""

import cProfile
import ctypes
import os
import signal
import time
from pathlib import Path

Figures = dict[str, float]
IDLE_S = 2.0


class Meter:
    """Times and, when asked, profiles the part of a workload that counts."""

    def __init__(self, profile: Path | None) -> None:
        self._out = profile
        self._profile = cProfile.Profile() if profile else None
        self.wall_s = self.process_s = self.thread_s = 0.0

    def __enter__(self) -> "Meter":
        self._wall, self._process, self._thread = time.perf_counter(), time.process_time(), time.thread_time()
        if self._profile:
            self._profile.enable()
        return self

    def __exit__(self, *_: object) -> None:
        if self._profile:
            self._profile.disable()
            self._profile.dump_stats(str(self._out))
        self.wall_s = time.perf_counter() - self._wall
        self.process_s = time.process_time() - self._process
        self.thread_s = time.thread_time() - self._thread

    def figures(self) -> Figures:
        """Wall time, and processor time of the loop's thread and of all others."""
        return {"metered_s": self.wall_s, "loop_cpu_s": self.thread_s, "other_cpu_s": self.process_s - self.thread_s}


def resident_kb() -> float:
    """The process's resident memory now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1024


def end_with_parent() -> None:
    """This process is killed when the one that started it ends, however that ends."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
