"""How an execution ends: what is left inside is ended, the outcome is made, memory is freed."""

from __future__ import annotations

import logging
import traceback
from typing import TYPE_CHECKING, Any, Final, cast

from perdure.api.scope import NextRun
from perdure.engine.operations import DROPPED, escaped
from perdure.errors import NotEncodable, PayloadTooLarge, PerdureError
from perdure.model.records import State
from perdure.model.writes import Continue, Finish

if TYPE_CHECKING:
    from perdure.engine.execution import Execution
    from perdure.engine.loop import FlowTask

logger = logging.getLogger("perdure")

UNLOAD_TURNS: Final = 50
"""So often an unloaded flow's tasks are cancelled before what does not end is left alone."""


def wind_up(run: Execution) -> bool:
    """The main coroutine is done: what is left inside is ended, at the same place in every replay. True: it runs."""
    if not run.ending:
        run.ending = True
        if _cancel_rest(run):
            return True
    return _close_generators(run)


def end(run: Execution) -> bool:
    """The outcome is written if everything inside has ended, and every step that was cancelled."""
    if run.reading or run.rereading is not None or run.to_cancel:
        return False
    if any(op.state == DROPPED for op in run.running) or not all(t.done() for t in run.loop.tasks):
        return False
    run.stopped = True
    run.host.finished(run, _outcome(run))
    return True


def _cancel_rest(run: Execution) -> bool:
    """The tasks that the main coroutine left are cancelled, as `asyncio.run` does. False: there is none.

    Except those that close a dropped generator (its last reference may go with the main coroutine): cancelled before
    they have begun, they would leave out its `finally`.
    """
    left = [task for task in run.loop.tasks if not task.done() and not _closes_generator(task)]
    if left:
        names = ", ".join(t.get_name() for t in left)
        logger.warning("%r returned with unfinished tasks, which are cancelled: %s", run, names)
    for task in left:
        task.cancel()
    run.loop.end_meddled()
    return bool(left)


def _closes_generator(task: FlowTask) -> bool:
    return type(task.get_coro()).__name__ == "async_generator_athrow"


def _close_generators(run: Execution) -> bool:
    """When no task is left, generators that were not exhausted are being closed. False: there is none."""
    loop = run.loop
    if any(not task.done() for task in loop.tasks) or not loop.has_generators():
        return False
    loop.create_task(loop.close_generators(), name="close generators")
    return True


def _outcome(run: Execution) -> Finish | Continue:
    """How the run ended: what its main task returned or raised; or that the next run begins."""
    main, payloads, name = run.main, run.payloads, run.instance.flow
    assert main is not None  # noqa: S101
    failed_seq = None
    if main.cancelled():
        state = State.CANCELLED
        data = None if run.cancel_reason is None else payloads.encode(run.cancel_reason, "reason")
    elif (error := main.exception()) is not None:
        if (called := _called_next(error)) is not None:
            return _next_run(run, called.arguments)
        state, data, failed_seq = State.FAILED, payloads.encode_error(error, name), escaped(error)
    else:
        try:
            data, _ = payloads.round_trip(main.result(), f"result of {name}")
            state = State.SUCCEEDED
        except (NotEncodable, PayloadTooLarge) as unfit:
            state, data = State.FAILED, payloads.encode_error(unfit, name)
    if (untaken := run.mailbox.count()) > 0:
        logger.info("%r ended with %d messages that nobody took; they are kept with it", run, untaken)
    return Finish(run.uid, run.instance.term, state, data, run.host.now(), run.has_children, failed_seq)


def _called_next(error: BaseException) -> NextRun | None:
    """The call of `continue_as_new` that came out of the flow: task groups wrap it, but nothing else is in them."""
    while isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        if group.split(NextRun)[1] is not None:
            return None
        error = group.exceptions[0]
    return error if isinstance(error, NextRun) else None


def _next_run(run: Execution, arguments: bytes) -> Continue:
    version = run.host.version_of(run.instance.flow)
    begun = run.host.begun(run.uid, run.number + 1, run.instance.flow, version, run.host.now())
    return Continue(run.uid, run.number + 1, arguments, version, begun, run.has_children)


def unhandled(run: Execution, context: dict[str, Any]) -> None:
    """Something in the flow raised where nobody catches it: the log says so."""
    error = context.get("exception")
    if run.stopped and not isinstance(error, PerdureError):
        return  # what an unloaded flow's code raises while it is torn down
    text = "".join(traceback.format_exception(error)) if error is not None else ""
    logger.error("%r: %s %s", run, context.get("message", "unhandled error"), text)


def unload(run: Execution) -> list[FlowTask]:
    """Memory is free: every task has ended, cancelled again and again; gives those that do not end.

    Durable calls of the dead execution never return and never act. Non-durable code in `finally` does run.
    """
    run.stopped = True
    loop = run.loop
    for _ in range(UNLOAD_TURNS):
        left = [task for task in loop.tasks if not task.done()]
        if not left:
            break
        loop.run_dead([task.cancel for task in left])
    left = [task for task in loop.tasks if not task.done()]
    loop.closed = True
    run.ops.clear()
    run.completed.clear()
    if not left:  # no cycles for the collector
        loop.tasks.clear()
        loop.owner = _NOBODY
        run.main = None
        del run.root, run.mailbox
    for task in left:
        _keep_for_ever(task)
    return left


def _keep_for_ever(task: FlowTask) -> None:
    """No collector closes the task's coroutine, not even at the end of the process: one that swallows everything in a
    loop would never come back from that. A list would not do: it goes with the engine, or with its module.
    """
    import ctypes

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(task))


class _Nobody:
    """The owner of a loop whose execution is gone."""

    def __repr__(self) -> str:
        return "an unloaded flow"

    def unhandled(self, context: dict[str, Any]) -> None:
        """Nobody to tell."""


_NOBODY: Final[Any] = _Nobody()
