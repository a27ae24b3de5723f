"""State of one cell: nodes, VMs, incidents and common causes.

A cell is the unit of state and the scope of common causes. All state consists of values: arrays
(`VmTable`) and msgspec Structs. A snapshot stores them as they are.
"""

from collections.abc import Collection

import msgspec

from flatline.engine.detection.vm_table import VmTable, without
from flatline.engine.wire.alert import Alert, SamplePosition
from flatline.engine.wire.frame import InventoryItem, PoolSample
from flatline.engine.wire.runs import Runs
from flatline.models.half_space_trees import HalfSpaceForest


class ReportedAction(msgspec.Struct):
    """An action that the agent reported for a VM; `time_ms` is the append time of the report."""

    incident: str
    step: int
    action: str
    phase: str  # sent, returned or unknown
    time_ms: int
    dry_run: bool = False


class Vm(
    msgspec.Struct,
    rename={
        "inhibitions": "holds",
        "reported": "told",
        "reported_ms": "told_ms",
        "left_by_command": "left_by_word",
        "reported_action": "mark",
    },
):
    """Definition, reports and recent events of one VM.

    Attributes
    ----------
    inhibitions
        Reason → append time (ms) until which this reason explains a silence of the VM; -1 means
        until an event ends it.
    maintenance_ms
        Time of the owner's latest maintenance command, by the owner's clock.
    reported
        Report that the guest died in this boot epoch: panicked or crashed; empty for none.
        `reported_ms` is the time of the last report by the cell's clock (`Cell.passed_ms`).
    said
        Kind of a weaker report (watchdog, agent_silent, console_panic) → time of the last one, by
        the node's wall clock in ms.
    probe_answered_ms, probe_silent_ms, agent_answered_ms
        Time of its last answer to a probe, of the report that it no longer answers probes, and of
        the last answer of its guest agent, by the node's wall clock in ms; 0 is never.
    rebooted_ms
        Append time of the last reboot, 0 for never. `reboot_pending` means that
        `check_reboots` has not judged it yet.
    gone_ms, gone_position
        Append time at which the VM left its node's roster, 0 while it is listed. The position is
        that of the first frame without it, or of the last report that its QEMU monitor hangs.
    missed_ms
        Append time at which the VM last had no sample for long although its node reported, 0 for
        never.
    offers
        Inventory items of other nodes that list the VM, by node. An item applies when that node
        becomes the owner.
    arrivals
        How the VM came to another node, by node: "started" or "migrated_in".
    former
        The node that ran it before this one.
    twice, twice_ms
        Key of another node that runs the VM at the same time, and append time since which it does.
    known_ms
        Append time at which a record first named the VM, if it was named before its first sample.
    """

    uuid: bytes
    node: str
    name: str = ""
    tenant: str | None = None
    group: str | None = None
    actionable: bool = False
    memory_bytes: int | None = None
    vcpus: int | None = None
    pools: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    panic_device: bool = False
    balloon_period_s: int = 0
    inhibitions: dict[str, int] = {}
    maintenance_ms: int = 0
    reported: str = ""
    reported_ms: int = 0
    said: dict[str, int] = {}
    probe_answered_ms: int = 0
    probe_silent_ms: int = 0
    agent_answered_ms: int = 0
    watchdog: bool = False
    guest_agent: bool = False
    rebooted_ms: int = 0
    reboot_pending: bool = False
    reboot_position: SamplePosition | None = None
    reboot_event_ms: int = 0
    silent_at_reboot: bool = False
    gone_ms: int = 0
    gone_position: SamplePosition | None = None
    left_by_command: bool = False
    monitor_hung_ms: int = 0
    missed_ms: int = 0
    reported_action: ReportedAction | None = None
    offers: dict[str, InventoryItem] = {}
    arrivals: dict[str, str] = {}
    former: str = ""
    twice: str = ""
    twice_ms: int = 0
    known_ms: int = 0

    def inhibited_by(self, time_ms: int) -> list[str]:
        """Return the reasons that explain a silence at `time_ms` (append time), sorted."""
        return sorted(
            reason
            for reason, until_ms in self.inhibitions.items()
            if until_ms < 0 or time_ms < until_ms
        )


class Incident(msgspec.Struct, rename={"reported_action": "mark"}):
    """One fault from opening to end, with the last published alert.

    Attributes
    ----------
    alert
        As last published; its id never changes.
    well_ms
        Append time since which the subject is healthy again, 0 while it is not. For a notice: the
        append time of its last cause.
    reported_action
        Action that was run on the VM for this incident, None for none.
    flaps
        Number of times the fault returned after it was resolved.
    other_ms
        Append time since which another kind than the published one is detected, 0 while it is not.
    """

    alert: Alert
    published_ms: int
    well_ms: int = 0
    reported_action: ReportedAction | None = None
    flaps: int = 0
    other_ms: int = 0


