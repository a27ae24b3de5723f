"""The metrics of a VM row, in the order of the arrays that hold them.

Names and units are Flatline's; `connectors.libvirt.decoding` maps the fields of libvirt to them.
Appending to a list is a compatible change, since columns are identified by name; renaming or
reordering one is not.
"""

from dataclasses import dataclass
from typing import Final, NamedTuple


class Metric(NamedTuple):
    """One column of the VM table.

    `quantum` is a factor that all values of this column are expected to share (512-byte sectors, 10
    ms scheduler ticks). The codec divides by it where no value is lost.
    """

    name: str
    quantum: int = 1


@dataclass(frozen=True, eq=False, slots=True)
class Columns:
    """The metrics of the rows of an array; compared by identity, so that it is a fast cache key."""

    metrics: tuple[Metric, ...]

    def __len__(self) -> int:
        return len(self.metrics)


# Cumulative since the VM's `instance` began; a value smaller than the one before means that the
# counter was reset.
COUNTERS: Final = (
    Metric("cpu_time_ns"),
    Metric("cpu_user_ns", 10_000_000),
    Metric("cpu_system_ns", 10_000_000),
    Metric("vcpu_wait_ns"),
    Metric("vcpu_delay_ns"),
    Metric("block_rd_ns"),
    Metric("block_wr_ns"),
    Metric("block_fl_ns"),
    Metric("block_rd_bytes", 512),
    Metric("block_wr_bytes", 512),
    Metric("net_rx_bytes"),
    Metric("net_tx_bytes"),
    Metric("block_rd_reqs"),
    Metric("block_wr_reqs"),
    Metric("block_fl_reqs"),
    Metric("net_rx_pkts"),
    Metric("net_tx_pkts"),
    Metric("balloon_major_faults"),
    Metric("net_rx_errs"),
    Metric("net_tx_errs"),
    Metric("net_rx_drop"),
    Metric("net_tx_drop"),
)

# Unsigned values at the moment of the sample, not cumulative.
LEVELS: Final = (
    Metric("balloon_current_kib", 1024),
    Metric("balloon_rss_kib", 4),
    Metric("balloon_usable_kib", 4),
    Metric("balloon_last_update_s"),
    # The hypervisor's number of this run of the VM: it changes at each start and on the target of a
    # migration, not at a reset.
    Metric("instance"),
    Metric("state"),
    Metric("vcpus"),
    Metric("vcpus_busy"),
    Metric("vcpus_halted"),
    Metric("job_active"),
)

# Identifies the set of disks and network cards that the counters sum. Sums over different sets
# cannot be compared.
DEVICE_SETS: Final = (Metric("device_set"),)

# Sums of KVM's counters over a VM's vCPUs, since the VM's `instance` began; missing where the
# hypervisor does not report them (libvirt before 8.9, qemu without KVM).
KVM_COUNTERS: Final = (
    Metric("kvm_exits"),
    Metric("kvm_irq_injections"),
    # Exits for port and memory-mapped I/O together.
    Metric("kvm_io_exits"),
)

# 32-bit floats at the moment of the sample; NaN is missing.
GAUGES: Final = (
    # Share of one core for which the busiest vCPU ran or waited for a core over the interval.
    Metric("vcpu_busiest_ratio"),
    Metric("dirty_bytes_per_s"),
)

INTEGERS: Final = COUNTERS + LEVELS + KVM_COUNTERS + DEVICE_SETS
INTEGER_COLUMNS: Final = Columns(INTEGERS)
GAUGE_COLUMNS: Final = Columns(GAUGES)
INTEGER_ROW: Final = {metric.name: row for row, metric in enumerate(INTEGERS)}
GAUGE_ROW: Final = {metric.name: row for row, metric in enumerate(GAUGES)}

# Values of the level `state`, numbered as libvirt's virDomainState.
VM_STATES: Final = (
    "no_state",
    "running",
    "blocked",
    "paused",
    "shutdown",
    "shut_off",
    "crashed",
    "pm_suspended",
)

# Names of the gauges of a node; a frame omits a gauge that was not measured.
NODE_METRICS: Final = (
    "cpu_cores",
    "cpu_busy_ratio",
    "memory_total_bytes",
    "memory_available_bytes",
    "psi_cpu_some_ratio",
    "psi_io_some_ratio",
    "psi_io_full_ratio",
    "psi_memory_some_ratio",
    "psi_memory_full_ratio",
    "hypervisor_reachable",
)

# Values of `Event.kind`. A reader ignores kinds that it does not know.
EVENT_KINDS: Final = (
    # lifecycle, as reported by the hypervisor
    "started",
    "stopped",
    "shutdown",
    "paused",
    "resumed",
    "rebooted",
    "crashed",
    "crash_dump",
    "migrated_in",
    "migrated_out",
    "panicked",
    "watchdog",
    "io_error",
    "job_started",
    "job_ended",
    "agent_connected",
    "agent_lost",
    # the collector about itself
    "monitor_hung",
    "monitor_back",
    "hypervisor_lost",
    "hypervisor_back",
    "frames_dropped",
    "events_dropped",
    # reported by an owner
    "owner_reboot",
    "owner_maintenance",
    "owner_forget",
    # the agent's results of actions
    "action_sent",
    "action_returned",
    "action_unknown",
    # guest probing by the agent
    "probe_answered",
    "probe_silent",
    "agent_answered",
    "agent_silent",
    "console_panic",
)
