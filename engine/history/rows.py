"""Records of the log as rows of the history, each converted independently, without state."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Final
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from flatline.engine.errors import RecordRejected
from flatline.engine.ports import Record
from flatline.engine.wire.alert import decode_alert
from flatline.engine.wire.forecast import decode_forecasts
from flatline.engine.wire.frame import InventoryItem, PoolSample, VmRows, uuids_of
from flatline.engine.wire.journal import decode_entry
from flatline.engine.wire.measurement import ACTION, ALERT, FORECAST, INFO, NODE_FIELDS, SCORE
from flatline.engine.wire.metrics import GAUGE_ROW, INTEGER_ROW
from flatline.engine.wire.points import MISSING, Column, Points, Series, known_integers
from flatline.engine.wire.score import decode_scores

_MIB: Final = 1 << 20
_MOST_DIRTY: Final = 2.0**60
_MS: Final = 1_000_000
# Telegraf's measurement and field for each integer of a frame.
_TELEGRAF: Final[dict[str, dict[str, str]]] = {
    "libvirt_cpu": {"cpu_time": "cpu_time_ns", "user": "cpu_user_ns", "system": "cpu_system_ns"},
    "libvirt_vcpu_total": {"current": "vcpus"},
    "libvirt_vcpu": {"wait": "vcpu_wait_ns", "delay": "vcpu_delay_ns"},
    "libvirt_block": {
        f"{way}_{field}": f"block_{way}_{column}"
        for way, fields in {
            "rd": ("reqs", "bytes", "times"),
            "wr": ("reqs", "bytes", "times"),
            "fl": ("reqs", "times"),
        }.items()
        for field, column in {"reqs": "reqs", "bytes": "bytes", "times": "ns"}.items()
        if field in fields
    },
    "libvirt_net": {
        f"{way}_{field}": f"net_{way}_{field}"
        for way in ("rx", "tx")
        for field in ("bytes", "pkts", "errs", "drop")
    },
    "libvirt_balloon": {
        "current": "balloon_current_kib",
        "rss": "balloon_rss_kib",
        "usable": "balloon_usable_kib",
        "major_fault": "balloon_major_faults",
        "last_update": "balloon_last_update_s",
    },
    "libvirt_state": {"state": "state"},
}
# Telegraf's tag for the device, by measurement. Frames hold only sums over all devices of a VM, so
# the value of the tag is always `_TOTAL`.
_DEVICE: Final = {
    "libvirt_vcpu": "vcpu_id",
    "libvirt_block": "block_id",
    "libvirt_net": "interface_id",
}
_TOTAL: Final = "total"
_BANDS: Final = frozenset(field.name for field in FORECAST.fields if field.kind == "float")


def vm_texts(uuids: bytes) -> tuple[str, ...]:
    """Return the UUIDs of a roster, 16 bytes each, as texts in the same order."""
    return tuple(str(UUID(bytes=vm)) for vm in uuids_of(uuids))


def telegraf_series(
    vms: Sequence[str], *, cell: str, node: str, names: Mapping[str, str]
) -> dict[str, Series]:
    """Return the tags of a roster by the name of each of Telegraf's measurements.

    Parameters
    ----------
    vms
        UUID texts, in the order of the roster.
    names
        VM names by UUID text. A VM without a name has its UUID text as `domain_name`.
    """
    size = len(vms)
    tags = {
        "cell": [cell] * size,
        "host": [node] * size,
        "vm": vms,
        "domain_name": [names.get(vm, vm) for vm in vms],
    }
    plain = Series(tags)
    series = dict.fromkeys((*_TELEGRAF, "libvirt_dirtyrate"), plain)
    for measurement, tag in _DEVICE.items():
        series[measurement] = Series(tags | {tag: [_TOTAL] * size})
    return series


def telegraf_points(
    rows: VmRows, series: Mapping[str, Series], times: NDArray[np.int64]
) -> tuple[list[Points], int]:
    """Return a frame's counters under Telegraf's names, and how many are beyond int64.

    Such counters count as unknown. `series` is as `telegraf_series` returns it for the same roster;
    `times` has shape (len(rows),), in ns since the epoch.
    """
    columns, beyond = known_integers(rows.integers, rows.present())
    points = [
        Points(
            measurement,
            series[measurement],
            times,
            {field: columns[INTEGER_ROW[column]] for field, column in fields.items()},
        )
        for measurement, fields in _TELEGRAF.items()
    ]
    dirty = rows.gauges[GAUGE_ROW["dirty_bytes_per_s"]].astype(np.float64)
    # No memory is written at 2^60 bytes/s: such a rate counts as not measured, like NaN.
    known = np.abs(dirty) < _MOST_DIRTY
    if known.any():
        mib = np.where(known, np.rint(np.where(known, dirty, 0.0) / _MIB), 0.0).astype(np.int64)
        mib[~known] = MISSING
        rate = {"megabytes_per_second": mib}
        points.append(Points("libvirt_dirtyrate", series["libvirt_dirtyrate"], times, rate))
    return points, beyond


def node_values(node: Mapping[str, float], *, vms: int) -> NDArray[np.float64]:
    """Return a node's gauges, shape (len(NODE_FIELDS), 1), NaN where not measured.

    `node` has gauges by name, as in a frame; `vms` is the number of VMs on the node.
    """
    known = {**node, "vms": float(vms)}
    return np.array([[known.get(field.name, np.nan)] for field in NODE_FIELDS])


def pool_values(pools: Sequence[PoolSample]) -> NDArray[np.float64]:
    """Return the pools' values, shape (len(POOL_METRICS), pools), NaN where not measured."""
    table = [(pool.capacity_bytes, pool.available_bytes, pool.latency_s) for pool in pools]
    return np.array(table, np.float64).reshape(-1, 3).T


