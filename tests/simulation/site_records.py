"""A simulated site's frames as records, without a log between."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from flatline.connectors.simulator.hypervisor import SimulatedHypervisor
from flatline.connectors.simulator.incidents import schedule
from flatline.connectors.simulator.plan import WorldPlan
from flatline.connectors.simulator.world import World
from flatline.engine.errors import HypervisorUnreachable
from flatline.engine.ports import Record
from flatline.engine.wire import topics
from flatline.engine.wire.frame import Event, Frame, Header, InventoryItem, VmRows, encode_frame

# Nodes are not sampled at the same time; each starts a little later.
_STAGGER_NS = 37_000_000
_INVENTORY_EVERY = 300


@dataclass
class Site:
    """A world, the frames of its nodes' collectors, and a log's append time."""

    plan: WorldPlan
    interval_s: float = 2.0
    world: World = field(init=False)
    offset: int = 0

    def __post_init__(self) -> None:
        self.world = World(self.plan)
        for incident in self.plan.incidents:
            schedule(self.world, incident)
        self.eyes = [SimulatedHypervisor(self.world, name) for name in self.world.topology.nodes]
        self.sequences = [0] * len(self.eyes)

    def run(self, seconds: float) -> Iterator[Record]:
        """Yield the records of the next `seconds`, in the order in which they are appended."""
        interval_ns = round(self.interval_s * 1e9)
        end_ns = self.world.now_ns + round(seconds * 1e9)
        while self.world.now_ns + interval_ns <= end_ns:
            slot_ns = (self.world.now_ns // interval_ns + 1) * interval_ns
            for node in range(len(self.eyes)):
                self.world.advance(slot_ns + node * _STAGGER_NS % (interval_ns // 2))
                record = self.sample(node)
                if record is not None:
                    yield record
            yield self.tick()

    def sample(self, node: int) -> Record | None:
        """Return the current record of one node's collector, None while the node is unreachable."""
        eye = self.eyes[node]
        try:
            sample = eye.observe()
        except HypervisorUnreachable:
            return None
        sequence = self.sequences[node]
        self.sequences[node] += 1
        topology = self.world.topology
        inventory: tuple[InventoryItem, ...] = ()
        if sequence % _INVENTORY_EVERY == 0:
            here = self.world.roster(node).indices
            inventory = tuple(topology.item(int(index)) for index in here)
        frame = Frame(
            header=self.header(node, sequence, sample.event_time_ns, sample.mono_ns),
            rows=sample.rows,
            events=eye.drain_events(),
            inventory=inventory,
            node=dict(sample.node),
            pools=sample.pools,
        )
        return self.record(frame)

    def header(self, node: int, sequence: int, event_time_ns: int, mono_ns: int) -> Header:
        topology = self.world.topology
        return Header(
            site=self.plan.site,
            zone=topology.zone(node),
            cell=topology.cells[topology.node_cell[node]],
            node=topology.nodes[node],
            role="collector",
            run="run",
            sequence=sequence,
            event_time_ns=event_time_ns,
            mono_ns=mono_ns,
            interval_ms=round(self.interval_s * 1000),
        )

    def tick(self) -> Record:
        """Return the record that advances the log's time."""
        return self.said("shell", "-", "engine", ())

    def said(self, role: str, cell: str, node: str, events: tuple[Event, ...]) -> Record:
        """Return a frame of events by a role other than a collector."""
        self.sequences.append(0)
        number = len(self.sequences)
        header = Header(
            site=self.plan.site,
            zone="z0",
            cell=cell,
            node=node,
            role=role,  # type: ignore[arg-type]
            run=f"{role}-{number}",
            sequence=0,
            event_time_ns=self.world.epoch_ns + self.world.now_ns,
            mono_ns=self.world.now_ns,
            interval_ms=1000,
        )
        return self.record(Frame(header=header, rows=VmRows.empty(), events=events))

    def record(self, frame: Frame) -> Record:
        offset = self.offset
        self.offset += 1
        time_ms = (self.world.epoch_ns + self.world.now_ns) // 1_000_000 + 5
        return Record(
            topic=topics.FRAMES.name,
            partition=0,
            offset=offset,
            time_ms=time_ms,
            key=frame.header.cell.encode(),
            value=encode_frame(frame),
        )
