"""What the engine knows of one cell: nodes, VMs and what was said about them.

A cell is the unit of state and of common causes. Everything here is a value: arrays
(`Lanes`) and msgspec Structs, so that a snapshot is the state itself.
"""

from collections.abc import Collection

import msgspec

from engine.detection.lanes import Lanes, without
from engine.wire.alert import Alert, SamplePosition
from engine.wire.frame import InventoryItem, PoolSample
from engine.wire.runs import Runs
from models.half_space_trees import HalfSpaceForest


class ActionMark(msgspec.Struct):
    """What the agent said it did to a VM, and when the log took its word."""

    incident: str
    step: int
    action: str
    phase: str  # sent, returned or unknown
    time_ms: int
    dry_run: bool = False


class Vm(msgspec.Struct):
    """What one VM is and what happened to it.

    Attributes
    ----------
    holds
        Reason → append time until which silence is explained by it; -1 until taken back.
    maintenance_ms
        When the owner said the word that holds the maintenance, by the owner's clock.
    told
        What the guest said of itself in this boot epoch: panicked or crashed; `told_ms` is the
        cell's own clock (`Cell.passed_ms`) when it last did.
    said
        When it last said less than that, by the node's wall clock in ms: watchdog, agent_silent,
        console_panic.
    probe_answered_ms, probe_silent_ms, agent_answered_ms
        When it last answered a probe, stopped answering, and when its guest agent last answered,
        by the node's wall clock; 0 is never.
    rebooted_ms
        Append time of the last reboot, 0 for never; `booting` says that life since then
        has not been seen yet.
    gone_ms, gone_position
        Append time at which the VM left its node's roster, 0 while it is there; and the sample
        in which it did, or in which its monitor was last found hung.
    missed_ms
        When it was last out of sight for long though its node reported, 0 for never.
    offers
        By node that lists the VM but does not run it alone: what its inventory says. It holds once
        that node takes the VM over.
    arrivals
        By such a node, how the VM came there: "started" or "migrated_in".
    former
        The node that ran it before this one.
    twice, twice_ms
        The other node that runs the VM as well, and since when.
    known_ms
        When the VM was first named by a node that had no sample of it yet.
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
    holds: dict[str, int] = {}
    maintenance_ms: int = 0
    told: str = ""
    told_ms: int = 0
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
    left_by_word: bool = False
    monitor_hung_ms: int = 0
    missed_ms: int = 0
    mark: ActionMark | None = None
    offers: dict[str, InventoryItem] = {}
    arrivals: dict[str, str] = {}
    former: str = ""
    twice: str = ""
    twice_ms: int = 0
    known_ms: int = 0

    def held_by(self, time_ms: int) -> list[str]:
        """Return the reasons that explain a silence now, in alphabetical order."""
        return sorted(
            reason for reason, until_ms in self.holds.items() if until_ms < 0 or time_ms < until_ms
        )


class Incident(msgspec.Struct):
    """One fault from its opening to its end: the last alert published, and what it waits for.

    Attributes
    ----------
    alert
        As last published; its id never changes.
    well_ms
        Append time since which the subject is well again, 0 while it is not.
    mark
        The action that was done to the VM for this incident, None for none.
    flaps
        How often it came back after it was resolved.
    other_ms
        Append time since which it looks like the other kind of hang, 0 while it does not.
    """

    alert: Alert
    published_ms: int
    well_ms: int = 0
    mark: ActionMark | None = None
    flaps: int = 0
    other_ms: int = 0


class Hole(msgspec.Struct, frozen=True):
    """A time in which a node took no sample: the last one before it, and how long it was."""

    position: SamplePosition
    event_ms: int
    lasted_s: float


class Node(msgspec.Struct):
    """One node as its collector reports it, or one further part of a node too large for a frame.

    Attributes
    ----------
    key
        Under which the cell keeps it: the name, or `name#part`.
    run, sequence, mono_ns
        Of the last frame folded; `former_run` is the one before.
    runs
        Which of several collectors that report as this node is heard.
    seen_ms
        Reading of the cell's own clock (`Cell.passed_ms`) at the last frame.
    data_ms
        Append time that the log had reached when the last frame was folded, 0 for none.
    lag_ms
        The usual difference of append and event time, whatever the run: how the node's
        clock stands and how long a frame travels.
    stale
        Whether the last frame took much longer than that, so that it shows the past.
    stepped_ms, step_ms
        When the node's wall clock last stepped, and by how much; 0 for never.
    hole
        What was between its last two samples, None where the interval was as usual.
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
    hole: Hole | None = None

    def position(self, sequence: int | None = None) -> SamplePosition:
        """Return where a sample of this node's current run stands; None is the last one."""
        return SamplePosition(
            node=self.name,
            role="collector",
            run=self.run or "-",
            sequence=self.sequence if sequence is None else sequence,
        )


