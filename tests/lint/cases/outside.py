"""PD2 and PD6: what a flow reaches, or shows, outside of itself."""

import asyncio
import concurrent.futures
import io
import logging
import os
import os as system
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from asyncio import to_thread as offload
from concurrent.futures import ThreadPoolExecutor as Pool
from os import environ as variables
from pathlib import Path
from pathlib import Path as P
from subprocess import run as execute
from threading import Thread as Worker
from time import sleep as nap

import httpx
import requests
from requests import get as fetch

from perdure import capture, current, delay, flow, get_logger, logger, step

log = get_logger("shop")
raw = logging.getLogger(__name__)
LOCK = threading.Lock()
say = print


@flow
async def environment(folder: str) -> None:
    os.environ["URL"]  # PD201 plain
    variables.get("URL")  # PD201 alias
    system.getenv("URL")  # PD201 alias
    os.path.join(folder, "a")  # near PD201
    os.sep  # near PD201
    await capture(os.environ.get, "URL")  # near PD201
    await capture(lambda: os.environ["URL"])  # near PD201
    urls = [os.environ[name] for name in ("A", "B")]  # PD201 nested
    await capture(url_of, urls[0], "x")
    base_url()


def base_url() -> str:
    return os.getcwd()  # PD201 helper


def url_of(base: str, name: str) -> str:
    return os.environ[name]  # near PD201


@flow
async def files(path: Path, name: str) -> str:
    open(name)  # PD202 plain
    P(name).read_text()  # PD202 alias
    (path / "a").parent.exists()  # PD202 plain
    path.with_suffix(".txt").name  # near PD202
    Path(name) / "b"  # near PD202
    os.path.basename(name)  # near PD202
    await capture(path.read_text)  # near PD202
    await capture(lambda: open(name).read())  # near PD202
    io.StringIO("x").read()  # near PD202

    def inner() -> bool:
        return os.path.exists(name)  # PD202 nested

    with Opened(name):
        pass
    return f"{inner()} {load(name)}"


def load(name: str) -> str:
    with open(name) as file:  # PD202 helper
        return file.read()


class Opened:
    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        os.mkdir(self.name)  # PD202 helper

    def __exit__(self, *_: object) -> None:
        pass


@flow
async def network(url: str) -> None:
    requests.get(url)  # PD203 plain
    fetch(url)  # PD203 alias
    async with httpx.AsyncClient() as client:  # near PD203
        await client.get(url)  # PD203 plain
        await capture(client.get, url)  # near PD203
    session = requests.Session()  # near PD203
    session.headers.update({})  # near PD203
    post = session.post
    post(url)  # PD203 alias
    sqlite3.connect(":memory:")  # PD203 plain
    await capture(requests.get, url)  # near PD203
    await asyncio.gather(*[asked(url) for _ in range(2)])

    async def inner() -> None:
        await asyncio.open_connection("localhost", 1)  # PD203 nested

    await inner()


async def asked(url: str) -> None:
    socket.create_connection(("localhost", 1))  # PD203 helper


@flow
async def sleeps() -> None:
    time.sleep(1)  # PD204 plain
    nap(1)  # PD204 alias
    await asyncio.sleep(1)  # near PD204
    await delay(1)  # near PD204
    await capture(time.sleep, 1)  # near PD204
    wait = lambda: nap(1)  # PD204 nested
    wait()
    slow()


def slow() -> None:
    time.sleep(1)  # PD204 helper


@flow
async def offloads(n: int) -> None:
    await asyncio.to_thread(pow, n, 2)  # PD205 plain
    await offload(pow, n, 2)  # PD205 alias
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, pow, n, 2)  # PD205 plain
    loop.time()  # near PD205
    loop.call_soon(print_nothing)  # near PD205
    await capture(pow, n, 2)  # near PD205
    await asyncio.to_thread(lambda: time.time())  # PD205 plain

    async def inner() -> None:
        await asyncio.to_thread(pow, n, 2)  # PD205 nested

    await asyncio.create_task(inner())
    await powered(n)


def print_nothing() -> None:
    pass


async def powered(n: int) -> None:
    await asyncio.to_thread(pow, n, 2)  # PD205 helper


@step
async def in_a_step(n: int) -> None:
    await asyncio.to_thread(pow, n, 2)  # near PD205


@flow
async def threads() -> None:
    threading.Thread(target=slow).start()  # PD206 plain
    Worker(target=slow)  # PD206 alias
    with Pool() as pool:  # PD206 alias
        pool.submit(slow)
    with LOCK:  # near PD206
        pass
    with LOCK:  # PD206 plain
        await delay(1)
    LOCK.acquire()  # PD206 plain
    async with asyncio.Lock():  # near PD206
        pass
    await capture(Pool)  # near PD206
    threading.Event()  # near PD206
    concurrent.futures.CancelledError()  # near PD206

    def inner() -> None:
        threading.Timer(1, slow)  # PD206 nested

    inner()
    in_threads()


def in_threads() -> None:
    concurrent.futures.ProcessPoolExecutor()  # PD206 helper


@flow
async def processes() -> None:
    subprocess.run(["true"])  # PD207 plain
    execute(["true"])  # PD207 alias
    os.system("true")  # PD207 plain
    subprocess.CompletedProcess([], 0)  # near PD207
    await capture(subprocess.run, ["true"])  # near PD207
    await capture(lambda: os.system("true"))  # near PD207
    await spawned()
    await asyncio.gather(*(asyncio.create_subprocess_exec("true") for _ in range(2)))  # PD207 nested


async def spawned() -> None:
    await asyncio.create_subprocess_shell("true")  # PD207 helper


@flow
async def prints(order: str) -> None:
    print(order)  # PD601 plain
    say(order)  # PD601 alias
    sys.stderr.write(order)  # PD601 plain
    buffer = io.StringIO()
    print(order, file=buffer)  # near PD601
    print(order, file=sys.stderr)  # PD601 plain
    logger.info(order)  # near PD601
    await capture(print, order)  # near PD601
    if not current().replaying:
        print(order)  # near PD601
    show = lambda: print(order)  # PD601 nested
    show()
    shown(order)


def shown(order: str) -> None:
    print(order)  # PD601 helper


@flow
async def logs(order: str) -> None:
    logging.info(order)  # PD602 plain
    raw.warning(order)  # PD602 alias
    log.info(order)  # near PD602
    get_logger("x").info(order)  # near PD602
    raw.setLevel(logging.INFO)  # near PD602
    await capture(raw.info, order)  # near PD602

    def inner() -> None:
        raw.error(order)  # PD602 nested

    inner()
    logged(order)


def logged(order: str) -> None:
    logging.getLogger("x").debug(order)  # PD602 helper


@flow
async def runs() -> None:
    asyncio.run(spawned())  # PD507 plain
    loop = asyncio.get_event_loop()
    loop.run_until_complete(asyncio.sleep(1))  # PD507 alias
    await asyncio.sleep(1)  # near PD507
    await capture(lambda: asyncio.run(spawned()))  # near PD507
    asyncio.Runner  # near PD507

    def inner() -> None:
        asyncio.run(spawned())  # PD507 nested

    inner()
    run_it()


def run_it() -> None:
    asyncio.run(spawned())  # PD507 helper
