"""Perdure: durable execution for Python. The public face, and nothing else."""

from perdure.api.current import Current, current, expose, exposed, get_logger, logger
from perdure.api.flow import AnyFlow, FlowFunction, flow
from perdure.api.handle import Handle
from perdure.api.info import Health, Info
from perdure.api.messages import Stream, messages, receive
from perdure.api.outgoing import Outgoing
from perdure.api.step import Step, capture, step
from perdure.api.timing import delay, new_uuid, now, rng
from perdure.api.verbs import cancel, handle, run, send, send_many, start, start_many
from perdure.clock import Duration
from perdure.codec import Codec, type_name
from perdure.engine.engine import Engine
from perdure.errors import (
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
from perdure.model.records import State
from perdure.model.retry import Retry
from perdure.stores.contract import Store

__all__ = [
    "AlreadyStarted", "AnyFlow", "Codec", "Current", "DoesNotFit", "DuplicateId", "Duration", "Engine",
    "EngineClosed", "FlowCancelled", "FlowFailed", "FlowFunction", "ForkedEngine", "Handle", "Health", "Info",
    "InstanceNotFound", "LeaseLost", "NonDeterminismError", "NotDurable", "NotEncodable", "NotInFlow", "NotOurs",
    "NotRegistered", "OutcomeUnknown", "Outgoing", "PayloadTooLarge", "PerdureError", "Retry", "Spins", "State",
    "Step", "StepFailed", "Store", "StoreCorrupt", "StoreFull", "StoreRefused", "StoreUnavailable", "Stream",
    "UnknownType", "WaitsForNothing", "cancel", "capture", "current", "delay", "expose", "exposed", "flow",
    "get_logger", "handle", "logger", "messages", "new_uuid", "now", "receive", "rng", "run", "send", "send_many",
    "start", "start_many", "step", "type_name",
]  # fmt: skip
