"""The demo's fleet, its faults, and the check whether Flatline handled them.

The claims are judged from the simulator's record of the real events together with the records in
the log; neither alone would suffice.
"""

from dataclasses import dataclass
from typing import Final
from uuid import UUID

from flatline.connectors.simulator.fleet import Fleet
from flatline.connectors.simulator.plan import Incident, WorldPlan, node_name, pool_name
from flatline.engine.cli.demo_story import Story
from flatline.engine.preflight_data import PreflightSample
from flatline.engine.wire.alert import Alert

CELLS: Final = 4
NODES_PER_CELL: Final = 2
VMS_PER_NODE: Final = 25

# Long enough for the engine to learn the usual silences of each kind of VM, and short enough for a
# person to wait.
WARM_UP_S: Final = 900.0
# Start times and durations of the faults. Each is in a separate cell. They overlap, so that
# Flatline must handle them together.
PANIC_S: Final = WARM_UP_S + 5
BATCH_S: Final = WARM_UP_S + 10
STALL_S: Final = WARM_UP_S + 40
SICK_S: Final = WARM_UP_S + 20
STALL_LASTS_S: Final = 60.0
BATCH_LASTS_S: Final = 600.0
# A guest that was wrongly judged dead would be reset within this time.
AFTERMATH_S: Final = 45.0
# The batch job ends its writes within this time after it begins to compute; only then are its
# counters read.
SETTLED_S: Final = 10.0
# An event that has not happened by then will not happen.
DEADLINE_S: Final = WARM_UP_S + 420

CELLS_VMS: Final = [
    range(
        cell * NODES_PER_CELL * VMS_PER_NODE,
        (cell + 1) * NODES_PER_CELL * VMS_PER_NODE,
    )
    for cell in range(CELLS)
]
_VICTIM: Final = 3  # on the first node of cell c0
_BATCH: Final = 2 * NODES_PER_CELL * VMS_PER_NODE + 4  # on the first node of cell c2
# Kinds of the VMs of cell c3. All VMs of the overloaded node use their disks: the agent's preflight
# check rightly refuses to migrate a VM without I/O, because its qemu may not be able to finish. The
# other node has room with every seed.
_SICK_CELL: Final = {
    index: ("database", "web", "web")[index % 3]
    if index < CELLS_VMS[3][VMS_PER_NODE]
    else ("web", "idle", "idle")[index % 3]
    for index in CELLS_VMS[3]
}
STALLED_POOL: Final = pool_name(cell=1, pool=0)
SICK_NODE: Final = node_name(cell=3, node=0)


@dataclass(frozen=True, slots=True)
class Claim:
    """One claim of the demo; `done` is None while the claim is not decided."""

    title: str
    done: bool | None
    detail: str


def plan_of(seed: int) -> WorldPlan:
    """Return 200 VMs in 4 cells, with one incident in each cell after the warm-up."""
    return WorldPlan(
        seed=seed,
        site="demo",
        cells=CELLS,
        nodes_per_cell=NODES_PER_CELL,
        vms_per_node=VMS_PER_NODE,
        pinned={_VICTIM: "web", _BATCH: "batch", **_SICK_CELL},
        incidents=(
            Incident(kind="panic_spin", at_s=PANIC_S, vms=(_VICTIM,)),
            Incident(kind="batch_compute", at_s=BATCH_S, vms=(_BATCH,), duration_s=BATCH_LASTS_S),
            Incident(kind="pool_stall", at_s=STALL_S, pool=STALLED_POOL, duration_s=STALL_LASTS_S),
            Incident(kind="sick_node", at_s=SICK_S, node=SICK_NODE),
        ),
    )


