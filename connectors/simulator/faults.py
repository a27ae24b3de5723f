"""Start and end of each fault.

Each kind of fault is one function. It begins the incident and returns the function that ends it, or
None if only a repair ends it. The numbers in brackets in the docstrings are defaults, which
`incident.params` overrides.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from flatline.connectors.simulator import lifecycle
from flatline.connectors.simulator.changes import Begin, Played, modifier, set_guests, silence
from flatline.connectors.simulator.guests import Condition
from flatline.connectors.simulator.plan import Incident
from flatline.connectors.simulator.world import NS_PER_S, Action, World

# One bulk request of a guest, in MB.
_BULK_MB: Final = 0.262_144


def _panic_spin(world: World, incident: Incident, indices: list[int]) -> None:
    """Make the kernel spin on `vcpus` (1) vCPUs; 0 means all of them."""
    _spin(world, incident, indices, is_stopped=True)


def _spin(world: World, incident: Incident, indices: list[int], *, is_stopped: bool) -> None:
    for index in indices:
        cores = float(world.topology.vcpus[index])
        spin = min(incident.params.get("vcpus", 1.0) or cores, cores)
        lifecycle.panic(world, index, incident.kind, spin_cores=spin, is_stopped=is_stopped)


def _panic_halt(world: World, incident: Incident, indices: list[int]) -> None:
    for index in indices:
        lifecycle.panic(world, index, incident.kind, spin_cores=0.0)


def _self_heal(world: World, incident: Incident, indices: list[int]) -> Action:
    """Panic, then reboot automatically (`panic=N` on the kernel's command line).

    If the panic device stopped the vCPUs, the VM could not reboot; so here the device only reports.
    """
    _spin(world, incident, indices, is_stopped=False)
    numbers = world.guests.boot[indices].copy()

    def end() -> None:
        for index, number in zip(indices, numbers, strict=True):
            if world.guests.boot[index] == number and lifecycle.is_dead(world, index):
                lifecycle.boot(world, index, by="itself")

    return end


def _crash_reboot(world: World, incident: Incident, indices: list[int]) -> Action:
    """Stop, then reboot immediately without a report."""
    numbers = world.guests.boot[indices].copy()
    for index in indices:
        lifecycle.set_condition(world, index, Condition.PANIC_HALT)
        world.truth.died(index, incident.kind, world.now_ns)

    def end() -> None:
        for index, number in zip(indices, numbers, strict=True):
            if world.guests.boot[index] == number:
                lifecycle.boot(world, index, by="itself")

    return end


def _kdump(world: World, incident: Incident, indices: list[int]) -> Action:
    """Panic into a crash kernel that writes memory to disk, then reboots.

    The crash kernel boots for `boots_s` (0) before it writes: silent, on one vCPU.
    """
    boots_s = incident.params.get("boots_s", 0.0)
    numbers = world.guests.boot[indices].copy()
    for index in indices:
        with world.changing([index]):
            world.guests.spin_cores[index] = 1.0
            world.guests.condition[index] = Condition.PANIC_SPIN
        world.truth.died(index, incident.kind, world.now_ns)

    def write() -> None:
        for index, number in zip(indices, numbers, strict=True):
            if world.guests.boot[index] == number and lifecycle.is_dead(world, index):
                with world.changing([index]):
                    world.guests.spin_cores[index] = 0.0
                    world.guests.condition[index] = Condition.KDUMP

    if boots_s > 0:
        world.after(boots_s, write)
    else:
        write()

    def end() -> None:
        for index in indices:
            if lifecycle.condition(world, index) is Condition.KDUMP:
                lifecycle.boot(world, index, by="itself")

    return end


def _condition(new: Condition, *, back: bool) -> Begin:
    """Return the `Begin` of incidents that set a condition; they end by themselves with `back`."""

    def begin(world: World, incident: Incident, indices: list[int]) -> Action | None:
        for index in indices:
            lifecycle.set_condition(world, index, new)

        def end() -> None:
            for index in indices:
                if lifecycle.condition(world, index) is new:
                    lifecycle.set_condition(world, index, Condition.RUNNING)

        return end if back else None

    return begin


def _degrading_storage(world: World, incident: Incident, indices: list[int]) -> Action:
    """Slow the VM's disk down by `factor` (8), which is reached gradually after `ramp_s` (1200)."""
    factor = incident.params.get("factor", 8.0)
    ramp_ns = incident.params.get("ramp_s", 1200.0) * NS_PER_S
    began_ns, key = world.now_ns, object()

    def worsen() -> None:
        progress = min(1.0, (world.now_ns - began_ns) / ramp_ns)
        world.guests.slowness[indices] = 1.0 + (factor - 1.0) * progress

    def end() -> None:
        del world.slow_changes[key]
        set_guests(world, indices, slowness=1.0)

    world.slow_changes[key] = worsen
    return end


def _mem_leak(world: World, incident: Incident, indices: list[int]) -> Action:
    """Fill the guest's memory in `fills_in_s` (0.8 of the duration); then the guest thrashes."""
    fills_in_s = incident.params.get("fills_in_s", 0.8 * (incident.duration_s or 7200.0))
    guests = world.guests
    room = guests.memory_kib[indices] * (1.0 - guests.used_share[indices])
    guests.leak_kib_s[indices] = room / fills_in_s
    return lambda: set_guests(world, indices, leak_kib_s=0.0, leaked_kib=0.0)


def _cpu_runaway(world: World, incident: Incident, indices: list[int]) -> Action:
    """Use `cores` (1) in addition to the usual work, until the guest boots or the incident ends."""
    set_guests(world, indices, extra_cores=incident.params.get("cores", 1.0))
    return lambda: set_guests(world, indices, extra_cores=0.0)


def _noisy_neighbour(world: World, incident: Incident, indices: list[int]) -> Action:
    """Run the named VMs at full CPU, which slows the other VMs of their nodes.

    The named VMs write `write_mb` (40) MB/s and take `share` (0.4) of each neighbour's cores.
    """
    share = incident.params.get("share", 0.4)
    writes = incident.params.get("write_mb", 40.0) / _BULK_MB
    set_guests(world, indices, extra_cores=64.0, extra_writes=writes, takes_all=True)
    key = object()

    def press() -> None:
        """Slow the node where the aggressor runs now: it may have migrated."""
        nodes = {
            int(world.guests.node[index]) for index in indices if world.guests.takes_all[index]
        }
        for node in pressed - nodes:
            world.rates.squeeze[node] = 0.0
        for node in nodes:
            world.rates.squeeze[node] = share
        pressed.clear()
        pressed.update(nodes)

    pressed: set[int] = set()
    press()
    world.slow_changes[key] = press

    def end() -> None:
        set_guests(world, indices, extra_cores=0.0, extra_writes=0.0, takes_all=False)
        del world.slow_changes[key]
        press()

    return end


def _sick_node(world: World, incident: Incident, indices: list[int]) -> Action:
    """Withhold `share` (0.6) of the VMs' CPU on the node."""
    node = world.topology.node_index[incident.node]
    with world.changing(indices):
        world.rates.squeeze[node] = incident.params.get("share", 0.6)

    def end() -> None:
        with world.changing(indices):
            world.rates.squeeze[node] = 0.0

    return end


def host_silence(world: World, incident: Incident, indices: list[int]) -> Action:
    """Make the node's hypervisor unreachable.

    With `dies` = 1 the whole node fails: its guests stop, and boot when the incident ends.

    The node is `incident.node`, and `indices` are the VMs on it. Returns the function that ends the
    incident.
    """
    node = world.topology.node_index[incident.node]
    dies = bool(incident.params.get("dies", 0.0))
    world.unreachable[node] = True
    if dies:
        for index in indices:
            lifecycle.stop(world, index)

    def end() -> None:
        world.unreachable[node] = False
        if dies:
            for index in indices:
                lifecycle.start(world, index, by="the platform")

    return end


def _pool_stall(world: World, incident: Incident, indices: list[int]) -> Action:
    pool = world.topology.pools.index(incident.pool)

    def stall(stalled: bool) -> None:
        with world.changing(indices):
            world.rates.pool_stalled[pool] = stalled

    stall(True)
    return lambda: stall(False)


def _network_stall(world: World, incident: Incident, indices: list[int]) -> Action:
    network = world.topology.networks.index(incident.network)

    def stall(stalled: bool) -> None:
        with world.changing(indices):
            world.rates.network_stalled[network] = stalled

    stall(True)
    return lambda: stall(False)


# Flatline should detect faults. A confounder resembles a fault, but must not lead to an action.
FAULTS: Final[Mapping[str, Played]] = MappingProxyType(
    {
        "panic_spin": Played(_panic_spin),
        "panic_halt": Played(_panic_halt),
        "hung_userland": Played(_condition(Condition.HUNG_USERLAND, back=False)),
        "hung_io": Played(modifier(io_stuck=True)),
        "crash_reboot": Played(_crash_reboot, usual_s=2.0),
        "self_heal": Played(_self_heal, usual_s=10.0),
        "kdump": Played(_kdump, usual_s=60.0),
        "degrading_storage": Played(_degrading_storage, usual_s=3600.0),
        "mem_leak": Played(_mem_leak, usual_s=7200.0),
        "cpu_runaway": Played(_cpu_runaway),
        "noisy_neighbour": Played(_noisy_neighbour, usual_s=1200.0),
        "vm_silence": Played(silence(absent=False), usual_s=300.0),
        "sick_node": Played(_sick_node, scope="node"),
        "host_silence": Played(host_silence, usual_s=300.0, scope="node"),
        "pool_stall": Played(_pool_stall, usual_s=120.0, scope="pool"),
        "network_stall": Played(_network_stall, usual_s=120.0, scope="network"),
    }
)
