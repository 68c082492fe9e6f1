"""The end of the process is not held up by what cannot be stopped."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROGRAM = """
import asyncio, sys, threading
from perdure import Engine, flow, step

@step
def stuck() -> None:
    print("in the step", flush=True)
    threading.Event().wait()

@flow
async def waits() -> None:
    await stuck()

async def main() -> None:
    engine = Engine(f"sqlite:///{sys.argv[1]}", flows=[waits], drain=60, stall_limit=0.2)
    async with engine:
        await engine.start(waits, id="1")
        await engine.serve()
    print("left", flush=True)

asyncio.run(main())
"""


@pytest.mark.fault(4, 8)
def test_a_thread_step_that_never_ends_does_not_hold_up_a_hard_stop(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "x.db")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "in the step\n"
            process.send_signal(signal.SIGTERM)
            time.sleep(0.2)  # two signals at once are one to the kernel
            process.send_signal(signal.SIGTERM)
            assert process.stdout.readline() == "left\n"
            assert process.wait(timeout=10) == 0
        finally:
            process.kill()
