"""The libvirt lab from Python: the scripts beside this file, with a guest as an object.

Everything here can also be done by hand with ``guest``, ``hypervisor`` and ``ping-guest``.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.lab.kafka_jars import PATIENCE, SOURCE, LabError, cache_dir
from deploy.lab.records import Record, read_records

# `up` needs 20 s on an idle machine with all packages; a first run also downloads 60 MB of them.
UP_TIMEOUT_S = 540.0 * PATIENCE
# The scripts limit their own waits to at most 90 s; this is above it.
SCRIPT_TIMEOUT_S = 120.0 * PATIENCE
POLL_S = 0.1


def wait_until(holds: Callable[[], bool], *, within_s: float, what: str) -> None:
    """Return as soon as the condition holds; on timeout raise LabError with its name.

    `within_s` is an upper bound for an idle machine, extended by `PATIENCE` on a busy one.
    """
    within_s *= PATIENCE
    deadline = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > deadline:
            raise LabError(f"not complete within {within_s:g} s: {what}")
        time.sleep(POLL_S)


class Lab:
    """Two hypervisors, ``a`` and ``b``, with their own state folder and network."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def run(self, script: str, *words: str, timeout_s: float = SCRIPT_TIMEOUT_S) -> str:
        """Run one of the lab's scripts and return its output; LabError when it fails."""
        environment = os.environ | {"FLATLINE_LAB_DIR": str(self.home)}
        # Output goes through a file: a daemon that inherited a pipe would never close it.
        with tempfile.TemporaryFile("w+") as out:
            result = subprocess.run(
                [str(SOURCE / script), *words],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                timeout=timeout_s,
                check=False,
            )
            out.seek(0)
            said = out.read().strip()
        if result.returncode:
            raise LabError(f"deploy/lab/{script} {' '.join(words)}: {said[-2000:]}")
        return said

    def up(self) -> None:
        """Start both hypervisors, without guests."""
        self.run("up", "--bare", timeout_s=UP_TIMEOUT_S)

    def down(self) -> None:
        """Stop everything that `up` and the guests started, and delete the state."""
        self.run("down")

    def uri(self, name: str) -> str:
        """Return the URI with write access to this hypervisor."""
        return f"qemu+unix:///system?socket={self.home}/{name}/run/libvirt-sock"

    def ro_uri(self, name: str) -> str:
        """Return the read-only URI of this hypervisor, for libvirt's openReadOnly."""
        return f"qemu+unix:///system?socket={self.home}/{name}/run/libvirt-sock-ro"

    def inside(self, *command: str) -> list[str]:
        """Return the command that runs `command` in the lab's network, where its bridge is."""
        return ["nsenter", f"--net=/run/netns/{self.run('network', 'name')}", "--", *command]

    def pid(self, name: str) -> int:
        """Return the libvirtd's process id."""
        return int(self.run("hypervisor", "pid", name))

    def kill(self, name: str) -> None:
        """Kill the libvirtd (SIGKILL) and leave its guests running."""
        self.run("hypervisor", "kill", name)

    def start(self, name: str) -> None:
        """Start the libvirtd and wait until it answers; it takes over the running guests."""
        self.run("hypervisor", "start", name)

    @contextmanager
    def frozen(self, pid: int) -> Iterator[None]:
        """Keep a libvirtd or a qemu suspended (SIGSTOP) inside the block."""
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)


