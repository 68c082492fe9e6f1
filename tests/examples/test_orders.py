"""The order business: it adds up in spite of kills, and what does not add up is seen."""

import asyncio
import contextlib
import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from examples.orders.ledger import Ledger, Record, read_ledger
from examples.orders.make_orders import generate
from examples.orders.model import CURRENCIES, Case, load_cases, order_from_json, order_to_json
from examples.orders.reconcile import End, Facts, reconcile, step_counts
from examples.orders.services import Logistics, Payments, Weather
from examples.orders.supervisor import kill_points
from examples.orders.wire import BODY_LIMIT, Client, NoAnswer, NotSent, Request, Server, bound

ROOT = Path(__file__).parents[2]

# ---------------------------------------------------------------- the file of orders


def test_the_file_is_what_its_generator_writes() -> None:
    cases = load_cases()
    assert len(cases) == 1_000
    assert cases == list(itertools.islice(generate(), 1_000))
    assert len({case.order.id for case in cases}) == 1_000


def test_the_orders_are_varied_and_some_must_fail() -> None:
    cases = load_cases()
    assert {case.order.currency for case in cases} == set(CURRENCIES)
    assert {len(case.order.lines) for case in cases} >= {1, 12}
    assert {case.expect for case in cases} == {"succeeded", "Declined", "UnknownProduct"}
    assert sum(not case.order.name.isascii() for case in cases) > 500
    for case in cases:
        assert case.order.total == round(case.order.total, CURRENCIES[case.order.currency]) > 0


@pytest.mark.parametrize(
    ("field", "value"),
    [("id", ""), ("currency", "ABC"), ("lines", []), ("customer", "nobody"), ("lines", [{"product": "P-1"}])],
)
def test_a_bad_order_is_refused(field: str, value: object) -> None:
    good = order_to_json(load_cases()[0].order)
    with pytest.raises(ValueError):
        order_from_json({**good, field: value})


def test_kills_are_spread_over_the_run() -> None:
    assert kill_points(1_000, 6) == [100, 250, 400, 550, 700, 850]
    assert kill_points(60, 1) == [30]
    assert kill_points(60, 0) == []


# ---------------------------------------------------------------- the whole business


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-u", "-m", "examples.orders", *arguments]


def processes_naming(path: Path) -> list[int]:
    """The ids of the processes whose command line names this directory."""
    found: list[int] = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if os.fsencode(path) in entry.read_bytes():
                found.append(int(entry.parent.name))
    return found


