"""Schema of the history: every measurement, tag and field, with its unit and meaning.

Rows, buckets and the documentation for planners are all generated from this list. Raw counters have
Telegraf's names (`inputs.libvirt`), so that existing dashboards continue to work. All other names
begin with `flatline_`. No tag has an unbounded number of values.
"""

from typing import Final, Literal, NamedTuple

from flatline.engine.wire.metrics import NODE_METRICS
from flatline.engine.wire.score import FEATURES

Kind = Literal["float", "integer", "text"]
# `raw` keeps samples for a week, `minute` keeps minutes for a month, and `long` keeps hours and
# events for more than a year.
Bucket = Literal["raw", "minute", "long"]

DAY_S: Final = 86_400
RETENTION_S: Final[dict[Bucket, int]] = {
    "raw": 7 * DAY_S,
    "minute": 30 * DAY_S,
    "long": 400 * DAY_S,
}


class Field(NamedTuple):
    """One field of a row; it is absent where it is unknown."""

    name: str
    kind: Kind
    unit: str
    meaning: str


class Measurement(NamedTuple):
    """Rows of one kind. Tags and time identify a row; writing it again replaces it."""

    name: str
    bucket: Bucket
    tags: tuple[str, ...]
    fields: tuple[Field, ...]
    meaning: str


TAGS: Final = {
    "vm": "UUID of the VM",
    "cell": "cell in which it was measured",
    "node": "node on which it was measured",
    "host": "the same under Telegraf's name",
    "domain_name": "name of the VM, or its UUID until the inventory arrives; a backslash is "
    "replaced by /",
    "vcpu_id": "always `total`: the sum over all vCPUs",
    "block_id": "always `total`: the sum over all disks",
    "interface_id": "always `total`: the sum over all interfaces",
    "pool": "storage pool",
    "scope": "scope of the row: vm, node, pool, network, zone, cell, site",
    "subject": "UUID of the VM, or name of the node, pool, network, zone, cell or site",
    "kind": "kind of alert, or kind of journal entry",
    "state": "state of the alert",
    "metric": "forecast metric, named as in flatline_vm or flatline_node",
    "horizon_s": "forecast horizon in s",
    "resource": "cpu, memory, disk, ...",
}


def _integers(unit: str, meanings: dict[str, str]) -> tuple[Field, ...]:
    return tuple(Field(name, "integer", unit, text) for name, text in meanings.items())


def _rates(directions: dict[str, str], what: dict[str, str]) -> dict[str, str]:
    return {
        f"{d}_{w}": f"{text} {way}" for d, way in directions.items() for w, text in what.items()
    }


_TELEGRAF: Final = ("cell", "domain_name", "host", "vm")
_OWN: Final = ("cell", "node", "vm")

# The measurements of Telegraf's `inputs.libvirt`; cumulative where stated.
TELEGRAF: Final = (
    Measurement(
        "libvirt_cpu",
        "raw",
        _TELEGRAF,
        _integers(
            "ns",
            {
                # Telegraf's name is `time`, and InfluxDB silently drops a field of that name.
                "cpu_time": "CPU time used, cumulative",
                "user": "of it in qemu's user mode, cumulative",
                "system": "of it in kernel mode, cumulative",
            },
        ),
        "CPU time of a VM",
    ),
    Measurement(
        "libvirt_vcpu_total",
        "raw",
        _TELEGRAF,
        _integers("1", {"current": "virtual CPUs that are online"}),
        "Number of virtual CPUs of a VM",
    ),
    Measurement(
        "libvirt_vcpu",
        "raw",
        (*_TELEGRAF, "vcpu_id"),
        _integers(
            "ns",
            {
                "wait": "time on a run queue, cumulative",
                "delay": "time waited for a core (steal in the guest), cumulative",
            },
        ),
        "Waiting times of the vCPUs of a VM",
    ),
    Measurement(
        "libvirt_block",
        "raw",
        (*_TELEGRAF, "block_id"),
        _integers(
            "1, bytes, ns",
            {
                "rd_reqs": "read requests, cumulative",
                "rd_bytes": "bytes read, cumulative",
                "rd_times": "ns spent reading, cumulative",
                "wr_reqs": "write requests, cumulative",
                "wr_bytes": "bytes written, cumulative",
                "wr_times": "ns spent writing, cumulative",
                "fl_reqs": "flush requests, cumulative",
                "fl_times": "ns spent flushing, cumulative",
            },
        ),
        "Disks of a VM",
    ),
    Measurement(
        "libvirt_net",
        "raw",
        (*_TELEGRAF, "interface_id"),
        _integers(
            "1, bytes",
            _rates(
                {"rx": "received, cumulative", "tx": "sent, cumulative"},
                {"bytes": "bytes", "pkts": "packets", "errs": "errors", "drop": "packets dropped,"},
            ),
        ),
        "Network of a VM",
    ),
    Measurement(
        "libvirt_balloon",
        "raw",
        _TELEGRAF,
        (
            *_integers(
                "KiB",
                {
                    "current": "memory of the guest",
                    "rss": "resident memory of qemu on the node",
                    "usable": "memory that the guest could release, as last reported",
                },
            ),
            Field("major_fault", "integer", "1", "page faults that read a disk, cumulative"),
            Field("last_update", "integer", "s since 1970", "time of the last report of the guest"),
        ),
        "Memory of a VM",
    ),
    Measurement(
        "libvirt_dirtyrate",
        "raw",
        _TELEGRAF,
        _integers("MiB/s", {"megabytes_per_second": "memory written by the guest"}),
        "Dirty rate of a VM",
    ),
    Measurement(
        "libvirt_state",
        "raw",
        _TELEGRAF,
        _integers("virDomainState", {"state": "1 running, 3 paused, 5 shut off, 6 crashed"}),
        "State of a VM",
    ),
)

