"""A collector's view of one VM of a simulated site: rates between two samples."""

from dataclasses import dataclass

import numpy as np

from flatline.connectors.simulator.fleet import Fleet, build_world
from flatline.connectors.simulator.incidents import KINDS
from flatline.connectors.simulator.plan import Incident, WorldPlan
from flatline.engine.ports import NodeSample
from flatline.engine.wire.metrics import GAUGE_ROW, INTEGER_ROW, VM_STATES

VM = 3
NODE = "c0-n0"
EVERY_S = 2.0


@dataclass(frozen=True)
class Glance:
    """The values of one interval; deltas are per second, None is unknown."""

    at_s: float
    present: bool
    state: str = ""
    cores: float | None = None
    busiest: float | None = None
    busy: int | None = None
    reads: float | None = None
    writes: float | None = None
    sends: float | None = None
    receives: float | None = None
    steal: float | None = None
    age_s: float | None = None
    usable_kib: int | None = None
    faults: float | None = None
    instance: int | None = None
    hung: bool = False
    events: tuple[str, ...] = ()


class Liveness:
    """Samples a node every 2 s and stores the values of one VM."""

    def __init__(self, fleet: Fleet, *, vm: int = VM, node: str = NODE) -> None:
        self.fleet = fleet
        self.vm = fleet.vm(vm)
        self.hypervisor = fleet.hypervisor(node)
        self._before: dict[str, int | None] = {}

    def glance(self) -> Glance:
        self.fleet.advance(EVERY_S)
        sample = self.hypervisor.observe()
        reported = self.hypervisor.drain_events()
        events = tuple(event.kind for event in reported if event.vm == self.vm)
        at_s = self.fleet.world.now_ns / 1e9
        now = values(sample, self.vm)
        if now is None:
            self._before = {}
            return Glance(at_s, present=False, events=events)
        index = index_of(sample, self.vm)
        busiest = float(sample.rows.gauges[GAUGE_ROW["vcpu_busiest_ratio"], index])
        stamp_s = now["balloon_last_update_s"]
        state = now["state"]
        assert state is not None
        glance = Glance(
            at_s,
            present=True,
            state=VM_STATES[state],
            cores=self._rate(now, "cpu_time_ns", 1e9),
            busiest=None if np.isnan(busiest) else busiest,
            busy=now["vcpus_busy"],
            reads=self._rate(now, "block_rd_reqs"),
            writes=self._rate(now, "block_wr_reqs"),
            sends=self._rate(now, "net_tx_pkts"),
            receives=self._rate(now, "net_rx_pkts"),
            steal=self._rate(now, "vcpu_delay_ns", 1e9),
            age_s=None if stamp_s is None else sample.event_time_ns / 1e9 - stamp_s,
            usable_kib=now["balloon_usable_kib"],
            faults=self._rate(now, "balloon_major_faults"),
            instance=now["instance"],
            hung=self.vm in sample.hung,
            events=events,
        )
        self._before = now
        return glance

    def glances(self, count: int) -> list[Glance]:
        return [self.glance() for _ in range(count)]

    def _rate(self, now: dict[str, int | None], name: str, unit: float = 1.0) -> float | None:
        new, old = now[name], self._before.get(name)
        return None if new is None or old is None else (new - old) / unit / EVERY_S


def index_of(sample: NodeSample, vm: bytes) -> int | None:
    rows = sample.rows
    indices = [index for index in range(len(rows)) if rows.vm(index) == vm]
    return indices[0] if indices else None


def values(sample: NodeSample, vm: bytes) -> dict[str, int | None] | None:
    index = index_of(sample, vm)
    if index is None:
        return None
    present = sample.rows.present()[:, index]
    return {
        name: int(sample.rows.integers[row, index]) if present[row] else None
        for name, row in INTEGER_ROW.items()
    }


def site(*incidents: Incident, workload: str = "database", **changes: object) -> Fleet:
    """Return a small site; VM 3 is on node c0-n0 and has no silent phases."""
    plan = {"seed": 3, "vms_per_node": 10, "pinned": {VM: workload}, **changes}
    return build_world(WorldPlan(incidents=incidents, **plan))  # type: ignore[arg-type]


def incident(
    kind: str, *, at_s: float = 11.0, lasts_s: float | None = None, **params: float
) -> Incident:
    """Return an incident of any kind on VM 3."""
    scope = KINDS[kind].scope
    return Incident(
        kind=kind,
        at_s=at_s,
        duration_s=lasts_s,
        vms=(VM,) if scope == "vm" else (),
        node=NODE if scope == "node" else "",
        pool="c0-pool0" if scope == "pool" else "",
        network="c0-net0" if scope == "network" else "",
        params=params,
    )


def watch(*incidents: Incident, workload: str = "database", **changes: object) -> Liveness:
    return Liveness(site(*incidents, workload=workload, **changes))


def after(glances: list[Glance], at_s: float) -> list[Glance]:
    """Return the intervals that begin after a time."""
    return [glance for glance in glances if glance.at_s - 2.0 >= at_s]
