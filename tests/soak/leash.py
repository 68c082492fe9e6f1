"""`python -m tests.soak.leash PARENT WHO SIGNAL PROGRAM ARGS...`: becomes the program, as WHO, which gets the signal when
the process that started it (PARENT, its pid) is gone, however it ended.

WHO is UID:GID, or `-` for the same user.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def hold(parent: int, signal_number: int) -> None:
    """This process gets the signal when its parent ends; if that has ended, this one does. Elsewhere than on Linux, where
    the system cannot do it, nothing happens.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal_number)
        if os.getppid() != parent:
            sys.exit(f"{parent}, which started this, has ended")


def main() -> None:
    parent, who, name, program, *args = sys.argv[1:]
    if who != "-":
        user, group = map(int, who.split(":"))
        os.setgroups([])
        os.setgid(group)
        os.setuid(user)  # before the signal is asked for: a change of the user forgets it
    os.chdir("/")
    hold(int(parent), signal.Signals[name])
    os.execv(program, [program, *args])


if __name__ == "__main__":
    main()
