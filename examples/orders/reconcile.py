"""Do the services' ledgers, the orders and the ends of their flows agree? Decides, does no I/O."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final

from examples.orders.ledger import Record
from examples.orders.model import Case

SUCCEEDED: Final = "succeeded"
# Why a step that ran again after a kill did no harm, by what it asks for.
WHY: Final[Mapping[str, str]] = {
    "reserve": "payments knew the transaction id and answered as before",
    "ship": "at most once: never repeated, its outcome became OutcomeUnknown and logistics was asked",
    "shipments": "a question changes nothing",
    "capture": "payments knew the transaction id and took the money once",
    "release": "payments knew the transaction id",
    "confirm": "email knew the idempotency key and sent one mail",
}


@dataclass(frozen=True, slots=True)
class End:
    """How a flow ended, as the store says: its state, its result or the name and text of its error."""

    state: str
    result: str | None = None
    error: str | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """All that is known when the business has closed."""

    cases: Sequence[Case]
    ends: Mapping[str, End]
    payments: Sequence[Record]
    logistics: Sequence[Record]
    email: Sequence[Record]
    kills: int
    kills_wanted: int
    troubles: Sequence[str] = ()

    def requests(self) -> Iterable[Record]:
        """What steps asked for, of all services."""
        return (record for ledger in (self.payments, self.logistics, self.email) for record in ledger if record.key)


@dataclass(slots=True)
class Check:
    """One statement, what was found, and every order for which it does not hold."""

    statement: str
    found: str = ""
    problems: list[str] = field(default_factory=list[str])


@dataclass(frozen=True, slots=True)
class StepCount:
    """How often one kind of step was asked for, and why more often than there are such steps."""

    kind: str
    steps: int
    requests: int
    unavailable: int
    ran_again: int


@dataclass(frozen=True, slots=True)
class Report:
    """What the reconciliation found."""

    checks: Sequence[Check]
    steps: Sequence[StepCount]
    in_doubt: int
    had_gone_out: int

    @property
    def problems(self) -> list[str]:
        """Everything that does not add up; empty if all does."""
        return [f"{check.statement}: {problem}" for check in self.checks for problem in check.problems]


def reconcile(facts: Facts) -> Report:
    """The report on these facts."""
    checks = [
        _ended(facts), _reserved(facts), _captured(facts), _shipped(facts), _confirmed(facts), _announced(facts),
        _strangers(facts), _repeats(facts), _kills(facts),
    ]  # fmt: skip
    asked = {(record.order, record.key): record for record in facts.logistics if record.op == "shipments"}
    answers = [record for record in asked.values() if record.status in {200, 404}]
    gone = sum(record.status == 200 for record in answers)
    return Report(checks, step_counts(facts), in_doubt=len(answers), had_gone_out=gone)


def _by_order(records: Iterable[Record], op: str, *, effect: bool = True) -> dict[str, list[Record]]:
    """The records of one kind by order; only those that changed something, unless told otherwise."""
    found: defaultdict[str, list[Record]] = defaultdict(list)
    for record in records:
        if record.op == op and (record.effect or not effect):
            found[record.order].append(record)
    return found


def _ended(facts: Facts) -> Check:
    check = Check("every order ended as it must")
    ends: Counter[str] = Counter()
    for case in facts.cases:
        end = facts.ends.get(case.order.id, End("never started"))
        how = SUCCEEDED if end.state == SUCCEEDED else end.error if end.state == "failed" else end.state
        ends[how or end.state] += 1
        if how != case.expect:
            is_now = f"{how or end.state} {end.message}".strip()
            check.problems.append(f"{case.order.id} must end with {case.expect}, is {is_now}")
    check.found = ", ".join(f"{count:,} {how}" for how, count in ends.most_common())
    return check


def _reserved(facts: Facts) -> Check:
    check = Check("each payment reserved once per transaction id")
    effects = _by_order(facts.payments, "reserve")
    tried = _by_order(facts.payments, "reserve", effect=False)
    for case in facts.cases:
        order = case.order
        done = effects.get(order.id, [])
        ids = {record.transaction for record in tried.get(order.id, [])}
        wanted = 0 if case.expect == "Declined" else 1
        if len(done) != wanted:
            check.problems.append(f"{order.id} reserved {len(done)} times, not {wanted}")
        if len(ids) != 1:
            check.problems.append(f"{order.id} has {len(ids)} transaction ids")
        check.problems += _wrong_sums(case, done)
    check.found = f"{sum(map(len, effects.values())):,} reserved"
    return check


def _wrong_sums(case: Case, records: Iterable[Record]) -> list[str]:
    """Sums that are not the order's."""
    right = (case.order.total, case.order.currency)
    return [
        f"{record.order}: {record.op} of {record.amount} {record.currency}, the order is {right[0]} {right[1]}"
        for record in records
        if (Decimal(record.amount or "NaN"), record.currency) != right
    ]


