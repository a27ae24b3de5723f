"""CPU time that each vCPU of a real guest gains while the guest lives and after its death.

Guests of `deploy/lab` with one, two and four vCPUs, tickless and not, with and without balloon
statistics. libvirt's `vcpu.N.time` is read once a second, together with the scheduler's own figure
in nanoseconds, since libvirt's comes in ticks of 10 ms. The figures for 2 s and 10 s cover every
span of that length, so they do not depend on the time of a sample.

`python -m benchmarks.bench_vcpus [idle] [busy] [dead]`: all three take 11 minutes. Guests of one
part run in parallel, so a computing guest gets only its share of the cores.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import Figure, report
from deploy.lab.kafka_jars import cache_dir
from deploy.lab.libvirt_lab import Guest, Guests, Lab, sweep

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]

# libvirt reads utime and stime from /proc, in ticks of 1 / sysconf(_SC_CLK_TCK).
TICK_NS = 10_000_000
SAMPLE_S = 1.0
SPANS_S = (2, 10)
# By then the guest's earlier activity has ended: its last fork, its last write-back.
SETTLE_S = 5.0
IDLE_S = 240.0
BUSY_S = 50.0
DEAD_S = 60.0
# Time that samples may miss: 4 s between two wake-ups, on a host that is busy itself.
LIVE_S = 20.0

SILENT = ("--words", "flatline.idle=1")
NO_STATS = ("--no-balloon-stats",)


@dataclass(frozen=True, slots=True)
class Seen:
    """The vCPUs of one guest at one time.

    Attributes
    ----------
    at_s
        Monotonic time, in seconds.
    libvirt_ns
        `vcpu.N.time` of each vCPU.
    delay_ns
        `vcpu.N.delay` of each vCPU: how long its thread was ready without a core.
    exact_ns
        Time on a core of each vCPU's thread, from its schedstat.
    """

    at_s: float
    libvirt_ns: tuple[int, ...]
    delay_ns: tuple[int, ...]
    exact_ns: tuple[int, ...]


@dataclass
class Recorder:
    """Reads the vCPUs of all guests once a second, in a separate thread."""

    lab: Lab
    seen: dict[str, list[Seen]] = field(default_factory=dict)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Read inside the block."""
        stop = Event()
        thread = Thread(target=self._read, args=(stop,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def since(self, name: str, begun_s: float) -> list[Seen]:
        """Return the readings of a guest since a time."""
        return [seen for seen in self.seen.get(name, []) if seen.at_s >= begun_s]

    def _read(self, stop: Event) -> None:
        import libvirt

        connection = libvirt.openReadOnly(self.lab.ro_uri("a"))
        threads: dict[str, list[Path]] = {}
        try:
            while not stop.wait(SAMPLE_S - time.monotonic() % SAMPLE_S):
                for domain, stats in connection.getAllDomainStats(libvirt.VIR_DOMAIN_STATS_VCPU):
                    name = domain.name()
                    if name not in threads:
                        threads[name] = self._threads(name)
                    self.seen.setdefault(name, []).append(_seen(stats, threads[name]))
        finally:
            connection.close()

    def _threads(self, name: str) -> list[Path]:
        """Return the folder of each vCPU's thread, in the order of the vCPUs."""
        pid = int((self.lab.home / "a/run/qemu" / f"{name}.pid").read_text())
        found: dict[int, Path] = {}
        for task in Path(f"/proc/{pid}/task").iterdir():
            # qemu names them "CPU 0/TCG" or "CPU 0/KVM".
            words = (task / "comm").read_text().split()
            if words[0] == "CPU":
                found[int(words[1].split("/")[0])] = task
        return [found[number] for number in sorted(found)]


def _seen(stats: Mapping[str, int], threads: Sequence[Path]) -> Seen:
    counts = [tuple(map(int, (task / "schedstat").read_text().split())) for task in threads]
    return Seen(
        time.monotonic(),
        tuple(stats[f"vcpu.{number}.time"] for number in range(stats["vcpu.current"])),
        tuple(stats[f"vcpu.{number}.delay"] for number in range(stats["vcpu.current"])),
        tuple(count[0] for count in counts),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One guest and its successive states."""

    name: str
    vcpus: int
    kernel: str = ""
    options: tuple[str, ...] = NO_STATS
    states: tuple[tuple[str, Callable[[Guest], object] | None], ...] = (("idle", None),)

    def define(self, made: Guests) -> Guest:
        """Return the guest, not yet started."""
        words = ("--words", self.kernel) if self.kernel else ()
        options = (*self.options, *words, "--vcpus", str(self.vcpus))
        return made.define(self.name, *options)


def told(*orders: str) -> Callable[[Guest], object]:
    """Return a function that sends the guest orders, one after the other."""

    def notify(guest: Guest) -> None:
        for order in orders:
            guest.tell(order)

    return notify


# An endless thread on one vCPU: it is pinned, since a busy kernel would move it to another.
PINNED = told("stop-io", "run taskset 1 sh -c 'while :; do :; done' &")

IDLE = tuple(
    Subject(name=f"i{place}", vcpus=vcpus, kernel=kernel, options=(*stats, *SILENT))
    for place, (vcpus, kernel, stats) in enumerate(
        [(vcpus, "", NO_STATS) for vcpus in (1, 2, 4)]
        + [(2, "", ()), (2, "nohz=off", NO_STATS), (4, "nohz=off", NO_STATS)]
        + [(2, "highres=off", NO_STATS), (4, "nohz_full=1-3", NO_STATS)]
        # No periodic wake-up of a vCPU is left: no watchdog of the kernel or of its clock.
        + [(4, "nohz_full=1-3 nowatchdog tsc=nowatchdog", NO_STATS)]
    )
)
LIVE_STATES = (
    ("writes once a second", None),
    ("one thread computes", told("compute 1")),
    ("all threads compute", told("rest", "compute all")),
    ("processes stopped (hung userland)", told("rest", "freeze")),
)
BUSY = (
    Subject(name="b1", vcpus=1, states=LIVE_STATES),
    Subject(name="b2", vcpus=2, states=LIVE_STATES),
    Subject(name="b4", vcpus=4, states=LIVE_STATES),
    Subject(name="p2", vcpus=2, states=(("one thread computes, pinned", PINNED),)),
    Subject(
        name="p4",
        vcpus=4,
        kernel="nohz_full=1-3 nowatchdog tsc=nowatchdog",
        states=(("one thread computes, pinned", PINNED),),
    ),
)
LOCKUP = ("--lockup", *NO_STATS)
DEAD = (
    *(
        Subject(name=f"d{vcpus}", vcpus=vcpus, states=(("panic, spins", told("panic")),))
        for vcpus in (1, 2, 4)
    ),
    Subject(name="t2", vcpus=2, kernel="nohz=off", states=(("panic, spins", told("panic")),)),
    *(
        Subject(name=f"h{vcpus}", vcpus=vcpus, states=(("halted", told("halt")),))
        for vcpus in (1, 2, 4)
    ),
    *(
        Subject(
            name=f"l{vcpus}",
            vcpus=vcpus,
            options=LOCKUP,
            states=(("one vCPU spins, interrupts off", told("lockup")),),
        )
        for vcpus in (1, 2)
    ),
)


def row(subject: Subject, state: str, seen: Sequence[Seen]) -> dict[str, Figure]:
    """Return one row of the table: the vCPUs' gains, and how long they gain nothing."""
    at_s = np.array([one.at_s for one in seen])
    libvirt_ns = np.array([one.libvirt_ns for one in seen], np.int64)
    wanted_ns = libvirt_ns + np.array([one.delay_ns for one in seen], np.int64)
    exact_ns = np.array([one.exact_ns for one in seen], np.int64)
    span_s = float(at_s[-1] - at_s[0])
    rate_ms = (exact_ns[-1] - exact_ns[0]) / 1e6 / span_s
    return {
        "vcpus": subject.vcpus,
        "kernel": subject.kernel or "as Debian",
        "balloon": "no" if "--no-balloon-stats" in subject.options else "2 s",
        "state": state,
        "span_s": round(span_s),
        "most_ms_per_s": round(float(rate_ms.max()), 2),
        "least_ms_per_s": round(float(rate_ms.min()), 3),
        **{
            f"all_{length_s}s_ms": least_gain_ms(at_s, exact_ns.sum(axis=1), length_s)
            for length_s in SPANS_S
        },
        "one_0_s": longest_still_s(at_s, libvirt_ns, moving=subject.vcpus - 1),
        "rest_0_s": longest_still_s(at_s, libvirt_ns, moving=1),
        "one_wanted_0_s": longest_still_s(at_s, wanted_ns, moving=subject.vcpus - 1),
        "rest_wanted_0_s": longest_still_s(at_s, wanted_ns, moving=1),
        "all_wanted_0_s": longest_still_s(at_s, wanted_ns, moving=0),
        "one_exact_0_s": longest_still_s(at_s, exact_ns, moving=subject.vcpus - 1),
    }


def longest_still_s(at_s: F64, counts: I64, *, moving: int) -> float:
    """Return the longest time in which at most `moving` vCPUs' counts changed, in whole samples.

    A single vCPU has no others: the time is 0.
    """
    if moving == counts.shape[1]:
        return 0.0
    longest_s = 0.0
    for first in range(len(counts)):
        changed = np.maximum.accumulate(counts[first:] != counts[first], axis=0).sum(axis=1)
        last = first + int(np.flatnonzero(changed <= moving)[-1])
        longest_s = max(longest_s, float(at_s[last] - at_s[first]))
    return round(longest_s, 1)


def least_gain_ms(at_s: F64, gained_ns: I64, length_s: int) -> float | None:
    """Return the smallest gain over any span of a length, None without such a long observation."""
    ends = np.searchsorted(at_s, at_s + length_s - SAMPLE_S / 2)
    starts = np.flatnonzero(ends < len(at_s))
    if not len(starts):
        return None
    return round(float((gained_ns[ends[starts]] - gained_ns[starts]).min()) / 1e6, 3)


def measured(lab: Lab, subjects: Sequence[Subject], for_s: float) -> Iterator[dict[str, Figure]]:
    """Yield a row for each state of each guest; guests of one call run in parallel."""
    made, recorder = Guests(lab), Recorder(lab)
    try:
        guests = [subject.define(made) for subject in subjects]
        for guest in guests:
            guest.start()
        for guest in guests:
            guest.wait()
        with recorder.running():
            for place in range(max(len(subject.states) for subject in subjects)):
                now = [
                    (subject, guest, *subject.states[place])
                    for subject, guest in zip(subjects, guests, strict=True)
                    if place < len(subject.states)
                ]
                for _, guest, _, act in now:
                    if act is not None:
                        act(guest)
                time.sleep(SETTLE_S)
                begun_s = time.monotonic()
                time.sleep(for_s)
                for subject, guest, state, _ in now:
                    yield row(subject, state, recorder.since(guest.name, begun_s))
    finally:
        made.destroy()


def parts(lab: Lab, wanted: Sequence[str]) -> Iterator[dict[str, Figure]]:
    """Yield the rows of all requested parts."""
    if "idle" in wanted:
        yield from measured(lab, IDLE, IDLE_S)
    if "busy" in wanted:
        yield from measured(lab, BUSY, BUSY_S)
    if "dead" in wanted:
        lab.run("lockup")
        yield from measured(lab, DEAD, DEAD_S)


def main() -> None:
    """Measure and report."""
    wanted = sys.argv[1:] or ["idle", "busy", "dead"]
    sweep()
    lab = Lab(cache_dir() / f"lab-test-{os.getpid()}")
    try:
        lab.up()
        rows = list(parts(lab, wanted))
    finally:
        lab.down()
    # A kernel with its watchdog on wakes each vCPU every 4 s; `nohz_full` switches it off.
    live = [row for row in rows if "nohz_full" not in str(row["kernel"]) and alive(row)]
    report(
        "vcpus",
        claim="What the vCPUs of real guests gain of a core, and the longest time in which one of"
        " them, the rest or all gained 0, in libvirt's ticks (0_s) and with the time they waited"
        f" (wanted_0_s). Alive, the rest move at least every {LIVE_S:.0f} s; dead, never",
        rows=rows,
        goals_met=all(figure(row["rest_wanted_0_s"]) <= LIVE_S for row in live)
        and all(stands(row) for row in rows if not alive(row)),
    )


def alive(row: Mapping[str, Figure]) -> bool:
    """Return whether a kernel runs; one that spins with interrupts off leaves other vCPUs idle."""
    return row["state"] not in {"panic, spins", "halted"}


def stands(row: Mapping[str, Figure]) -> bool:
    """Return whether all vCPUs but the one that may spin were idle from the first sample on."""
    still_s = figure(row["rest_wanted_0_s" if row["vcpus"] != 1 else "all_wanted_0_s"])
    may_spin = row["vcpus"] == 1 and row["state"] == "panic, spins"
    return may_spin or still_s >= figure(row["span_s"]) - SAMPLE_S


def figure(value: Figure) -> float:
    """Return a figure of the table as a number."""
    assert isinstance(value, int | float)
    return float(value)


if __name__ == "__main__":
    main()