@pytest.mark.timeout(150)
def test_sixty_orders_and_two_kills_add_up(tmp_path: Path) -> None:
    done = subprocess.run(
        command("--orders", "60", "--kills", "2"),
        cwd=ROOT, env={**os.environ, "TMPDIR": str(tmp_path)}, capture_output=True, text=True, timeout=140, check=False,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout + done.stderr
    for statement, found in (
        ("every order ended as it must", "53 succeeded, 4 Declined, 3 UnknownProduct"),
        ("each payment reserved once per transaction id", "56 reserved"),
        ("each payment captured once, or released once if nothing was shipped", "53 captured, 3 released"),
        ("nothing shipped twice, nothing forgotten", "53 shipped"),
        ("every confirmation sent once, and only for what was shipped", "53 sent"),
        ("every capture announced until it was acknowledged", "53 taken"),
        ("the order service was killed as often as asked, and ended by nothing else", "2 kills"),
    ):
        (line,) = (line for line in lines if statement in line)
        assert found in line
        assert "ok" in line
    for step in ("reserve", "ship", "capture", "release", "confirm"):
        assert any(line.startswith(f"│ {step} ") for line in lines)
    assert lines[-1] == "All adds up."
    assert list(tmp_path.iterdir()) == []
    assert processes_naming(tmp_path) == []


@pytest.mark.timeout(90)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_is_left_behind_when_the_supervisor_is_stopped(number: signal.Signals, tmp_path: Path) -> None:
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        command("--orders", "500", "--kills", "0"), cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True
    ) as business:
        assert business.stdout is not None
        line = business.stdout.readline()
        assert "orders ended" in line
        assert len(processes_naming(tmp_path)) == 2
        business.send_signal(number)
        business.stdout.read()
    assert business.returncode == (130 if number is not signal.SIGKILL else -signal.SIGKILL)
    # A killed supervisor leaves its children to notice; everything else has seen them end.
    deadline = time.monotonic() + (20 if number is signal.SIGKILL else 0)
    while processes_naming(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_naming(tmp_path) == []


# ---------------------------------------------------------------- the reconciliation


def right() -> Facts:
    """Facts about three orders, one of each kind, that add up; one step of each kind ran again after the only kill."""
    by_end: dict[str, Case] = {}
    for case in generate():
        by_end.setdefault(case.expect, case)
        if len(by_end) == 3:
            break
    good, declined, unknown = by_end["succeeded"], by_end["Declined"], by_end["UnknownProduct"]

    def money(op: str, case: Case, **more: Any) -> Record:
        facts: dict[str, Any] = {
            "op": op, "order": case.order.id, "key": f"{op}/{case.order.id}", "attempt": 1, "generation": 1,
            "transaction": f"tx-{case.order.id}", "amount": str(case.order.total), "currency": case.order.currency,
        }  # fmt: skip
        return Record(**(facts | more))

    def thing(op: str, case: Case, **more: Any) -> Record:
        return dataclasses.replace(money(op, case, **more), transaction="", amount="", currency="")

    return Facts(
        cases=[good, declined, unknown],
        ends={
            good.order.id: End("succeeded", "TT-1"),
            declined.order.id: End("failed", error="Declined"),
            unknown.order.id: End("failed", error="UnknownProduct"),
        },
        payments=[
            money("reserve", good, effect=True),
            money("reserve", good, repeat=True, generation=2),
            money("reserve", declined, status=402),
            money("reserve", unknown, effect=True),
            money("capture", good, status=503),
            money("capture", good, status=202, attempt=2, effect=True),
            Record(op="callback", order=good.order.id, transaction=f"tx-{good.order.id}", status=0, attempt=1),
            Record(op="callback", order=good.order.id, transaction=f"tx-{good.order.id}", effect=True, attempt=2),
            money("release", unknown, effect=True),
        ],
        logistics=[
            thing("ship", good, effect=True, tracking="TT-1", units=good.order.units),
            thing("shipments", good, tracking="TT-1", generation=2),
            thing("ship", unknown, status=422),
        ],
        email=[
            thing("confirm", good, effect=True, tracking="TT-1"),
            thing("confirm", good, repeat=True, tracking="TT-1", generation=2),
        ],
        kills=1,
        kills_wanted=1,
    )  # fmt: skip


def without(records: Sequence[Record], op: str) -> list[Record]:
    return [record for record in records if record.op != op]


def again(records: Sequence[Record], op: str, **changes: Any) -> list[Record]:
    """The records, with the first that did this done once more."""
    first = next(record for record in records if record.op == op and record.effect)
    return [*records, dataclasses.replace(first, **changes)]


def changed(records: Sequence[Record], op: str, **changes: Any) -> list[Record]:
    return [
        dataclasses.replace(record, **changes) if record.op == op and record.effect else record for record in records
    ]


WRONG: list[tuple[Callable[[Facts], dict[str, Any]], str]] = [
    (lambda f: {"logistics": again(f.logistics, "ship", key="another", tracking="TT-2")}, "shipped 2 times, not 1"),
    (lambda f: {"logistics": again(f.logistics, "ship", generation=2)}, "ran again, although at most once"),
    (lambda f: {"logistics": without(f.logistics, "ship")}, "shipped 0 times, not 1"),
    (lambda f: {"logistics": changed(f.logistics, "ship", units=0)}, "shipped with 0 units"),
    (lambda f: {"logistics": changed(f.logistics, "ship", tracking="TT-9")}, "no parcel of it"),
    (lambda f: {"email": without(f.email, "confirm")}, "confirmed 0 times, not 1"),
    (lambda f: {"email": again(f.email, "confirm", key="another")}, "confirmed 2 times, not 1"),
    (lambda f: {"email": changed(f.email, "confirm", tracking="TT-9")}, "another tracking number"),
    (lambda f: {"payments": again(f.payments, "capture", key="another")}, "captured 2 times, not 1"),
    (lambda f: {"payments": without(f.payments, "capture")}, "captured 0 times, not 1"),
    (lambda f: {"payments": changed(f.payments, "capture", amount="0.01")}, "capture of 0.01"),
    (lambda f: {"payments": changed(f.payments, "capture", transaction="tx-9")}, "that was not reserved"),
    (lambda f: {"payments": again(f.payments, "reserve", key="another", transaction="tx-9")}, "2 transaction ids"),
    (lambda f: {"payments": without(f.payments, "release")}, "released 0 times, not 1"),
    (lambda f: {"payments": without(f.payments, "callback")}, "never took the callback"),
    (lambda f: {"payments": again(f.payments, "reserve", order="MK-0")}, "which is no order"),
    (lambda f: {"payments": changed(f.payments, "capture", status=409)}, "was answered with 409"),
    (lambda f: {"payments": again(f.payments, "capture", repeat=True, effect=False)}, "ran twice in one life"),
    (lambda f: {"ends": {}}, "is never started"),
    (lambda f: {"ends": {**f.ends, f.cases[0].order.id: End("suspended")}}, "must end with succeeded, is suspended"),
    (lambda f: {"ends": {**f.ends, f.cases[1].order.id: End("succeeded", "x")}}, "with Declined, is succeeded"),
    (lambda f: {"ends": {**f.ends, f.cases[2].order.id: End("failed", error="Unexpected")}}, "is Unexpected"),
    (lambda f: {"ends": {**f.ends, "MK-0": End("succeeded", "x")}}, "is a flow and no order"),
    (lambda f: {"kills": 0}, "0 kills, 1 were asked for"),
    (lambda f: {"troubles": ["the order service ended with 1"]}, "the order service ended with 1"),
]  # fmt: skip


def test_right_ledgers_add_up() -> None:
    report = reconcile(right())
    assert report.problems == []
    assert (report.in_doubt, report.had_gone_out) == (1, 1)


def test_steps_are_counted_by_kind() -> None:
    counts = {count.kind: count for count in step_counts(right())}
    reserve, capture, ship = counts["reserve"], counts["capture"], counts["ship"]
    assert (reserve.steps, reserve.requests, reserve.ran_again) == (3, 4, 1)
    assert (capture.steps, capture.requests, capture.unavailable, capture.ran_again) == (1, 2, 1, 0)
    assert (ship.steps, ship.requests, ship.ran_again) == (2, 2, 0)
    assert counts["confirm"].ran_again == 1


@pytest.mark.parametrize(("wrong", "words"), WRONG)
def test_what_does_not_add_up_is_named(wrong: Callable[[Facts], dict[str, Any]], words: str) -> None:
    facts = right()
    problems = reconcile(dataclasses.replace(facts, **wrong(facts))).problems
    assert any(words in problem for problem in problems), problems


# ---------------------------------------------------------------- the services


class Calm(Weather):
    """Nothing fails, and everything takes as long as the test says."""

    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__(0)
        self.seconds = seconds

    def draw(self, service: str, key: str) -> tuple[bool, float]:
        return False, self.seconds


def ask(path: str, body: dict[str, Any] | None = None, key: str = "k") -> Request:

    headers = {"idempotency-key": key, "attempt": "1", "generation": "1"}
    parts = tuple(path.split("/"))
    return Request(
        "GET" if body is None else "POST", parts, headers, b"" if body is None else json.dumps(body).encode()
    )


async def test_payments_do_everything_once_per_transaction_id(tmp_path: Path) -> None:
    payments = Payments(tmp_path, Calm())
    names = {"order": "o", "transaction": "6b181df3-b194-43bf-98d3-6552d619bf60"}
    sum_of_money = {"amount": "12.50", "currency": "EUR", "card": "card_1"}
    for _ in range(2):
        assert (await payments.handle(ask("reserve", names | sum_of_money)))[0] == 200
        assert (await payments.handle(ask("release", names)))[0] == 200
    assert (await payments.handle(ask("capture", names | {"callback": "http://127.0.0.1:1/x"})))[0] == 409
    records = read_ledger(tmp_path / "payments.jsonl")
    assert [(record.op, record.effect, record.repeat) for record in records] == [
        ("reserve", True, False), ("release", True, False), ("reserve", False, True), ("release", False, True),
        ("capture", False, False),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "status"),
    [({"card": "stolen_card"}, 402), ({"amount": "1.005"}, 400), ({"amount": "NaN"}, 400), ({"currency": "ABC"}, 400),
     ({"transaction": "me"}, 400), ({"amount": "-1"}, 400)],
)  # fmt: skip
async def test_payments_refuse_what_is_wrong(change: dict[str, str], status: int, tmp_path: Path) -> None:
    payments = Payments(tmp_path, Calm())
    body = {
        "order": "o",
        "transaction": "6b181df3-b194-43bf-98d3-6552d619bf60",
        "amount": "1",
        "currency": "EUR",
        "card": "c",
    }
    assert (await payments.handle(ask("reserve", body | change)))[0] == status


