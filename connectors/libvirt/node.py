"""Read the node's own load from /proc: cores, memory, and pressure stall information.

Formats: proc(5); Documentation/accounting/psi.rst of the kernel.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_PRESSURES: Final = {
    "psi_cpu_some_ratio": ("cpu", "some"),
    "psi_io_some_ratio": ("io", "some"),
    "psi_io_full_ratio": ("io", "full"),
    "psi_memory_some_ratio": ("memory", "some"),
    "psi_memory_full_ratio": ("memory", "full"),
}


@dataclass(frozen=True, slots=True)
class NodeTotals:
    """The kernel's counters; a pressure that the kernel does not keep is absent."""

    mono_ns: int
    cores: int
    busy_ticks: int
    all_ticks: int
    memory: dict[str, float]
    stalled_us: dict[str, int]


class NodeReader:
    """Convert the kernel's counters into gauges over the time since the last reading."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._last: NodeTotals | None = None

    def read(self) -> dict[str, float]:
        """Return gauges by name, as in `engine.wire.metrics.NODE_METRICS`.

        Those that need an earlier reading are absent in the first, and those that the kernel does
        not report are always absent.
        """
        now = self._totals(time.monotonic_ns())
        gauges = gauges_between(self._last, now)
        self._last = now
        return gauges

    def boot_id(self) -> str:
        """Return an id that changes at each boot of the node; empty where the kernel hides it."""
        return self._text("sys/kernel/random/boot_id").strip()

    def _totals(self, mono_ns: int) -> NodeTotals:
        cores, busy_ticks, all_ticks = parse_stat(self._text("stat"))
        stalled: dict[str, int] = {}
        for name, (resource, line) in _PRESSURES.items():
            total = parse_pressure(self._text(f"pressure/{resource}")).get(line)
            if total is not None:
                stalled[name] = total
        return NodeTotals(
            mono_ns=mono_ns,
            cores=cores,
            busy_ticks=busy_ticks,
            all_ticks=all_ticks,
            memory=parse_meminfo(self._text("meminfo")),
            stalled_us=stalled,
        )

    def _text(self, name: str) -> str:
        try:
            return (self._proc / name).read_text()
        except OSError:
            return ""  # the kernel keeps no pressure (psi=0) or hides it: then it is not measured


def gauges_between(before: NodeTotals | None, now: NodeTotals) -> dict[str, float]:
    """Return the node's gauges for the time from `before` to `now`.

    If `before` is None, there are only those of the moment: memory and cores.
    """
    gauges = dict(now.memory)
    if now.cores:
        gauges["cpu_cores"] = float(now.cores)
    if before is None:
        return gauges
    ticks = now.all_ticks - before.all_ticks
    if ticks > 0:
        gauges["cpu_busy_ratio"] = _ratio((now.busy_ticks - before.busy_ticks) / ticks)
    elapsed_us = (now.mono_ns - before.mono_ns) / 1000
    if elapsed_us > 0:
        for name, total in now.stalled_us.items():
            if name in before.stalled_us:
                gauges[name] = _ratio((total - before.stalled_us[name]) / elapsed_us)
    return gauges


def parse_stat(text: str) -> tuple[int, int, int]:
    """Return cores, busy ticks and all ticks from /proc/stat; zeros where they are missing."""
    cores = busy = total = 0
    for line in text.splitlines():
        name, *fields = line.split()
        if name == "cpu":
            # user nice system idle iowait irq softirq steal; guest time is part of user.
            ticks = [int(field) for field in fields[:8]]
            total = sum(ticks)
            busy = total - sum(ticks[3:5])
        elif name.startswith("cpu"):
            cores += 1
    return cores, busy, total


def parse_meminfo(text: str) -> dict[str, float]:
    """Return the memory gauges in /proc/meminfo, whose unit is KiB."""
    wanted = {"MemTotal": "memory_total_bytes", "MemAvailable": "memory_available_bytes"}
    gauges = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        if name in wanted:
            gauges[wanted[name]] = float(int(rest.split()[0]) * 1024)
    return gauges


def parse_pressure(text: str) -> dict[str, int]:
    """Return the stalled time in µs by line (`some`, `full`) of a pressure file."""
    totals = {}
    for line in text.splitlines():
        name, *fields = line.split()
        for field in fields:
            key, _, value = field.partition("=")
            if key == "total":
                totals[name] = int(value)
    return totals


def _ratio(value: float) -> float:
    """Clamp to 0..1: counters that are read one by one can slightly exceed the range."""
    return min(1.0, max(0.0, value))
