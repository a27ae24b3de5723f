"""One server of the lab as a process that can outlive the Python process that started it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Self

from deploy.lab.kafka_jars import LabError


class ServerProcess:
    """A server with its log and its process id in one folder.

    Parameters
    ----------
    folder
        Folder of `LOG` and of the process id.
    port
        The port that it serves.
    mark
        Text that only the command line of this server contains.
    """

    NAME: ClassVar[str]
    LOG: ClassVar[str]
    READY_TIMEOUT_S: ClassVar[float]
    STOP_TIMEOUT_S: ClassVar[float]

    def __init__(self, folder: Path, *, port: int, mark: str) -> None:
        self.port = port
        self._folder = folder
        self._mark = mark
        self._process: subprocess.Popen[bytes] | None = None

    def answers(self) -> bool:
        """Whether it answers a request that needs no login."""
        raise NotImplementedError

    @property
    def pid(self) -> int | None:
        """The process id while this server runs, else None; a recycled id does not count."""
        # A child process is polled: it must be reaped, and its command line is empty for a moment
        # after its start.
        if self._process is not None:
            return self._process.pid if self._process.poll() is None else None
        try:
            pid = int((self._folder / "pid").read_text())
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError, ValueError):
            return None
        return pid if self._mark.encode() in command else None

    def launch(
        self,
        command: Sequence[str],
        *,
        folder: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start the command as this server, without waiting."""
        with (self._folder / self.LOG).open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=environment,
                cwd=folder,
                start_new_session=True,
            )
        (self._folder / "pid").write_text(str(self._process.pid))

    def wait(self, timeout_s: float | None = None) -> Self:
        """Return once it serves requests; LabError when it exits or does not answer in time."""
        limit_s = self.READY_TIMEOUT_S if timeout_s is None else timeout_s
        deadline = time.monotonic() + limit_s
        log = self._folder / self.LOG
        while not self.answers():
            if self.pid is None:
                raise LabError(f"{self.NAME} on port {self.port} exited, see {log}")
            if time.monotonic() > deadline:
                raise LabError(
                    f"{self.NAME} on port {self.port} did not answer for {limit_s} s, see {log}"
                )
            time.sleep(0.05)
        return self

    def terminate(self) -> None:
        """Send SIGTERM without waiting; a suspended server is resumed to receive it."""
        self._signal(signal.SIGTERM)
        self.thaw()

    def stop(self) -> None:
        """Stop it, by SIGKILL after a timeout, and wait for its end."""
        self.terminate()
        deadline = time.monotonic() + self.STOP_TIMEOUT_S
        while self.pid is not None and time.monotonic() < deadline:
            time.sleep(0.02)
        self.kill()

    def kill(self) -> None:
        """Kill it by SIGKILL and wait for its end: nothing is flushed, no client is informed."""
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
