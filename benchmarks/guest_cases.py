"""The guests of `bench_guests`: the behaviour of each, and the permitted alerts.

A guest is dead if its kernel will never run again by itself. If its own silence is the only
evidence, it is alerted and left to people. All others may at most be alerted: a suggestion to
reboot or migrate them is a wrong order, even if a guard would reject it.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

from deploy.lab.libvirt_lab import Guest, Lab
from flatline.engine.faults import of_family

Break = Callable[[Lab, Guest], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One guest and the fault it gets.

    Attributes
    ----------
    options
        Options of `deploy/lab/guest define`.
    lives
        Its activity in the first two minutes, in which no order is permitted.
    act
        The fault; None changes nothing.
    undo
        Reverts the fault, if something outside the guest was suspended.
    dead
        Whether its kernel will never run again.
    orderable
        Whether a second witness of a dead guest exists, so that a reboot must be suggested.
    kinds
        Permitted kinds of a firing alert; empty: there should be none.
    boots_itself
        Whether the guest boots again without help.
    watch_s
        How long it is watched after the fault.
    pinged
        Whether it is pinged meanwhile.
    """

    name: str
    options: tuple[str, ...] = ()
    lives: Break | None = None
    act: Break | None = None
    undo: Break | None = None
    dead: bool = False
    orderable: bool = True
    kinds: frozenset[str] = frozenset()
    boots_itself: bool = False
    watch_s: float = 60.0
    pinged: bool = False


def tell(*orders: str) -> Break:
    """Return a function that sends the guest orders, one after the other."""

    def reported(_: Lab, guest: Guest) -> None:
        for order in orders:
            guest.tell(order)

    return reported


def virsh(*words: str) -> Break:
    """Return a function that runs a virsh command on the guest."""

    def done(lab: Lab, guest: Guest) -> None:
        uri = lab.uri(guest.hypervisor)
        subprocess.run(["virsh", "-q", "-c", uri, *words, guest.name], check=True, timeout=30)

    return done


def signalled(number: signal.Signals) -> Break:
    """Return a function that sends the guest's storage server a signal."""
    return lambda _, guest: os.kill(guest.nbd_pid, number)


def signalled_over_network(number: signal.Signals) -> Break:
    """Return a function that sends the guest's network disk server a signal."""
    return lambda _, guest: os.kill(guest.san_pid, number)


def in_turn(*steps: Break | float) -> Break:
    """Return a function that executes steps in order; a number is a wait in seconds."""

    def done(lab: Lab, guest: Guest) -> None:
        for step in steps:
            if isinstance(step, float):
                time.sleep(step)
            else:
                step(lab, guest)

    return done


