from dataclasses import replace

import numpy as np
import pytest

from flatline.connectors.clock import ManualClock
from flatline.connectors.simulator import lifecycle
from flatline.connectors.simulator.draw import EVERYTHING_ONCE, draw_incidents
from flatline.connectors.simulator.fleet import Fleet, build_world
from flatline.connectors.simulator.meters import VCPUS
from flatline.connectors.simulator.plan import FIELD, Incident, WorldPlan
from flatline.engine.errors import HypervisorUnreachable
from flatline.engine.wire.frame import Frame, Header, encode_frame
from tests.unit.connectors.simulator.screening_plan import incident, site


def frames(fleet: Fleet, *, rounds: int, every_s: float = 2.0) -> list[bytes]:
    """Return the bytes that collectors on all nodes would write."""
    nodes = [(name, fleet.hypervisor(name)) for name in fleet.nodes]
    written = []
    for number in range(rounds):
        fleet.advance(every_s)
        for name, node in nodes:
            try:
                sample = node.observe()
            except HypervisorUnreachable:
                continue
            header = Header(
                site="s", zone="z", cell="c", node=name, role="collector", run="r",
                sequence=number, event_time_ns=sample.event_time_ns, mono_ns=sample.mono_ns,
                interval_ms=2000,
            )  # fmt: skip
            frame = Frame(
                header=header,
                rows=sample.rows,
                events=node.drain_events(),
                node=dict(sample.node),
                pools=sample.pools,
            )
            written.append(encode_frame(frame))
    return written


def busy_plan(seed: int) -> WorldPlan:
    shape = WorldPlan(seed=seed, cells=2, vms_per_node=15)
    drawn = draw_incidents(shape, seed=seed, counts=EVERYTHING_ONCE, from_s=5, span_s=100)
    return WorldPlan(seed=seed, cells=2, vms_per_node=15, incidents=drawn, telemetry=FIELD)


def test_the_same_seed_and_calls_give_the_same_bytes() -> None:
    first = frames(build_world(busy_plan(3)), rounds=80)
    assert first == frames(build_world(busy_plan(3)), rounds=80)
    assert first != frames(build_world(busy_plan(4)), rounds=80)


def test_how_often_the_world_is_looked_at_changes_nothing_in_it() -> None:
    plan = WorldPlan(seed=3, incidents=busy_plan(3).incidents[:5], cells=2, vms_per_node=15)
    rarely, often = build_world(plan), build_world(plan)
    rarely.advance(120)
    node = often.hypervisor(often.nodes[0])
    for _ in range(480):
        often.advance(0.25)
        try:
            node.observe()
        except HypervisorUnreachable:
            continue
    everyone = slice(None)
    assert np.array_equal(
        rarely.world.meters.counters(everyone, rarely.world.now_ns),
        often.world.meters.counters(everyone, often.world.now_ns),
    )


def test_what_is_done_to_one_vm_changes_no_other_one() -> None:
    calm, struck = site(), site(incident("panic_halt"))
    for fleet in (calm, struck):
        fleet.advance(60)
    before, after = (f.world.meters.counters(slice(None), f.world.now_ns) for f in (calm, struck))
    differs = (before != after).any(axis=0)
    # Disk latency depends on the load of all, and the dead one no longer loads the pool.
    same = [row for row in range(len(before)) if row not in {5, 6, 7}]
    assert differs[3]
    assert np.array_equal(np.delete(before[same], 3, axis=1), np.delete(after[same], 3, axis=1))


def test_time_that_has_passed_does_not_come_back() -> None:
    fleet = site()
    fleet.advance(50)
    fleet.world.advance(10)
    assert fleet.world.now_ns == 50_000_000_000


def read_in_half_seconds(plan: WorldPlan) -> list[np.ndarray]:
    """Return all counters over time, while guests also boot at unscheduled times."""
    world = build_world(plan).world
    seen: list[np.ndarray] = []
    for half_second in range(1, 400):
        world.advance(half_second * 500_000_000)
        if half_second % 37 == 0:
            lifecycle.boot(world, half_second % plan.vms, by="the agent")
        seen += world.meters.read(slice(None), world.now_ns)
    return seen


def test_steps_foreseen_are_those_taken_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = WorldPlan(seed=5, cells=2, pinned={3: "database"})
    plan = replace(
        shape,
        incidents=(
            *draw_incidents(shape, seed=5, counts=EVERYTHING_ONCE, from_s=100.0, span_s=90.0),
            Incident(kind="degrading_storage", at_s=10, vms=(3,), params={"ramp_s": 60.0}),
            Incident(
                kind="mem_leak", at_s=10, vms=tuple(range(4, 30)), params={"fills_in_s": 50.0}
            ),
        ),
    )
    foreseen = read_in_half_seconds(plan)
    monkeypatch.setattr("flatline.connectors.simulator.world._VALUES_AHEAD", 1)
    assert all(map(np.array_equal, foreseen, read_in_half_seconds(plan)))


def test_a_world_with_a_clock_follows_it() -> None:
    clock = ManualClock(now_ms=1_790_000_000_123, mono_ns=777)
    fleet = build_world(WorldPlan(seed=1), clock)
    clock.advance(12.5)
    fleet.world.sync()
    assert fleet.world.now_ns == 12_500_000_000
    assert fleet.world.wall_ns(0) == 1_790_000_012_623_000_000


def test_a_cold_site_boots_first() -> None:
    fleet = site(cold_start=True)
    assert fleet.conditions()["booting"] == fleet.world.plan.vms
    fleet.advance(30)
    assert fleet.conditions()["running"] == fleet.world.plan.vms


def test_a_warm_site_has_counters_that_have_run_for_days() -> None:
    fleet = site()
    cpu = fleet.world.meters.counters(slice(None), 0)[0]
    assert np.median(cpu) > 60e9


def test_an_overbooked_node_gives_everybody_less() -> None:
    fleet = site(node_cores=1)
    fleet.advance(10)
    world = fleet.world
    assert (world.rates.node_share < 0.8).all()
    used = world.meters.pace.gains[VCPUS:].sum(axis=0)
    per_node = np.bincount(world.guests.node, weights=used)
    assert per_node == pytest.approx([1.0, 1.0], rel=0.1)


def test_an_unreachable_node_is_not_heard_and_what_it_said_is_lost() -> None:
    silence = incident("host_silence", lasts_s=20)
    reboot = Incident(kind="owner_reboot", at_s=15, vms=(3,))
    fleet = site(silence, reboot)
    node = fleet.hypervisor("c0-n0")
    fleet.advance(20)
    with pytest.raises(HypervisorUnreachable, match="c0-n0"):
        node.observe()
    fleet.advance(20)
    assert len(node.observe().rows) == 10
    assert node.drain_events() == ()


def test_the_length_of_a_step_changes_no_totals() -> None:
    coarse, fine = site(step_s=20.0), site(step_s=1.0)
    for fleet in (coarse, fine):
        fleet.advance(600)
    cpu = [f.world.meters.counters(slice(None), f.world.now_ns)[0].sum() for f in (coarse, fine)]
    aged = [f.world.meters for f in (site(step_s=20.0), site(step_s=1.0))]
    start = [meters.counters(slice(None), 0)[0].sum() for meters in aged]
    used = [float(now - then) for now, then in zip(cpu, start, strict=True)]
    assert used[0] == pytest.approx(used[1], rel=0.35)