class Referee:
    """Decides whether each `Claim` about the demo came true."""

    def __init__(self, fleet: Fleet, story: Story) -> None:
        self._fleet = fleet
        self._story = story
        self._batch_began: PreflightSample | None = None
        self._batch_now: PreflightSample | None = None

    async def look(self) -> None:
        """Read the batch job's counters, as an agent would."""
        if self._now_s() < BATCH_S + SETTLED_S:
            return
        node = self._fleet.node_of(_BATCH)
        seen = await self._fleet.actuator(node).sample(self._fleet.vm(_BATCH))
        self._batch_began = self._batch_began or seen
        self._batch_now = seen

    def claims(self) -> tuple[Claim, ...]:
        """Return all claims in their present state."""
        return (self._panic(), self._stall(), self._batch(), self._sick(), self._harm())

    def decided(self) -> bool:
        """Return whether all claims are final."""
        over_s = STALL_S + STALL_LASTS_S + AFTERMATH_S
        return self._now_s() >= over_s and all(claim.done is not None for claim in self.claims())

    def _now_s(self) -> float:
        return self._fleet.world.now_ns / 1e9

    def _text(self, index: int) -> str:
        return str(UUID(bytes=self._fleet.vm(index)))

    def _after_s(self, time_ms: int, since_s: float) -> float:
        """Return the seconds from `since_s`, in simulated time, to an append time."""
        return time_ms / 1000 - self._fleet.world.epoch_ns / 1e9 - since_s

    def _alerts_of(self, index: int) -> list[Alert]:
        vm = self._text(index)
        return [
            alert
            for states in self._story.alerts.values()
            for alert in states
            if alert.scope == "vm" and alert.subject == vm
        ]

    def _panic(self) -> Claim:
        name = self._fleet.name(_VICTIM)
        title = f"{name} panics, is reset and verified"
        deaths = [death for death in self._fleet.truth.deaths if death.vm == _VICTIM]
        resets = self._fleet.truth.calls("reset", vm=_VICTIM)
        alerts = self._alerts_of(_VICTIM)
        firing = [alert for alert in alerts if alert.state == "firing"]
        verified = [alert for alert in alerts if alert.resolution and alert.resolution.verified]
        if not (deaths and firing and resets and verified):
            steps = ("dead", deaths), ("alerted", firing), ("reset", resets), ("verified", verified)
            so_far = [step for step, found in steps if found]
            return Claim(title, None, ", ".join(so_far) or "not yet")
        died_s = deaths[0].at_ns / 1e9
        healed = deaths[0].repaired_by == "reset" and deaths[0].alive_ns is not None
        detail = (
            f"alert {self._after_s(firing[0].decided_ms, died_s):.0f} s after the panic, reset"
            f" {resets[0].at_ns / 1e9 - died_s:.0f} s, verified"
            f" {self._after_s(verified[0].decided_ms, died_s):.0f} s"
        )
        return Claim(title, healed and len(resets) == 1 and len(deaths) == 1, detail)

    def _stall(self) -> Claim:
        vms = CELLS_VMS[1]
        title = f"pool {STALLED_POOL} stalls under {len(vms)} VMs, and none is rebooted"
        found = [
            alert
            for alert in self._story.latest()
            if alert.scope == "pool" and alert.subject == STALLED_POOL
        ]
        touched = [call for call in self._fleet.truth.action_calls if call.vm in vms]
        if touched:
            return Claim(title, False, f"{len(touched)} of its VMs were acted on")
        over = self._now_s() >= STALL_S + STALL_LASTS_S + AFTERMATH_S
        if not found or not over:
            return Claim(title, None, "one incident of the pool" if found else "not yet")
        stalls = [h for h in self._fleet.truth.happenings if h.incident.kind == "pool_stall"]
        hit = max((len(stall.vms) for stall in stalls), default=0)
        seen_s = self._after_s(found[0].opened_ms, STALL_S)
        detail = f"one incident of the pool after {seen_s:.0f} s, {hit} VMs affected, 0 acted on"
        return Claim(title, hit >= len(vms), detail)

    def _batch(self) -> Claim:
        name = self._fleet.name(_BATCH)
        title = f"{name} computes at 100 % CPU without I/O, and no action follows"
        touched = [call for call in self._fleet.truth.action_calls if call.vm == _BATCH]
        ordered = [order for order in self._story.orders if order.vm == self._text(_BATCH)]
        if touched or ordered:
            return Claim(title, False, f"{len(ordered)} orders, {len(touched)} calls")
        first, last = self._batch_began, self._batch_now
        if first is None or last is None or first is last:
            return Claim(title, None, "not yet")
        seconds = (last.mono_ns - first.mono_ns) / 1e9
        if first.cpu_time_ns is None or last.cpu_time_ns is None or seconds < AFTERMATH_S:
            return Claim(title, None, f"for {seconds:.0f} s")
        cores = (last.cpu_time_ns - first.cpu_time_ns) / 1e9 / seconds
        share = cores / len(last.vcpu_time_ns)
        written = (last.block_wr_reqs or 0) - (first.block_wr_reqs or 0)
        vcpus = len(last.vcpu_time_ns)
        detail = f"{share:.0%} of {vcpus} vCPUs, {written} writes in {seconds:.0f} s, 0 orders"
        return Claim(title, share > 0.9 and written == 0, detail)

    def _sick(self) -> Claim:
        title = f"node {SICK_NODE} is overloaded, and a VM is migrated off it"
        moves = [
            move
            for move in self._fleet.truth.moves
            if move.source == SICK_NODE and move.by == "the agent"
        ]
        if not moves:
            ordered = any(order.action == "migrate" for order in self._story.orders)
            return Claim(title, None, "ordered" if ordered else "not yet")
        move = moves[0]
        well = self._fleet.truth.dead_since_ns(move.vm) is None
        seconds = move.at_ns / 1e9 - SICK_S
        detail = f"{self._fleet.name(move.vm)} runs on {move.target} after {seconds:.0f} s"
        return Claim(title, well, detail)

    def _harm(self) -> Claim:
        harms = self._fleet.truth.harms
        return Claim("no healthy VM is harmed", not harms, f"{len(harms)} harmed")
