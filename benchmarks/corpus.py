"""Simulated sites full of confounders, replayed and judged: hundreds of seeds from one plan.

On each site guests die in every way, and every confounder occurs as well. Seeds below `FIRST_SEED`
were used while detection was tuned; figures come from those above.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final
from uuid import UUID

import numpy as np

from flatline.connectors.simulator.draw import draw_incidents
from flatline.connectors.simulator.faults import FAULTS
from flatline.connectors.simulator.plan import (
    FIELD,
    Incident,
    WorldPlan,
    network_name,
    node_name,
    pool_name,
)
from flatline.connectors.simulator.truth import Happening
from flatline.engine.detection.configuration import Configuration
from flatline.engine.evaluation.judging import Judgement, judge
from flatline.engine.evaluation.truth import Occurrence
from flatline.engine.faults import Kind
from flatline.engine.ports import Record, RecordedFrame
from flatline.engine.roles.replay import Replayer
from flatline.engine.wire.alert import may_be_reset
from flatline.engine.wire.frame import Frame
from flatline.engine.wire.topics import FRAMES
from tests.simulation.site_records import Site

FIRST_SEED: Final = 1000
# No action feeds back into these sites, so some records are made before the first of them is
# folded: alternating between world and engine would evict each other's data from the cache.
_AT_ONCE: Final = 64
CELLS, NODES, VMS = 4, 2, 25
_NODE_CORES: Final = 8 * VMS
# Shares of a site's span: first an undisturbed time, then incidents of single VMs, and at the end
# common causes, so that no death hides behind a stall.
_PEACE_SHARE, _SINGLE_SHARE = 0.3, 0.85

DEATHS: Final = {"panic_spin": 8, "panic_halt": 6}
LOOK_ALIKES: Final = {
    "self_heal": 8,
    "crash_reboot": 2,
    "kdump": 4,
    "hung_userland": 2,
    "hung_io": 2,
    "cpu_runaway": 2,
    "mem_leak": 2,
    "degrading_storage": 2,
    "vm_silence": 2,
    "batch_compute": 12,
    "one_thread": 8,
    "gc_pause": 4,
    "batch_end_idle": 6,
    "owner_reboot": 5,
    "live_migration": 5,
    "pause": 4,
    "snapshot_freeze": 6,
    "backup_window": 4,
    "power_off": 4,
    "counter_glitch": 4,
    "counter_reset": 4,
    "short_gap": 4,
    "boot_prompt": 4,
}
# The correct suggestion for each kind; all others need no action.
_EXPECTED: Final = {
    **{kind.value: kind.fault.suggestion for kind in Kind},
    "sick_node": "migrate",
    "boot_storm": "host_alert",
    "fleet_io_silence": "fleet_alert",
}
# A guest without visible activity cannot be seen to stop.
_VISIBLE: Final = ("web", "database", "bursty")
# How long a guest is silent before it recovers itself: panic=10 or more, firmware, and a boot
# loader; a crash kernel boots before it writes. The maximum is the wait that detection promises.
_SELF_REBOOT_S: Final = (11.0, 28.5)
_CRASH_KERNEL_S: Final = (5.0, 28.5)


Witnesses = Mapping[str, Sequence[tuple[int, tuple[str, ...]]]]
_MINUTE_MS: Final = 60_000


class SimulatedRecording:
    """`engine.ports.Recording` of a simulated site, simulated again at each reading."""

    def __init__(self, plan: WorldPlan, *, interval_s: float, seconds: float) -> None:
        self.name = f"simulated-{plan.seed}"
        self.interval_s = interval_s
        self.seconds = seconds
        self._plan = plan
        self.site = _Site(plan, interval_s)
        topology = self.site.world.topology
        self.names: Mapping[str, str] = {
            str(UUID(bytes=uuid)): name
            for uuid, name in zip(topology.uuids, topology.names, strict=True)
        }

    def recorded_frames(self) -> Iterator[RecordedFrame]:
        """Yield the site's frames and ticks."""
        self.site = _Site(self._plan, self.interval_s)
        records = self.site.run(self.seconds)
        while some := list(islice(records, _AT_ONCE)):
            for record in some:
                yield RecordedFrame(record.time_ms, self.site.frames.pop(record.offset))

    def figures(self) -> dict[str, int]:
        """Return the number of records."""
        return {"records": self.site.offset}

    def truth(self, witnesses: Witnesses | None = None) -> list[Occurrence]:
        """Return the ground truth of the last reading, in the names of the recording.

        The death of a VM without a second witness at that time is alerted and never ordered: it is
        not counted among those that can be detected. `witnesses` is `Replayer.witnesses`, None if
        all had.
        """
        world = self.site.world
        end_s = (world.epoch_ns + world.now_ns) / 1e9
        return [
            _occurrence(
                happening,
                world.topology.names,
                world.epoch_ns,
                end_s,
                self.site,
                alone=witnesses is not None and self._is_alone(happening, witnesses),
            )
            for happening in world.truth.happenings
        ]

    def _is_alone(self, happening: Happening, witnesses: Witnesses) -> bool:
        """Return whether a dead VM had no second witness in the minute before."""
        world = self.site.world
        if happening.incident.kind not in DEATHS:
            return False
        died_ms = (world.epoch_ns + happening.began_ns) // 1_000_000
        # If all vCPUs spin, none is idle.
        spins = happening.incident.kind == "panic_spin"
        all_spin = spins and happening.incident.params.get("vcpus", 1.0) == 0.0
        for vm in happening.vms:
            reported = witnesses.get(str(UUID(bytes=world.topology.uuids[vm])), [])
            heard = [names for minute_ms, names in reported if minute_ms + _MINUTE_MS <= died_ms]
            names = heard[-1] if heard else ()
            if not may_be_reset([name for name in names if not (all_spin and name == "vcpus")]):
                return True
        return False


