"""The guests of the end-to-end tests, all on one hypervisor."""

import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.lab.libvirt_lab import Guest, Guests, Lab

# Each in a separate group: no order waits for another group's VM.
OWNED = ("--tenant", "acme", "--actionable", "yes")
# A panicked guest uses a whole core only if one is free, and other load on the machine is not under
# test; the burner gets the rest.
FIRST, LATER, LAST = -15, 5, 19


class Fleet:
    """Four guests, distinguished by their fault.

    Attributes
    ----------
    victim
        Has a network card and panics.
    hanger
        Has a network card; its processes hang.
    writer
        Only writes, until the last test makes it panic too.
    burner
        Burns CPU from its start and never accesses its disk.
    """

    def __init__(self, guests: Guests) -> None:
        self.victim = guests.define("victim", "--nic", "--group", "web", *OWNED)
        self.hanger = guests.define("hanger", "--nic", "--group", "cache", *OWNED)
        self.writer = guests.define("writer", "--group", "mail", *OWNED)
        self.burner = guests.define("burner", "--burn", "--group", "batch", *OWNED)
        self.all = [self.victim, self.hanger, self.writer, self.burner]

    def boot(self) -> None:
        """Wait until all userlands are up."""
        for guest in self.all:
            guest.start()
        for guest in self.all:
            guest.wait()
        for guest in self.all:
            if guest is not self.burner:
                set_priority(guest.qemu_pid, vcpus=FIRST, session=FIRST)
        # Its monitor must still answer.
        set_priority(self.burner.qemu_pid, vcpus=LAST, session=LATER)

    def dismiss(self, guest: Guest) -> None:
        """Remove a guest that is no longer needed."""
        self.all.remove(guest)
        guest.destroy()

    def boots(self) -> dict[str, int]:
        """Return how often each userland has started."""
        return {guest.name: guest.boots for guest in self.all}


def set_priority(pid: int, *, vcpus: int, session: int) -> None:
    """Give a qemu's vCPUs a higher or lower priority than other processes."""
    process = Path(f"/proc/{pid}")
    for thread in (process / "task").iterdir():
        if (thread / "comm").read_text().startswith("CPU"):
            os.setpriority(os.PRIO_PROCESS, int(thread.name), vcpus)
    # If the kernel groups processes by session, the nice value counts within the group, and the
    # group's outside.
    group = process / "autogroup"
    if group.exists():
        group.write_text(str(session))


def untouched(before: dict[str, int], after: dict[str, int], *, but: Guest | None = None) -> bool:
    """Return whether all guests but `but` have not booted again."""
    kept = {name: boots for name, boots in before.items() if but is None or name != but.name}
    return kept.items() <= after.items()


@contextmanager
def at_first_reboot(lab: Lab, hypervisor: str, do: Callable[[], None]) -> Iterator[None]:
    """Inside the block: call `do` once, within milliseconds of libvirt's event of a reset."""
    # Line buffered: virsh's output into a pipe would otherwise wait for a full buffer.
    command = ["stdbuf", "-oL", "virsh", "--readonly", "-c", lab.ro_uri(hypervisor)]
    with subprocess.Popen(
        [*command, "event", "--event", "reboot"],
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    ) as process:
        assert process.stdout is not None
        lines = process.stdout

        def wait() -> None:
            if lines.readline():
                do()

        waiting = threading.Thread(target=wait, name="reboot", daemon=True)
        waiting.start()
        try:
            yield
        finally:
            process.terminate()
            waiting.join()