async def test_logistics_ships_whenever_told_to(tmp_path: Path) -> None:
    logistics = Logistics(tmp_path, Calm())
    for number in (1, 2):
        status, answer = await logistics.handle(ask("ship", {"order": "o", "lines": {"P-1": 2}}))
        assert (status, answer) == (200, {"tracking": f"TT-o-{number}"})
    assert (await logistics.handle(ask("ship", {"order": "o", "lines": {"X-1": 1}})))[0] == 422


async def test_a_question_about_an_order_waits_for_the_shipment_under_way(tmp_path: Path) -> None:
    logistics = Logistics(tmp_path, Calm(0.05))
    shipping = asyncio.create_task(logistics.handle(ask("ship", {"order": "o", "lines": {"P-1": 1}})))
    await asyncio.sleep(0)
    assert (await logistics.handle(ask("shipments/o")))[1] == {"tracking": "TT-o-1"}
    assert (await logistics.handle(ask("shipments/other")))[0] == 404
    await shipping


def test_a_ledger_gives_back_what_was_written(tmp_path: Path) -> None:
    records = [
        Record(op="ship", order="заказ/1", key="k", attempt=2, effect=True, units=3),
        Record(op="ask", order="x"),
    ]
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for record in records:
        ledger.append(record)
    ledger.close()
    assert read_ledger(tmp_path / "ledger.jsonl") == records


