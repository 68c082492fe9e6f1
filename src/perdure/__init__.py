"""Perdure: durable execution for Python. The public face, and nothing else."""

from perdure.api.current import Current, FlowMiddleware, current, expose, exposed, get_logger, logger
from perdure.api.flow import AnyFlow, FlowFunction, flow
from perdure.api.handle import Handle
from perdure.api.info import Health, Info
from perdure.api.initial import InitialState
from perdure.api.messages import Stream, messages, receive
from perdure.api.outgoing import Outgoing
from perdure.api.schedule import Cron
from perdure.api.step import Step, capture, step
from perdure.api.timing import delay, new_uuid, now, rng
from perdure.api.verbs import (
    cancel,
    continue_as_new,
    handle,
    patched,
    run,
    send,
    send_many,
    start,
    start_many,
    transaction,
)
from perdure.clock import Duration
from perdure.codec import Codec, type_name
from perdure.engine.engine import Engine
from perdure.engine.panel import Entries, Inbox, Panel
from perdure.engine.sync_engine import SyncEngine, SyncHandle, SyncPanel
from perdure.errors import (
    AlreadyStarted,
    DoesNotFit,
    DuplicateId,
    EngineClosed,
    FlowCancelled,
    FlowFailed,
    FlowWarning,
    ForkedEngine,
    InstanceNotFound,
    LeaseLost,
    NonDeterminismError,
    NotDurable,
    NotEncodable,
    NotInFlow,
    NotOurs,
    NotRegistered,
    NotSupported,
    OutcomeUnknown,
    Outdated,
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
from perdure.model.tx import Tx
from perdure.stores.contract import Store

__all__ = [
    "AlreadyStarted", "AnyFlow", "Codec", "Cron", "Current", "DoesNotFit", "DuplicateId", "Duration", "Engine",
    "EngineClosed", "Entries", "FlowCancelled", "FlowFailed", "FlowFunction", "FlowMiddleware", "FlowWarning",
    "ForkedEngine", "Handle", "Health", "Inbox", "Info", "InitialState", "InstanceNotFound", "LeaseLost",
    "NonDeterminismError", "NotDurable", "NotEncodable", "NotInFlow", "NotOurs", "NotRegistered", "NotSupported",
    "OutcomeUnknown", "Outdated", "Outgoing", "Panel", "PayloadTooLarge", "PerdureError", "Retry", "Spins", "State",
    "Step", "StepFailed", "Store", "StoreCorrupt", "StoreFull", "StoreRefused", "StoreUnavailable", "Stream",
    "SyncEngine", "SyncHandle", "SyncPanel", "Tx", "UnknownType", "WaitsForNothing", "cancel", "capture",
    "continue_as_new", "current", "delay", "expose", "exposed", "flow", "get_logger", "handle", "logger",
    "messages", "new_uuid", "now", "patched", "receive", "rng", "run", "send", "send_many", "start", "start_many",
    "step", "transaction", "type_name",
]  # fmt: skip