class SampleGap(msgspec.Struct, frozen=True):
    """A sample gap of a node: the last sample before it, and its length."""

    position: SamplePosition
    event_ms: int
    lasted_s: float


class Node(msgspec.Struct, rename={"gap": "hole"}):
    """One node as its collector reports it, or one further part of a node too large for a frame.

    Attributes
    ----------
    key
        Key in the cell: the name, or `name#part`.
    run, sequence, mono_ns
        Run, sequence and monotonic time of the last folded frame; `former_run` is the run before.
    runs
        Selects one of several collectors that report as this node.
    seen_ms
        Time of the last frame by the cell's clock (`Cell.passed_ms`).
    data_ms
        Append time of the last folded frame, which may have waited before it was folded; 0 for
        none.
    lag_ms
        Usual difference between append time and event time of a frame, over all runs: clock offset
        of the node plus transport time.
    stale
        Whether the last frame took much longer than `lag_ms`, so that its data is old.
    stepped_ms, step_ms
        Append time and size of the last step of the node's wall clock; 0 for never.
    gap
        Gap between its last two samples, None where the interval was as usual.
    """

    name: str
    key: str = ""
    run: str = ""
    former_run: str = ""
    sequence: int = -1
    mono_ns: int = 0
    event_ms: int = 0
    interval_ms: int = 1000
    dt_s: float = 0.0
    seen_ms: int = 0
    silent: bool = False
    lag_ms: int = 0
    stale: bool = False
    gauges: dict[str, float] = {}
    pools: tuple[PoolSample, ...] = ()
    busy_since_ms: int = 0
    stepped_ms: int = 0
    step_ms: int = 0
    runs: Runs = msgspec.field(default_factory=Runs)
    data_ms: int = 0
    gap: SampleGap | None = None

    def position(self, sequence: int | None = None) -> SamplePosition:
        """Return the position of a sample of the current run; `sequence` None is the last one."""
        return SamplePosition(
            node=self.name,
            role="collector",
            run=self.run or "-",
            sequence=self.sequence if sequence is None else sequence,
        )


class CommonCause(msgspec.Struct):
    """A common cause: the reason for a silence that many VMs share.

    `signal` is the signal that stopped: "disk", "tx" or "life". `members` are all VMs that the
    cause may explain. `fell` are the members that fell silent; the cause ends when most of them
    move again. `onset_ms` is event time.
    """

    scope: str
    subject: str
    signal: str
    members: tuple[bytes, ...]
    fell: tuple[bytes, ...]
    incident: str
    since_ms: int
    onset_ms: int
    released_ms: int = 0


class OutOfOrder(msgspec.Struct):
    """Lateness of frames that arrive out of order, in the current and the previous period.

    A period is `overtaken_window_s` long. The lateness of a frame that closes a sequence gap is the
    append time since the first frame after the gap. Only the log's clock is used. The lateness is 0
    where frames arrive in order, even if all of them are late. Of each period the second largest
    value counts, because a single frame that was sent again does not mean that order is lost.
    """

    most_ms: int = 0
    now_ms: int = 0
    before_ms: int = 0
    since_ms: int = 0

    @property
    def late_ms(self) -> int:
        """The time in ms for which a missing frame may still arrive."""
        return max(self.now_ms, self.before_ms)

    def take(self, gap_ms: int) -> None:
        """Record the time that a gap took to close."""
        self.now_ms = max(self.now_ms, min(gap_ms, self.most_ms))
        self.most_ms = max(self.most_ms, gap_ms)

    def turn(self, time_ms: int, window_ms: int) -> None:
        """Start a new period if the current one is over; drop data older than two periods.

        `time_ms` is append time, and `window_ms` the length of a period.
        """
        if time_ms - self.since_ms >= window_ms:
            self.before_ms, self.now_ms, self.most_ms = self.now_ms, 0, 0
            self.since_ms = time_ms


class CellCounts(msgspec.Struct, rename={"windows": "slots"}):
    """Counts of one cell, for metrics and the minute scores."""

    windows: int = 0
    alerts: int = 0
    minute_ms: int = 0


