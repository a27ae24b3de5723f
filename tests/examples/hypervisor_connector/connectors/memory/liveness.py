"""Signs of life of a host in memory, whose guests answer no probe."""

from collections.abc import Mapping
from types import TracebackType
from typing import Self

from flatline.connectors.memory.host import Host

from flatline.engine.preflight_data import ObservedGuest, Sign, moved


class MemoryLiveness:
    """The `Liveness` of one host in memory."""

    def __init__(self, host: Host) -> None:
        self._host = host

    async def __aenter__(self) -> Self:
        """Return immediately: there is no connection."""
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave the host unchanged."""

    async def roster(self) -> tuple[ObservedGuest, ...]:
        """Return the VMs whose owners agreed to actions on them."""
        host = self._host
        found = []
        for guest in host.guests.values():
            if not guest.actionable:
                continue
            counters = host.counters(guest)
            names = ("block_rd_reqs", "block_wr_reqs", "net_tx_pkts")
            found.append(
                ObservedGuest(
                    vm=guest.vm,
                    instance=guest.instance,
                    boots_seen=guest.boots,
                    mono_ns=host.clock.mono_ns(),
                    vcpu_wanted_ns=host.vcpu_times_ns(guest),
                    moved=moved(*(counters[name] for name in names)),
                )
            )
        return tuple(found)

    async def addresses(self, vm: bytes) -> Mapping[str, tuple[str, ...]]:
        """Return no address: the guests have no network stack."""
        return {}

    async def ping_agent(self, vm: bytes, *, within_s: float) -> Sign:
        """Return `unknown`: the guests have no agent."""
        return "unknown"

    async def console(self, vm: bytes) -> str:
        """Return nothing: the guests have no serial port."""
        return ""

    async def set_balloon_period(self, vm: bytes, *, period_s: int) -> None:
        """Leave the period as it is."""
