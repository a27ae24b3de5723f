"""Transitions of a guest: boots, deaths, pauses, migrations."""

from typing import Final

import numpy as np

from connectors.simulator.guests import DEAD, KERNEL, NEVER_S, Condition
from connectors.simulator.truth import Move
from connectors.simulator.world import DiskMove, Migration, World

# Live migration: memory is transferred at 10 Gbit/s, after a second of setup.
_MIGRATION_SETUP_S: Final = 1.0
_MIGRATION_KIB_PER_S: Final = 1_200_000.0
# Time in which processes end when a guest is asked to reboot or switch off.
_STOPPING_S: Final = 4.0
_RETRY_S: Final = 1.0
# A disk of 10 GiB at 10 Gbit/s.
_DISK_MOVE_S: Final = 10.0
# Conditions in which the qemu process runs its vCPUs.
_NOT_RUNNING: Final = frozenset({Condition.PAUSED, Condition.CRASHED, Condition.OFF})


def condition(world: World, lane: int) -> Condition:
    """Return the current condition of the guest."""
    return Condition(int(world.guests.condition[lane]))


def set_condition(world: World, lane: int, new: Condition) -> None:
    """Set the condition of the guest from now on."""
    with world.changing([lane]):
        world.guests.condition[lane] = new


def boot(world: World, lane: int, *, by: str, event: str | None = "rebooted") -> None:
    """Boot the guest; it works again after its boot time, if its disk answers."""
    with world.changing([lane]):
        world.guests.forget(lane)
        world.guests.condition[lane] = Condition.BOOTING
    if event is not None:
        world.emit(int(world.guests.node[lane]), event, lane)
    number = world.guests.boot[lane]

    def finish() -> None:
        if world.guests.boot[lane] != number or condition(world, lane) is not Condition.BOOTING:
            return
        if world.rates.stuck(np.array([lane])).any():
            world.after(_RETRY_S, finish)
            return
        set_condition(world, lane, Condition.RUNNING)
        world.truth.lives(lane, world.now_ns, by)

    world.after(float(world.guests.boot_s[lane]), finish)


def start(world: World, lane: int, *, by: str) -> None:
    """Start a VM that is switched off: a new qemu process, so a new instance."""
    node = int(world.guests.node[lane])
    world.guests.instance[lane] = world.next_instance(node)
    world.guests.reported_s[lane] = NEVER_S
    world.meters.restart(np.array([lane]), world.now_ns)
    boot(world, lane, by=by, event="started")


def stop(world: World, lane: int) -> None:
    """Switch a VM off immediately."""
    with world.changing([lane]):
        world.guests.forget(lane)
        world.guests.condition[lane] = Condition.OFF
    world.emit(int(world.guests.node[lane]), "stopped", lane)


def shut_down(world: World, lane: int, *, back: bool, by: str) -> None:
    """End the guest's processes, then boot again or switch off; a dead guest does so directly."""
    if not kernel_lives(world, lane):
        boot(world, lane, by=by) if back else stop(world, lane)
        return
    set_condition(world, lane, Condition.STOPPING)
    number = world.guests.boot[lane]

    def finish() -> None:
        if world.guests.boot[lane] != number:
            return
        if back:
            boot(world, lane, by=by)
        else:
            world.emit(int(world.guests.node[lane]), "shutdown", lane)
            stop(world, lane)

    world.after(_STOPPING_S, finish)


def panic(
    world: World, lane: int, kind: str, *, spin_cores: float, is_stopped: bool = True
) -> None:
    """Panic the kernel: it spins, or halts if `spin_cores` is 0, or its device stops it.

    With `is_stopped` False the device only reports, and the guest may still reboot itself.
    """
    told = bool(world.topology.panic_device[lane])
    node = int(world.guests.node[lane])
    if told:
        world.emit(node, "panicked", lane)
    if told and is_stopped:
        set_condition(world, lane, Condition.CRASHED)
        world.emit(node, "crashed", lane, reason="panicked")
    else:
        with world.changing([lane]):
            world.guests.spin_cores[lane] = spin_cores
            spins = spin_cores > 0
            world.guests.condition[lane] = Condition.PANIC_SPIN if spins else Condition.PANIC_HALT
    world.truth.died(lane, kind, world.now_ns)


