"""The agent's actuator on a host in memory: an action takes effect when it is called."""

from types import TracebackType
from typing import Self

from flatline.connectors.memory.host import POOLS, VCPUS, Guest, Host

from flatline.engine.errors import ActionRefused, HypervisorUnreachable
from flatline.engine.preflight_data import Permit, PreflightSample


class MemoryActuator:
    """The `Actuator` of one host in memory."""

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

    async def reach(self) -> None:
        """Return immediately: memory always answers."""

    async def sample(self, vm: bytes) -> PreflightSample:
        """Return a sample of the VM."""
        guest, host = self._host.find(vm), self._host
        counters = host.counters(guest)
        return PreflightSample(
            vm=vm,
            instance=guest.instance,
            mono_ns=host.clock.mono_ns(),
            wall_ms=host.clock.now_ms(),
            state="running",
            state_reason="other",
            monitor_answered=True,
            job_active=False,
            boots_seen=guest.boots,
            reported=None,
            reported_ns=None,
            tenant=guest.tenant,
            group=guest.group,
            opted_out=not guest.actionable,
            uncounted=None,
            vcpus=VCPUS,
            vcpu_time_ns=host.vcpu_times_ns(guest),
            vcpu_delay_ns=(0,) * VCPUS,
            cpu_time_ns=counters["cpu_time_ns"],
            block_rd_reqs=counters["block_rd_reqs"],
            block_wr_reqs=counters["block_wr_reqs"],
            block_rd_bytes=counters["block_rd_bytes"],
            block_wr_bytes=counters["block_wr_bytes"],
            net_tx_pkts=counters["net_tx_pkts"],
            net_tx_bytes=counters["net_tx_bytes"],
            balloon_last_update_s=host.balloon_s(),
            balloon_period_s=None,
            kvm_irq_injections=None,
            kvm_io_exits=None,
        )

    async def reset(self, vm: bytes, *, permit: Permit | None = None) -> None:
        """Boot the VM in the same run."""
        self._host.boot(await self._permitted(vm, permit))

    async def finish_reset(self, vm: bytes, *, permit: Permit) -> None:
        """Refuse: a reset leaves no VM of this host paused."""
        await self._permitted(vm, permit)
        raise ActionRefused("the VM is not paused by a reset")

    async def reboot(self, vm: bytes, *, permit: Permit | None = None) -> None:
        """Boot the VM in the same run: every guest in memory listens."""
        self._host.boot(await self._permitted(vm, permit))

    async def migrate(
        self, vm: bytes, *, target: str, within_s: float, permit: Permit | None = None
    ) -> None:
        """Move the VM to another host of the same memory."""
        guest = await self._permitted(vm, permit)
        if target not in self._host.peers or target == self._host.name:
            raise ActionRefused(f"{target!r} is no other host")
        self._host.move(guest, self._host.peers[target])

    async def find_migration(self, vm: bytes, *, target: str, within_s: float) -> None:
        """Return if the VM runs on the target."""
        if vm in self._host.guests:
            raise ActionRefused("the VM was not migrated")
        if target not in self._host.peers or vm not in self._host.peers[target].guests:
            raise HypervisorUnreachable(f"VM {vm.hex()} is neither here nor on {target}")

    async def move_disk(
        self,
        vm: bytes,
        *,
        disk: str,
        target: str,
        within_s: float,
        permit: Permit | None = None,
    ) -> None:
        """Move the VM's only disk, `vda`, to another pool."""
        guest = await self._permitted(vm, permit)
        if disk != "vda" or target not in POOLS or target == guest.pool:
            raise ActionRefused(f"disk {disk!r} cannot move to pool {target!r}")
        guest.pool = target

    async def find_disk_move(self, vm: bytes, *, disk: str, target: str) -> None:
        """Return if the disk is in the target pool."""
        if self._host.find(vm).pool != target:
            raise ActionRefused("the disk was not moved")

    async def abort_job(self, vm: bytes) -> None:
        """Refuse: a host in memory has no jobs."""
        self._host.find(vm)
        raise ActionRefused("the VM has no job")

    async def _permitted(self, vm: bytes, permit: Permit | None) -> Guest:
        """Return the VM if `permit` still allows the call."""
        guest = self._host.find(vm)
        if permit is not None:
            if permit.instance != guest.instance:
                raise ActionRefused("the VM was restarted after the verdict")
            why = permit.last_check(await self.sample(vm))
            if why is not None:
                raise ActionRefused(why)
        return guest
