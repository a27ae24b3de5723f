"""A real InfluxDB 2.7 for tests and manual use, on the loopback interface.

``with Influx(root) as influx: connect(influx.url, token=influx.token)``; from the shell
``deploy/lab/influx``. Needs only the standard library, and the binary that
``deploy/lab/influx-build`` makes once.
"""

from __future__ import annotations

import functools
import json
import os
import secrets
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Self

from deploy.lab.kafka_broker import free_port
from deploy.lab.kafka_jars import PATIENCE, SOURCE, LabError, run
from deploy.lab.kafka_settings import write_private

# It answers 0.4 s after its start on an idle machine; a parallel build on two cores needs more
# time.
READY_TIMEOUT_S = 90.0 * PATIENCE
# SIGTERM takes 0.02 s; longer compactions in progress are killed after this.
STOP_TIMEOUT_S = 20.0 * PATIENCE


@functools.cache
def fetch() -> Path:
    """Return the server's binary; build it if absent: minutes, at the lowest priority.

    Raises
    ------
    LabError
        Go, Rust or a compiler are absent, or the build failed.
    """
    return Path(run([str(SOURCE / "influx-build")]).strip())


class Influx:
    """One server with an organisation and an administrator's token, in one folder.

    Parameters
    ----------
    root
        Folder of all state. A server that already exists in it is reused with its own port and
        token.
    port
        None takes a free one.
    """

    org = "lab"

    def __init__(self, root: Path, *, port: int | None = None) -> None:
        self.root = root.resolve()
        state = self.root / "server.json"
        if not state.exists():
            self.root.mkdir(parents=True, exist_ok=True)
            settings = {"port": port or free_port(1), "token": secrets.token_urlsafe(24)}
            write_private(state, json.dumps(settings))
        self._settings = json.loads(state.read_text())
        self.port: int = self._settings["port"]
        self.token: str = self._settings["token"]
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The process id while this server runs, else None; a recycled id does not count."""
        if self._process is not None:
            return self._process.pid if self._process.poll() is None else None
        try:
            pid = int((self.root / "pid").read_text())
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError, ValueError):
            return None
        return pid if str(self.root).encode() in command else None

    def start(self, *flags: str) -> Self:
        """Start it without waiting; do nothing if it runs."""
        if self.pid is not None:
            return self
        # Every flag of influxd is also a variable, and a file in the working folder is read.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("INFLUX")}
        environment |= {
            "INFLUX_CONFIGS_PATH": str(self.root / "configs"),
            "INFLUXD_CONFIG_PATH": str(self.root),
        }
        with (self.root / "influxd.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    str(fetch()),
                    "run",
                    f"--http-bind-address=127.0.0.1:{self.port}",
                    f"--bolt-path={self.root}/influxd.bolt",
                    f"--sqlite-path={self.root}/influxd.sqlite",
                    f"--engine-path={self.root}/engine",
                    "--reporting-disabled",
                    "--ui-disabled",
                    "--log-level=info",
                    *flags,
                ],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=environment,
                cwd=self.root,
                start_new_session=True,
            )
        (self.root / "pid").write_text(str(self._process.pid))
        return self

    def wait(self, timeout_s: float = READY_TIMEOUT_S) -> Self:
        """Return once it serves requests and is set up; LabError when it ends or is silent."""
        deadline = time.monotonic() + timeout_s
        while not self._is_healthy():
            if self.pid is None:
                raise LabError(f"influxd on port {self.port} exited, see {self.root}/influxd.log")
            if time.monotonic() > deadline:
                raise LabError(
                    f"influxd on port {self.port} did not answer for {timeout_s} s, see "
                    f"{self.root}/influxd.log"
                )
            time.sleep(0.05)
        if self.call("GET", "/api/v2/setup")["allowed"]:
            self.call(
                "POST",
                "/api/v2/setup",
                {
                    "username": "lab",
                    "password": secrets.token_urlsafe(16),
                    "org": self.org,
                    "bucket": "lab",
                    "retentionPeriodSeconds": 0,
                    "token": self.token,
                },
            )
        return self

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the server's response to an administrator's request."""
        request = urllib.request.Request(
            self.url + path,
            data=None if body is None else json.dumps(body).encode(),
            method=method,
            headers={"Content-Type": "application/json", "Authorization": f"Token {self.token}"},
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            answer: dict[str, Any] = json.loads(response.read() or b"{}")
        return answer

    def _is_healthy(self) -> bool:
        try:
            return bool(self.call("GET", "/health").get("status") == "pass")
        except (OSError, ValueError):
            return False

    def stop(self) -> None:
        """Stop it, by SIGKILL after a timeout, and wait for its end."""
        self._signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while self.pid is not None and time.monotonic() < deadline:
            time.sleep(0.02)
        self.kill()

    def kill(self) -> None:
        """Kill it by SIGKILL and wait for its end: nothing is flushed."""
        while self.pid is not None:
            self._signal(signal.SIGKILL)
            time.sleep(0.02)

    def freeze(self) -> None:
        """Suspend it (SIGSTOP): connections stay open and nothing answers."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Resume a suspended server."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if (pid := self.pid) is not None:
            os.kill(pid, number)

    def disk_bytes(self) -> int:
        """Return the size of its shards in bytes."""
        return sum(
            path.stat().st_size for path in (self.root / "engine").rglob("*") if path.is_file()
        )

    def settled_disk_bytes(self) -> int:
        """Return the size of its shards in bytes after full compaction, as after a quiet night."""
        self.stop()
        self.start(
            "--storage-cache-snapshot-write-cold-duration=1s",
            "--storage-compact-full-write-cold-duration=1s",
        ).wait()
        sizes = [-1, self.disk_bytes()]
        while sizes[-1] != sizes[-2]:
            # Longer than the delay before the next compaction.
            time.sleep(15.0)
            sizes.append(self.disk_bytes())
        return sizes[-1]

    def remove(self) -> None:
        """Stop it and delete the folder."""
        self.stop()
        shutil.rmtree(self.root)

    def __enter__(self) -> Self:
        try:
            return self.start().wait()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *_: object) -> None:
        self.stop()
