"""What helps to test flows, and stores. Each name is imported when it is asked for."""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from perdure.testing.crashing import PromiseBroken, crash_everywhere
    from perdure.testing.flows import Flows, Stuck
    from perdure.testing.plays import Ending
    from perdure.testing.record_file import NotARecording
    from perdure.testing.record_redaction import Where, drop
    from perdure.testing.recording import Recording, record
    from perdure.testing.replaying import OtherEnd, Replay, replay
    from perdure.testing.simulating import Simulated, SimulationFailed, simulate
    from perdure.testing.world import Seen, World

__all__ = [
    "Ending",
    "Flows",
    "NotARecording",
    "OtherEnd",
    "PromiseBroken",
    "Recording",
    "Replay",
    "Seen",
    "Simulated",
    "SimulationFailed",
    "Stuck",
    "Where",
    "World",
    "crash_everywhere",
    "drop",
    "record",
    "replay",
    "simulate",
]

_HOMES: Final = {
    "Ending": "plays",
    "Flows": "flows",
    "NotARecording": "record_file",
    "OtherEnd": "replaying",
    "PromiseBroken": "crashing",
    "Recording": "recording",
    "Replay": "replaying",
    "Seen": "world",
    "Simulated": "simulating",
    "SimulationFailed": "simulating",
    "Stuck": "flows",
    "Where": "record_redaction",
    "World": "world",
    "crash_everywhere": "crashing",
    "drop": "record_redaction",
    "record": "recording",
    "replay": "replaying",
    "simulate": "simulating",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)
