"""Transitions of a guest: boots, deaths, pauses, migrations.

In every function, `index` is the VM's index in the plan.
"""

from typing import Final

import numpy as np

from flatline.connectors.simulator.guests import DEAD, KERNEL, NEVER_S, Condition
from flatline.connectors.simulator.truth import Move
from flatline.connectors.simulator.world import DiskMove, Migration, World

# Live migration: memory is transferred at 10 Gbit/s, after a second of setup.
_MIGRATION_SETUP_S: Final = 1.0
_MIGRATION_KIB_PER_S: Final = 1_200_000.0
# Time in which processes end when a guest is asked to reboot or switch off.
_STOPPING_S: Final = 4.0
_RETRY_S: Final = 1.0
# A disk of 10 GiB at 10 Gbit/s.
_DISK_MOVE_S: Final = 10.0
# Conditions in which no vCPU of the VM runs.
_NOT_RUNNING: Final = frozenset({Condition.PAUSED, Condition.CRASHED, Condition.OFF})


def condition(world: World, index: int) -> Condition:
    """Return the current condition of the guest."""
    return Condition(int(world.guests.condition[index]))


def set_condition(world: World, index: int, new: Condition) -> None:
    """Set the condition of the guest from now on."""
    with world.changing([index]):
        world.guests.condition[index] = new


def boot(world: World, index: int, *, by: str, event: str | None = "rebooted") -> None:
    """Boot the guest; it works again after its boot time, or later when its disk answers.

    Parameters
    ----------
    by
        What repairs the guest if it was dead, for `Death.repaired_by`: an action, or "itself".
    event
        Kind of the event that the node emits now; None emits no event.
    """
    with world.changing([index]):
        world.guests.forget(index)
        world.guests.condition[index] = Condition.BOOTING
    if event is not None:
        world.emit(int(world.guests.node[index]), event, index)
    number = world.guests.boot[index]

    def finish() -> None:
        if world.guests.boot[index] != number or condition(world, index) is not Condition.BOOTING:
            return
        if world.rates.stuck(np.array([index])).any():
            world.after(_RETRY_S, finish)
            return
        set_condition(world, index, Condition.RUNNING)
        world.truth.lives(index, world.now_ns, by)

    world.after(float(world.guests.boot_s[index]), finish)


def start(world: World, index: int, *, by: str) -> None:
    """Start a VM that is switched off: a new qemu process, so a new instance.

    `by` is as for `boot`.
    """
    node = int(world.guests.node[index])
    world.guests.instance[index] = world.next_instance(node)
    world.guests.reported_s[index] = NEVER_S
    world.meters.restart(np.array([index]), world.now_ns)
    boot(world, index, by=by, event="started")


def stop(world: World, index: int) -> None:
    """Switch a VM off immediately."""
    with world.changing([index]):
        world.guests.forget(index)
        world.guests.condition[index] = Condition.OFF
    world.emit(int(world.guests.node[index]), "stopped", index)


def shut_down(world: World, index: int, *, back: bool, by: str) -> None:
    """End the guest's processes, then boot or switch off; without a live kernel do so at once.

    With `back` the guest boots afterwards. `by` is as for `boot`.
    """
    if not kernel_lives(world, index):
        boot(world, index, by=by) if back else stop(world, index)
        return
    set_condition(world, index, Condition.STOPPING)
    number = world.guests.boot[index]

    def finish() -> None:
        if world.guests.boot[index] != number:
            return
        if back:
            boot(world, index, by=by)
        else:
            world.emit(int(world.guests.node[index]), "shutdown", index)
            stop(world, index)

    world.after(_STOPPING_S, finish)


def panic(
    world: World, index: int, kind: str, *, spin_cores: float, is_stopped: bool = True
) -> None:
    """Panic the kernel: it spins, or halts if `spin_cores` is 0, or its panic device stops the VM.

    Parameters
    ----------
    kind
        Kind of the incident, for `Death.kind`.
    spin_cores
        Cores that the kernel keeps busy.
    is_stopped
        If False, the panic device only reports, and the guest may still reboot itself.
    """
    reported = bool(world.topology.panic_device[index])
    node = int(world.guests.node[index])
    if reported:
        world.emit(node, "panicked", index)
    if reported and is_stopped:
        set_condition(world, index, Condition.CRASHED)
        world.emit(node, "crashed", index, reason="panicked")
    else:
        with world.changing([index]):
            world.guests.spin_cores[index] = spin_cores
            spins = spin_cores > 0
            world.guests.condition[index] = Condition.PANIC_SPIN if spins else Condition.PANIC_HALT
    world.truth.died(index, kind, world.now_ns)