def _captured(facts: Facts) -> Check:
    check = Check("each payment captured once, or released once if nothing was shipped")
    reserved = _by_order(facts.payments, "reserve")
    captured = _by_order(facts.payments, "capture")
    released = _by_order(facts.payments, "release")
    for case in facts.cases:
        order = case.order
        for verb, done, end in (("captured", captured, SUCCEEDED), ("released", released, "UnknownProduct")):
            records = done.get(order.id, [])
            wanted = int(case.expect == end)
            if len(records) != wanted:
                check.problems.append(f"{order.id} {verb} {len(records)} times, not {wanted}")
            held = {record.transaction for record in reserved.get(order.id, [])}
            if not {record.transaction for record in records} <= held:
                check.problems.append(f"{order.id} {verb} under a transaction id that was not reserved")
            check.problems += _wrong_sums(case, records)
    check.found = f"{sum(map(len, captured.values())):,} captured, {sum(map(len, released.values())):,} released"
    return check


def _shipped(facts: Facts) -> Check:
    check = Check("nothing shipped twice, nothing forgotten")
    shipped = _by_order(facts.logistics, "ship")
    for case in facts.cases:
        order, records = case.order, shipped.get(case.order.id, [])
        wanted = int(case.expect == SUCCEEDED)
        if len(records) != wanted:
            check.problems.append(f"{order.id} shipped {len(records)} times, not {wanted}")
        for record in records:
            if record.units != order.units:
                check.problems.append(f"{order.id} shipped with {record.units} units, ordered were {order.units}")
        result = facts.ends.get(order.id, End("never started")).result
        if wanted and result not in {record.tracking for record in records}:
            check.problems.append(f"{order.id} has the result {result!r}, which is no parcel of it")
    check.found = f"{sum(map(len, shipped.values())):,} shipped"
    return check


def _confirmed(facts: Facts) -> Check:
    check = Check("every confirmation sent once, and only for what was shipped")
    sent = _by_order(facts.email, "confirm")
    for case in facts.cases:
        records = sent.get(case.order.id, [])
        wanted = int(case.expect == SUCCEEDED)
        if len(records) != wanted:
            check.problems.append(f"{case.order.id} confirmed {len(records)} times, not {wanted}")
        result = facts.ends.get(case.order.id, End("never started")).result
        if any(record.tracking != result for record in records):
            check.problems.append(f"{case.order.id} confirmed with another tracking number than {result!r}")
    check.found = f"{sum(map(len, sent.values())):,} sent"
    return check


def _announced(facts: Facts) -> Check:
    check = Check("every capture announced until it was acknowledged")
    captured = _by_order(facts.payments, "capture")
    taken = _by_order(facts.payments, "callback")
    calls = _by_order(facts.payments, "callback", effect=False)
    for order in captured:
        if order not in taken:
            check.problems.append(f"{order}: the order service never took the callback")
    again = sum(map(len, calls.values())) - len(calls)
    check.found = f"{len(taken):,} taken, {again:,} calls repeated"
    return check


def _strangers(facts: Facts) -> Check:
    check = Check("nothing done that no order asked for")
    known = {case.order.id for case in facts.cases}
    for record in facts.requests():
        if record.order not in known:
            check.problems.append(f"{record.op} for {record.order!r}, which is no order")
        elif record.status not in {200, 202, 402, 404, 422, 503}:
            check.problems.append(f"{record.op} for {record.order!r} was answered with {record.status}")
        elif record.status == 404 and record.op != "shipments":
            check.problems.append(f"{record.op} for {record.order!r} before there was anything")
    check.problems += [f"{order!r} is a flow and no order" for order in facts.ends if order not in known]
    check.found = f"{sum(1 for _ in facts.requests()):,} requests"
    return check


def _attempts(facts: Facts) -> dict[tuple[str, str, int], list[Record]]:
    """The requests of each attempt of each step; more than one means that the attempt ran again."""
    found: defaultdict[tuple[str, str, int], list[Record]] = defaultdict(list)
    for record in facts.requests():
        found[record.op, record.key, record.attempt].append(record)
    return found


def _repeats(facts: Facts) -> Check:
    check = Check("steps ran again only because of a kill, and those at most once never")
    again = 0
    for (op, _, attempt), records in _attempts(facts).items():
        again += len(records) - 1
        if len({record.generation for record in records}) != len(records):
            check.problems.append(f"{op} for {records[0].order}: attempt {attempt} ran twice in one life")
        if op == "ship" and len(records) > 1:
            check.problems.append(f"ship for {records[0].order}: attempt {attempt} ran again, although at most once")
    check.found = f"{again:,} ran again"
    return check


def _kills(facts: Facts) -> Check:
    check = Check("the order service was killed as often as asked, and ended by nothing else")
    if facts.kills < facts.kills_wanted:
        check.problems.append(f"{facts.kills} kills, {facts.kills_wanted} were asked for")
    check.problems += facts.troubles
    check.found = f"{facts.kills} kills"
    return check


def step_counts(facts: Facts) -> list[StepCount]:
    """One count for each kind of step, in the order of the flow."""
    attempts = _attempts(facts)
    counts: list[StepCount] = []
    for kind in WHY:
        mine = {key: records for key, records in attempts.items() if key[0] == kind}
        requests = [record for records in mine.values() for record in records]
        counts.append(
            StepCount(
                kind,
                steps=len({key[1] for key in mine}),
                requests=len(requests),
                unavailable=sum(record.status == 503 for record in requests),
                ran_again=len(requests) - len(mine),
            )
        )
    return counts
