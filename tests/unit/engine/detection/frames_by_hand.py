"""Small cells with all values set by a test, folded as by the engine."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from uuid import UUID

import numpy as np

from flatline.engine.detection.configuration import Configuration
from flatline.engine.detection.partition import Output, Partition
from flatline.engine.ports import Record
from flatline.engine.wire.alert import Alert
from flatline.engine.wire.frame import (
    Event,
    Frame,
    Header,
    InventoryItem,
    Role,
    VmRows,
    encode_frame,
)
from flatline.engine.wire.metrics import GAUGE_ROW, GAUGES, INTEGER_ROW, INTEGERS, VM_STATES
from flatline.engine.wire.vcpus import VcpuRows

EPOCH_MS = 1_767_261_600_000
FAST = Configuration(verify_stable_s=10.0)


@dataclass
class Guest:
    """One VM: its behaviour from now on, and its counters so far."""

    name: str
    vcpus: int = 2
    cores: float = 0.2
    busiest: float | None = None
    writes: float = 50_000.0
    reads: float = 0.0
    sends: float = 20_000.0
    receives: float = 5_000.0
    delay: float = 0.0
    balloon: bool = True
    balloon_period_s: int = 5
    state: str = "running"
    job: bool = False
    instance: int = 7
    pool: str = "pool"
    network: str = "net"
    measured: bool = True
    # Share of a core that each vCPU but the first uses; None omits the vCPUs from frames.
    others: float | None = None
    times_ns: list[float] = field(default_factory=list)
    kvm: tuple[float, float] | None = None
    counters: dict[str, float] = field(default_factory=dict)
    reported_s: int = 0

    @property
    def uuid(self) -> bytes:
        return hashlib.blake2b(self.name.encode(), digest_size=16).digest()

    @property
    def text(self) -> str:
        return str(UUID(bytes=self.uuid))

    def panics(self, *, cores: float = 1.0) -> None:
        """Spin or halt: nothing is sent, received traffic still counts, the balloon is frozen."""
        self.cores = cores
        self.busiest = min(cores, 1.0)
        self.writes = self.reads = self.sends = 0.0
        self.balloon = False

    def computes(self) -> None:
        """Use all cores without any I/O, as a batch job does; the kernel lives."""
        self.cores = float(self.vcpus)
        self.busiest = 1.0
        self.writes = self.reads = self.sends = 0.0

    def works(self) -> None:
        """Behave like a web server."""
        self.cores, self.busiest = 0.2, None
        self.writes, self.sends, self.balloon = 50_000.0, 20_000.0, True
        self.state = "running"

    def passes(self, dt_s: float, now_s: float) -> None:
        grown = {
            "cpu_time_ns": self.cores * 1e9,
            "block_wr_bytes": self.writes,
            "block_rd_bytes": self.reads,
            "net_tx_bytes": self.sends,
            "net_rx_bytes": self.receives,
            "vcpu_delay_ns": self.delay * 1e9,
        }
        for name, per_s in grown.items():
            self.counters[name] = self.counters.get(name, 1e9) + per_s * dt_s
        if self.others is not None:
            self.times_ns += [3e9] * (self.vcpus - len(self.times_ns))
            first = min(1.0, max(0.0, self.cores - self.others * (self.vcpus - 1)))
            for number, share in enumerate([first] + [self.others] * (self.vcpus - 1)):
                self.times_ns[number] += share * dt_s * 1e9
        if self.kvm is not None:
            for name, per_s in zip(("kvm_irq_injections", "kvm_io_exits"), self.kvm, strict=True):
                self.counters[name] = self.counters.get(name, 1e6) + per_s * dt_s
        if self.balloon and self.balloon_period_s:
            self.reported_s = int(now_s) - int(now_s) % self.balloon_period_s


@dataclass
class Place:
    """One node: its guests in roster order, and its collector's source."""

    name: str
    guests: list[Guest]
    run: str = "run-1"
    sequence: int = 0
    mono_ns: int = 5_000_000_000
    busy: float = 0.3
    reachable: bool = True
    events: list[Event] = field(default_factory=list)
    gauges: dict[str, float] = field(default_factory=dict)

    def tell(self, kind: str, guest: Guest, **detail: str) -> None:
        """Add an event to the next frame."""
        number = len(self.events) + 1000 * self.sequence
        self.events.append(
            Event(
                id=f"{self.name}/{number}",
                kind=kind,
                time_ns=EPOCH_MS * 1_000_000 + self.mono_ns - 5_000_000_000,
                vm=guest.uuid,
                detail=detail,
            )
        )

    def rows(self) -> VmRows:
        size = len(self.guests)
        integers = np.zeros((len(INTEGERS), size), np.uint64)
        missing = np.ones((len(INTEGERS), size), np.bool_)
        gauges = np.full((len(GAUGES), size), np.nan, np.float32)
        for column, guest in enumerate(self.guests):
            values: dict[str, float] = {
                "state": VM_STATES.index(guest.state),
                "vcpus": guest.vcpus,
                "instance": guest.instance,
                "cpu_time_ns": guest.counters["cpu_time_ns"],
            }
            if guest.measured:
                values |= guest.counters
                values["job_active"] = int(guest.job)
                if guest.balloon_period_s:
                    values["balloon_last_update_s"] = guest.reported_s
            busiest = guest.cores / guest.vcpus if guest.busiest is None else guest.busiest
            values["vcpus_busy"] = round(guest.cores + guest.delay) if busiest >= 0.5 else 0
            gauges[GAUGE_ROW["vcpu_busiest_ratio"], column] = busiest
            for name, value in values.items():
                integers[INTEGER_ROW[name], column] = int(value)
                missing[INTEGER_ROW[name], column] = False
        uuids = b"".join(guest.uuid for guest in self.guests)
        return VmRows(
            uuids=uuids,
            integers=integers,
            missing=missing,
            gauges=gauges,
            vcpus=self.vcpu_rows(),
        )

    def vcpu_rows(self) -> VcpuRows:
        """Return the vCPU times of the guests that report them."""
        reported = [guest.times_ns if guest.others is not None else [] for guest in self.guests]
        ticks = [int(time // 1e7) * 10_000_000 for times in reported for time in times]
        counts = np.array([len(times) for times in reported], np.uint16)
        return VcpuRows(counts=counts, times_ns=np.array(ticks, np.uint64), missing=None)


@dataclass
class Bench:
    """A cell of places, a log's clock, and the partition that folds its records."""

    places: list[Place]
    interval_s: float = 2.0
    configuration: Configuration = FAST
    now_s: float = 0.0
    offset: int = 0
    alerts: list[Alert] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)
    delay_ms: int = 0
    # How far the times of owners' and agents' events are ahead of now.
    ahead_ms: int = 0

    def __post_init__(self) -> None:
        self.partition = Partition(self.configuration)

    def run(self, seconds: float, each: Callable[[float], None] | None = None) -> list[Alert]:
        """Advance time; return the alerts published meanwhile."""
        published: list[Alert] = []
        for _ in range(round(seconds / self.interval_s)):
            self.now_s += self.interval_s
            if each is not None:
                each(self.now_s)
            for place in self.places:
                published += self.sample(place)
            published += self.tick()
        return published

    def sample(self, place: Place) -> list[Alert]:
        """Fold one frame of a place."""
        for guest in place.guests:
            guest.passes(self.interval_s, self.now_s)
        place.mono_ns += round(self.interval_s * 1e9)
        if not place.reachable:
            return []
        inventory: tuple[InventoryItem, ...] = ()
        if place.sequence % 100 == 0:
            inventory = tuple(item(guest) for guest in place.guests)
        frame = Frame(
            header=self.header(place.name, "collector", place.run, place.sequence, place.mono_ns),
            rows=place.rows(),
            events=tuple(place.events),
            inventory=inventory,
            node={"cpu_busy_ratio": place.busy, **place.gauges},
        )
        place.sequence += 1
        place.events.clear()
        return self.fold(self.record(encode_frame(frame)))

    def said(
        self, role: Role, kind: str, guest: Guest, *, node: str = "", **detail: str
    ) -> list[Alert]:
        """Fold a frame of an owner or an agent with one event; `node` is its location."""
        event = Event(
            id=f"{role}/{self.offset}",
            kind=kind,
            time_ns=(self.time_ms + self.ahead_ms) * 1_000_000,
            vm=guest.uuid,
            detail=detail,
        )
        # An agent reports from the node of the VM it acted on.
        here = next((place.name for place in self.places if guest in place.guests), "elsewhere")
        node = node or (here if role == "agent" else f"{role}-1")
        header = self.header(node, role, f"{role}-{self.offset}", 0, 0)
        frame = Frame(header=header, rows=VmRows.empty(), events=(event,))
        return self.fold(self.record(encode_frame(frame)))

    def said_ahead(
        self, ahead_s: float, role: Role, kind: str, guest: Guest, *, node: str = "", **detail: str
    ) -> list[Alert]:
        """Fold a frame like `said`, with an event dated `ahead_s` after now."""
        self.ahead_ms = round(ahead_s * 1000)
        published = self.said(role, kind, guest, node=node, **detail)
        self.ahead_ms = 0
        return published

    def tick(self) -> list[Alert]:
        header = self.header("shell", "shell", f"shell-{self.offset}", 0, 0)
        return self.fold(self.record(encode_frame(Frame(header=header, rows=VmRows.empty()))))

    @property
    def time_ms(self) -> int:
        return EPOCH_MS + round(self.now_s * 1000)

    def header(self, node: str, role: Role, run: str, sequence: int, mono_ns: int) -> Header:
        return Header(
            site="site",
            zone="zone",
            cell="-" if role == "shell" else "cell",
            node=node,
            role=role,
            run=run,
            sequence=sequence,
            event_time_ns=self.time_ms * 1_000_000,
            mono_ns=mono_ns,
            interval_ms=round(self.interval_s * 1000),
        )

    def record(self, value: bytes) -> Record:
        self.offset += 1
        record = Record(
            topic="flatline.frames.v1",
            partition=0,
            offset=self.offset - 1,
            time_ms=self.time_ms + self.delay_ms,
            key=b"cell",
            value=value,
        )
        self.records.append(record)
        return record

    def fold(self, record: Record) -> list[Alert]:
        outputs = self.partition.fold(record)
        self.outputs += outputs
        published = [output.alert for output in outputs if output.alert is not None]
        self.alerts += published
        return published

    def of(self, guest: Guest) -> list[Alert]:
        """Return all alerts on one guest."""
        return [alert for alert in self.alerts if alert.subject == guest.text]

    def suggestions(self, guest: Guest) -> set[str]:
        """Return all suggestions for one guest while its alert fired."""
        return {alert.suggested_action for alert in self.of(guest) if alert.state == "firing"}


def item(guest: Guest) -> InventoryItem:
    return InventoryItem(
        vm=guest.uuid,
        name=guest.name,
        tenant="tenant",
        group="group",
        actionable=True,
        vcpus=guest.vcpus,
        disks={"vda": guest.pool},
        nics={"vnet0": guest.network},
        balloon_period_s=guest.balloon_period_s,
    )


def cell(
    count: int = 4, *, nodes: int = 1, interval_s: float = 2.0, configuration: Configuration = FAST
) -> tuple[Bench, list[Guest]]:
    """Return a cell of working guests, dealt to nodes in turn, each in a separate pool."""
    guests = [Guest(f"vm-{index}", pool=f"pool-{index}") for index in range(count)]
    places = [Place(f"node-{index}", guests[index::nodes]) for index in range(nodes)]
    return Bench(places, interval_s=interval_s, configuration=configuration), guests
