"""A shop in Flask and in Django, served by threads and by forked workers, and killed: orders go on where they were.

As a program it is the shop: `python -m tests.examples.test_sync_web flask|django|workers DATABASE`. What it does to the
world goes to the file that the environment names as EFFECTS.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from perdure import FlowFailed, InstanceNotFound, expose, flow, receive, step
from perdure.engine.sync_engine import SyncEngine

ROOT = Path(__file__).parents[2]
LIMIT_S = 30

# ---------------------------------------------------------------- the shop


@dataclass(frozen=True)
class Paid:
    amount: int


def effect(what: str) -> None:
    """Seen outside of all processes: a line, written at once."""
    with open(os.environ["EFFECTS"], "a") as file:
        file.write(what + "\n")


@step
def reserve(order: str, amount: int) -> int:
    """A plain function, as an application without a loop has them; it runs in a thread."""
    if amount <= 0:
        raise ValueError(f"nothing is ordered by {order}")
    effect(f"reserved {order}")
    return amount


@step
async def ship(order: str) -> str:
    effect(f"shipped {order}")
    return f"track-{order}"


@flow(name="order")
async def order_flow(order: str, amount: int) -> str:
    left = await reserve(order, amount)
    while left > 0:
        expose("left", left)
        left -= (await receive(Paid)).amount
    return await ship(order)


Reply = tuple[dict[str, Any], int]


class Shop:
    """What the views do, whatever the framework; the answer and its status."""

    def __init__(self, database: str) -> None:
        self.engine = SyncEngine(f"sqlite:///{database}", flows=[order_flow], lease=2)

    def order(self, id: str, body: dict[str, Any]) -> Reply:
        self.engine.start(order_flow, id, int(body["amount"]), id=id)
        return {"id": id}, 201

    def pay(self, id: str, body: dict[str, Any]) -> Reply:
        self.engine.send(order_flow, id, Paid(int(body["amount"])), key=body["payment"])
        return {}, 202

    def look(self, id: str, wait: float) -> Reply:
        handle = self.engine.handle(order_flow, id)
        try:
            return {"tracking": handle.result(timeout=wait), "worker": os.getpid()}, 200
        except TimeoutError:
            return {"left": handle.exposed("left", returns=int), "worker": os.getpid()}, 202
        except FlowFailed as failed:
            return {"failed": str(failed.__cause__)}, 409
        except InstanceNotFound:
            return {}, 404

    def list(self) -> Reply:
        return {"orders": [info.id for info in self.engine.find(order_flow)]}, 200


def flask_app(shop: Shop) -> Any:
    from flask import Flask, request

    app = Flask("shop")

    @app.post("/orders/<id>")
    def order(id: str) -> Reply:
        return shop.order(id, request.get_json())

    @app.post("/orders/<id>/payments")
    def pay(id: str) -> Reply:
        return shop.pay(id, request.get_json())

    @app.get("/orders/<id>")
    def look(id: str) -> Reply:
        return shop.look(id, float(request.args["wait"]))

    app.get("/orders")(shop.list)
    return app


def django_app(shop: Shop) -> Any:
    from django.conf import settings
    from django.core.wsgi import get_wsgi_application
    from django.http import HttpRequest, JsonResponse
    from django.urls import path

    def answer(what: Reply) -> JsonResponse:
        return JsonResponse(what[0], status=what[1])

    def order(request: HttpRequest, id: str) -> JsonResponse:
        if request.body:
            return answer(shop.order(id, json.loads(request.body)))
        return answer(shop.look(id, float(str(request.GET["wait"]))))

    def pay(request: HttpRequest, id: str) -> JsonResponse:
        return answer(shop.pay(id, json.loads(request.body)))

    def orders(request: HttpRequest) -> JsonResponse:
        return answer(shop.list())

    urls = (path("orders", orders), path("orders/<str:id>", order), path("orders/<str:id>/payments", pay))
    settings.configure(ROOT_URLCONF=urls, ALLOWED_HOSTS=["127.0.0.1"], SECRET_KEY="x", MIDDLEWARE=[])
    return get_wsgi_application()


def serve_flask(shop: Shop) -> None:
    from werkzeug.serving import make_server

    shop.engine.open()
    server = make_server("127.0.0.1", 0, flask_app(shop), threaded=True)
    print(server.port, flush=True)
    server.serve_forever()


def serve_django(shop: Shop) -> None:
    from django.core.servers.basehttp import ThreadedWSGIServer, WSGIRequestHandler

    app = django_app(shop)
    shop.engine.open()
    server = ThreadedWSGIServer(("127.0.0.1", 0), WSGIRequestHandler)
    server.set_app(app)
    print(server.server_port, flush=True)
    server.serve_forever()


def serve_workers(shop: Shop) -> None:
    """As a forking server does that loads the application first: the engine is made before the fork, opened after."""
    from werkzeug.serving import make_server

    app = flask_app(shop)
    listening = socket.create_server(("127.0.0.1", 0))
    workers: list[int] = []
    for _ in range(2):
        worker = os.fork()
        if worker == 0:
            shop.engine.open()
            server = make_server("127.0.0.1", 0, app, threaded=True, fd=listening.fileno())
            server.serve_forever()
            return
        workers.append(worker)
    print(listening.getsockname()[1], *workers, flush=True)
    sys.stdin.read()  # until the test is over
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)


# ---------------------------------------------------------------- the tests

Answer = tuple[int, dict[str, Any]]


class Served:
    """A shop in a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.communicate()
        port, *workers = line.split()
        self.workers = [int(worker) for worker in workers]
        self._address = f"http://127.0.0.1:{port}"

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Answer:
        """The status and what it says."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._address + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=LIMIT_S) as response:
                return response.status, json.loads(response.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    def order(self, id: str, amount: int) -> Answer:
        return self.ask(f"/orders/{id}", {"amount": amount})

    def pay(self, id: str, amount: int, payment: str) -> Answer:
        return self.ask(f"/orders/{id}/payments", {"amount": amount, "payment": payment})

    def look(self, id: str, wait: float = LIMIT_S) -> Answer:
        return self.ask(f"/orders/{id}?wait={wait}")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


Serve = Callable[[str], Served]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Serves the shop of this test, with its database; no process outlives the test."""
    with ExitStack() as stack:

        def serve(kind: str) -> Served:
            process = subprocess.Popen(
                [sys.executable, "-W", "error", "-m", "tests.examples.test_sync_web", kind, str(tmp_path / "shop.db")],
                cwd=ROOT, env=os.environ | {"EFFECTS": str(tmp_path / "effects")}, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            stack.enter_context(process)
            stack.callback(process.kill if kind != "workers" else process.stdin.close)  # type: ignore[union-attr]
            return Served(process)

        yield serve


@pytest.fixture
def effects(tmp_path: Path) -> Callable[[], list[str]]:
    return lambda: sorted((tmp_path / "effects").read_text().splitlines())


@pytest.mark.parametrize("kind", ["flask", "django"])
def test_requests_in_many_threads_start_tell_and_wait(
    kind: str, serve: Serve, effects: Callable[[], list[str]]
) -> None:
    shop, ids, all_wait = serve(kind), [f"o-{n}" for n in range(8)], threading.Barrier(9)

    def buys(id: str) -> Answer:
        assert shop.order(id, 3) == (201, {"id": id})
        assert shop.order(id, 3) == (201, {"id": id})  # the browser sent it twice
        all_wait.wait(LIMIT_S)
        return shop.look(id)

    with ThreadPoolExecutor(8) as browsers:
        answers = browsers.map(buys, ids)
        all_wait.wait(LIMIT_S)
        status, said = shop.look("o-0", 0.01)  # while the others wait, each in its thread
        assert (status, said["left"]) == (202, 3)
        assert sorted(shop.ask("/orders")[1]["orders"]) == ids
        for id in ids:
            shop.pay(id, 1, "first")
            shop.pay(id, 1, "first")  # again, after an answer that got lost
            shop.pay(id, 2, "second")
        assert [(status, said["tracking"]) for status, said in answers] == [(200, f"track-{id}") for id in ids]
    assert effects() == sorted([f"reserved {id}" for id in ids] + [f"shipped {id}" for id in ids])

    shop.order("bad", 0)
    assert shop.look("bad") == (409, {"failed": "nothing is ordered by bad"})
    assert shop.look("none") == (404, {})


@pytest.mark.parametrize("kind", ["flask", "django"])
def test_the_server_is_killed_and_the_order_goes_on(kind: str, serve: Serve, effects: Callable[[], list[str]]) -> None:
    shop = serve(kind)
    shop.order("o-1", 3)
    shop.pay("o-1", 1, "first")
    while shop.look("o-1", 0.01)[1]["left"] != 2:
        pass
    shop.kill()
    shop = serve(kind)
    shop.pay("o-1", 1, "first")  # the shop is asked again for what it had acknowledged
    shop.pay("o-1", 2, "second")
    status, said = shop.look("o-1")
    assert (status, said["tracking"]) == (200, "track-o-1")
    assert effects() == ["reserved o-1", "shipped o-1"]


def test_forked_workers_have_an_engine_each_and_one_takes_over_from_the_other(
    serve: Serve, effects: Callable[[], list[str]]
) -> None:
    shop, ids = serve("workers"), [f"o-{n}" for n in range(8)]
    seen: set[int] = set()
    with ThreadPoolExecutor(8) as browsers:
        while seen != set(shop.workers):  # both answer, each with an engine of its own
            for status, _ in browsers.map(shop.order, ids, [3] * len(ids)):
                assert status == 201
            seen |= {said["worker"] for _, said in browsers.map(shop.look, ids, [0.05] * len(ids))}
        os.kill(shop.workers[0], signal.SIGKILL)
        for id in ids:
            shop.pay(id, 3, "all")
        for id, (status, said) in zip(ids, browsers.map(shop.look, ids), strict=True):
            assert (status, said) == (200, {"tracking": f"track-{id}", "worker": shop.workers[1]})
    assert effects() == sorted([f"reserved {id}" for id in ids] + [f"shipped {id}" for id in ids])


if __name__ == "__main__":
    serving = {"flask": serve_flask, "django": serve_django, "workers": serve_workers}
    serving[sys.argv[1]](Shop(sys.argv[2]))