# ---------------------------------------------------------------- the wire


@contextlib.asynccontextmanager
async def echo() -> AsyncGenerator[tuple[Client, Server], None]:
    """A server that answers with what it was sent, except for `silent`, and a client of it."""

    async def handle(request: Request) -> tuple[int, object]:
        if request.parts == ("silent",):
            await asyncio.sleep(60)
        return 200, {"path": request.parts, "body": request.json() if request.body else None}

    server = Server(handle)
    await server.listen(bound())
    client = Client(f"http://127.0.0.1:{server.port}", timeout=5.0)
    try:
        yield client, server
    finally:
        await client.aclose()
        await server.aclose()


@pytest.fixture
def held_port() -> Iterator[int]:
    """A port that nobody listens on, and that nobody else can take."""
    with bound(share=True) as sock:
        yield sock.getsockname()[1]


async def test_requests_share_a_connection_and_keep_their_letters() -> None:
    async with echo() as (client, server):
        for name in ("a", "заказ 1"):
            answer = await client.request("POST", "/%D0%B7/x%2Fy", {"name": name})
            assert (answer.status, answer.json()) == (200, {"path": ["з", "x/y"], "body": {"name": name}})
        assert server.connections == 1


async def test_a_failed_connection_proves_that_nothing_was_sent(held_port: int) -> None:
    with pytest.raises(NotSent):
        await Client(f"http://127.0.0.1:{held_port}").request("GET", "/")


async def test_a_server_that_goes_away_leaves_the_request_in_doubt() -> None:
    async with echo() as (client, server):
        asking = asyncio.create_task(client.request("GET", "/silent"))
        while not server.connections:
            await asyncio.sleep(0.001)
        await server.aclose()
        with pytest.raises(NoAnswer):
            await asking


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 200),
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\n{x}", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: -3\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (BODY_LIMIT + 1), 413),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 501),
        (b"GET / HTTP/1.1\r\nlong: " + b"x" * 40_000 + b"\r\n\r\n", 431),
    ],
)  # fmt: skip
async def test_every_request_gets_the_answer_it_deserves(sent: bytes, status: int) -> None:
    async with echo() as (_, server):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(sent)
        first = await reader.readline()
        writer.close()
        assert int(first.split()[1]) == status
