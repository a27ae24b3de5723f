"""A dataset as the records in its site's log: frames, owners' control commands and ticks.

Every host is a node with its own collector; all nodes form one cell. The values that a collector
reads from a hypervisor are derived from the dataset's columns:

===========================  ====================================================================
engine (`wire.metrics`)      dataset
===========================  ====================================================================
cpu_time_ns                  sum of `cpu_pct` / 100 × ncpu × time, or growth of `cpu_time_ns`
block_rd_bytes, _wr_bytes    sum of `disk_*_kbs` × 1024 × time, or growth of `disk_*_bytes`
net_rx_bytes, net_tx_bytes   sum of `net_*_kbs` × 1024 × time, or growth of `net_*_bytes`
balloon_rss_kib              `mem_active_mb` × 1024, or `mem_kb`: memory that the guest uses
vcpus                        `ncpu`
state                        running; shut_off between power_off and power_on while nothing moves
instance                     counts power_on
===========================  ====================================================================

All other columns are missing. A counter grows by rate × time. The time is the number of whole
intervals since the previous frame, which the frame's monotonic clock shows as well: so the engine's
rate is the dataset's, and a zero stays a zero. A VM without a sample keeps its row in the frame
with all values missing, like a VM whose monitor does not answer; from the second such frame on
`monitor_hung` reports it. A host without any sample writes no frame. Where gauges continue after a
gap, the collector counts as restarted, because a gauge holds for one interval only.

In a stream, a collector waits half an interval for the counters of a VM that it saw recently. If
many rows take longer, it waits up to 30 s more, and does so for every frame. So frames stay in
order, and their distances are those of the samples.

A node's busy share is relative to the vCPUs allocated on it, since the number of its cores is
unknown.
"""

from collections.abc import Iterator, Mapping
from typing import Final
from uuid import UUID, uuid5

import numpy as np
from numpy.typing import NDArray

from flatline.connectors.traces.dataset import Dataset, Operation
from flatline.connectors.traces.windows import RATES, Window, WindowCounts
from flatline.engine.errors import SettingsError
from flatline.engine.ports import RecordedFrame
from flatline.engine.wire import metrics
from flatline.engine.wire.frame import Event, Frame, Header, InventoryItem, VmRows
from flatline.engine.wire.metrics import INTEGER_ROW, VM_STATES

SITE: Final = "replay"
ZONE: Final = "replay"
# The namespace of the UUIDs made from the ids of VMs; it is arbitrary and must never change.
_NAMES: Final = UUID("6c6f1a4e-3c8e-5a6b-9b0d-0f1a7c2e4d11")
_MEMORY: Final = RATES.index("memory_bytes")
# By rate: the counter that it adds to, and the factor from the unit of the rate to the counter's.
_COUNTED: Final = {
    "cpu_cores": ("cpu_time_ns", 1e9),
    "disk_read_bytes_per_s": ("block_rd_bytes", 1.0),
    "disk_write_bytes_per_s": ("block_wr_bytes", 1.0),
    "net_rx_bytes_per_s": ("net_rx_bytes", 1.0),
    "net_tx_bytes_per_s": ("net_tx_bytes", 1.0),
}
_RATE_ROWS: Final = np.array([RATES.index(name) for name in _COUNTED])
_COUNTER_ROWS: Final = np.array([INTEGER_ROW[name] for name, _ in _COUNTED.values()])
_UNITS: Final = np.array([[unit] for _, unit in _COUNTED.values()])
_RSS: Final = INTEGER_ROW["balloon_rss_kib"]
_STATE: Final = INTEGER_ROW["state"]
_INSTANCE: Final = INTEGER_ROW["instance"]
_VCPUS: Final = INTEGER_ROW["vcpus"]
_RUNNING: Final = VM_STATES.index("running")
_SHUT_OFF: Final = VM_STATES.index("shut_off")
# If frames with gauges are more intervals apart than this, the collector counts as restarted.
_GAP_INTERVALS: Final = 1
_HUNG_FRAMES: Final = 2
# Ticks fill a gap in the log. A gap of years means that a time in the samples or the lifecycle is
# wrong, and its replay would take hours.
_LONGEST_GAP_MS: Final = 366 * 86_400_000
# The empty rows of all ticks and control commands, created once: most records of a small dataset
# are ticks.
_NO_ROWS: Final = VmRows.empty()
# libvirt's events for each operation of the platform. Before a reboot, the owner also announces it
# with a control command.
_REPORTED: Final = {
    "reboot": ("rebooted",),
    "power_off": ("shutdown", "stopped"),
    "power_on": ("started",),
    "live_migration": ("migrated_out", "migrated_in"),
}


