"""What is asked for from outside, as writes: here ids, arguments and messages are checked and encoded. Writes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from perdure import codec
from perdure.api.flow import FlowFunction, unwrap
from perdure.api.initial import InitialState
from perdure.clock import Duration, seconds, to_epoch
from perdure.engine import mending
from perdure.engine.names import check_name, check_queue
from perdure.engine.operations import cancel_message, new_message
from perdure.engine.payloads import Payloads
from perdure.errors import AlreadyStarted, NotRegistered
from perdure.model.lanes import check_flow_name
from perdure.model.records import Entry, Message
from perdure.model.writes import Answer, Create, Existing, Send
from perdure.system import System

if TYPE_CHECKING:
    from perdure.engine.membership import Membership


class Requests:
    """See the module. One per engine; what the flows' instances ask for themselves is in `calls`."""

    def __init__(
        self, payloads: Payloads, flows: Mapping[str, FlowFunction[..., Any]], system: System, *, execute: bool
    ) -> None:
        self._payloads = payloads
        self._flows = flows
        self._system = system
        self._execute = execute

    # ------------------------------------------------------------ starts

    def create(
        self,
        member: Membership,
        flow: Any,
        args: tuple[Any, ...],
        id: str,
        at: datetime | None = None,
        after: Duration | None = None,
        queue: str | None = None,
    ) -> Create:
        """The instance, as `Engine.start` says, and what that raises for flow, id and arguments."""
        check_name(id, "id")
        check_queue(queue)
        name, positional = self.fitting(flow, args)
        if at is not None and after is not None:
            raise TypeError("start() takes at= or after=, not both")
        data, digest, opaque = self._payloads.arguments(positional, {}, f"arguments of {name}")
        if opaque:
            self._payloads.encode(list(positional), f"arguments of {name}")  # raises, and names the value
        uid, now = self._system.new_uid(), member.now()
        due = to_epoch(at) if at is not None else (now + seconds(after) if after is not None else None)
        if due is None and member.scheduler is not None:
            return member.scheduler.new_instance(uid, name, id, queue or "", data, digest, None)
        lane = member.lane(name, queue or "")
        return Create(uid, name, id, lane, data, digest, None, False, now if due is None else due, "", now, None)

    def fitting(self, flow: Any, args: tuple[Any, ...]) -> tuple[str, tuple[Any, ...]]:
        """The name of the flow, which may be started here, and the arguments by position.

        Raises:
            NotRegistered: it is not known here, or another is known by its name.
            TypeError: the arguments do not fit it.
        """
        function, positional = unwrap(self._flows.get(flow, flow) if isinstance(flow, str) else flow, args)
        if isinstance(function, str):
            check_flow_name(function)
            if self._execute and function not in self._flows:
                known = ", ".join(sorted(name for name in self._flows if not name.startswith("perdure."))) or "none"
                raise NotRegistered(f"no flow {function!r} is registered with this engine; registered are: {known}")
            return function, positional
        registered = self._flows.get(function.name)
        if registered is not None and registered is not function:
            raise NotRegistered(f"another flow is registered as {function.name!r}; give one of them a name=")
        return function.name, positional

    def with_initial(self, member: Membership, write: Create, initial: InitialState) -> Create:
        """The same instance with these outcomes and messages from the start."""
        entries: list[Entry] = []
        for name, value in initial.entries.items():
            check_name(name, "id")
            failed = isinstance(value, BaseException)
            if failed:
                data = self._payloads.encode_error(value, name)
            else:
                data, _ = self._payloads.round_trip(value, f"initial {name!r}")
            entries.append(mending.initial_entry(write.uid, -1 - len(entries), name, data, write.at, failed=failed))
        messages = [self._message(member, write.flow, write.id, m) for m in initial.messages]
        return replace(write, initial=tuple(entries), inbox=tuple(messages))

    def started(self, write: Create, answer: Answer) -> bytes:
        """The uid of the instance that exists now.

        Raises:
            AlreadyStarted: it existed before, and was started with other arguments.
        """
        if not isinstance(answer, Existing):
            return write.uid
        if answer.digest != write.digest and not self._payloads.same_today(answer.arguments, write.digest):
            raise AlreadyStarted(write.flow, write.id)
        return answer.uid

    # ------------------------------------------------------------ messages

    def send(self, member: Membership, flow: str, id: str, message: object, key: str | None, name: str | None) -> Send:
        """The message for (flow, id), as `Engine.send` says."""
        check_name(id, "id")
        return Send(flow, id, self._message(member, flow, id, message, key, name))

    def cancel(self, member: Membership, flow: str, id: str, reason: str | None) -> Send:
        """The request that (flow, id) ends."""
        check_name(id, "id")
        body = None if reason is None else self._payloads.encode(reason, "reason")
        return Send(flow, id, cancel_message(self._system.new_uid(), body, member.now()))

    def _message(
        self, member: Membership, flow: str, id: str, message: object, key: str | None = None, name: str | None = None
    ) -> Message:
        if key is not None:
            check_name(key, "key")
        if name is not None:
            check_name(name, "name")
        body = self._payloads.encode(message, f"message to {flow} {id!r}")
        return new_message(self._system.new_uid(), codec.tag_of(message), body, key, name, member.now())
