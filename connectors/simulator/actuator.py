"""The agent's actuator on a simulated node, with the effects on a real guest.

A reset boots the guest in any condition, and harms a healthy guest. A reboot works only if the
guest reacts. A migration takes time, and a VM whose disk is stuck does not arrive.

`World.interference` is called before each action. It returns None to permit the action, or one of

- ``refuse``: `ActionRefused`, nothing done
- ``lose``: `HypervisorUnreachable`, nothing done
- ``lose_answer``: the action happens, then `HypervisorUnreachable`
- ``lie``: returns as if done, nothing done
- ``hang``: never returns, nothing done
- ``hang_after``: the action happens, then never returns
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import numpy as np

from flatline.connectors.simulator import lifecycle
from flatline.connectors.simulator.guests import NEVER_S, Condition
from flatline.connectors.simulator.node_access import NodeAccess
from flatline.connectors.simulator.truth import ActionCall, Harm
from flatline.connectors.simulator.world import NS_PER_S, Migration, World
from flatline.engine.errors import ActionRefused, ActionUnsent, HypervisorUnreachable, VmNotFound
from flatline.engine.preflight_data import Permit, PreflightSample
from flatline.engine.wire.metrics import COUNTERS, VM_STATES

_COUNTER: Final = {metric.name: row for row, metric in enumerate(COUNTERS)}
# A guest in one of these conditions cannot recover by itself, so a reset does not harm it.
_BEYOND_HARM: Final = frozenset(
    {
        Condition.PANIC_SPIN,
        Condition.PANIC_HALT,
        Condition.CRASHED,
        Condition.HUNG_USERLAND,
        Condition.PROMPT,
    }
)
_PANICKED: Final = frozenset({Condition.PANIC_SPIN, Condition.PANIC_HALT, Condition.CRASHED})
# Interval at which a call checks whether the migration or disk move that it waits for has ended.
_WAIT_S: Final = 0.25

Work = Callable[[int], Awaitable[bool]]


class SimulatedActuator(NodeAccess):
    """The `Actuator` of one node of a simulated world.

    Parameters
    ----------
    by
        Name of the actor that the ground truth records for migrations.
    """

    def __init__(self, world: World, node: str, *, by: str = "the agent") -> None:
        super().__init__(world, node)
        self._by = by
        self._migrations: dict[int, Migration] = {}

    async def reach(self) -> None:
        """See `engine.ports.Actuator`."""
        if self._world.unreachable[self._node]:
            raise HypervisorUnreachable(f"node {self._name} does not answer")

    async def sample(self, vm: bytes) -> PreflightSample:
        """Return the current state of the VM.

        Raises
        ------
        VmNotFound
            No VM of this UUID runs here.
        HypervisorUnreachable
            The node is unreachable.
        """
        world = self._world
        world.sync()
        if world.unreachable[self._node]:
            raise HypervisorUnreachable(f"preflight check: node {self._name} does not answer")
        index = self._index(vm, "look")
        one = np.array([index])
        counters, vcpus = world.meters.read(one, world.now_ns)
        answers = bool(world.now_ns / NS_PER_S < world.guests.silent_since_s[index])
        has_card = world.topology.network[index] >= 0
        reported_s = float(world.guests.reported_s[index])
        offset_ns = int(world.epoch_ns + world.clock_offset_ns[self._node])
        stamp_s = int(offset_ns / NS_PER_S + reported_s) if reported_s != NEVER_S else None

        def known(name: str, *, measured: bool) -> int | None:
            return int(counters[_COUNTER[name], 0]) if measured else None

        item, condition = world.topology.item(index), lifecycle.condition(world, index)
        crashed = condition is Condition.CRASHED
        reported = bool(world.topology.panic_device[index]) and condition in _PANICKED
        return PreflightSample(
            vm=vm,
            instance=int(world.guests.instance[index]),
            mono_ns=world.mono_ns(self._node),
            wall_ms=(offset_ns + world.now_ns) // 1_000_000,
            state=VM_STATES[int(world.guests.state(one)[0])],
            state_reason="crashed" if crashed else "other",
            monitor_answered=answers,
            # If the monitor does not answer and no job is known, it is unknown whether one runs.
            job_active=bool(world.guests.job[index]) or (False if answers else None),
            boots_seen=int(world.guests.boot[index]),
            reported="panicked" if reported else None,
            reported_ns=world.mono_ns(self._node) if reported else None,
            tenant=item.tenant,
            group=item.group,
            opted_out=not item.actionable,
            uncounted=None,
            vcpus=int(world.topology.vcpus[index]),
            vcpu_time_ns=tuple(int(time_ns) for time_ns in vcpus[: world.topology.vcpus[index], 0]),
            # The simulator knows the wait for a core only for the whole VM; vCPU times are exact.
            vcpu_delay_ns=(0,) * int(world.topology.vcpus[index]),
            cpu_time_ns=known("cpu_time_ns", measured=True),
            block_rd_reqs=known("block_rd_reqs", measured=answers),
            block_wr_reqs=known("block_wr_reqs", measured=answers),
            block_rd_bytes=known("block_rd_bytes", measured=answers),
            block_wr_bytes=known("block_wr_bytes", measured=answers),
            net_tx_pkts=known("net_tx_pkts", measured=has_card),
            net_tx_bytes=known("net_tx_bytes", measured=has_card),
            balloon_last_update_s=stamp_s if answers else None,
            balloon_period_s=item.balloon_period_s,
            kvm_irq_injections=None,
            kvm_io_exits=None,
        )

    async def reset(self, vm: bytes, *, permit: Permit | None = None) -> None:
        """Reset the VM: its guest boots, in whatever condition it was."""

        async def work(row: int) -> bool:
            self._note_harm(row, "reset", beyond_harm=_BEYOND_HARM)
            lifecycle.boot(self._world, row, by="reset")
            return True

        await self._do(vm, "reset", work, permit=permit)

    async def finish_reset(self, vm: bytes, *, permit: Permit) -> None:
        """Refuse: here a reset is one step that leaves no VM paused."""

        async def work(row: int) -> bool:
            raise ActionRefused("the VM is not paused after a reset")

        await self._do(vm, "finish_reset", work, permit=permit)

    async def reboot(self, vm: bytes, *, permit: Permit | None = None) -> None:
        """Request a reboot from the guest; a guest that does not react stays unchanged."""

        async def work(row: int) -> bool:
            if lifecycle.condition(self._world, row) is not Condition.RUNNING:
                return False
            self._note_harm(row, "reboot", beyond_harm=frozenset())
            lifecycle.shut_down(self._world, row, back=True, by="reboot")
            return True

        await self._do(vm, "reboot", work, permit=permit)

    async def migrate(
        self, vm: bytes, *, target: str, within_s: float, permit: Permit | None = None
    ) -> None:
        """Migrate the VM live to `target`; return when it runs there."""
        world = self._world

        async def work(row: int) -> bool:
            goal = world.topology.node_index.get(target)
            self._check_migration(row, target, goal)
            assert goal is not None
            migration = lifecycle.migrate(world, row, target=goal, by=self._by)
            await self._until_over(migration, within_s=within_s)
            return True

        await self._do(vm, "migrate", work, target=target, permit=permit)

    async def find_migration(self, vm: bytes, *, target: str, within_s: float) -> None:
        """Wait for a migration that an earlier run of this agent requested."""
        world = self._world
        world.sync()
        if world.unreachable[self._node]:
            raise HypervisorUnreachable(f"node {self._name} does not answer")
        index = world.topology.index_of[vm]
        migration = world.migrations.get(index)
        if migration is not None and migration.by == self._by:
            await self._until_over(migration, within_s=within_s)
        node = world.topology.nodes[int(world.guests.node[index])]
        if node == self._name:
            raise ActionRefused(f"the migration of VM {vm.hex()} ended, and the VM still runs here")
        if node != target:
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
        """Copy the VM's only disk, `vda`, to pool `target` and switch the VM to the copy."""
        world = self._world

        async def work(row: int) -> bool:
            pools = world.topology.pools
            if disk != "vda":
                raise ActionRefused(f"the VM has no disk {disk!r}")
            if target not in (pools[index] for index in world.topology.pools_seen_by(self._node)):
                raise ActionRefused(f"node {self._name} cannot open pool {target!r}")
            goal = pools.index(target)
            if goal == int(world.topology.pool[row]):
                raise ActionRefused(f"the disk already is on {target}")
            if world.guests.job[row]:
                raise ActionRefused("the VM already has a job")
            if not lifecycle.runs(world, row):
                raise ActionRefused("the VM is not running")
            move = lifecycle.move_disk(world, row, goal)
            deadline_ns = world.now_ns + round(within_s * NS_PER_S)
            while move.outcome == "running":
                if world.now_ns >= deadline_ns:
                    lifecycle.give_up_disk(world, move)
                    raise ActionRefused(f"the copy was not complete after {within_s:.0f} s")
                await asyncio.sleep(_WAIT_S)
                world.sync()
            return True

        await self._do(vm, "move_disk", work, target=target, permit=permit)

    async def find_disk_move(self, vm: bytes, *, disk: str, target: str) -> None:
        """Cancel a copy that an earlier run of this agent began; return if the VM runs on it."""
        world = self._world
        world.sync()
        if world.unreachable[self._node]:
            raise HypervisorUnreachable(f"node {self._name} does not answer")
        index = world.topology.index_of[vm]
        move = world.disk_moves.get(index)
        if move is not None:
            lifecycle.give_up_disk(world, move)
        if world.topology.pools[int(world.topology.pool[index])] != target:
            raise ActionRefused(
                f"disk {disk} of VM {vm.hex()} was not moved. The VM still uses its old disk"
            )

    async def abort_job(self, vm: bytes) -> None:
        """Abort the migration that `migrate` is waiting for."""

        async def work(row: int) -> bool:
            migration = self._migrations.get(row)
            if migration is None:
                raise ActionRefused(f"VM {vm.hex()} has no job that this agent started")
            lifecycle.finish_migration(self._world, migration, "aborted")
            return True

        await self._do(vm, "abort_job", work)

    async def _until_over(self, migration: Migration, *, within_s: float) -> None:
        world, index = self._world, migration.index
        deadline_ns = world.now_ns + round(within_s * NS_PER_S)
        self._migrations[index] = migration
        try:
            while migration.outcome == "running":
                if world.now_ns >= deadline_ns:
                    lifecycle.finish_migration(world, migration, "aborted")
                    break
                await asyncio.sleep(_WAIT_S)
                world.sync()
        finally:
            self._migrations.pop(index, None)
        if migration.outcome != "done":
            vm = world.topology.uuids[index].hex()
            raise ActionRefused(f"migrate of VM {vm}: {migration.outcome}, the VM stays here")

    def _check_migration(self, index: int, target: str, goal: int | None) -> None:
        world = self._world
        if goal is None:
            raise ActionRefused(f"node {target!r} is not a migration target")
        if goal == self._node:
            raise ActionRefused(f"the VM already runs on {target}")
        if world.unreachable[goal]:
            raise ActionRefused(f"node {target} does not answer")
        if world.topology.pool[index] not in world.topology.pools_seen_by(goal):
            raise ActionRefused(f"node {target} cannot open the pool of the VM")
        if world.guests.job[index]:
            raise ActionRefused("the VM already has a job")
        if not lifecycle.runs(world, index):
            raise ActionRefused("the VM is not running")

    def _index(self, vm: bytes, what: str) -> int:
        """Return the VM's index if it runs here."""
        world = self._world
        index = world.topology.index_of.get(vm)
        if index is None or world.guests.node[index] != self._node:
            raise VmNotFound(f"{what}: node {self._name} does not know VM {vm.hex()}")
        if lifecycle.condition(world, index) is Condition.OFF:
            raise VmNotFound(f"{what}: VM {vm.hex()} is defined on {self._name} but is not running")
        return index

    async def _do(
        self,
        vm: bytes,
        what: str,
        work: Work,
        *,
        target: str = "",
        permit: Permit | None = None,
    ) -> None:
        """Execute an action, unless a test interferes with it, and record the outcome."""
        world = self._world
        world.sync()
        if world.unreachable[self._node]:
            # No request was sent, so nothing was done.
            raise ActionUnsent(f"{what} was not requested: node {self._name} does not answer")
        index = self._index(vm, what)
        if permit is not None and permit.instance != int(world.guests.instance[index]):
            raise ActionRefused(
                f"{what} of VM {vm.hex()} was not sent: the VM was restarted after the verdict"
            )
        why = permit.last_check(await self.sample(vm)) if permit is not None else None
        if why is not None:
            raise ActionRefused(f"{what} of VM {vm.hex()} was not sent: {why}")
        was = lifecycle.condition(world, index).name.lower()

        def call(outcome: str) -> ActionCall:
            return ActionCall(index, what, self._name, world.now_ns, was, outcome, target)

        asked = call("asked")
        meddled = world.interference(asked) if world.interference is not None else None
        if meddled in {"refuse", "lose", "lie", "hang"}:
            refused = meddled == "refuse"
            world.truth.action_calls.append(call("refused" if refused else "nothing_happened"))
            await self._answer_falsely(meddled, vm, what)
            return
        try:
            happened = await work(index)
        except ActionRefused:
            world.truth.action_calls.append(call("refused"))
            raise
        world.truth.action_calls.append(call("ok" if happened else "nothing_happened"))
        if meddled is not None:
            await self._answer_falsely(meddled, vm, what)

    async def _answer_falsely(self, how: str, vm: bytes, what: str) -> None:
        match how:
            case "refuse":
                raise ActionRefused(f"{what} of VM {vm.hex()} was refused")
            case "lose" | "lose_answer":
                raise HypervisorUnreachable(f"{what} of VM {vm.hex()}: outcome unknown")
            case "hang" | "hang_after":
                await asyncio.get_running_loop().create_future()
            case "lie":
                return
            case _:
                raise ValueError(f"{how!r} is not a known interference")

    def _note_harm(self, index: int, action: str, *, beyond_harm: frozenset[Condition]) -> None:
        was = lifecycle.condition(self._world, index)
        if was not in beyond_harm:
            harm = Harm(index, action, self._world.now_ns, was.name.lower())
            self._world.truth.harms.append(harm)