def info_points(
    inventory: Sequence[InventoryItem], *, cell: str, node: str, time_ns: int
) -> Points | None:
    """Return the rows of an inventory; None where it lists no VM.

    `time_ns` is the time of the rows, in ns since the epoch.
    """
    if not inventory:
        return None
    size = len(inventory)
    series = Series(
        {
            "cell": [cell] * size,
            "node": [node] * size,
            "vm": [str(UUID(bytes=item.vm)) for item in inventory],
        }
    )
    return Points.of(
        INFO.name,
        series,
        [time_ns] * size,
        {
            "name": [item.name for item in inventory],
            "tenant": [item.tenant for item in inventory],
            "group": [item.group for item in inventory],
            "flavor": [item.flavor for item in inventory],
            "vcpus": _integers([item.vcpus for item in inventory]),
            "memory_bytes": _integers([item.memory_bytes for item in inventory]),
        },
    )


def alert_points(record: Record) -> list[Points]:
    """Return the row of an alert.

    Raises
    ------
    RecordRejected
        The record is not an alert.
    """
    alert = decode_alert(record.value)
    tags = {
        "cell": alert.cell,
        "kind": alert.kind,
        "scope": alert.scope,
        "state": alert.state,
        "subject": alert.subject,
    }
    fields: dict[str, Column] = {
        "id": [alert.id],
        "severity": [alert.severity],
        "confidence": np.array([alert.confidence], np.float64),
        "onset_ms": _integers([alert.onset_ms]),
        "opened_ms": _integers([alert.opened_ms]),
        "suggested_action": [alert.suggested_action],
        "node": [alert.node],
        "name": [alert.name],
        "tenant": [alert.tenant],
        "sentence": [alert.sentence],
    }
    return [Points.of(ALERT.name, _one(tags), [_moment_ns(record, alert.decided_ms)], fields)]


def action_points(record: Record) -> list[Points]:
    """Return the row of a journal entry.

    Raises
    ------
    RecordRejected
        The record is not an entry.
    """
    entry = decode_entry(record.value)
    tags = {"cell": entry.cell or "", "kind": entry.kind, "subject": entry.vm or ""}
    fields: dict[str, Column] = {
        "sentence": [entry.sentence],
        "incident": [entry.incident],
        "step": _integers([entry.step]),
        "writer": [entry.writer],
        "sequence": _integers([entry.sequence]),
    }
    return [Points.of(ACTION.name, _one(tags), [_moment_ns(record, entry.time_ms)], fields)]


def score_points(record: Record) -> list[Points]:
    """Return the rows of a scored minute.

    Raises
    ------
    RecordRejected
        The record is not a scored minute.
    """
    scores = decode_scores(record.value)
    vms = vm_texts(scores.uuids)
    if len(scores.classes) != len(vms):
        raise RecordRejected("malformed", f"{len(scores.classes)} classes for {len(vms)} VMs")
    declared = {field.name for field in SCORE.fields}
    known: dict[str, Column] = {
        name: column.astype(np.float64)
        for name, column in zip(scores.features, scores.matrix(), strict=True)
        if name in declared  # scores of a later release may have further features
    }
    series = Series({"cell": [scores.cell] * len(vms), "vm": vms})
    times = np.full(len(vms), scores.minute_ms * _MS, np.int64)
    return [Points.of(SCORE.name, series, times, {**known, "class": list(scores.classes)})]


def forecast_points(record: Record) -> list[Points]:
    """Return the forecasts of a node and its VMs; the time of a row is the time it predicts.

    Raises
    ------
    RecordRejected
        The record holds no forecasts.
    """
    forecasts = decode_forecasts(record.value)
    vms = vm_texts(forecasts.uuids)
    values = forecasts.vms()
    own = forecasts.own()
    if own is not None:
        vms, values = ("", *vms), np.concatenate([own[np.newaxis], values])
    if not vms:
        return []
    size = len(vms)
    points = []
    for metric, horizon in product(range(values.shape[1]), range(values.shape[2])):
        bands = values[:, metric, horizon].astype(np.float64)
        series = Series(
            {
                "cell": [forecasts.cell] * size,
                "horizon_s": [str(forecasts.horizons_s[horizon])] * size,
                "metric": [forecasts.metrics[metric]] * size,
                "node": [forecasts.node] * size,
                "vm": vms,
            }
        )
        at_ns = (forecasts.time_ms + forecasts.horizons_s[horizon] * 1000) * _MS
        fields: dict[str, Column] = {
            band: bands[:, place] for place, band in enumerate(forecasts.bands) if band in _BANDS
        }
        known = np.isfinite(bands).any(axis=1)
        fields["made_ms"] = np.where(known, forecasts.time_ms, MISSING)
        points.append(Points.of(FORECAST.name, series, [at_ns] * size, fields))
    return points


def node_series(*, cell: str, node: str) -> Series:
    """Return the tags of a node's own rows."""
    return Series({"cell": [cell], "node": [node]})


def pool_series(names: Sequence[str], *, cell: str, node: str) -> Series:
    """Return the tags of the pools that a node sees."""
    return Series({"cell": [cell] * len(names), "node": [node] * len(names), "pool": names})


def _one(tags: Mapping[str, str]) -> Series:
    return Series({name: (value,) for name, value in tags.items()})


def _integers(values: Sequence[int | None]) -> NDArray[np.int64]:
    limit = 2**63
    return np.array(
        [MISSING if value is None or not -limit < value < limit else value for value in values],
        np.int64,
    )


def _moment_ns(record: Record, time_ms: int) -> int:
    """Return `time_ms` in ns; the record's offset fills the last six digits and makes it unique."""
    return time_ms * _MS + record.offset % _MS
