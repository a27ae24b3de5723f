"""One `flatline` process of a site, run as by an operator's service manager."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from deploy.lab.kafka_jars import PATIENCE, cache_dir
from deploy.lab.libvirt_lab import wait_until

FLATLINE = Path(sys.executable).with_name("flatline")
# A role finishes its append in flight, and a collector writes its buffer to the log.
STOP_S = 20.0 * PATIENCE


class Process:
    """A role with its own settings file and state folder, and one output file over its runs.

    Parameters
    ----------
    inside
        A command that runs another one, such as `nsenter --net=FILE --`.
    """

    def __init__(
        self, name: str, role: str, *, folder: Path, settings: str, inside: Sequence[str] = ()
    ) -> None:
        self.name = name
        self.role = role
        self.inside = tuple(inside)
        self.state = folder / "state"
        self.state.mkdir(parents=True)
        # Compiled once for all roles, though each has its own state folder.
        kernels = cache_dir() / "kernels"
        kernels.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self.state / "kernels").symlink_to(kernels)
        self.config = folder / "flatline.toml"
        self.config.write_text(settings)
        self._log = folder / "log"
        self._log.touch()
        self._process: subprocess.Popen[bytes] | None = None
        self._paused = False
        self._reported = False
        self._before = 0

    def start(self) -> None:
        """Start it; it may not be ready yet."""
        self._reported = False
        self._before = len(self.log)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self.inside, FLATLINE, self.role, "--config", self.config],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(),
            )

    def check(self) -> None:
        """Raise AssertionError when it has ended unexpectedly."""
        process = self._process
        if process is not None and process.poll() is not None and not self._reported:
            raise AssertionError(f"{self.name} ended with exit code {process.returncode}")

    def kill(self) -> None:
        """Kill it by SIGKILL and wait for its end."""
        self._reported = True
        self._signal(signal.SIGKILL)
        self._reap()

    def stop(self) -> int:
        """Send SIGTERM and return its exit code."""
        self._reported = True
        self.resume()
        self._signal(signal.SIGTERM)
        return self._reap()

    def pause(self) -> None:
        """Suspend it (SIGSTOP): its connections stay open and it does nothing."""
        self._signal(signal.SIGSTOP)
        self._paused = True

    def resume(self) -> None:
        """Resume it."""
        if self._paused:
            self._signal(signal.SIGCONT)
            self._paused = False

    def end(self) -> None:
        """End it from any state."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    @property
    def is_gone(self) -> bool:
        """Return whether no process of it runs."""
        return self._process is None

    @property
    def log(self) -> str:
        """Return its output so far."""
        return self._log.read_text(errors="replace")

    def says(self, words: str, *, within_s: float) -> None:
        """Wait until it has printed `words` in its current run."""

        def said() -> bool:
            self.check()
            return words in self.log[self._before :]

        wait_until(said, within_s=within_s, what=f"{words!r} in the log of {self.name}")

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None, f"{self.name} was never started"
        self._process.send_signal(number)

    def _reap(self) -> int:
        assert self._process is not None
        code = self._process.wait(STOP_S)
        self._process = None
        return code


def run(command: str, *words: str, config: Path) -> str:
    """Return the output of a `flatline` command; AssertionError when it fails."""
    result = subprocess.run(
        [FLATLINE, command, *words, "--config", config],
        env=_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60.0 * PATIENCE,
        check=False,
    )
    said = result.stdout + result.stderr
    assert result.returncode == 0, f"flatline {command} {' '.join(words)}: {said}"
    return said


def _environment() -> Mapping[str, str]:
    """Return this process's environment without Flatline settings of the user."""
    return {name: value for name, value in os.environ.items() if not name.startswith("FLATLINE_")}
