"""Evidence of a simulated node: nothing is saved, only recorded as saved, for tests."""

from flatline.connectors.simulator.node_access import NodeAccess
from flatline.connectors.simulator.truth import Kept
from flatline.engine.errors import EvidenceUnsaved


class SimulatedEvidence(NodeAccess):
    """The `Evidence` of one node of a simulated world; the world's ground truth records it."""

    async def save(self, vm: bytes, *, incident: str, step: int) -> str:
        """Record that evidence was saved.

        Raises
        ------
        EvidenceUnsaved
            The node is unreachable, or has no such VM.
        """
        world = self._world
        world.sync()
        index = world.topology.index_of.get(vm)
        if world.unreachable[self._node]:
            raise EvidenceUnsaved(f"node {self._name} does not answer")
        if index is None or world.guests.node[index] != self._node:
            raise EvidenceUnsaved(f"node {self._name} does not know VM {vm.hex()}")
        world.truth.evidence.append(Kept(index, incident, step, world.now_ns))
        return f"console.txt in memory of {self._name}"