class Cell:
    """All state of one cell.

    Every VM in `tables` is in `vms`, and every key of `tables` is in `nodes`. Code that removes one
    of them must remove all references to it (`forget_vms`).

    Attributes
    ----------
    departed
        Learned state of VMs that left their node; the target of a migration takes it over.
    watched
        VMs that every window examines for another reason than their counters: a reboot, an action,
        an absence.
    forgets
        Scope and name of each subject that an owner wants forgotten; cleared when the window
        closes.
    reported, round_ms, closed_ms
        Nodes that reported in the open window, append time of the first of these reports, and
        append time at which the last window closed.
    beyond
        Nodes that have no sample for the open window: their next sample waits for a later one.
    passed_ms
        Append time that passed while the log was available (`Partition.passed_ms`).
    outage_ms
        Time until which an outage of the log still forbids suggestions.
    disturbed_ms
        Time until which collectors count as disturbed: many VMs on several nodes lack samples.
    ahead
        Frames by node that wait while this window is judged; decoded on demand.
    out_of_order
        Lateness of frames, learned from sequence gaps that closed.
    """

    def __init__(self, name: str, *, site: str, zone: str, forest: HalfSpaceForest) -> None:
        self.name = name
        self.forest = forest
        self.site = site
        self.zone = zone
        self.nodes: dict[str, Node] = {}
        self.tables: dict[str, VmTable] = {}
        self.departed = VmTable(b"")
        self.vms: dict[bytes, Vm] = {}
        self.incidents: dict[str, Incident] = {}
        self.common_causes: dict[str, CommonCause] = {}
        self.counts = CellCounts()
        self.reported: set[str] = set()
        self.beyond: set[str] = set()
        self.round_ms = 0
        self.closed_ms = 0
        self.passed_ms = 0
        self.outage_ms = 0
        self.disturbed_ms = 0
        self.out_of_order = OutOfOrder()
        # Derived from waiting frames; set before each window is judged.
        self.ahead: dict[str, list[bytes]] = {}
        self.watched: set[bytes] = set()
        self.forgets: list[tuple[str, str]] = []
        # Set with each record: whether its append time is not accepted as the log clock.
        self.is_unsure = False
        # Keys of the live nodes and their longest interval: a cache that every record reads. It is
        # derived from `nodes` and reset when they change.
        self._live: tuple[set[str], int] | None = None

    def locate(self, vm: bytes) -> tuple[Node, VmTable, int] | None:
        """Return the node, VM table and row (from 0) of a VM; None if no node has reported it."""
        known = self.vms.get(vm)
        if known is None:
            return None
        table = self.tables.get(known.node)
        if table is None or vm not in table.indices:
            return None
        return self.nodes[known.node], table, table.indices[vm]

    def forget_vms(self, vms: Collection[bytes]) -> None:
        """Drop VMs and their learned state, also from the roster of a silent node."""
        for vm in vms:
            self.vms.pop(vm, None)
            self.watched.discard(vm)
        for key, table in self.tables.items():
            if not table.indices.keys().isdisjoint(vms):
                self.tables[key] = without(table, vms)

    def is_empty(self) -> bool:
        """Return whether the cell has no state left."""
        return not (self.nodes or self.vms or self.incidents or self.forgets)

    def drop_node(self, key: str) -> None:
        """Drop a node, or a part of one, whose VMs were dropped or run elsewhere."""
        del self.nodes[key]
        del self.tables[key]
        self.reported.discard(key)
        self.beyond.discard(key)
        self.nodes_changed()

    def interval_ms(self) -> int:
        """Return the longest sampling interval of the cell's live nodes; 1000 if it has none."""
        return self._look_up()[1]

    def all_reported(self) -> bool:
        """Return whether every live node has reported in this window, or has no sample for it."""
        live = self._look_up()[0]
        if self.beyond:
            return live <= self.reported | self.beyond
        return len(live) <= len(self.reported) and live <= self.reported

    def nodes_changed(self) -> None:
        """Reset the cache of live nodes after a node fell silent or returned."""
        self._live = None

    def samples_every(self, node: Node, interval_ms: int) -> None:
        """Update the cache with a live node's new interval, before the node stores it.

        Nodes register one by one. A scan of all nodes for each would take quadratic time.
        """
        if self._live is None:
            return
        keys, longest_ms = self._live
        was_longest = node.interval_ms >= longest_ms
        if node.silent or not keys or (was_longest and interval_ms < node.interval_ms):
            self._live = None
            return
        keys.add(node.key)
        self._live = keys, max(longest_ms, interval_ms)

    def _look_up(self) -> tuple[set[str], int]:
        if self._live is None:
            live = {key: node.interval_ms for key, node in self.nodes.items() if not node.silent}
            self._live = set(live), max(live.values(), default=1000)
        return self._live
