"""Convert libvirt's bulk statistics into VM rows, and read single values from them.

Fields, units and traps: libvirt's `virConnectGetAllDomainStats`, and measurements on libvirt 9.0
with qemu 7.2:

- For a VM whose monitor does not answer, libvirt returns `cpu.*`, `net.*` and `vcpu.N.time`, but of
  `block.*` only the names and of `balloon.*` only what is in the definition. An absent value is
  missing and never 0.
- `vcpu.N.time` and `wait` are in ns, although virsh's manual states another unit. If the kernel
  keeps no scheduler statistics, `wait` is 0 on every vCPU, which is not a measurement.
- `vcpu.N.halted` is absent on x86, where querying it would stop the vCPU.
- `balloon.*` except `current` and `rss` comes from the guest, which reported it at `last-update`.
- `vcpu.N.time` has a resolution of 10 ms; for an idle vCPU of a live guest it may not change for a
  minute. `vcpu.N.delay`, the time waiting for a core, is in ns and grows with nearly every wake-up.
  So only a vCPU without growth in both is certainly idle (benchmarks/README.md).
- `vcpu.N.*.sum` (libvirt >= 8.9, qemu >= 7.1 on KVM) are KVM's counters. qemu without KVM has none,
  so they were never measured on the lab's guests: their names come from `virsh domstats` of other
  sites.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from flatline.connectors.libvirt.binding import Stats, StatValue
from flatline.engine.wire.frame import VmRows
from flatline.engine.wire.metrics import GAUGE_ROW, GAUGES, INTEGER_ROW, INTEGERS, VM_STATES
from flatline.engine.wire.vcpus import MAX_VM_VCPUS, QUANTUM_NS, VcpuRows

# A vCPU counts as busy from half a core on, where the wait for a core counts as well: so two
# spinning vCPUs that share a core are both busy. An idle guest's timers need only a few per cent.
BUSY_RATIO: Final = 0.5

_DIRTY_RATE_MEASURED: Final = 2  # virDomainDirtyRateStatus
_MIB: Final = 1024 * 1024
_MAX_UINT64: Final = 2**64 - 1

_PLAIN: Final = {
    "cpu_time_ns": "cpu.time",
    "cpu_user_ns": "cpu.user",
    "cpu_system_ns": "cpu.system",
    "balloon_major_faults": "balloon.major_fault",
    "balloon_current_kib": "balloon.current",
    "balloon_rss_kib": "balloon.rss",
    "balloon_usable_kib": "balloon.usable",
    "vcpus": "vcpu.current",
}
_BLOCK_SUMS: Final = {
    "block_rd_ns": "rd.times",
    "block_wr_ns": "wr.times",
    "block_fl_ns": "fl.times",
    "block_rd_bytes": "rd.bytes",
    "block_wr_bytes": "wr.bytes",
    "block_rd_reqs": "rd.reqs",
    "block_wr_reqs": "wr.reqs",
    "block_fl_reqs": "fl.reqs",
}
_NET_SUMS: Final = {
    "net_rx_bytes": "rx.bytes",
    "net_tx_bytes": "tx.bytes",
    "net_rx_pkts": "rx.pkts",
    "net_tx_pkts": "tx.pkts",
    "net_rx_errs": "rx.errs",
    "net_tx_errs": "tx.errs",
    "net_rx_drop": "rx.drop",
    "net_tx_drop": "tx.drop",
}
# Each column is the sum of these statistics over all vCPUs.
_KVM_SUMS: Final = {
    "kvm_exits": ("exits.sum",),
    "kvm_irq_injections": ("irq_injections.sum",),
    "kvm_io_exits": ("io_exits.sum", "mmio_exits.sum"),
}


_DEVICE_SUMS: Final = {"block": _BLOCK_SUMS, "net": _NET_SUMS}
# A counter that a device has not reported for this long counts as one that it does not have. No job
# blocks a monitor for as long.
_UNTOLD_NS: Final = 120_000_000_000


@dataclass(frozen=True, slots=True)
class Reading:
    """One VM's statistics as libvirt returned them; `job_active` is None if it was not queried."""

    vm: bytes
    instance: int
    stats: Stats
    job_active: bool | None = None


