"""What a flow's body may ask for, as the operations that it becomes. Each method is called by the flow's own code,
in a turn.

It decides only what is asked; what becomes of an operation, and when, is the execution's.
"""

from __future__ import annotations

import asyncio
import hashlib
import random as _random
from collections.abc import Awaitable, Callable, Mapping
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from perdure import codec
from perdure.api.scope import NextRun, Place, Started
from perdure.engine.names import check_name, check_queue
from perdure.engine.operations import (
    ASKED,
    CancelOp,
    Op,
    ReadOp,
    ReceiveOp,
    SendOp,
    StartOp,
    WaitOp,
    cancel_request,
    new_message,
)
from perdure.engine.queued import QueuedStepOp, check_sendable
from perdure.engine.stepping import StepOp
from perdure.engine.transacting import TransactionOp
from perdure.errors import PayloadTooLarge
from perdure.model.lanes import check_flow_name
from perdure.model.writes import Send

if TYPE_CHECKING:
    from perdure.api.flow import FlowFunction
    from perdure.api.step import StepSpec
    from perdure.engine.execution import Execution
    from perdure.engine.loop import FlowLoop


class Calls:
    """See the module; `api.scope.FlowRun` says what each call is. One per execution."""

    __slots__ = ("loop", "run")

    def __init__(self, run: Execution, loop: FlowLoop) -> None:
        self.run = run
        self.loop: asyncio.AbstractEventLoop = loop

    def step(
        self, place: Place, spec: StepSpec, args: tuple[Any, ...], kwargs: Mapping[str, Any], id: str | None
    ) -> StepOp:
        """A step is asked for. Raises NotEncodable and PayloadTooLarge for its arguments, DuplicateId for its id; of one
        on a queue also what `check_sendable` does.
        """
        if kwargs:
            args, kwargs = spec.bind(args, kwargs)
        run, make = self.run, StepOp
        if spec.queue is not None and run.host.queues:
            check_sendable(spec, args, kwargs, run.payloads)
            make = QueuedStepOp
        try:
            op = make(run, spec, args, kwargs, run.payloads.arguments(args, kwargs, spec.name), copy_context())
        except PayloadTooLarge as error:
            encoded = run.payloads.arguments(args, kwargs, spec.name, limited=False)
            op = make(run, spec, args, kwargs, encoded, copy_context())
            op.refuse(error)
        run.ask(op, place, id)
        return op

    def receive(
        self,
        place: Place,
        forms: tuple[Any, ...],
        name: str | None,
        where: Callable[[Any], bool] | None,
        timeout: float | None,
    ) -> Op:
        """A message is asked for; with a timeout (seconds) TimeoutError is raised instead when that is over."""
        if name is not None:
            check_name(name, "name")
        op = ReceiveOp(self.run, forms, name, where, None if where is None else copy_context())
        self.run.ask(op, place)
        if timeout is not None:
            self._limit(op, timeout, f"no message {op.name} within {timeout:g} s")
        return op

    def start(
        self, place: Place, flow: FlowFunction[..., Any] | str, args: tuple[Any, ...], id: str | None, *, detached: bool,
        queue: str | None = None,
    ) -> Op:  # fmt: skip
        """Another instance is asked for; without an id it gets one made of this run's uid and the operation's key."""
        name = flow if isinstance(flow, str) else flow.name
        data, refused = self._encode(list(args), f"arguments of {name}")
        if id is None:
            id = f"{self.run.uid.hex()}.{self.run.number}.{place.path()}{place.operations}"
        check_name(id, "id")
        check_flow_name(name)
        check_queue(queue)
        digest = self.run.payloads.digest(list(args), name)
        op = StartOp(self.run, name, id, data, digest, detached=detached, queue=queue)
        if refused is not None:
            op.refuse(refused)
        return self.run.ask(op, place)

    def wait(self, place: Place, started: Started, *, child: bool, timeout: float | None) -> Op:
        """The end of another instance is asked for."""
        if started.uid is None:
            check_name(started.id, "id")
        op = WaitOp(self.run, started, child=child)
        self.run.ask(op, place)
        if timeout is not None:
            self._limit(op, timeout, f"{started.flow} {started.id!r} has not ended within {timeout:g} s")
        return op

    def send(self, place: Place, flow: str, id: str, message: object, key: str | None, name: str | None) -> Op:
        """A message for another instance is asked for."""
        check_name(id, "id")
        if key is not None:
            check_name(key, "key")
        if name is not None:
            check_name(name, "name")
        body, refused = self._encode(message, f"message to {flow}")
        row = new_message(self.run.host.new_uid(), codec.tag_of(message), body, key, name, self.loop.time())
        digest = self.run.payloads.digest(message, f"message to {flow}")
        op = SendOp(self.run, Send(flow, id, row), digest)
        if refused is not None:
            op.refuse(refused)
        return self.run.ask(op, place)

    def cancel(self, place: Place, flow: str, id: str, reason: str | None) -> Op:
        """The end of another instance is requested."""
        check_name(id, "id")
        digest = self.run.payloads.digest(reason, "reason")
        return self.run.ask(CancelOp(self.run, cancel_request(self.run, flow, id, reason), digest), place)

    def transaction(
        self, place: Place, work: Callable[..., Awaitable[Any]], args: tuple[Any, ...], id: str | None
    ) -> Op:
        """A transaction on the flow's own database is asked for."""
        name = getattr(work, "__qualname__", type(work).__qualname__)
        encoded, refused = self._arguments(args, {}, name)
        op = TransactionOp(self.run, name, work, args, encoded, copy_context())
        if refused is not None:
            op.refuse(refused)
        return self.run.ask(op, place, id)

    def next_run(self, args: tuple[Any, ...]) -> NextRun:
        """What ends this run and begins the next with these arguments. Raises TypeError if they do not fit the flow."""
        name = self.run.flow.name
        return NextRun(self.run.payloads.encode(list(self.run.flow.positional(args, {})), f"arguments of {name}"))

    def patched(self, id: str) -> bool:
        """See `Execution.patched`."""
        return self.run.patched(id)

    def read(self, place: Place, what: str, flow: str, id: str, key: str | None) -> Op:
        """What only the store knows of another instance is asked for."""
        check_name(id, "id")
        return self.run.ask(ReadOp(self.run, what, flow, id, key), place)

    # What is too large is refused by the operation, and so in the journal: the limit may be another at replay.

    def _encode(self, value: object, where: str) -> tuple[bytes, PayloadTooLarge | None]:
        try:
            return self.run.payloads.encode(value, where), None
        except PayloadTooLarge as error:
            return self.run.payloads.encode(value, where, limited=False), error

    def _arguments(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], name: str
    ) -> tuple[tuple[bytes, bytes, frozenset[int | str]], PayloadTooLarge | None]:
        try:
            return self.run.payloads.arguments(args, kwargs, name), None
        except PayloadTooLarge as error:
            return self.run.payloads.arguments(args, kwargs, name, limited=False), error

    def _limit(self, op: Op, timeout: float, message: str) -> None:
        """The operation fails with TimeoutError after so many seconds of flow time."""

        def expire() -> None:
            if op.state == ASKED and not op.future.done():
                op.expired = True
                op.future.set_exception(TimeoutError(message))
                op.abandon()

        handle = self.loop.call_later(max(0.0, timeout), expire)
        op.future.add_done_callback(lambda _: handle.cancel())

    @property
    def facts(self) -> Execution:
        return self.run

    def now(self) -> float:
        """Flow time."""
        return self.loop.time()

    def random(self, place: Place) -> _random.Random:
        """A generator seeded by position, so that added code shifts its neighbours only."""
        seed = f"{self.run.uid.hex()}/{self.run.number}/{place.path()}/{place.operations}/{place.draws}"
        place.draws += 1
        return _random.Random(hashlib.blake2b(seed.encode(), digest_size=16).digest())

    def expose(self, key: str, value: object) -> None:
        check_name(key, "key")
        if not self.run.stopped:
            self.run.expose(key, self.run.payloads.encode(value, f"exposed {key!r}"))

    def exposed(self, key: str) -> Any:
        data = self.run.exposed.get(key)
        return None if data is None else self.run.payloads.decode(data)

    def open_stream(self) -> None:
        """From here on every message of the run is an arrival."""
        if not self.run.stopped:
            self.run.mailbox.open_stream()

    def arrival(self, cursor: int) -> Any:
        """(name, body bytes) of the message at this place of the sequence; None: there is none yet."""
        sequence = self.run.mailbox.sequence
        return sequence[cursor] if cursor < len(sequence) else None

    def decode(self, body: bytes) -> Any:
        """The value of a message's body. Raises UnknownType and DoesNotFit."""
        return self.run.payloads.decode(body)

    def arrived(self) -> asyncio.Future[None]:
        """A future that is done when the sequence has grown."""
        if self.run.stopped:
            return asyncio.Future(loop=self.loop)
        return self.run.mailbox.arrived()
