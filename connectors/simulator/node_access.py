"""The access to one node of a simulated world that all its adapters share."""

from types import TracebackType
from typing import Self

from flatline.connectors.simulator.world import World


class NodeAccess:
    """One node of a simulated world; there is no connection to open or to close."""

    def __init__(self, world: World, node: str) -> None:
        self._world = world
        self._name = node
        self._node = world.topology.node_index[node]

    async def __aenter__(self) -> Self:
        """Return immediately."""
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave the world unchanged; migrations and disk moves continue."""