# VM metrics over the interval that ends at the row's time, in the order of the rows of
# `history_rates.vm_metrics`.
VM_METRICS: Final = (
    Field("cpu_cores", "float", "cores", "CPU used; 1.0 is one core at 100 %"),
    Field("cpu_ratio", "float", "0..1", "CPU used, as a share of all its vCPUs"),
    Field("vcpu_busiest_ratio", "float", "0..1", "CPU requested by the busiest vCPU, in cores"),
    Field("cpu_delay_cores", "float", "cores", "cores waited for: contention on the node (steal)"),
    Field("disk_rd_bytes_per_s", "float", "bytes/s", "read from all disks"),
    Field("disk_wr_bytes_per_s", "float", "bytes/s", "written to all disks"),
    Field("disk_rd_reqs_per_s", "float", "1/s", "read requests"),
    Field("disk_wr_reqs_per_s", "float", "1/s", "write requests"),
    Field("net_rx_bytes_per_s", "float", "bytes/s", "received"),
    Field("net_tx_bytes_per_s", "float", "bytes/s", "sent"),
    Field(
        "memory_used_bytes",
        "float",
        "bytes",
        ("memory of the guest that is not available to its programs"),
    ),
    Field("memory_rss_bytes", "float", "bytes", "resident memory on the node"),
)
NODE_FIELDS: Final = (
    *(
        Field(
            name,
            "float",
            "bytes" if name.endswith("_bytes") else "cores" if name.endswith("_cores") else "0..1",
            f"{name.replace('_', ' ')} of the node",
        )
        for name in NODE_METRICS
    ),
    Field("vms", "float", "1", "VMs reported by the node"),
)
POOL_METRICS: Final = (
    Field("capacity_bytes", "float", "bytes", "size of the pool"),
    Field("available_bytes", "float", "bytes", "free in the pool"),
    Field("latency_s", "float", "s", "mean latency of a request, as measured on the node"),
)

MINUTE_STATISTICS: Final = {
    "count": "samples in the window",
    "mean": "their mean",
    "min": "the smallest",
    "max": "the largest",
    "last": "the last",
}
HOUR_PERCENTILES: Final = (50, 95, 99)
HOUR_STATISTICS: Final = MINUTE_STATISTICS | {
    f"p{rank}": f"exact percentile {rank} (nearest rank)" for rank in HOUR_PERCENTILES
}


def rolled_up(fields: tuple[Field, ...], statistics: dict[str, str]) -> tuple[Field, ...]:
    """Return the fields `FIELD_STATISTIC` of a roll-up of `fields`.

    `statistics` holds the meaning of each statistic by its name, as `MINUTE_STATISTICS` does.
    """
    return tuple(
        Field(
            f"{field.name}_{statistic}",
            "integer" if statistic == "count" else "float",
            "1" if statistic == "count" else field.unit,
            f"{meaning}: {field.meaning}",
        )
        for field in fields
        for statistic, meaning in statistics.items()
    )


def _family(
    name: str, tags: tuple[str, ...], fields: tuple[Field, ...], what: str
) -> tuple[Measurement, Measurement, Measurement]:
    """Return three measurements of one kind: samples, minutes and hours."""
    return (
        Measurement(name, "raw", tags, fields, f"{what}, each sample"),
        Measurement(
            f"{name}_1m",
            "minute",
            tags,
            rolled_up(fields, MINUTE_STATISTICS),
            f"{what}, each minute; its time is when the minute began",
        ),
        Measurement(
            f"{name}_1h",
            "long",
            tags,
            rolled_up(fields, HOUR_STATISTICS),
            f"{what}, each hour; its time is when the hour began",
        ),
    )


