"""What a simulated node keeps of a VM: the fact that it did, for tests."""

from types import TracebackType
from typing import Self

from connectors.simulator.truth import Kept
from connectors.simulator.world import World
from engine.errors import EvidenceUnsaved


class SimulatedEvidence:
    """The `Evidence` of one node of a simulated world; it stands in the world's truth."""

    def __init__(self, world: World, node: str) -> None:
        self._world = world
        self._name = node
        self._node = world.topology.node_index[node]

    async def __aenter__(self) -> Self:
        """Return at once: there is nothing to connect to."""
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave what was kept."""

    async def save(self, vm: bytes, *, incident: str, step: int) -> str:
        """Note that evidence was kept.

        Raises
        ------
        EvidenceUnsaved
            The node is out of reach, or has no such VM.
        """
        world = self._world
        world.sync()
        lane = world.topology.lane_of.get(vm)
        if world.unreachable[self._node]:
            raise EvidenceUnsaved(f"node {self._name} does not answer")
        if lane is None or world.guests.node[lane] != self._node:
            raise EvidenceUnsaved(f"node {self._name} knows no VM {vm.hex()}")
        world.truth.evidence.append(Kept(lane, incident, step, world.now_ns))
        return f"console.txt in memory of {self._name}"