class Latch(msgspec.Struct):
    """A common cause that holds until its members move again.

    `signal` is what fell silent: "disk", "tx" or "life". `fell` are the members seen falling
    silent, whose return ends it; `onset_ms` is event time.
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


class Overtaken(msgspec.Struct):
    """How late frames come that others have overtaken, in this window and the last.

    A frame that closes a gap in its source's sequence came so long after the first one behind
    the gap. No clock but the log's is asked; where nothing is ever overtaken it is 0, and where
    frames are only slow, or a backlog, as well. Of a window the second largest counts: one frame
    that was sent again is no weather.
    """

    most_ms: int = 0
    now_ms: int = 0
    before_ms: int = 0
    since_ms: int = 0

    @property
    def late_ms(self) -> int:
        """For how long something that is still out may yet come."""
        return max(self.now_ms, self.before_ms)

    def take(self, gap_ms: int) -> None:
        """Note that a gap closed after so long."""
        self.now_ms = max(self.now_ms, min(gap_ms, self.most_ms))
        self.most_ms = max(self.most_ms, gap_ms)

    def turn(self, time_ms: int, window_ms: int) -> None:
        """Let what is older than two windows be forgotten."""
        if time_ms - self.since_ms >= window_ms:
            self.before_ms, self.now_ms, self.most_ms = self.now_ms, 0, 0
            self.since_ms = time_ms


class Totals(msgspec.Struct):
    """Counts of what a cell has seen, for metrics and the minute."""

    slots: int = 0
    alerts: int = 0
    minute_ms: int = 0


class Cell:
    """All state of one cell.

    Every VM in `lanes` stands in `vms`, and every key of `lanes` in `nodes`: whoever drops one
    of them drops what refers to it (`forget_vms`).

    Attributes
    ----------
    departed
        What was learned of VMs that left their node: a migration's target takes it over.
    watched
        VMs about which more is known than their counters: a reboot, a mark, an absence.
    forgets
        Scopes and names that an owner wants forgotten, until the slot closes.
    reported, round_ms, closed_ms
        Who has reported in this slot, when the first did, and when the last one closed.
    beyond
        Who has no sample for this slot, since one for a later slot waits already.
    passed_ms
        Append time that passed while the log was there (`Partition.passed_ms`).
    outage_ms
        Until when a hole in the log still forbids suggestions.
    disturbed_ms
        Until when collectors count as disturbed: many VMs on several nodes lack samples.
    ahead
        By node, its frames that wait while this slot is judged; decoded where one is asked for.
    overtaken
        How late frames come: what its sources' gaps of late took to close.
    """

    def __init__(self, name: str, *, site: str, zone: str, forest: HalfSpaceForest) -> None:
        self.name = name
        self.forest = forest
        self.site = site
        self.zone = zone
        self.nodes: dict[str, Node] = {}
        self.lanes: dict[str, Lanes] = {}
        self.departed = Lanes(b"")
        self.vms: dict[bytes, Vm] = {}
        self.incidents: dict[str, Incident] = {}
        self.latches: dict[str, Latch] = {}
        self.totals = Totals()
        self.reported: set[str] = set()
        self.beyond: set[str] = set()
        self.round_ms = 0
        self.closed_ms = 0
        self.passed_ms = 0
        self.outage_ms = 0
        self.disturbed_ms = 0
        self.overtaken = Overtaken()
        # Follows from frames that wait; set anew before each slot is judged.
        self.ahead: dict[str, list[bytes]] = {}
        self.watched: set[bytes] = set()
        self.forgets: list[tuple[str, str]] = []
        # Set with each record: whether its append time is not what is believed.
        self.is_unsure = False
        # Follows from `nodes`; asked for with every record and looked up anew when they change.
        self._live: tuple[set[str], int] | None = None

    def place(self, vm: bytes) -> tuple[Node, Lanes, int] | None:
        """Return where a VM's state is, None if no node has reported it."""
        known = self.vms.get(vm)
        if known is None:
            return None
        lanes = self.lanes.get(known.node)
        if lanes is None or vm not in lanes.places:
            return None
        return self.nodes[known.node], lanes, lanes.places[vm]

    def forget_vms(self, vms: Collection[bytes]) -> None:
        """Drop VMs with what was learned of them, also where a node that fell silent lists them."""
        for vm in vms:
            self.vms.pop(vm, None)
            self.watched.discard(vm)
        for key, lanes in self.lanes.items():
            if not lanes.places.keys().isdisjoint(vms):
                self.lanes[key] = without(lanes, vms)

    def is_empty(self) -> bool:
        """Return whether nothing is known of the cell any more."""
        return not (self.nodes or self.vms or self.incidents or self.forgets)

    def drop_node(self, key: str) -> None:
        """Drop a node, or a part of one, whose VMs were forgotten or run elsewhere."""
        del self.nodes[key]
        del self.lanes[key]
        self.reported.discard(key)
        self.beyond.discard(key)
        self.nodes_changed()

    def interval_ms(self) -> int:
        """Return the longest sampling interval of the cell's live nodes."""
        return self._look_up()[1]

    def all_reported(self) -> bool:
        """Return whether every live node has reported in this slot, or has nothing for it."""
        live = self._look_up()[0]
        if self.beyond:
            return live <= self.reported | self.beyond
        return len(live) <= len(self.reported) and live <= self.reported

    def nodes_changed(self) -> None:
        """Take note that nodes fell silent or are back."""
        self._live = None

    def samples_every(self, node: Node, interval_ms: int) -> None:
        """Take note of a live node's interval, before it stands in the node.

        A fleet comes node by node, and to look at all of them for each would take the square.
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
