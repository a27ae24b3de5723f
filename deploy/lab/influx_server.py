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
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Self

from deploy.lab.kafka_broker import free_port
from deploy.lab.kafka_jars import PATIENCE, SOURCE, run
from deploy.lab.kafka_settings import write_private
from deploy.lab.server_process import ServerProcess


@functools.cache
def fetch() -> Path:
    """Return the server's binary; build it if absent: minutes, at the lowest priority.

    Raises
    ------
    LabError
        Go, Rust or a compiler are absent, or the build failed.
    """
    return Path(run([str(SOURCE / "influx-build")]).strip())


class Influx(ServerProcess):
    """One server with an organisation and an administrator's token, in one folder.

    Parameters
    ----------
    root
        Folder of all state. A server that already exists in it is reused with its own port and
        token.
    port
        None takes a free one.
    """

    NAME = "influxd"
    LOG = "influxd.log"
    # It answers 0.4 s after its start on an idle machine; a parallel build on two cores needs more
    # time.
    READY_TIMEOUT_S = 90.0 * PATIENCE
    # SIGTERM takes 0.02 s; longer compactions in progress are killed after this.
    STOP_TIMEOUT_S = 20.0 * PATIENCE
    org = "lab"

    def __init__(self, root: Path, *, port: int | None = None) -> None:
        self.root = root.resolve()
        state = self.root / "server.json"
        if not state.exists():
            self.root.mkdir(parents=True, exist_ok=True)
            settings = {"port": port or free_port(1), "token": secrets.token_urlsafe(24)}
            write_private(state, json.dumps(settings))
        self._settings = json.loads(state.read_text())
        super().__init__(self.root, port=self._settings["port"], mark=str(self.root))
        self.token: str = self._settings["token"]
        self.url = f"http://127.0.0.1:{self.port}"

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
        command = [
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
        ]
        self.launch(command, folder=self.root, environment=environment)
        return self

    def wait(self, timeout_s: float | None = None) -> Self:
        """Return once it serves requests and is set up; LabError when it exits or is silent."""
        super().wait(timeout_s)
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

    def answers(self) -> bool:
        """Whether it reports that it is healthy."""
        try:
            return bool(self.call("GET", "/health").get("status") == "pass")
        except (OSError, ValueError):
            return False

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
