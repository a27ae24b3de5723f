"""The shape of a simulated site and its incidents, as plain frozen values.

VMs are named by their index in the order of the plan: cell by cell, node by node. Nodes, pools and
networks are named by `node_name`, `pool_name` and `network_name`, so that an incident can be
specified before the world is built.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

Scope = Literal["vm", "node", "pool", "network", "fleet"]

WORKLOADS: Final = ("web", "database", "batch", "cron", "idle", "bursty")

# Thursday 2026-01-01 10:00 UTC: office hours, so that the season is neither peak nor trough.
_EPOCH_S: Final = 1_767_261_600


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """One fault or confounder.

    Attributes
    ----------
    kind
        A key of `FAULTS` in `connectors.simulator.faults`, or of `CONFOUNDERS` in `confounders`.
    at_s
        Seconds after the world began; 0 is before the first sample.
    vms, node, pool, network
        Target, as the kind's scope requires; a fleet incident needs none.
    duration_s
        Time in s after which the incident ends by itself; None is the kind's default: a dead guest
        stays dead, and a backup window ends after its usual time.
    params
        Numbers specific to the kind; `connectors.simulator.faults` and `confounders` have defaults.

    Raises
    ------
    ValueError
        It begins before the world.
    """

    kind: str
    at_s: float
    vms: tuple[int, ...] = ()
    node: str = ""
    pool: str = ""
    network: str = ""
    duration_s: float | None = None
    params: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Reject an incident that no world could play."""
        if self.at_s < 0:
            raise ValueError(f"{self.kind} at {self.at_s} s is before the begin of the simulation")


@dataclass(frozen=True, slots=True, kw_only=True)
class Telemetry:
    """How well nodes are observed. The default is perfect; `FIELD` has values measured in labs.

    Attributes
    ----------
    call_s, call_jitter_s
        Minimum duration of a bulk call, and its maximum excess.
    row_loss_ratio
        Share of rows whose monitor does not answer in time.
    sample_loss_ratio
        Share of bulk calls that fail completely.
    clock_offset_s
        Spread of the nodes' wall clocks around the true time.
    halted_known
        Whether `vcpus_halted` is measured; libvirt with qemu ≥ 2.12 on x86 does not report it.
    dirty_rate_known
        Whether `dirty_bytes_per_s` is measured; libvirt does so only on request.
    """

    call_s: float = 0.0
    call_jitter_s: float = 0.0
    row_loss_ratio: float = 0.0
    sample_loss_ratio: float = 0.0
    clock_offset_s: float = 0.0
    halted_known: bool = False
    dirty_rate_known: bool = False


FIELD: Final = Telemetry(
    call_s=0.01,
    call_jitter_s=0.05,
    row_loss_ratio=0.001,
    sample_loss_ratio=0.002,
    clock_offset_s=0.2,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldPlan:
    """A site: its shape, its habits and its incidents.

    Attributes
    ----------
    zones
        Zones to which the cells are assigned in turn.
    site_pools, site_networks
        Pools and networks shared by all cells, beside each cell's own.
    workloads
        Weights by workload; `pinned` fixes the workload of single VMs.
    cold_start
        Whether all VMs boot when the world begins; otherwise they have been up for days.
    epoch_s
        True wall time when the world begins, unless the world follows a clock.
    step_s
        Interval at which behaviour is drawn; counters are exact at any moment between.
    node_cores
        Cores of a node; None sizes each node to the VMs planned for it.
    balloon_period_s
        Interval of the guests' memory reports; 0 is never, which leaves those columns missing.
    panic_device_ratio, nicless_ratio
        Share of VMs with a panic device, and without any network card.
    balloonless_ratio
        Share of VMs whose balloon never reports, whatever `balloon_period_s` is.
    tickless_ratio
        Share of VMs whose idle vCPUs sleep for long: all their timers run on the first one.
    """

    seed: int
    site: str = "site"
    zones: int = 1
    cells: int = 1
    nodes_per_cell: int = 2
    vms_per_node: int = 25
    pools_per_cell: int = 1
    networks_per_cell: int = 1
    site_pools: int = 0
    site_networks: int = 0
    workloads: Mapping[str, float] = field(
        default_factory=lambda: {
            "web": 0.35,
            "database": 0.15,
            "batch": 0.1,
            "cron": 0.1,
            "idle": 0.15,
            "bursty": 0.15,
        }
    )
    pinned: Mapping[int, str] = field(default_factory=dict)
    incidents: tuple[Incident, ...] = ()
    telemetry: Telemetry = Telemetry()
    cold_start: bool = False
    epoch_s: int = _EPOCH_S
    step_s: float = 1.0
    node_cores: int | None = None
    balloon_period_s: int = 5
    panic_device_ratio: float = 0.0
    nicless_ratio: float = 0.0
    balloonless_ratio: float = 0.0
    tickless_ratio: float = 0.0
    tenants: int = 4

    def __post_init__(self) -> None:
        """Reject a site that cannot be built."""
        unknown = (set(self.workloads) | set(self.pinned.values())) - set(WORKLOADS)
        if unknown:
            raise ValueError(f"unknown workloads {sorted(unknown)}: {WORKLOADS}")
        if min(self.cells, self.nodes_per_cell, self.vms_per_node, self.zones) < 1:
            raise ValueError("a site needs at least one zone, cell, node and VM")
        if self.pools_per_cell + self.site_pools < 1:
            raise ValueError("VMs need a pool: pools_per_cell and site_pools are both 0")
        if self.networks_per_cell + self.site_networks < 1:
            raise ValueError("VMs need a network: networks_per_cell and site_networks are both 0")
        if self.step_s <= 0:
            raise ValueError(f"step_s is {self.step_s}, must be positive")

    @property
    def vms(self) -> int:
        """Number of VMs of the site."""
        return self.cells * self.nodes_per_cell * self.vms_per_node


def cell_name(cell: int) -> str:
    """Return the name of the cell with this index."""
    return f"c{cell}"


def node_name(*, cell: int, node: int) -> str:
    """Return the name of a node by its cell and its index in the cell."""
    return f"c{cell}-n{node}"


def pool_name(*, cell: int | None, pool: int) -> str:
    """Return the name of a pool; `cell` None is a pool that all cells share."""
    return f"site-pool{pool}" if cell is None else f"c{cell}-pool{pool}"


def network_name(*, cell: int | None, network: int) -> str:
    """Return the name of a network; `cell` None is a network that all cells share."""
    return f"site-net{network}" if cell is None else f"c{cell}-net{network}"