@dataclass(frozen=True, slots=True)
class VcpuTimes:
    """Times of one sample from which the next one computes how busy each vCPU was.

    Such a time is how long a vCPU ran or waited for a core. Where four threads share a core, a
    spinning vCPU runs only for a quarter of the time, but waits for the rest.
    """

    instance: int
    mono_ns: int
    times_ns: Mapping[int, int]
    # When each device last reported a counter, by the counter's column and the device's name.
    reported_ns: Mapping[str, int] = field(default_factory=dict)


def instance_of(*, host_mark: int, domain_id: int) -> int:
    """Return the number of this run of a VM.

    libvirt numbers the VMs it starts from 1, again after each boot of the node, and each libvirtd
    separately; the mark of host and boot distinguishes them. A reset keeps the number. A number can
    occur again only if the VM that was started last is stopped, libvirtd is restarted, and the same
    VM is the first to start. Then its counters restart, which starts a new epoch too.
    """
    return (host_mark + domain_id) % 2**32


def host_mark(*, host_uuid: str, boot_id: str) -> int:
    """Return a number that is unique to this libvirtd and this boot of the node."""
    digest = hashlib.blake2b(f"{host_uuid}/{boot_id}".encode(), digest_size=4)
    return int.from_bytes(digest.digest(), "little")


def monitor_answered(stats: Stats) -> bool:
    """Return whether qemu's monitor answered; if not, libvirt returned only its own values."""
    return "balloon.rss" in stats or "dirtyrate.calc_status" in stats or "block.0.rd.reqs" in stats


def decode(
    readings: Sequence[Reading], previous: Mapping[bytes, VcpuTimes], *, mono_ns: int
) -> tuple[VmRows, dict[bytes, VcpuTimes]]:
    """Return the rows of these readings, and the argument `previous` for the next call.

    Parameters
    ----------
    previous
        Times of the last call by UUID of the VM; empty for the first. A VM that is absent in it has
        no values that need an earlier reading.
    mono_ns
        Time of the readings, on the clock of `previous`.
    """
    size = len(readings)
    integers = np.zeros((len(INTEGERS), size), np.uint64)
    missing = np.ones((len(INTEGERS), size), np.bool_)
    gauges = np.full((len(GAUGES), size), np.nan, np.float32)
    current: dict[bytes, VcpuTimes] = {}
    for column, reading in enumerate(readings):
        before = previous.get(reading.vm)
        reported_ns = _reported_ns(reading, before, mono_ns)
        times = VcpuTimes(reading.instance, mono_ns, _vcpus_wanted(reading.stats), reported_ns)
        ratios = _busy_ratios(times, before)
        current[reading.vm] = times
        withheld = {name.split("/")[0] for name, at_ns in reported_ns.items() if at_ns != mono_ns}
        for name, value in _integers(reading, ratios):
            if name in withheld:
                continue
            row = INTEGER_ROW[name]
            integers[row, column] = value
            missing[row, column] = False
        if not withheld:
            row = INTEGER_ROW["device_set"]
            integers[row, column], missing[row, column] = _device_set(reported_ns), False
        for name, ratio in _gauges(reading.stats, ratios):
            gauges[GAUGE_ROW[name], column] = ratio
    rows = VmRows(
        uuids=b"".join(reading.vm for reading in readings),
        integers=integers,
        missing=missing if missing.any() else None,
        gauges=gauges,
        vcpus=_vcpu_rows(
            [_vcpus_reported(reading.stats, current[reading.vm]) for reading in readings]
        ),
    )
    return rows, current


def _vcpus_wanted(stats: Stats) -> dict[int, int]:
    """Return for how many ns each vCPU ran or waited for a core, in multiples of `QUANTUM_NS`."""
    delays = vcpu_delays(stats)
    return {
        number: (time_ns + delays.get(number, 0)) // QUANTUM_NS * QUANTUM_NS
        for number, time_ns in vcpu_times(stats).items()
        if time_ns + delays.get(number, 0) <= _MAX_UINT64
    }


def _vcpus_reported(stats: Stats, times: VcpuTimes) -> Mapping[int, int]:
    """Return the times that can prove that a vCPU is idle; none where delays are not reported.

    Without the delay, the time of a vCPU may not change for a minute although the guest is alive.
    """
    return times.times_ns if vcpu_delays(stats).keys() == times.times_ns.keys() else {}


