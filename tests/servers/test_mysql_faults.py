"""The MariaDB and MySQL store where the network says nothing more or is to be private, and where the server has no room."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.errors import CommitUnknown, StoreFull, StoreUnavailable
from perdure.model.writes import Batch
from perdure.stores.mysql import MysqlStore
from perdure.testing.conformance.kit import create, entry, send, uid
from tests.servers.conftest import mysql_done
from tests.servers.mysqld import INSTALL, PROGRAM, Mysqld
from tests.servers.proxy import Proxy
from tests.support.required import not_here


@pytest.mark.parametrize("general", [False, True], ids=["in one message", "in several"])
async def test_a_network_that_says_nothing_is_given_up_in_time_and_taken_up_again(
    mysql_url: str, general: bool
) -> None:
    proxy = Proxy(mysql_url)
    await proxy.start()
    store = MysqlStore(proxy.url)
    await store.open()
    time = asyncio.get_running_loop().time
    try:
        epoch = await store.join("a", 2.0)
        await store.commit(Batch("a", epoch, [create(1)], 1.0))
        proxy.blackhole()
        began = time()
        with pytest.raises((StoreUnavailable, CommitUnknown)):
            await store.commit(Batch("a", epoch, [entry(1, 1), *([send(1, 1)] if general else [])], 1.0))
        with pytest.raises(StoreUnavailable):
            await asyncio.to_thread(store.renew, "a", 2.0)
        assert time() - began < 8.0
        proxy.heal()
        await asyncio.to_thread(store.renew, "a", 2.0)
        raised = await store.raise_epoch("a", epoch)
        await store.commit(Batch("a", raised, [entry(1, 1), *([send(1, 1)] if general else [])], 1.0))
        (there,) = await store.load([uid(1)])
        assert [e.seq for e in there.entries] == [0, 1]
        assert len(there.inbox) == general
    finally:
        await store.close()
        await proxy.stop()


@pytest.fixture
def private() -> Iterator[tuple[Mysqld, Path]]:
    """A server that speaks TLS alone, and the certificate of its authority."""
    if PROGRAM is None or INSTALL is None or shutil.which("openssl") is None:
        not_here("a MariaDB of the test's own", "no programs mariadbd, mariadb-install-db and openssl")
    folder = Path(tempfile.mkdtemp(prefix="perdure-tls-"))
    folder.chmod(0o755)
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=perdure", "-addext",
         "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    key.chmod(0o644)
    server = Mysqld(ssl_cert=certificate, ssl_key=key, require_secure_transport="ON")
    try:
        server.start()
        yield server, certificate
    finally:
        server.remove()
        shutil.rmtree(folder)


async def test_tls_is_asked_for_and_the_certificate_checked(private: tuple[Mysqld, Path]) -> None:
    server, certificate = private
    for good in ("tls=on", f"ca={certificate}", f"tls=verify&ca={certificate}"):
        store = MysqlStore(f"{server.url}?{good}")
        await store.open()
        await store.check()
        await store.close()
    for bad in ("tls=off", "tls=verify"):
        with pytest.raises(StoreUnavailable):
            await MysqlStore(f"{server.url}?{bad}").open()
    with pytest.raises(StoreUnavailable):  # it is for the other name of this machine
        await MysqlStore(f"{server.url.replace('127.0.0.1', 'localhost')}?ca={certificate}").open()


@pytest.fixture
def tight() -> Iterator[Mysqld]:
    """A server that soon has no room."""
    if PROGRAM is None or INSTALL is None:
        not_here("a MariaDB of the test's own", "no programs mariadbd and mariadb-install-db")
    server = Mysqld(innodb_file_per_table=0, innodb_data_file_path="ibdata1:12M:autoextend:max:40M")
    try:
        server.start()
        yield server
    finally:
        server.remove()


async def test_a_full_server_is_told_and_goes_on_when_there_is_room(tight: Mysqld) -> None:
    await mysql_done(tight.url, "create database app")
    store = MysqlStore(f"{tight.url.rpartition('/')[0]}/app")
    await store.open()
    try:
        epoch = await store.join("a", 10.0)
        await store.commit(Batch("a", epoch, [create(1)], 1.0))
        with pytest.raises(StoreFull, match="make room"):
            for seq in range(1, 15):
                await store.commit(Batch("a", epoch, [entry(1, seq, b"x" * 3_000_000)], 1.0))
        written = [e.seq for e in (await store.entries(uid(1), 0, -1, budget=1 << 30))[0]]
        await asyncio.to_thread(tight.stop, signal.SIGTERM)
        tight.settings["innodb_data_file_path"] = "ibdata1:12M:autoextend:max:80M"
        await asyncio.to_thread(tight.start)
        await store.check()
        await store.commit(Batch("a", epoch, [entry(1, len(written), b"x" * 3_000_000)], 1.0))
        assert [e.seq for e in (await store.entries(uid(1), 0, -1, budget=1 << 30))[0]] == [*written, len(written)]
    finally:
        await store.close()