def pause(world: World, index: int) -> None:
    """Stop all vCPUs of the VM."""
    world.guests.before_pause[index] = world.guests.condition[index]
    set_condition(world, index, Condition.PAUSED)
    world.emit(int(world.guests.node[index]), "paused", index)


def resume(world: World, index: int) -> None:
    """Resume a paused VM in its previous condition."""
    if condition(world, index) is Condition.PAUSED:
        set_condition(world, index, Condition(int(world.guests.before_pause[index])))
        world.emit(int(world.guests.node[index]), "resumed", index)


def runs(world: World, index: int) -> bool:
    """Return whether the VM's vCPUs are running, in any condition of the guest."""
    return condition(world, index) not in _NOT_RUNNING


def kernel_lives(world: World, index: int) -> bool:
    """Return whether the guest's kernel answers."""
    return bool(KERNEL[condition(world, index)])


def is_dead(world: World, index: int) -> bool:
    """Return whether the guest's kernel is permanently dead by its own fault."""
    return bool(DEAD[condition(world, index)])


def migrate(world: World, index: int, *, target: int, by: str) -> Migration:
    """Begin to migrate a running VM; it arrives when its memory has been transferred.

    While the VM's disk completes no request, the VM does not arrive: qemu waits for open requests
    before the handover.

    `target` is the index of a node. `by` names the actor for `Move.by`. The outcome of the returned
    migration changes when it ends.
    """
    guests, source = world.guests, int(world.guests.node[index])
    migration = Migration(index, source, target, by)
    guests.job[index] = True
    world.changed()
    world.migrations[index] = migration

    def arrive() -> None:
        if migration.outcome != "running":
            return
        if world.unreachable[target] or not runs(world, index):
            finish_migration(world, migration, "failed")
        elif world.rates.stuck(np.array([index])).any():
            world.after(_RETRY_S, arrive)
        else:
            _hand_over(world, migration)

    memory_kib = float(guests.memory_kib[index] * guests.resident_share[index])
    duration_s = _MIGRATION_SETUP_S + memory_kib / _MIGRATION_KIB_PER_S
    world.after(duration_s, arrive)
    return migration


def move_disk(world: World, index: int, pool: int) -> DiskMove:
    """Begin to copy a VM's disk to another pool; the VM uses the copy once it is complete.

    A pool that completes no request delays the move.

    `pool` is an index into `Topology.pools`. The outcome of the returned move changes when it ends.
    """
    move = world.disk_moves[index] = DiskMove(index)
    world.guests.job[index] = True
    world.changed()

    def pivot() -> None:
        if move.outcome != "running":
            return
        if world.rates.stuck(np.array([index])).any():
            world.after(_RETRY_S, pivot)
            return
        with world.changing([index]):
            world.topology.pool[index] = pool
        _end_disk_move(world, move, "done")

    world.after(_DISK_MOVE_S, pivot)
    return move


def give_up_disk(world: World, move: DiskMove) -> None:
    """Cancel a copy and keep the VM on its old disk; a finished copy is not changed."""
    if move.outcome == "running":
        _end_disk_move(world, move, "given_up")


def _end_disk_move(world: World, move: DiskMove, outcome: str) -> None:
    move.outcome = outcome
    world.disk_moves.pop(move.index, None)
    world.guests.job[move.index] = False
    world.changed()


def finish_migration(world: World, migration: Migration, outcome: str) -> None:
    """Record the end of a migration and its outcome; the VM's node is not changed.

    `outcome` is done, aborted or failed.
    """
    migration.outcome = outcome
    world.migrations.pop(migration.index, None)
    world.guests.job[migration.index] = False
    world.changed()
    success = "yes" if outcome == "done" else "no"
    world.emit(
        migration.source, "job_ended", migration.index, operation="migration_out", success=success
    )


def _hand_over(world: World, migration: Migration) -> None:
    index, target = migration.index, migration.target
    finish_migration(world, migration, "done")
    world.emit(migration.source, "migrated_out", index, target=world.topology.nodes[target])
    world.place(index, target)
    with world.changing([index]):
        world.guests.instance[index] = world.next_instance(target)
        world.guests.reported_s[index] = NEVER_S
        world.meters.restart(np.array([index]), world.now_ns)
    world.emit(target, "migrated_in", index, source=world.topology.nodes[migration.source])
    names = world.topology.nodes
    world.truth.moves.append(
        Move(index, names[migration.source], names[target], world.now_ns, migration.by)
    )