def pause(world: World, lane: int) -> None:
    """Stop all vCPUs of the VM."""
    world.guests.before_pause[lane] = world.guests.condition[lane]
    set_condition(world, lane, Condition.PAUSED)
    world.emit(int(world.guests.node[lane]), "paused", lane)


def resume(world: World, lane: int) -> None:
    """Resume a paused VM in its previous condition."""
    if condition(world, lane) is Condition.PAUSED:
        set_condition(world, lane, Condition(int(world.guests.before_pause[lane])))
        world.emit(int(world.guests.node[lane]), "resumed", lane)


def runs(world: World, lane: int) -> bool:
    """Return whether the VM's vCPUs are running, in any condition of the guest."""
    return condition(world, lane) not in _NOT_RUNNING


def kernel_lives(world: World, lane: int) -> bool:
    """Return whether the guest's kernel answers."""
    return bool(KERNEL[condition(world, lane)])


def is_dead(world: World, lane: int) -> bool:
    """Return whether the guest's kernel is permanently dead by its own fault."""
    return bool(DEAD[condition(world, lane)])


def migrate(world: World, lane: int, *, target: int, by: str) -> Migration:
    """Begin to migrate a running VM; it arrives when its memory has been transferred.

    A VM whose disk completes no request arrives only when it does: qemu waits for its requests
    before the handover.
    """
    guests, source = world.guests, int(world.guests.node[lane])
    migration = Migration(lane, source, target, by)
    guests.job[lane] = True
    world.changed()
    world.migrations[lane] = migration

    def arrive() -> None:
        if migration.outcome != "running":
            return
        if world.unreachable[target] or not runs(world, lane):
            finish_migration(world, migration, "failed")
        elif world.rates.stuck(np.array([lane])).any():
            world.after(_RETRY_S, arrive)
        else:
            _hand_over(world, migration)

    memory_kib = float(guests.memory_kib[lane] * guests.resident_share[lane])
    duration_s = _MIGRATION_SETUP_S + memory_kib / _MIGRATION_KIB_PER_S
    world.after(duration_s, arrive)
    return migration


def move_disk(world: World, lane: int, pool: int) -> DiskMove:
    """Begin to copy a VM's disk to another pool; the VM uses the copy once it is complete.

    A pool that completes no request delays the move.
    """
    move = world.disk_moves[lane] = DiskMove(lane)
    world.guests.job[lane] = True
    world.changed()

    def pivot() -> None:
        if move.outcome != "running":
            return
        if world.rates.stuck(np.array([lane])).any():
            world.after(_RETRY_S, pivot)
            return
        with world.changing([lane]):
            world.topology.pool[lane] = pool
        _end_disk_move(world, move, "done")

    world.after(_DISK_MOVE_S, pivot)
    return move


def give_up_disk(world: World, move: DiskMove) -> None:
    """Cancel a copy and keep the VM on its old disk; a finished copy is not changed."""
    if move.outcome == "running":
        _end_disk_move(world, move, "given_up")


def _end_disk_move(world: World, move: DiskMove, outcome: str) -> None:
    move.outcome = outcome
    world.disk_moves.pop(move.lane, None)
    world.guests.job[move.lane] = False
    world.changed()


def finish_migration(world: World, migration: Migration, outcome: str) -> None:
    """End a migration that leaves the VM on its node."""
    migration.outcome = outcome
    world.migrations.pop(migration.lane, None)
    world.guests.job[migration.lane] = False
    world.changed()
    success = "yes" if outcome == "done" else "no"
    world.emit(
        migration.source, "job_ended", migration.lane, operation="migration_out", success=success
    )


def _hand_over(world: World, migration: Migration) -> None:
    lane, target = migration.lane, migration.target
    finish_migration(world, migration, "done")
    world.emit(migration.source, "migrated_out", lane, target=world.topology.nodes[target])
    world.place(lane, target)
    with world.changing([lane]):
        world.guests.instance[lane] = world.next_instance(target)
        world.guests.reported_s[lane] = NEVER_S
        world.meters.restart(np.array([lane]), world.now_ns)
    world.emit(target, "migrated_in", lane, source=world.topology.nodes[migration.source])
    names = world.topology.nodes
    world.truth.moves.append(
        Move(lane, names[migration.source], names[target], world.now_ns, migration.by)
    )