class _Site(Site):
    """A site whose frames are not encoded."""

    def __init__(self, plan: WorldPlan, interval_s: float) -> None:
        self.frames: dict[int, Frame] = {}
        super().__init__(plan, interval_s)

    def record(self, frame: Frame) -> Record:
        offset = self.offset
        self.offset += 1
        self.frames[offset] = frame
        time_ms = (self.world.epoch_ns + self.world.now_ns) // 1_000_000 + 5
        return Record(FRAMES.name, 0, offset, time_ms, frame.header.cell.encode(), b"")


@dataclass(frozen=True, slots=True)
class Played:
    """One site of the corpus, judged."""

    seed: int
    judgement: Judgement
    vm_days: float
    alert_ids: frozenset[str]

    @property
    def alert_only(self) -> int:
        """Number of deaths without a second witness."""
        return sum(
            one.occurrence.kind in DEATHS and not one.occurrence.detectable
            for one in self.judgement.findings
        )


def plan_of(seed: int, *, seconds: float) -> WorldPlan:
    """Return the site of a seed: its deaths, and its other incidents."""
    shape = WorldPlan(
        seed=seed,
        cells=CELLS,
        nodes_per_cell=NODES,
        vms_per_node=VMS,
        telemetry=FIELD,
        panic_device_ratio=0.1,
        # A VM without a balloon period has only its vCPUs as a witness, and a tickless one has
        # none.
        balloonless_ratio=0.3,
        tickless_ratio=0.2,
        # Enough cores for all: on a node that is really overloaded a migration would be correct.
        node_cores=_NODE_CORES,
    )
    single = draw_incidents(
        shape,
        seed=seed,
        counts=DEATHS | LOOK_ALIKES,
        from_s=_PEACE_SHARE * seconds,
        span_s=(_SINGLE_SHARE - _PEACE_SHARE) * seconds,
    )
    rng = np.random.default_rng(seed)
    single = tuple(_stands_still(one, rng) for one in single)
    stopping = {*DEATHS, "self_heal", "kdump"}
    dying = [vm for one in single if one.kind in stopping for vm in one.vms]
    pinned = {vm: str(rng.choice(_VISIBLE)) for vm in dying}
    # Boot prompts and owners' reboots have their own boots; the rest ends with the site.
    shared = _shared(rng, from_s=_SINGLE_SHARE * seconds, until_s=seconds)
    return replace(shape, incidents=(*single, *shared), pinned=pinned)