class DatasetRecording:
    """`engine.ports.Recording` of a dataset.

    Attributes
    ----------
    counts
        Outcome of the rows read so far.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.counts = WindowCounts()
        self.name = dataset.name
        self.interval_s = dataset.interval_s
        self._uuids = [uuid5(_NAMES, vm.id) for vm in dataset.vms]
        self.names: Mapping[str, str] = {
            str(uuid): vm.id for uuid, vm in zip(self._uuids, dataset.vms, strict=True)
        }

    def figures(self) -> dict[str, int]:
        """Return the outcome of the rows read so far; see `WindowCounts.figures`."""
        return self.counts.figures()

    @property
    def tick_s(self) -> float:
        """Interval of ticks in an idle log: 1 s as on a site, or a tenth of a long `interval_s`."""
        return max(1.0, self.interval_s / 10)

    def recorded_frames(self) -> Iterator[RecordedFrame]:
        """Yield the site's records in the order of their append times.

        Raises
        ------
        SettingsError
            A row of the samples is unusable, or more than a year lies between two records.
        """
        self.counts = WindowCounts()
        clerk = _Clerk(self.dataset, self._uuids)
        tick_ms = round(self.tick_s * 1000)
        time_ms = 0
        for window in self.dataset.windows(self.counts):
            is_hidden = window.follows_late
            for recorded in clerk.recorded_frames(window):
                if time_ms and recorded.time_ms - time_ms > _LONGEST_GAP_MS:
                    raise SettingsError(_gap(self.dataset.name, time_ms, recorded.time_ms))
                if is_hidden and recorded.time_ms > time_ms:
                    # Samples of this gap arrived too late. The gap gets no ticks, only one at its
                    # end, which makes it an outage of the log: so no VM counts as silent.
                    time_ms, is_hidden = recorded.time_ms, False
                    yield clerk.tick(time_ms)
                while time_ms and time_ms + tick_ms < recorded.time_ms:
                    time_ms += tick_ms
                    yield clerk.tick(time_ms)
                time_ms = max(time_ms, recorded.time_ms)
                yield (
                    recorded if recorded.time_ms == time_ms else recorded._replace(time_ms=time_ms)
                )


def _gap(name: str, before_ms: int, after_ms: int) -> str:
    """Return the error message for two consecutive times that are too far apart."""
    return (
        f"{name}: there is no record from t = {before_ms / 1000:.0f} to {after_ms / 1000:.0f}, for "
        f"{(after_ms - before_ms) / _LONGEST_GAP_MS:,.1f} years. One of these times is wrong, in "
        "the samples or in the lifecycle. Correct it, or remove that row."
    )


class _Node:
    """The state of the collector of one host."""

    def __init__(self, name: str, vms: slice) -> None:
        self.name = name
        self.vms = vms
        self.run = 0
        self.sequence = 0
        self.number = -1
        self.roster = b""
        self.reported: NDArray[np.bool_] = np.zeros(vms.stop - vms.start, np.bool_)
        self.events: list[Event] = []


class _Clerk:
    """Writes the frames of one window after the other."""

    def __init__(self, dataset: Dataset, uuids: list[UUID]) -> None:
        size = len(dataset.vms)
        self._dataset = dataset
        self._uuids = [uuid.bytes for uuid in uuids]
        self._nodes = [_Node(name, vms) for name, vms in dataset.hosts]
        self._starts = np.array([node.vms.start for node in self._nodes])
        self._vcpus = np.array([vm.vcpus for vm in dataset.vms], np.float64)
        self._sold = np.add.reduceat(self._vcpus, self._starts)
        self._interval_ns = round(dataset.interval_s * 1e9)
        self._counters = np.zeros((len(_COUNTED), size))
        self._counted = np.full((len(_COUNTED), size), -1, np.int64)
        self._known = np.zeros(size, np.bool_)
        self._absent = np.zeros(size, np.int64)
        self._off = np.zeros(size, np.bool_)
        self._instance = np.ones(size, np.uint64)
        self._operations = list(dataset.operations)
        self._words = 0
        self._ticks = 0

    def recorded_frames(self, window: Window) -> list[RecordedFrame]:
        """Return the frames of one window and the control commands before them, oldest first."""
        ready = self._ready_s(window)
        alive = [index for index, moment_s in enumerate(ready) if np.isfinite(moment_s)]
        found = self._take_operations(max((ready[index] for index in alive), default=0.0))
        integers, missing = self._rows(window)
        busy = np.add.reduceat(np.nan_to_num(window.column("cpu_cores")), self._starts) / self._sold
        for index in alive:
            frame = self._frame(window, index, integers, missing, float(busy[index]))
            found.append(RecordedFrame(round(ready[index] * 1000), frame))
        return sorted(found, key=lambda moment: moment.time_ms)

    def tick(self, time_ms: int) -> RecordedFrame:
        """Return the record that advances the log's time."""
        header = self._header(
            node="engine", role="shell", run="ticks", cell="-", sequence=self._ticks,
            event_time_ns=time_ms * 1_000_000, mono_ns=time_ms * 1_000_000, interval_ms=1000,
        )  # fmt: skip
        self._ticks += 1
        return RecordedFrame(time_ms, Frame(header=header, rows=_NO_ROWS))

    def _ready_s(self, window: Window) -> list[float]:
        """Return for each host when its collector had all expected samples; inf if none came."""
        arrived = np.where(window.present, window.arrived_s, -np.inf)
        last = np.maximum.reduceat(arrived, self._starts)
        if self._dataset.is_stream:
            waits = np.logical_or.reduceat(window.expected & ~window.present, self._starts)
            until_s = window.start_s + window.patience_s
            waits |= window.has_late
            last = np.where(waits & np.isfinite(last), np.maximum(last, until_s), last)
        return [float(moment_s) if np.isfinite(moment_s) else np.inf for moment_s in last]

    def _rows(self, window: Window) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
        """Return the columns of all VMs: values, and where they are missing."""
        size = len(self._vcpus)
        present = window.present
        rates = window.values[_RATE_ROWS]
        self._counters[:, window.restarted] = 0.0
        steps = np.where(self._counted < 0, 1, window.number - self._counted)
        grown = np.nan_to_num(rates) * _UNITS * steps * window.interval_s
        # A counter that restarted has a value, although its rate is not known.
        measured = window.measured[_RATE_ROWS]
        self._counters += grown
        self._counted[measured] = window.number
        self._known |= present
        moves = (np.nan_to_num(rates) > 0).any(axis=0)
        missing = np.ones((len(metrics.INTEGERS), size), np.bool_)
        integers = np.zeros(missing.shape, np.uint64)
        missing[_COUNTER_ROWS] = ~measured
        integers[_COUNTER_ROWS] = np.where(measured, np.rint(self._counters), 0.0)
        memory = window.values[_MEMORY]
        missing[_RSS] = np.isnan(memory)
        integers[_RSS] = np.rint(np.nan_to_num(memory) / 1024.0)
        for row, value in (
            (_STATE, np.where(self._off & ~moves, _SHUT_OFF, _RUNNING)),
            (_INSTANCE, self._instance),
            (_VCPUS, self._vcpus),
        ):
            missing[row] = ~present
            integers[row] = np.where(present, value, 0)
        return integers, missing

    def _frame(
        self,
        window: Window,
        index: int,
        integers: NDArray[np.uint64],
        missing: NDArray[np.bool_],
        busy: float,
    ) -> Frame:
        node = self._nodes[index]
        here = node.vms
        known = self._known[here]
        inventory: tuple[InventoryItem, ...] = ()
        columns: slice | NDArray[np.intp] = here
        if not known.all():
            columns = here.start + np.flatnonzero(known)
        roster = node.roster
        if len(roster) != 16 * int(known.sum()):
            lanes = here.start + np.flatnonzero(known)
            roster = node.roster = b"".join(self._uuids[index] for index in lanes)
            inventory = tuple(self._item(int(index)) for index in lanes)
        if not self._dataset.is_stream and window.number - node.number > _GAP_INTERVALS:
            node.run += 1
            node.sequence = 0
        node.number = window.number
        self._note_hung(window, node, known)
        rows = VmRows(
            uuids=roster,
            integers=integers[:, columns],
            missing=missing[:, columns],
            gauges=np.full((len(metrics.GAUGES), len(roster) // 16), np.nan, np.float32),
        )
        header = self._header(
            node=node.name,
            role="collector",
            run=f"run-{node.run}",
            cell=self._dataset.name,
            sequence=node.sequence,
            event_time_ns=round(float(np.nanmax(window.time_s[here])) * 1e9),
            mono_ns=window.number * self._interval_ns,
            interval_ms=round(window.interval_s * 1000),
        )
        node.sequence += 1
        events, node.events = tuple(node.events), []
        gauges = {"hypervisor_reachable": 1.0, "cpu_busy_ratio": busy}
        return Frame(header=header, rows=rows, events=events, inventory=inventory, node=gauges)

    def _note_hung(self, window: Window, node: _Node, known: NDArray[np.bool_]) -> None:
        """Report the VMs whose monitor stopped answering or answers again."""
        here = node.vms
        # Check only the VMs of this node: checking all VMs for each node would be quadratic.
        silent = known & np.isnan(window.time_s[here])
        absent = self._absent[here]
        absent[...] = np.where(silent, absent + 1, 0)
        hung = absent >= _HUNG_FRAMES
        if not (hung != node.reported).any():
            return
        for kind, lanes in (
            ("monitor_hung", hung & ~node.reported),
            ("monitor_back", node.reported & ~hung),
        ):
            for index in np.flatnonzero(lanes):
                self._note(node, kind, here.start + int(index), window.start_s)
        node.reported = hung

    def _note(self, node: _Node, kind: str, vm: int, time_s: float) -> None:
        self._words += 1
        node.events.append(
            Event(
                id=f"event-{self._words}",
                kind=kind,
                time_ns=round(time_s * 1e9),
                vm=self._uuids[vm],
            )
        )

    def _take_operations(self, until_s: float) -> list[RecordedFrame]:
        """Add libvirt's events of operations until `until_s`; return the records of the owner."""
        found = []
        while self._operations and self._operations[0].time_s <= until_s:
            operation = self._operations.pop(0)
            node = next(n for n in self._nodes if n.vms.start <= operation.vm < n.vms.stop)
            for kind in _REPORTED[operation.name]:
                self._note(node, kind, operation.vm, operation.time_s)
            if operation.name == "reboot":
                found.append(self._owner_reboot(operation))
            elif operation.name in {"power_off", "power_on"}:
                is_on = operation.name == "power_on"
                self._off[operation.vm] = not is_on
                self._instance[operation.vm] += np.uint64(is_on)
        return found

    def _owner_reboot(self, operation: Operation) -> RecordedFrame:
        self._words += 1
        time_ns = round(operation.time_s * 1e9)
        header = self._header(
            node="platform", role="owner", run=f"word-{self._words}", cell=self._dataset.name,
            sequence=0, event_time_ns=time_ns, mono_ns=time_ns, interval_ms=1000,
        )  # fmt: skip
        word = Event(
            id=f"word-{self._words}",
            kind="owner_reboot",
            time_ns=time_ns,
            vm=self._uuids[operation.vm],
        )
        frame = Frame(header=header, rows=_NO_ROWS, events=(word,))
        return RecordedFrame(time_ns // 1_000_000, frame)

    def _header(self, **fields: object) -> Header:
        return Header(site=SITE, zone=ZONE, **fields)  # type: ignore[arg-type]  # checked by msgspec

    def _item(self, index: int) -> InventoryItem:
        vm = self._dataset.vms[index]
        return InventoryItem(
            vm=self._uuids[index],
            name=vm.id,
            # A recorded VM has no owner. One tenant for all VMs and one group for each VM make the
            # modes and limits of a policy apply to the VM.
            tenant=self._dataset.name,
            group=vm.id,
            actionable=True,
            vcpus=vm.vcpus,
            memory_bytes=vm.memory_bytes,
        )