def _reported_ns(reading: Reading, before: VcpuTimes | None, mono_ns: int) -> dict[str, int]:
    """Return when each present device last reported each counter; unreported ones are absent.

    libvirt omits the counters of a card whose tap cannot be read, of a disk whose monitor is busy,
    and any single counter that it cannot know. Then the sum over the devices is unknown. A counter
    that has not been reported for `_UNTOLD_NS` (a drive without a medium) is no longer part of the
    sum, and the device set changes.
    """
    stats = reading.stats
    known = before.reported_ns if before is not None and before.instance == reading.instance else {}
    reported: dict[str, int] = {}
    for group, sums in _DEVICE_SUMS.items():
        for number in range(_counter(stats.get(f"{group}.count")) or 0):
            device = stats.get(f"{group}.{number}.name", number)
            for column, counter in sums.items():
                name = f"{column}/{device}"
                if _counter(stats.get(f"{group}.{number}.{counter}")) is not None:
                    reported[name] = mono_ns
                elif mono_ns - known.get(name, mono_ns - _UNTOLD_NS) < _UNTOLD_NS:
                    reported[name] = known[name]
    return reported


def _device_set(reported_ns: Mapping[str, int]) -> int:
    """Return a number that identifies the set of devices and counters that are summed."""
    names = "\x00".join(sorted(reported_ns)).encode()
    return int.from_bytes(hashlib.blake2b(names, digest_size=2).digest(), "little")


def _vcpu_rows(times_ns: Sequence[Mapping[int, int]]) -> VcpuRows:
    """Return the times of all vCPUs, each at the index of its number."""
    counts = [max(times, default=-1) + 1 for times in times_ns]
    # A VM with more vCPUs than a frame may hold reports none.
    counts = [count if count <= MAX_VM_VCPUS else 0 for count in counts]
    flat = [
        times.get(number)
        for times, count in zip(times_ns, counts, strict=True)
        for number in range(count)
    ]
    return VcpuRows(
        counts=np.array(counts, np.uint16),
        times_ns=np.array([time or 0 for time in flat], np.uint64),
        missing=np.array([time is None for time in flat]) if None in flat else None,
    )


def vcpu_times(stats: Stats) -> dict[int, int]:
    """Return the CPU time in ns of each plugged-in vCPU, by its number."""
    return dict(_vcpu_field(stats, "time"))


def vcpu_delays(stats: Stats) -> dict[int, int]:
    """Return the ns that each vCPU waited for a core, by its number; some may be absent."""
    return dict(_vcpu_field(stats, "delay"))


def kvm_total(stats: Stats, name: str) -> int | None:
    """Return one of KVM's counters by its column in the wire format, such as `kvm_exits`.

    None unless every vCPU reports it.
    """
    return _vcpu_total(stats, _KVM_SUMS[name])


def block_total(stats: Stats, field: str) -> int | None:
    """Return a counter summed over all disks, None when no disk reports it.

    `field` is libvirt's name after the disk's number, such as `wr.reqs`.
    """
    return _device_total(stats, "block", field)


def net_total(stats: Stats, field: str) -> int | None:
    """Return a counter summed over all network cards, None when no card reports it.

    `field` is libvirt's name after the card's number, such as `tx.pkts`.
    """
    return _device_total(stats, "net", field)


def counted_nics(stats: Stats) -> int:
    """Return how many network cards report transmitted traffic."""
    count = _counter(stats.get("net.count")) or 0
    reported = (_counter(stats.get(f"net.{number}.tx.pkts")) for number in range(count))
    return sum(packets is not None for packets in reported)


def counted_disks(stats: Stats) -> frozenset[str]:
    """Return the names of the disks that report write requests."""
    count = _counter(stats.get("block.count")) or 0
    return frozenset(
        str(stats.get(f"block.{number}.name"))
        for number in range(count)
        if _counter(stats.get(f"block.{number}.wr.reqs")) is not None
    )


def plain_counter(stats: Stats, field: str) -> int | None:
    """Return a single value by libvirt's name; None when it is absent or invalid."""
    return _counter(stats.get(field))


def balloon_last_update_s(stats: Stats) -> int | None:
    """Return when the guest last reported its memory, in s since the epoch; None if never."""
    # libvirt reports 0 before the first report.
    return _counter(stats.get("balloon.last-update")) or None


