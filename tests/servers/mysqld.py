"""A MariaDB of the test's own, that can be stopped, killed and filled."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.servers.processes import free_port

PROGRAM = shutil.which(
    os.environ.get("PERDURE_TEST_MARIADBD", "mariadbd"), path=f"{os.environ.get('PATH', '')}:/usr/sbin"
)
INSTALL = shutil.which("mariadb-install-db")
STARTED_S = 30.0


class Mysqld:
    """See the module."""

    def __init__(self, **settings: object) -> None:
        assert PROGRAM is not None
        assert INSTALL is not None
        self._folder = Path(tempfile.mkdtemp(prefix="perdure-mysql-"))
        self._as: dict[str, Any] = {}
        if os.geteuid() == 0:  # it does not run as root
            user = pwd.getpwnam("mysql")
            os.chown(self._folder, user.pw_uid, user.pw_gid)
            self._as = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.settings = {"innodb_flush_log_at_trx_commit": 2, "innodb_buffer_pool_size": "64M", **settings}
        self._said = self._folder / "said"
        with self._said.open("wb") as said:
            subprocess.run(
                [INSTALL, "--no-defaults", f"--datadir={self._folder}/data", "--auth-root-authentication-method=normal",
                 "--skip-test-db"],
                check=True, cwd="/", stdout=said, stderr=said, **self._as,
            )  # fmt: skip
        self.url = f"mysql://root@127.0.0.1:{self._port}/mysql"

    def start(self) -> None:
        """It answers."""
        before = self._said.stat().st_size
        with self._said.open("ab") as said:
            self._process = subprocess.Popen(
                [str(PROGRAM), "--no-defaults", f"--datadir={self._folder}/data", f"--port={self._port}",
                 f"--socket={self._folder}/socket", "--bind-address=127.0.0.1", "--skip-log-bin",
                 *(f"--{name.replace('_', '-')}={value}" for name, value in self.settings.items())],
                cwd="/", stdout=said, stderr=said, **self._as,
            )  # fmt: skip
        end = time.monotonic() + STARTED_S
        while b"ready for connections" not in self._said.read_bytes()[before:]:
            assert self._process.poll() is None, self._said.read_text()
            assert time.monotonic() < end, self._said.read_text()
            time.sleep(0.02)

    def stop(self, how: signal.Signals) -> None:
        """It is gone: in order (SIGTERM) or not (SIGKILL)."""
        assert self._process is not None
        self._process.send_signal(how)
        self._process.wait(STARTED_S)

    def remove(self) -> None:
        """Nothing of it is left."""
        if self._process is not None and self._process.poll() is None:
            self.stop(signal.SIGKILL)
        shutil.rmtree(self._folder, ignore_errors=True)
