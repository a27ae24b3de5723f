"""Start and end of each confounder.

Each kind of confounder is one function. It begins the incident and returns the function that ends
it, or None if there is nothing to end or only a repair ends it. The numbers in brackets in the
docstrings are defaults, which `incident.params` overrides.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import numpy as np

from flatline.connectors.simulator import lifecycle
from flatline.connectors.simulator.changes import Played, modifier, set_guests, silence
from flatline.connectors.simulator.faults import host_silence
from flatline.connectors.simulator.guests import NEVER_S, Condition
from flatline.connectors.simulator.plan import Incident
from flatline.connectors.simulator.workloads import COMPUTING, FREE, RESTED, SILENT, WRITING
from flatline.connectors.simulator.world import Action, World

# The error that a wrapping 32-bit counter adds to a reading.
_GLITCH: Final = 1 << 32


def _owner_reboot(world: World, incident: Incident, indices: list[int]) -> None:
    for index in indices:
        lifecycle.shut_down(world, index, back=True, by="its owner")


def _live_migration(world: World, incident: Incident, indices: list[int]) -> None:
    """Migrate each VM to the next node of its cell, or to node `to`."""
    per_cell = world.plan.nodes_per_cell
    for index in indices:
        node = int(world.guests.node[index])
        first = node - node % per_cell
        target = int(incident.params.get("to", first + (node - first + 1) % per_cell))
        if target != node and lifecycle.runs(world, index) and not world.guests.job[index]:
            lifecycle.migrate(world, index, target=target, by="the platform")


def _pause(world: World, incident: Incident, indices: list[int]) -> Action:
    for index in indices:
        lifecycle.pause(world, index)

    def end() -> None:
        for index in indices:
            lifecycle.resume(world, index)

    return end


def _power_off(world: World, incident: Incident, indices: list[int]) -> Action:
    """Shut the guest down as its owner would; start it again after the incident's duration."""
    for index in indices:
        lifecycle.shut_down(world, index, back=False, by="its owner")

    def end() -> None:
        for index in indices:
            if lifecycle.condition(world, index) is Condition.OFF:
                lifecycle.start(world, index, by="its owner")

    return end


def _batch_compute(world: World, incident: Incident, indices: list[int]) -> Action:
    """Compute on all vCPUs without any I/O, then write results for `results_s` (60)."""
    set_guests(world, indices, forced=COMPUTING)

    def end() -> None:
        set_guests(world, indices, forced=WRITING, extra_writes=60.0)
        results_s = incident.params.get("results_s", 60.0)
        world.after(results_s, lambda: set_guests(world, indices, forced=FREE, extra_writes=0.0))

    return end


def _one_thread(world: World, incident: Incident, indices: list[int]) -> Action:
    """Compute in one thread without any I/O, after `writes_s` (0) of heavy writes.

    The guest receives no requests meanwhile, so it sends nothing either; its kernel serves the
    timers of all vCPUs.
    """
    writes_s = incident.params.get("writes_s", 0.0)
    numbers = world.guests.boot[indices].copy()

    def compute() -> None:
        if (world.guests.boot[indices] == numbers).all():
            set_guests(
                world, indices, forced=SILENT, extra_cores=1.0, extra_writes=0.0, send_share=0.0
            )

    if writes_s:
        set_guests(world, indices, forced=WRITING, extra_writes=60.0)
        world.after(writes_s, compute)
    else:
        compute()

    def end() -> None:
        set_guests(world, indices, forced=FREE, extra_cores=0.0, extra_writes=0.0, send_share=1.0)

    return end


def _gc_pause(world: World, incident: Incident, indices: list[int]) -> Action:
    """Stop the only process for garbage collection on all vCPUs; nothing else runs."""
    set_guests(world, indices, forced=COMPUTING, send_share=0.0)
    return lambda: set_guests(world, indices, forced=FREE, send_share=1.0)


def _counter_reset(world: World, incident: Incident, indices: list[int]) -> None:
    with world.changing(indices):
        world.meters.restart(np.array(indices), world.now_ns)


def _boot_prompt(world: World, incident: Incident, indices: list[int]) -> None:
    """Wait at the boot prompt; with `spins` = 1 the loader polls the keyboard at full speed."""
    for index in indices:
        lifecycle.set_condition(world, index, Condition.PROMPT)
        world.guests.reported_s[index] = NEVER_S
    if incident.params.get("spins", 0.0):
        set_guests(world, indices, spin_cores=1.0)


def _boot_storm(world: World, incident: Incident, indices: list[int]) -> Action:
    """Cut the node's power; after the duration all its VMs start together."""
    return host_silence(
        world,
        Incident(kind="host_silence", at_s=0.0, node=incident.node, params={"dies": 1.0}),
        indices,
    )


CONFOUNDERS: Final[Mapping[str, Played]] = MappingProxyType(
    {
        "owner_reboot": Played(_owner_reboot),
        "live_migration": Played(_live_migration),
        "pause": Played(_pause, usual_s=60.0),
        # While a real file system is frozen, reads continue and writes wait. But in effect no
        # request reaches the disk, so the model holds back all requests.
        "snapshot_freeze": Played(modifier(io_share=0.0), usual_s=20.0),
        "backup_window": Played(modifier(extra_reads=80.0), usual_s=1800.0),
        "batch_compute": Played(_batch_compute, usual_s=1200.0),
        "one_thread": Played(_one_thread, usual_s=1200.0),
        "gc_pause": Played(_gc_pause, usual_s=40.0),
        "batch_end_idle": Played(modifier(forced=RESTED), usual_s=1800.0),
        "power_off": Played(_power_off, usual_s=900.0),
        "counter_glitch": Played(modifier(glitch=_GLITCH), usual_s=2.0),
        "counter_reset": Played(_counter_reset),
        "short_gap": Played(silence(absent=True), usual_s=30.0),
        "boot_prompt": Played(_boot_prompt),
        "boot_storm": Played(_boot_storm, usual_s=30.0, scope="node"),
        "fleet_io_silence": Played(
            modifier(io_share=0.0, send_share=0.0), usual_s=900.0, scope="fleet"
        ),
    }
)
