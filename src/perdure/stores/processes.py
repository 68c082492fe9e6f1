"""Whether a process of this machine has ended: the one death that can be known for sure, and at once.

Linux tells; elsewhere, and of processes of other machines or containers, nothing is ever said.
"""

from __future__ import annotations

import os


def this_process() -> str:
    """What `has_ended` needs to know of this process: the boot of its machine, its namespace of pids, its pid and when it
    was started; empty where that cannot be told.
    """
    try:
        return " ".join((*_here(), str(os.getpid()), _started(os.getpid())))
    except (OSError, ValueError):
        return ""


def has_ended(process: str) -> bool:
    """Whether that process surely runs no more; False also if it could not be seen from here."""
    try:
        *place, pid, started = process.split(" ")
        if tuple(place) != _here():
            return False
        try:
            os.kill(int(pid), 0)
        except PermissionError:
            pass  # somebody else's, and there
        return _started(int(pid)) != started
    except ProcessLookupError:
        return True
    except (OSError, ValueError):
        return False


def _here() -> tuple[str, str]:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip(), os.readlink("/proc/self/ns/pid")


def _started(pid: int) -> str:
    """When the process was started, in ticks since the boot; raises ProcessLookupError of one that has ended and was not
    waited for. `proc(5)`: the third field is its state, the 22nd its start; the second may hold anything.
    """
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        state, *rest = file.read().rpartition(") ")[2].split(" ")
    if state in ("Z", "X"):
        raise ProcessLookupError
    return rest[18]