def state_of(stats: Stats) -> int | None:
    """Return the VM's state as an index of `VM_STATES`; None if it is absent or unknown."""
    state = _counter(stats.get("state.state"))
    return state if state is not None and state < len(VM_STATES) else None


def _integers(reading: Reading, ratios: Sequence[float]) -> Iterator[tuple[str, int]]:
    """Yield the known integer columns, by name."""
    for name, value in _candidates(reading, ratios):
        if value is not None:
            yield name, value


def _candidates(reading: Reading, ratios: Sequence[float]) -> Iterator[tuple[str, int | None]]:
    stats = reading.stats
    yield "instance", reading.instance
    yield "state", state_of(stats)
    yield "job_active", None if reading.job_active is None else int(reading.job_active)
    for name, reported in _PLAIN.items():
        yield name, _counter(stats.get(reported))
    yield "balloon_last_update_s", balloon_last_update_s(stats)
    for name, reported in _BLOCK_SUMS.items():
        yield name, _device_total(stats, "block", reported)
    for name, reported in _NET_SUMS.items():
        yield name, _device_total(stats, "net", reported)
    yield "vcpu_wait_ns", sum(wait for _, wait in _vcpu_field(stats, "wait")) or None
    delays = [delay for _, delay in _vcpu_field(stats, "delay")]
    yield "vcpu_delay_ns", sum(delays) if delays else None
    halted = [value for _, value in _vcpu_field(stats, "halted", flags=True)]
    yield "vcpus_halted", sum(halted) if halted else None
    for name, fields in _KVM_SUMS.items():
        yield name, _vcpu_total(stats, fields)
    yield "vcpus_busy", sum(ratio >= BUSY_RATIO for ratio in ratios) if ratios else None


def _gauges(stats: Stats, ratios: Sequence[float]) -> Iterator[tuple[str, float]]:
    if ratios:
        yield "vcpu_busiest_ratio", max(ratios)
    rate = _counter(stats.get("dirtyrate.megabytes_per_second"))
    if rate is not None and stats.get("dirtyrate.calc_status") == _DIRTY_RATE_MEASURED:
        yield "dirty_bytes_per_s", float(rate * _MIB)


def _busy_ratios(now: VcpuTimes, before: VcpuTimes | None) -> list[float]:
    """Return the share of a core that each vCPU needed since `before`; empty if it is unknown.

    It is unknown if the VM was started again, or if the time of a vCPU decreased.
    """
    if before is None or before.instance != now.instance or now.mono_ns <= before.mono_ns:
        return []
    elapsed_ns = now.mono_ns - before.mono_ns
    wanted = [
        time_ns - before.times_ns[number]
        for number, time_ns in now.times_ns.items()
        if number in before.times_ns
    ]
    return [ns / elapsed_ns for ns in wanted] if all(ns >= 0 for ns in wanted) else []


def _vcpu_field(stats: Stats, field: str, *, flags: bool = False) -> Iterator[tuple[int, int]]:
    # Numbers may have gaps: vCPUs are unplugged one by one.
    for number in range(_counter(stats.get("vcpu.maximum")) or 0):
        value = stats.get(f"vcpu.{number}.{field}")
        count = int(value) if flags and isinstance(value, bool) else _counter(value)
        if count is not None:
            yield number, count


def _vcpu_total(stats: Stats, fields: Sequence[str]) -> int | None:
    """Return counters summed over all vCPUs; None if a plugged-in vCPU lacks one of them.

    A sum that omits one vCPU would look as if the counter had decreased.
    """
    running = len(vcpu_times(stats))
    values = [[value for _, value in _vcpu_field(stats, field)] for field in fields]
    if not running or any(len(found) != running for found in values):
        return None
    total = sum(map(sum, values))
    return total if total <= _MAX_UINT64 else None


def _device_total(stats: Stats, group: str, field: str) -> int | None:
    values = [
        value
        for number in range(_counter(stats.get(f"{group}.count")) or 0)
        if (value := _counter(stats.get(f"{group}.{number}.{field}"))) is not None
    ]
    total = sum(values) if values else None
    return total if total is None or total <= _MAX_UINT64 else None


def _counter(value: StatValue | None) -> int | None:
    """Return an unsigned 64-bit integer; any other value is not a measurement.

    libvirt reports -1 for a value that a device does not count, and a guest can report any balloon
    statistics.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if 0 <= value <= _MAX_UINT64 else None