class Guests:
    """The guests of one test, and their removal."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self._defined: list[Guest] = []

    def define(self, name: str, *options: str) -> Guest:
        """Return a defined guest that does not run; options are those of ``guest``."""
        self.lab.run("guest", "define", name, *options)
        guest = Guest(self.lab, name)
        self._defined.append(guest)
        return guest

    def boot(self, name: str, *options: str) -> Guest:
        """Return a guest whose userland is up."""
        guest = self.define(name, *options)
        guest.start()
        guest.wait()
        return guest

    def destroy(self) -> None:
        """Remove all guests and their disks."""
        while self._defined:
            self._defined.pop().destroy()


class Guest:
    """One guest, on either hypervisor."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.lab = lab
        self.name = name

    def _run(self, action: str, *words: str) -> str:
        return self.lab.run("guest", action, self.name, *words)

    def start(self) -> None:
        """Start it, without waiting for its userland."""
        self._run("start")

    def wait(self, boots: int = 1) -> None:
        """Wait until its userland has started `boots` times since the definition."""
        self._run("wait", str(boots))

    def tell(self, order: str) -> None:
        """Send an order and await its confirmation (``panic``, ``reboot``, ``off``: only send)."""
        self._run("tell", *order.split())

    def migrate(self, to: str) -> None:
        """Migrate it live to the other hypervisor; it is undefined on the first afterwards."""
        self._run("migrate", to)

    def destroy(self) -> None:
        """Remove it from both hypervisors."""
        self._run("destroy")

    @property
    def hypervisor(self) -> str:
        """The hypervisor on which it runs, else the one that has it defined."""
        return self._run("where")

    @property
    def boots(self) -> int:
        """How often its userland has started."""
        return int(self._run("boots"))

    @property
    def console(self) -> str:
        """All output on its first serial port."""
        return self._run("console")

    @property
    def qemu_pid(self) -> int:
        """Return the process id of its qemu."""
        return int((self.lab.home / self.hypervisor / "run/qemu" / f"{self.name}.pid").read_text())

    @property
    def nbd_pid(self) -> int:
        """Return the process id of its disk's server, if defined with ``--nbd``."""
        return int((self.lab.home / "guests" / f"{self.name}.nbd").read_text())

    @property
    def san_pid(self) -> int:
        """Return the process id of its network disk's server, if defined with ``--san``."""
        return int((self.lab.home / "guests" / f"{self.name}.vblade").read_text())

    @property
    def disk(self) -> str:
        """Return the file of its disk, as it was defined or last noted."""
        return self._run("disk")

    def note_disk(self, path: Path) -> None:
        """Record the new path of its disk."""
        self._run("moved", str(path))

    def records(self) -> list[Record]:
        """Return the records on its disk, oldest first; damage raises ValueError."""
        return read_records(Path(self.disk))

    def answers_ping(self) -> bool:
        """Whether one of three pings is answered."""
        try:
            self.lab.run("ping-guest", self.name)
        except LabError:
            return False
        return True

    @contextmanager
    def pinged(self) -> Iterator[PingLog]:
        """Ping it twice a second inside the block."""
        log = self.lab.home / "guests" / f"{self.name}.ping"
        environment = os.environ | {"FLATLINE_LAB_DIR": str(self.lab.home)}
        with log.open("wb") as out:
            command = [str(SOURCE / "ping-guest"), self.name, "--keep"]
            process = subprocess.Popen(command, stdout=out, stderr=out, env=environment)
        try:
            yield PingLog(log)
        finally:
            process.terminate()
            process.wait()


class PingLog:
    """The results of the pings so far; times are Unix seconds."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def answered_s(self) -> list[float]:
        """Return the times of the answers."""
        return self._times(r"^\[([\d.]+)\] \d+ bytes from")

    def unanswered_s(self) -> list[float]:
        """Return the times at which a ping had been without an answer for half a second."""
        return self._times(r"^\[([\d.]+)\] no answer yet")

    def _times(self, pattern: str) -> list[float]:
        text = self._path.read_text(errors="replace")
        return [float(time_s) for time_s in re.findall(pattern, text, re.MULTILINE)]


def sweep() -> None:
    """Remove the test labs of processes that ended without doing so."""
    for home in cache_dir().glob("lab-test-*[0-9]"):
        if not Path(f"/proc/{home.name.rsplit('-', 1)[1]}").exists():
            Lab(home).down()