def _stands_still(incident: Incident, rng: np.random.Generator) -> Incident:
    """Return the incident with a random time of silence, where its guest recovers itself."""
    match incident.kind:
        case "self_heal":
            return replace(incident, duration_s=float(rng.uniform(*_SELF_REBOOT_S)))
        case "kdump":
            boots_s = float(rng.uniform(*_CRASH_KERNEL_S))
            return replace(incident, duration_s=60.0 + boots_s, params={"boots_s": boots_s})
        case _:
            return incident


def _shared(rng: np.random.Generator, *, from_s: float, until_s: float) -> tuple[Incident, ...]:
    """Return common causes, one after the other, in random cells."""
    step_s = (until_s - from_s) / 5
    lasts_s = step_s / 2
    cell = [int(one) for one in rng.permutation(CELLS)]
    return (
        Incident(
            kind="pool_stall",
            at_s=from_s,
            pool=pool_name(cell=cell[0], pool=0),
            duration_s=lasts_s,
        ),
        Incident(
            kind="network_stall",
            at_s=from_s + step_s,
            network=network_name(cell=cell[1], network=0),
            duration_s=lasts_s,
        ),
        Incident(
            kind="host_silence",
            at_s=from_s + 2 * step_s,
            node=node_name(cell=cell[2], node=0),
            duration_s=lasts_s,
        ),
        Incident(
            kind="boot_storm",
            at_s=from_s + 3 * step_s,
            node=node_name(cell=cell[3], node=1),
            duration_s=min(30.0, lasts_s),
        ),
        Incident(kind="fleet_io_silence", at_s=from_s + 4 * step_s, duration_s=lasts_s),
    )


def play(
    seeds: Iterable[int],
    *,
    interval_s: float,
    seconds: float,
    configuration: Configuration | None = None,
) -> Iterator[Played]:
    """Yield each seed's site, replayed and judged."""
    for seed in seeds:
        recording = SimulatedRecording(
            plan_of(seed, seconds=seconds), interval_s=interval_s, seconds=seconds
        )
        replayer = Replayer(recording, policies={}, configuration=configuration)
        lines = list(replayer.run())
        judgement = judge(lines, recording.truth(replayer.witnesses), interval_s=interval_s)
        yield Played(
            seed=seed,
            judgement=judgement,
            vm_days=sum(replayer.vm_days().values()),
            alert_ids=frozenset(line.id for line in lines),
        )


def together(played: Iterable[Played]) -> tuple[Judgement, float]:
    """Return the judgements of several sites as one, and their VM-days."""
    found = list(played)
    merged = Judgement(
        findings=tuple(f for one in found for f in one.judgement.findings),
        false_orders=tuple(f for one in found for f in one.judgement.false_orders),
        false_alerts=tuple(f for one in found for f in one.judgement.false_alerts),
        reported=tuple(f for one in found for f in one.judgement.reported),
    )
    return merged, sum(one.vm_days for one in found)


def _occurrence(
    happening: Happening,
    names: list[str],
    epoch_ns: int,
    end_s: float,
    site: Site,
    *,
    alone: bool = False,
) -> Occurrence:
    incident = happening.incident
    kind = incident.kind
    began_s = (epoch_ns + happening.began_ns) / 1e9
    ended_ns = happening.ended_ns
    # A dead guest stays dead until it is repaired, and no repair happens here.
    lasting = ended_ns is None or kind in DEATHS
    vms = frozenset(names[vm] for vm in happening.vms)
    is_fault = kind in FAULTS
    return Occurrence(
        kind=kind,
        is_fault=is_fault,
        expected=_EXPECTED.get(kind, "alert" if is_fault else "none"),
        host=incident.node,
        vms=vms,
        start_s=began_s,
        end_s=end_s if lasting or ended_ns is None else (epoch_ns + ended_ns) / 1e9,
        shape=_shape(incident, site),
        detectable=not alone,
        note=f"seed {site.plan.seed}",
    )


def _shape(incident: Incident, site: Site) -> str:
    if incident.kind == "panic_halt":
        return "halt"
    if incident.kind != "panic_spin":
        return ""
    one = incident.params.get("vcpus", 1.0) == 1.0
    single = all(site.world.topology.vcpus[vm] == 1 for vm in incident.vms)
    return "one core" if one and not single else "all cores"
