"""Build a simulated site and provide its nodes behind the ports of a real one."""

from collections.abc import Mapping

from flatline.connectors.simulator.actuator import SimulatedActuator
from flatline.connectors.simulator.evidence import SimulatedEvidence
from flatline.connectors.simulator.guests import Condition
from flatline.connectors.simulator.hypervisor import SimulatedHypervisor
from flatline.connectors.simulator.incidents import schedule
from flatline.connectors.simulator.lifecycle import start
from flatline.connectors.simulator.liveness import SimulatedLiveness
from flatline.connectors.simulator.plan import WorldPlan
from flatline.connectors.simulator.truth import Truth
from flatline.connectors.simulator.world import Interference, World
from flatline.engine.ports import Clock


class Fleet:
    """A simulated site.

    Methods take a node by its name, and a VM by its index in the plan, from 0, or by its UUID. They
    raise `KeyError` for an unknown node or UUID.

    Attributes
    ----------
    world
        The ground truth; programs under test get only adapters.
    """

    def __init__(self, world: World) -> None:
        self.world = world

    @property
    def nodes(self) -> tuple[str, ...]:
        """Names of all nodes, cell by cell."""
        return tuple(self.world.topology.nodes)

    @property
    def truth(self) -> Truth:
        """The ground truth so far."""
        self.world.sync()
        return self.world.truth

    def cell(self, node: str) -> str:
        """Return the cell of a node."""
        topology = self.world.topology
        return topology.cells[int(topology.node_cell[topology.node_index[node]])]

    def zone(self, node: str) -> str:
        """Return the zone of a node."""
        return self.world.topology.zone(self.world.topology.node_index[node])

    def vm(self, index: int) -> bytes:
        """Return the UUID of a VM by its index in the plan."""
        return self.world.topology.uuids[index]

    def index(self, vm: bytes) -> int:
        """Return the index of a VM in the plan by its UUID."""
        return self.world.topology.index_of[vm]

    def name(self, index: int) -> str:
        """Return the name of a VM by its index in the plan."""
        return self.world.topology.names[index]

    def node_of(self, index: int) -> str:
        """Return the node a VM is on now."""
        self.world.sync()
        return self.world.topology.nodes[int(self.world.guests.node[index])]

    def hypervisor(self, node: str) -> SimulatedHypervisor:
        """Return a collector's view of a node, which receives events from now on."""
        return SimulatedHypervisor(self.world, node)

    def watch(self, node: str) -> SimulatedLiveness:
        """Return the guest probing of a node."""
        return SimulatedLiveness(self.world, node)

    def actuator(self, node: str, *, by: str = "the agent") -> SimulatedActuator:
        """Return the actuator of a node."""
        return SimulatedActuator(self.world, node, by=by)

    def evidence(self, node: str) -> SimulatedEvidence:
        """Return the evidence store of a node."""
        return SimulatedEvidence(self.world, node)

    def interfere(self, interference: Interference | None) -> None:
        """Set a hook that makes actions lie, hang or fail; see `connectors.simulator.actuator`."""
        self.world.interference = interference

    def advance(self, seconds: float) -> None:
        """Advance a world without a clock by `seconds`."""
        self.world.advance(self.world.now_ns + round(seconds * 1e9))

    def conditions(self) -> Mapping[str, int]:
        """Return how many VMs are in each condition now, for summaries."""
        self.world.sync()
        return {
            condition.name.lower(): int((self.world.guests.condition == condition).sum())
            for condition in Condition
        }


def build_world(plan: WorldPlan, clock: Clock | None = None) -> Fleet:
    """Return the site of `plan`, with its incidents scheduled.

    Parameters
    ----------
    clock
        The clock that the site follows, from its current reading; None: only `advance` moves time.

    Raises
    ------
    ValueError
        An incident names an object that the site does not have.
    """
    world = World(plan, clock)
    if plan.cold_start:
        for index in range(plan.vms):
            start(world, index, by="the platform")
    for incident in plan.incidents:
        schedule(world, incident)
    return Fleet(world)
