"""The ports through which an agent watches its guests' signs of life; see `engine.ports`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from flatline.engine.ports import Opened
from flatline.engine.preflight_data import Card, ObservedGuest, Sign


class Liveness(Opened, Protocol):
    """The agent's continuous observation of the guests of its node; no method acts on a VM.

    `vm` is a VM's UUID, 16 bytes.
    """

    async def roster(self) -> tuple[ObservedGuest, ...]:
        """Return the running VMs whose owners agreed to actions on them.

        Raises
        ------
        HypervisorUnreachable
            No answer; the next call tries again.
        """
        ...

    async def addresses(self, vm: bytes) -> Mapping[str, tuple[str, ...]]:
        """Return the known IP addresses of each card, by its MAC; empty if none is known.

        Raises
        ------
        HypervisorUnreachable
            No answer.
        """
        ...

    async def ping_agent(self, vm: bytes, *, within_s: float) -> Sign:
        """Ask the guest agent for a sign of life; `unknown` where it cannot be asked.

        If the hypervisor does not answer within `within_s`, the result is `unknown` too.
        """
        ...

    async def console(self, vm: bytes) -> str:
        """Return the end of the guest's output on its serial port, empty where it is unknown.

        Raises
        ------
        HypervisorUnreachable
            No answer.
        """
        ...

    async def set_balloon_period(self, vm: bytes, *, period_s: int) -> None:
        """Make the running VM's balloon report its memory every `period_s`, until the VM stops.

        Raises
        ------
        ActionRefused
            The hypervisor refused to set the period.
        HypervisorUnreachable
            The hypervisor did not answer.
        """
        ...


@dataclass(frozen=True, slots=True)
class ProbeAnswer:
    """The result of a probe: the address that answered, or why no probe was possible."""

    sign: Sign
    address: str = ""
    why: str = ""


class Prober(Protocol):
    """Probes guests over the node's bridges with ARP requests or neighbour solicitations."""

    async def ask(self, card: Card, addresses: Sequence[str], *, within_s: float) -> ProbeAnswer:
        """Ask on the card's bridge which MAC has `addresses`; only the card's own MAC counts.

        The sign is `unknown` if no probe was possible: no address is known, a right is missing, or
        the node has no such bridge.
        """
        ...
