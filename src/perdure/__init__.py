"""Perdure: durable execution for Python. The public face, and nothing else."""

from .api.current import Current, current, expose, exposed, get_logger, logger
from .api.flow import AnyFlow, FlowFunction, flow
from .api.handle import Handle
from .api.messages import Stream, messages, receive
from .api.outgoing import Outgoing
from .api.step import Step, capture, step
from .api.timing import delay, new_uuid, now, rng
from .api.verbs import cancel, handle, run, send, send_many, start, start_many
from .clock import Duration
from .codec import Codec, type_name
from .engine.engine import Engine, Health, Info
from .errors import (
    AlreadyStarted,
    DoesNotFit,
    DuplicateId,
    EngineClosed,
    FlowCancelled,
    FlowFailed,
    ForkedEngine,
    InstanceNotFound,
    LeaseLost,
    NonDeterminismError,
    NotDurable,
    NotEncodable,
    NotInFlow,
    NotOurs,
    NotRegistered,
    OutcomeUnknown,
    PayloadTooLarge,
    PerdureError,
    Spins,
    StepFailed,
    StoreCorrupt,
    StoreFull,
    StoreRefused,
    StoreUnavailable,
    UnknownType,
    WaitsForNothing,
)
from .model.records import State
from .model.retry import Retry
from .stores.contract import Store

__all__ = [
    "AlreadyStarted", "AnyFlow", "Codec", "Current", "DoesNotFit", "DuplicateId", "Duration", "Engine", "EngineClosed",
    "FlowCancelled", "FlowFailed", "FlowFunction", "ForkedEngine", "Handle", "Health", "Info", "InstanceNotFound", "LeaseLost",
    "NonDeterminismError", "NotDurable", "NotEncodable", "NotInFlow", "NotOurs", "NotRegistered", "OutcomeUnknown", "Outgoing",
    "PayloadTooLarge", "PerdureError", "Retry", "Spins", "State", "Step", "StepFailed", "Store", "StoreCorrupt", "StoreFull",
    "StoreRefused", "StoreUnavailable", "Stream", "UnknownType", "WaitsForNothing", "cancel", "capture", "current", "delay",
    "expose", "exposed", "flow", "get_logger", "handle", "logger", "messages", "new_uuid", "now", "receive", "rng", "run", "send",
    "send_many", "start", "start_many", "step", "type_name",
]  # fmt: skip
