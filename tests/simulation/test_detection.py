"""The engine on whole simulated sites: dead guests are detected, and no live one is rebooted."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from uuid import UUID

import numpy as np
import pytest

from flatline.connectors.simulator import lifecycle
from flatline.connectors.simulator.plan import FIELD, Incident, WorldPlan
from flatline.engine.detection.configuration import Configuration
from flatline.engine.detection.partition import Partition
from flatline.engine.detection.replayed import run_records
from flatline.engine.ports import Record
from flatline.engine.wire.alert import Alert
from flatline.engine.wire.frame import Event
from tests.simulation.site_records import Site

FAST = Configuration(verify_stable_s=10.0)
SECONDS = 400.0
SEEDS = (1, 2)

# Number of incidents of each kind, on random VMs; every kind stays below the gate.
FAULTS = {
    "panic_spin": 5,
    "panic_halt": 4,
    "hung_userland": 2,
    "hung_io": 2,
    "crash_reboot": 1,
    "self_heal": 2,
    "kdump": 1,
    "vm_silence": 1,
    "cpu_runaway": 1,
    "mem_leak": 1,
    "degrading_storage": 1,
    "batch_compute": 6,
    "batch_end_idle": 3,
    "owner_reboot": 2,
    "live_migration": 3,
    "pause": 2,
    "snapshot_freeze": 3,
    "backup_window": 2,
    "power_off": 2,
    "counter_glitch": 2,
    "counter_reset": 2,
    "short_gap": 2,
    "boot_prompt": 2,
}


@dataclass
class Run:
    """The results of one site: published alerts, their times, and the ground truth at that time."""

    site: Site
    alerts: list[Alert] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    alerted_s: dict[int, float] = field(default_factory=dict)
    ordered_s: dict[int, float] = field(default_factory=dict)
    verified: set[int] = field(default_factory=set)

    def fold(self, partition: Partition, record: Record) -> Iterator[Alert]:
        """Fold one record, record its alerts, and yield new suggestions to reboot."""
        self.records.append(record)
        world = self.site.world
        for output in partition.fold(record):
            alert = output.alert
            if alert is None:
                continue
            self.alerts.append(alert)
            if alert.scope != "vm":
                continue
            index = world.topology.index_of[UUID(alert.subject).bytes]
            if alert.resolution is not None and alert.resolution.verified:
                self.verified.add(index)
            if alert.state != "firing":
                continue
            if alert.kind.startswith("panic"):
                self.alerted_s.setdefault(index, world.now_ns / 1e9)
            if alert.suggested_action == "reboot":
                if world.truth.dead_since_ns(index) is None:
                    self.wrong.append(alert.sentence)
                if index not in self.ordered_s:
                    self.ordered_s[index] = world.now_ns / 1e9
                    yield alert

    def deaths(self) -> dict[int, float]:
        """Return when each VM died of a panic that does not recover by itself."""
        return {
            death.vm: death.at_ns / 1e9
            for death in self.site.world.truth.deaths
            if death.kind in {"panic_spin", "panic_halt"}
        }

    def kinds(self) -> set[str]:
        return {alert.kind for alert in self.alerts if alert.state == "firing"}


def play(plan: WorldPlan, seconds: float, *, repair: bool = True) -> Run:
    """Run a site; reboot each VM that should be rebooted, and report it as the agent."""
    site = Site(plan)
    run = Run(site)
    partition = Partition(FAST)
    for record in site.run(seconds):
        for alert in list(run.fold(partition, record)):
            if repair:
                lifecycle.boot(
                    site.world, site.world.topology.index_of[UUID(alert.subject).bytes], by="agent"
                )
                for _ in run.fold(partition, mark(site, alert)):
                    raise AssertionError("a mark led to a suggestion")
    assert partition.counters.balanced(partition.waiting())
    return run


def mark(site: Site, alert: Alert) -> Record:
    event = Event(
        id=f"mark-{alert.id}",
        kind="action_returned",
        time_ns=site.world.now_ns,
        vm=UUID(alert.subject).bytes,
        detail={"incident": alert.id, "step": "0", "action": "reset", "dry_run": "false"},
    )
    return site.said("agent", alert.cell, alert.node or "-", (event,))


@cache
def a_mixed_site(seed: int) -> Run:
    """Return the run of 200 VMs in 4 cells with everything in `FAULTS`."""
    rng = np.random.default_rng(seed)
    vms = iter(rng.permutation(200).tolist())
    incidents = []
    pinned = {}
    for kind, count in FAULTS.items():
        for _ in range(count):
            vm = next(vms)
            if kind.startswith("panic"):
                # A guest without visible activity cannot be seen to stop.
                pinned[vm] = str(rng.choice(["web", "database", "bursty"]))
            params = {"vcpus": float(rng.integers(0, 2))} if kind == "panic_spin" else {}
            at_s = float(rng.uniform(150, SECONDS - 80))
            incidents.append(Incident(kind=kind, at_s=at_s, vms=(vm,), params=params))
    plan = WorldPlan(
        seed=seed,
        cells=4,
        nodes_per_cell=2,
        vms_per_node=25,
        incidents=tuple(incidents),
        pinned=pinned,
        telemetry=FIELD,
        panic_device_ratio=0.1,
    )
    return play(plan, SECONDS)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_nobody_alive_is_to_be_rebooted(seed: int) -> None:
    run = a_mixed_site(seed)
    assert not run.wrong
    assert not run.site.world.truth.harms


@pytest.mark.slow
def test_dead_guests_are_found_ordered_and_verified_in_time() -> None:
    alerts, orders, deaths, verified = [], [], 0, 0
    for seed in SEEDS:
        run = a_mixed_site(seed)
        died = run.deaths()
        deaths += len(died)
        verified += len(run.verified & died.keys())
        alerts += [run.alerted_s[vm] - at_s for vm, at_s in died.items() if vm in run.alerted_s]
        orders += [run.ordered_s[vm] - at_s for vm, at_s in died.items() if vm in run.ordered_s]
    assert deaths >= 16
    assert len(alerts) == deaths
    assert len(orders) >= 0.95 * deaths
    assert verified >= 0.95 * deaths
    assert max(alerts) <= 20.0
    assert float(np.median(orders)) <= 45.0
    assert float(np.percentile(orders, 95)) <= 60.0


@pytest.mark.slow
def test_hangs_are_reported_by_their_kind() -> None:
    kinds = a_mixed_site(1).kinds()
    assert kinds >= {"panic_spin", "panic_halt", "vm_silence", "crash_reboot"}
    assert kinds & {"hung_io", "hung_userland"}


@pytest.mark.slow
def test_a_site_on_which_nothing_happens_is_quiet() -> None:
    plan = WorldPlan(seed=12, cells=4, nodes_per_cell=2, vms_per_node=25, telemetry=FIELD)
    run = play(plan, 300.0)
    assert not [alert for alert in run.alerts if alert.kind != "node_contention"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("incident", "kind"),
    [
        (Incident(kind="pool_stall", at_s=150, pool="c0-pool0"), "pool_stall"),
        (Incident(kind="network_stall", at_s=150, network="c0-net0"), "network_stall"),
        (Incident(kind="host_silence", at_s=150, node="c0-n0"), "host_silence"),
        (Incident(kind="fleet_io_silence", at_s=150, duration_s=120), None),
        (Incident(kind="boot_storm", at_s=150, node="c0-n0"), "host_silence"),
    ],
    ids=lambda value: value.kind if isinstance(value, Incident) else str(value),
)
def test_what_many_share_is_one_incident_and_no_reboot(
    incident: Incident, kind: str | None
) -> None:
    plan = WorldPlan(seed=7, cells=2, nodes_per_cell=4, vms_per_node=15, incidents=(incident,))
    run = play(plan, 330.0, repair=False)
    wide = {alert.id: alert for alert in run.alerts if alert.scope != "vm"}
    assert not run.ordered_s
    assert kind is None or {alert.kind for alert in wide.values()} == {kind}
    if kind is not None:
        assert len(wide) == 1
    assert wide


@pytest.mark.slow
def test_a_vm_on_a_sick_node_is_to_be_migrated() -> None:
    plan = WorldPlan(
        seed=5, cells=1, incidents=(Incident(kind="sick_node", at_s=120, node="c0-n0"),)
    )
    run = play(plan, 240.0)
    found = [alert for alert in run.alerts if alert.suggested_action == "migrate"]
    assert {alert.node for alert in found} == {"c0-n0"}
    assert len({alert.subject for alert in found}) == 1


@pytest.mark.slow
def test_without_balloons_nobody_alive_is_to_be_rebooted() -> None:
    batches = tuple(
        Incident(kind="batch_compute", at_s=150 + 5 * vm, vms=(vm,)) for vm in range(0, 100, 7)
    )
    plan = WorldPlan(
        seed=9, cells=2, telemetry=FIELD, balloon_period_s=0, incidents=batches, nodes_per_cell=2
    )
    assert not play(plan, 420.0).wrong


@pytest.mark.slow
def test_the_same_site_gives_the_same_alerts_and_digest_again() -> None:
    run = a_mixed_site(1)
    again, twice = run_records(run.records, FAST), run_records(run.records, FAST)
    assert again.alerts == run.alerts
    assert again.digest == twice.digest