VM: Final = _family("flatline_vm", _OWN, VM_METRICS, "Resource use of a VM")
NODE: Final = _family("flatline_node", ("cell", "node"), NODE_FIELDS, "Resource use of a node")
POOL: Final = _family(
    "flatline_pool", ("cell", "node", "pool"), POOL_METRICS, "A storage pool as seen by a node"
)
FAMILIES: Final = (VM, NODE, POOL)

_BAND: Final = (
    Field("mean", "float", "of the metric", "expected value"),
    Field("lo50", "float", "of the metric", "lower end of the 50 % interval"),
    Field("hi50", "float", "of the metric", "upper end of the 50 % interval"),
    Field("lo90", "float", "of the metric", "lower end of the 90 % interval"),
    Field("hi90", "float", "of the metric", "upper end of the 90 % interval"),
)

INFO: Final = Measurement(
    "flatline_vm_info",
    "long",
    _OWN,
    (
        Field("name", "text", "", "name of the VM"),
        Field("tenant", "text", "", "tenant of the VM"),
        Field("group", "text", "", "group of which the VM is a member"),
        Field("flavor", "text", "", "name of its size"),
        Field("vcpus", "integer", "1", "defined number of virtual CPUs"),
        Field("memory_bytes", "integer", "bytes", "defined memory"),
    ),
    "Inventory of a VM",
)
SCORE: Final = Measurement(
    "flatline_score",
    "minute",
    ("cell", "vm"),
    (
        *(Field(name, "float", "see the field name", name.replace("_", " ")) for name in FEATURES),
        Field("class", "text", "", "workload class: idle, steady, busy"),
    ),
    "Expected and actual values of a VM in a minute",
)
ALERT: Final = Measurement(
    "flatline_alert",
    "long",
    ("cell", "kind", "scope", "state", "subject"),
    (
        Field("id", "text", "", "id of the alert, unchanged from its opening to its end"),
        Field("severity", "text", "", "info, warning, error or critical"),
        Field("confidence", "float", "0..1", "confidence of the engine, 0 to 1"),
        Field("onset_ms", "integer", "ms since 1970", "estimated begin of the fault"),
        Field("opened_ms", "integer", "ms since 1970", "when the alert opened"),
        Field("suggested_action", "text", "", "action suggested by the engine"),
        Field("node", "text", "", "node of the VM"),
        Field("name", "text", "", "name of the VM"),
        Field("tenant", "text", "", "tenant of the VM"),
        Field("sentence", "text", "", "sentence of the alert"),
    ),
    "Each published state of each alert; a firing alert is published again every 60 s",
)
ACTION: Final = Measurement(
    "flatline_action",
    "long",
    ("cell", "kind", "subject"),
    (
        Field("sentence", "text", "", "sentence on the decision, refusal, call or effect"),
        Field("incident", "text", "", "id of the alert"),
        Field("step", "integer", "1", "step of the escalation policy"),
        Field("writer", "text", "", "writer of the entry"),
        Field("sequence", "integer", "1", "sequence in the chain of the writer"),
    ),
    "The journal: every decision, refusal, call, outcome and effect",
)
FORECAST: Final = Measurement(
    "flatline_forecast",
    "minute",
    ("cell", "horizon_s", "metric", "node", "vm"),
    (*_BAND, Field("made_ms", "integer", "ms since 1970", "time of the forecast")),
    "Forecasts (Soll) for the time of the row; without `vm` the row is about the node",
)
CAPACITY: Final = Measurement(
    "flatline_capacity",
    "long",
    ("resource", "scope", "subject"),
    (
        Field("usable", "float", "of the resource", "usable amount, without the reserve"),
        Field("used", "float", "of the resource", "used amount"),
        Field("remaining_ratio", "float", "0..1", "remaining usable amount"),
        Field("days_to_full", "float", "days", "expected"),
        Field("days_to_full_low", "float", "days", "conservative bound"),
        Field("days_to_full_high", "float", "days", "aggressive bound"),
        Field("vms_that_fit", "float", "1", "VMs of the usual size that still fit"),
        Field(
            "oversubscription_ratio", "float", "1", "allocated amount divided by existing amount"
        ),
        Field(
            "stranded",
            "float",
            "of the resource",
            ("free, but unusable because its counterpart is used up"),
        ),
    ),
    "The capacity report of pools, nodes, cells and zones",
)

MEASUREMENTS: Final = {
    measurement.name: measurement
    for measurement in (
        *TELEGRAF,
        *VM,
        *NODE,
        *POOL,
        INFO,
        SCORE,
        ALERT,
        ACTION,
        FORECAST,
        CAPACITY,
    )
}