PANICS = of_family("death")
HUNG = of_family("hang")
# From outside, a guest that computes and writes nothing is a panic without proof.
SEEMS_DEAD = PANICS | HUNG
# No memory report and no panic message on its console, so that silence is the only evidence beside
# the CPU.
ONE_VCPU = ("--no-balloon-stats", "--words", "loglevel=0")
TWO_VCPUS = (*ONE_VCPU, "--vcpus", "2")
# It rests between two writes, so that the idle behaviour of its vCPUs is known while it lives.
RESTING = (*TWO_VCPUS, "--words", "flatline.pause_ms=5000")
# The second vCPU is left to threads pinned to it: alive, it is never woken.
TICKLESS = (*TWO_VCPUS, "--words", "nohz_full=1 rcu_nocbs=1")
CASES: tuple[Case, ...] = (
    Case(name="panic", act=tell("panic"), dead=True, kinds=PANICS),
    Case(
        name="panic told by a device",
        options=("--pvpanic",),
        act=tell("panic"),
        dead=True,
        kinds=PANICS,
    ),
    Case(
        name="panic while pinged",
        options=("--nic",),
        act=tell("panic"),
        dead=True,
        kinds=PANICS,
        pinged=True,
    ),
    Case(name="panic by an NMI", act=virsh("inject-nmi"), dead=True, kinds=PANICS),
    Case(
        name="kernel thread spins, interrupts off",
        options=("--lockup",),
        act=tell("lockup"),
        dead=True,
        kinds=PANICS,
    ),
    Case(
        name="all processes hang, kernel lives",
        options=("--nic",),
        act=tell("freeze"),
        kinds=HUNG,
        pinged=True,
    ),
    Case(
        name="panic=10 reboots itself",
        options=("--words", "panic=10"),
        act=tell("panic"),
        kinds=PANICS | {"crash_reboot"},
        boots_itself=True,
    ),
    Case(
        name="watchdog reboots a hung guest",
        options=("--words", "flatline.watchdog=20"),
        act=tell("freeze"),
        kinds=PANICS | {"crash_reboot", "hung_userland", "hung_io"},
        boots_itself=True,
    ),
    Case(
        name="storage server hangs",
        options=("--nbd",),
        act=signalled(signal.SIGSTOP),
        undo=signalled(signal.SIGCONT),
        kinds=HUNG,
    ),
    # Its activity is invisible, so after some minutes its boot counts as stuck.
    Case(
        name="burns CPU without I/O since its start",
        options=("--burn",),
        kinds=frozenset({"boot_stuck"}),
    ),
    Case(name="begins to burn and stops writing", act=tell("burn")),
    Case(
        name="begins to fork without end and stops writing",
        act=tell("stop-io", "run while :; do /bin/true; done &"),
    ),
    Case(name="idle since its start", options=("--words", "flatline.idle=1")),
    # From outside this looks like hung processes under a live kernel.
    Case(
        name="stops its work",
        act=tell("stop-io"),
        kinds=HUNG,
    ),
    Case(
        name="waits at the firmware's prompt",
        options=("--no-kernel",),
        kinds=frozenset({"boot_stuck"}),
    ),
    Case(name="paused by its owner", act=virsh("suspend"), undo=virsh("resume")),
    Case(name="migrated live", act=lambda _, guest: guest.migrate("b")),
    Case(name="2 vCPUs, panic", options=RESTING, act=tell("panic"), dead=True, kinds=PANICS),
    Case(
        # Its kernel lives on until it halts, and is alerted as such when that takes long.
        name="2 vCPUs, halted for good",
        options=RESTING,
        act=tell("halt"),
        dead=True,
        kinds=SEEMS_DEAD,
    ),
    Case(
        name="2 vCPUs that never rest, panic without a second witness",
        options=TWO_VCPUS,
        act=tell("panic"),
        dead=True,
        orderable=False,
        kinds=PANICS,
    ),
    Case(
        name="1 vCPU, panic without a second witness",
        options=ONE_VCPU,
        act=tell("panic"),
        dead=True,
        orderable=False,
        kinds=PANICS,
    ),
    Case(
        name="1 vCPU, panic told on its console",
        options=("--no-balloon-stats",),
        act=tell("panic"),
        dead=True,
        kinds=PANICS,
    ),
    Case(
        name="1 vCPU, panic, with a guest agent",
        options=(*ONE_VCPU, "--agent"),
        act=tell("panic"),
        dead=True,
        kinds=PANICS,
        watch_s=90.0,
    ),
    Case(
        name="1 vCPU, panic, probed by its agent",
        options=(*ONE_VCPU, "--nic"),
        act=tell("panic"),
        dead=True,
        kinds=PANICS,
        watch_s=90.0,
        pinged=True,
    ),
    Case(
        name="1 vCPU with a guest agent, computes in one thread",
        options=(*ONE_VCPU, "--agent"),
        act=tell("compute 1"),
        kinds=SEEMS_DEAD,
        watch_s=120.0,
    ),
    Case(
        name="1 vCPU that is probed, computes in one thread",
        options=(*ONE_VCPU, "--nic"),
        act=tell("compute 1"),
        kinds=SEEMS_DEAD,
        watch_s=120.0,
        pinged=True,
    ),
    Case(
        name="2 vCPUs, computes in one thread",
        options=TWO_VCPUS,
        act=tell("compute 1"),
        kinds=SEEMS_DEAD,
        watch_s=120.0,
    ),
    Case(
        name="1 vCPU, computes in one thread",
        options=ONE_VCPU,
        act=tell("compute 1"),
        kinds=SEEMS_DEAD,
        watch_s=120.0,
    ),
    # While it computed, the idle behaviour of its other vCPU was measured. After such a silence the
    # vCPUs have to stand still for six times the longest pause in it, a minute at 10 s sampling.
    Case(
        name="2 vCPUs, computes in one thread, then panics",
        options=TWO_VCPUS,
        lives=tell("compute 1"),
        act=tell("panic"),
        dead=True,
        kinds=SEEMS_DEAD,
        watch_s=120.0,
    ),
    Case(
        name="1 vCPU, computes in one thread, then panics",
        options=ONE_VCPU,
        lives=tell("compute 1"),
        act=tell("panic"),
        dead=True,
        orderable=False,
        kinds=SEEMS_DEAD,
        watch_s=90.0,
    ),
    Case(
        name="2 vCPUs, computes in all threads",
        options=TWO_VCPUS,
        act=tell("compute all"),
        kinds=SEEMS_DEAD,
        watch_s=120.0,
    ),
    Case(
        name="2 vCPUs, computes after heavy writes",
        options=TWO_VCPUS,
        act=in_turn(tell("heavy"), 30.0, tell("compute 1")),
        kinds=SEEMS_DEAD,
        watch_s=120.0,
    ),
    Case(
        name="tickless, computes on the vCPU that keeps the clock",
        options=TICKLESS,
        act=tell("stop-io", "run taskset 1 sh -c 'while :; do :; done' &"),
        kinds=SEEMS_DEAD,
        watch_s=120.0,
    ),
    Case(
        name="collects garbage for 30 s",
        options=TWO_VCPUS,
        act=tell("pause 30"),
        kinds=SEEMS_DEAD,
        watch_s=75.0,
    ),
    Case(name="its service is stopped", options=TWO_VCPUS, act=tell("stop-service"), kinds=HUNG),
    Case(
        name="its file system is full",
        options=(*TWO_VCPUS, "--files"),
        act=tell("fill"),
        kinds=HUNG,
    ),
    Case(
        name="storage of its network goes away",
        options=(*TWO_VCPUS, "--nic", "--san"),
        act=signalled_over_network(signal.SIGSTOP),
        undo=signalled_over_network(signal.SIGCONT),
        kinds=HUNG,
    ),
    Case(
        name="its clock stands for a snapshot",
        options=TWO_VCPUS,
        act=in_turn(virsh("suspend"), 15.0, virsh("resume")),
    ),
    Case(
        name="its file system is frozen for a snapshot",
        options=(*TWO_VCPUS, "--files"),
        act=tell("frozen 30"),
        kinds=HUNG,
        watch_s=75.0,
    ),
)
