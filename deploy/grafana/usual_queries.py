"""Usual queries of planners to the history, each as a `Query` that any store answers."""

from dataclasses import dataclass, replace
from typing import Final

from flatline.engine.ports import Query

DAY_S: Final = 86_400


@dataclass(frozen=True, slots=True)
class Usual:
    """A usual question: its text, its time span, and the query for the rows."""

    text: str
    span_s: int
    query: Query

    def ending_at(self, end_ns: int) -> Query:
        """Return the question over the span that ends at `end_ns`."""
        begin_ns = end_ns - self.span_s * 1_000_000_000
        return replace(self.query, begin_ns=begin_ns, end_ns=end_ns)


def _usual(
    words: str,
    measurement: str,
    select: tuple[tuple[str, str], ...],
    *,
    days: float,
    where: dict[str, str] | None = None,
    group_by: tuple[str, ...] = (),
    every_s: int | None = None,
) -> Usual:
    query = Query(
        measurement=measurement,
        select=select,
        begin_ns=0,
        end_ns=0,
        where=where or {},
        group_by=group_by,
        every_s=every_s,
    )
    return Usual(words, round(days * DAY_S), query)


# Placeholder tags for the reader to replace.
EXAMPLE_VM: Final = "11111111-2222-3333-4444-555555555555"
EXAMPLE_NODE: Final = "node-1"

USUAL: Final = (
    _usual(
        "Which size does each VM need? p95 of its CPU over 30 days, from minutes",
        "flatline_vm_1m",
        (("cpu_cores_mean", "p95"), ("cpu_ratio_mean", "p95"), ("cpu_cores_max", "max")),
        days=30,
        group_by=("vm",),
    ),
    _usual(
        "How much memory does each VM need? Highest hourly p99 in 30 days",
        "flatline_vm_1h",
        (("memory_used_bytes_p99", "max"), ("memory_rss_bytes_p99", "max")),
        days=30,
        group_by=("vm",),
    ),
    _usual(
        "Which VMs are idle? Maximum of CPU, disk and network in 30 days",
        "flatline_vm_1h",
        (
            ("cpu_cores_max", "max"),
            ("disk_wr_bytes_per_s_max", "max"),
            ("net_tx_bytes_per_s_max", "max"),
        ),
        days=30,
        group_by=("vm",),
    ),
    _usual(
        "Which VMs wait for CPU? Contention in cores, by VM and hour, last week",
        "flatline_vm_1h",
        (("cpu_delay_cores_mean", "mean"), ("cpu_delay_cores_p95", "max")),
        days=7,
        group_by=("vm",),
        every_s=3600,
    ),
    _usual(
        "What did one VM do in the last day? Means of 5 minutes",
        "flatline_vm_1m",
        (
            ("cpu_cores_mean", "mean"),
            ("cpu_cores_max", "max"),
            ("disk_rd_bytes_per_s_mean", "mean"),
            ("disk_wr_bytes_per_s_mean", "mean"),
        ),
        days=1,
        where={"vm": EXAMPLE_VM},
        every_s=300,
    ),
    _usual(
        "How busy are the nodes? CPU and free memory of each, by day, over 90 days",
        "flatline_node_1h",
        (
            ("cpu_busy_ratio_mean", "mean"),
            ("cpu_busy_ratio_p95", "max"),
            ("memory_available_bytes_min", "min"),
            ("vms_max", "max"),
        ),
        days=90,
        group_by=("node",),
        every_s=DAY_S,
    ),
    _usual(
        "When will a pool be full? Size and free bytes of each, by day, over 90 days",
        "flatline_pool_1h",
        (("capacity_bytes_max", "max"), ("available_bytes_min", "min")),
        days=90,
        group_by=("pool",),
        every_s=DAY_S,
    ),
    _usual(
        "How slow is each pool? Latency by node and hour, last week",
        "flatline_pool_1h",
        (("latency_s_mean", "mean"), ("latency_s_p99", "max")),
        days=7,
        group_by=("pool", "node"),
        every_s=3600,
    ),
    _usual(
        "What was the forecast for a VM, half an hour ahead?",
        "flatline_forecast",
        (("mean", "mean"), ("lo90", "min"), ("hi90", "max")),
        days=1,
        where={"vm": EXAMPLE_VM, "metric": "cpu_cores", "horizon_s": "1800"},
        every_s=300,
    ),
    _usual(
        "How far was each VM from its expected values? Worst minute of the last day",
        "flatline_score",
        (("worst_z", "max"), ("cpu_cores", "mean"), ("cpu_cores_expected", "mean")),
        days=1,
        group_by=("vm",),
    ),
    _usual(
        "How many alerts were there, by kind and day?",
        "flatline_alert",
        (("confidence", "count"),),
        days=30,
        where={"state": "firing"},
        group_by=("kind",),
        every_s=DAY_S,
    ),
    _usual(
        "Which actions were taken on one VM, and why?",
        "flatline_action",
        (("sentence", ""),),
        days=30,
        where={"subject": EXAMPLE_VM},
        group_by=("kind",),
    ),
    _usual(
        "What are the name, tenant and size of each VM?",
        "flatline_vm_info",
        (("name", "last"), ("tenant", "last"), ("flavor", "last"), ("memory_bytes", "last")),
        days=1,
        group_by=("vm",),
    ),
    _usual(
        "How much capacity is left? The last capacity report",
        "flatline_capacity",
        (("remaining_ratio", "last"), ("days_to_full", "last"), ("days_to_full_low", "last")),
        days=1,
        group_by=("scope", "subject", "resource"),
    ),
    _usual(
        "How much have the disks of each VM written? Raw counters, with the names of Telegraf",
        "libvirt_block",
        (("wr_bytes", "min"), ("wr_bytes", "max")),
        days=1,
        group_by=("vm",),
    ),
)
