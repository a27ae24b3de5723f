import asyncio

import numpy as np
import pytest

from flatline.connectors.clock import LoopClock
from flatline.connectors.simulator import lifecycle
from flatline.connectors.simulator.fleet import build_world
from flatline.connectors.simulator.plan import FIELD, Telemetry, WorldPlan
from flatline.connectors.simulator.virtual_time import run
from flatline.engine.errors import HypervisorUnreachable
from flatline.engine.wire.metrics import GAUGE_ROW, INTEGER_ROW
from tests.unit.connectors.simulator.screening_plan import VM, incident, index_of, site, values


def test_bytes_are_whole_sectors_and_ticks_whole_ticks() -> None:
    fleet = site()
    fleet.advance(33.7)
    rows = fleet.hypervisor("c0-n0").observe().rows.integers
    for name in ("block_rd_bytes", "block_wr_bytes"):
        assert not (rows[INTEGER_ROW[name]] % 512).any()
    for name in ("cpu_user_ns", "cpu_system_ns"):
        assert not (rows[INTEGER_ROW[name]] % 10_000_000).any()
    assert (rows[INTEGER_ROW["cpu_time_ns"]] % 10_000_000).any()


def test_a_vm_without_a_card_has_no_network_columns() -> None:
    fleet = site(nicless_ratio=1.0)
    fleet.advance(10)
    shown = values(fleet.hypervisor("c0-n0").observe(), fleet.vm(VM))
    assert shown is not None
    assert shown["net_tx_pkts"] is None
    assert shown["block_wr_reqs"] is not None


def test_a_balloon_without_a_period_says_nothing_of_the_guest() -> None:
    fleet = site(balloon_period_s=0)
    fleet.advance(30)
    shown = values(fleet.hypervisor("c0-n0").observe(), fleet.vm(VM))
    assert shown is not None
    assert shown["balloon_last_update_s"] is None
    assert shown["balloon_usable_kib"] is None
    assert shown["balloon_current_kib"] is not None


@pytest.mark.parametrize("known", [False, True])
def test_halted_and_dirty_are_shown_only_where_they_are_measured(known: bool) -> None:
    fleet = site(telemetry=Telemetry(halted_known=known, dirty_rate_known=known))
    fleet.advance(10)
    sample = fleet.hypervisor("c0-n0").observe()
    shown = values(sample, fleet.vm(VM))
    assert shown is not None
    assert (shown["vcpus_halted"] is not None) == known
    rate = sample.rows.gauges[GAUGE_ROW["dirty_bytes_per_s"]]
    assert np.isfinite(rate).all() == known


def test_a_dead_guests_other_vcpus_are_halted() -> None:
    fleet = site(incident("panic_spin"), telemetry=Telemetry(halted_known=True))
    fleet.advance(20)
    shown = values(fleet.hypervisor("c0-n0").observe(), fleet.vm(VM))
    assert shown is not None
    assert shown["vcpus_halted"] == fleet.world.topology.vcpus[VM] - 1


def test_the_busiest_vcpu_stands_out_from_the_mean() -> None:
    fleet = site()
    node = fleet.hypervisor("c0-n0")
    node.observe()
    before = fleet.world.meters.read(slice(0, 10), fleet.world.now_ns)[1].copy()
    fleet.advance(2)
    sample = node.observe()
    used = (fleet.world.meters.read(slice(0, 10), fleet.world.now_ns)[1] - before) / 2e9
    assert sample.rows.gauges[GAUGE_ROW["vcpu_busiest_ratio"]] == pytest.approx(used.max(axis=0))
    busy = sample.rows.integers[INTEGER_ROW["vcpus_busy"]]
    assert busy.tolist() == (used >= 0.5).sum(axis=0).tolist()


def test_a_vm_that_came_in_has_no_interval_yet_and_the_others_keep_theirs() -> None:
    fleet = site(incident("live_migration"))
    node = fleet.hypervisor("c0-n1")
    row = GAUGE_ROW["vcpu_busiest_ratio"]
    for _ in range(20):
        fleet.advance(2)
        sample = node.observe()
        position = index_of(sample, fleet.vm(VM))
        if position is not None:
            break
    assert position is not None
    unknown = np.isnan(sample.rows.gauges[row])
    assert unknown.tolist() == [index == position for index in range(11)]
    fleet.advance(2)
    assert not np.isnan(node.observe().rows.gauges[row]).any()


def test_a_vm_that_was_restarted_between_two_samples_has_no_interval() -> None:
    fleet = site(cold_start=True)
    node = fleet.hypervisor("c0-n0")
    fleet.advance(1)
    node.observe()
    lifecycle.stop(fleet.world, VM)
    lifecycle.start(fleet.world, VM, by="its owner")
    fleet.advance(200)
    unknown = np.isnan(node.observe().rows.gauges[GAUGE_ROW["vcpu_busiest_ratio"]])
    assert unknown.tolist() == [index == VM for index in range(10)]


def test_a_node_that_was_not_sampled_in_between_shows_the_mean_since() -> None:
    fleet = site(incident("panic_spin", at_s=2.0))
    node = fleet.hypervisor("c0-n0")
    fleet.advance(2)
    node.observe()
    fleet.advance(600)
    index = VM
    assert node.observe().rows.gauges[GAUGE_ROW["vcpu_busiest_ratio"], index] == pytest.approx(
        1, abs=0.01
    )


def test_a_bulk_call_takes_its_time() -> None:
    async def main() -> tuple[float, int]:
        loop = asyncio.get_running_loop()
        slow = Telemetry(call_s=0.5, call_jitter_s=0.2)
        fleet = build_world(WorldPlan(seed=1, telemetry=slow), LoopClock(epoch_ms=0))
        sample = await fleet.hypervisor(fleet.nodes[0]).sample()
        return loop.time(), sample.event_time_ns

    took_s, event_time_ns = run(main())
    assert 0.5 <= took_s <= 0.7
    assert event_time_ns == round(took_s * 1e9)


def test_lost_samples_and_rows_are_as_many_as_was_asked_for() -> None:
    fleet = site(telemetry=Telemetry(row_loss_ratio=0.05, sample_loss_ratio=0.1))
    node = fleet.hypervisor("c0-n0")
    lost = without = rows = 0
    for _ in range(400):
        fleet.advance(0.1)
        try:
            sample = node.observe()
        except HypervisorUnreachable:
            lost += 1
            continue
        rows += len(sample.rows)
        without += int((~sample.rows.present()[INTEGER_ROW["block_wr_reqs"]]).sum())
        assert sample.hung == ()
    assert 20 <= lost <= 60
    assert 0.03 <= without / rows <= 0.07


def test_nodes_clocks_differ_and_keep_their_difference() -> None:
    fleet = site(telemetry=FIELD, nodes_per_cell=8)
    offsets = []
    for _ in range(2):
        fleet.advance(5)
        offsets.append([fleet.world.wall_ns(node) - fleet.world.wall_ns(0) for node in range(8)])
    assert offsets[0] == offsets[1]
    assert len(set(offsets[0])) == 8
    assert max(map(abs, offsets[0])) < 2e9


def test_a_collector_hears_events_from_when_it_came() -> None:
    fleet = site(incident("owner_reboot"))
    fleet.advance(10)
    early = fleet.hypervisor("c0-n0")
    fleet.advance(20)
    late = fleet.hypervisor("c0-n0")
    assert [event.kind for event in early.drain_events()] == ["rebooted"]
    assert late.drain_events() == ()


def test_inventory_is_what_runs_here() -> None:
    fleet = site(incident("power_off", lasts_s=100))
    node = fleet.hypervisor("c0-n0")
    everybody = asyncio.run(node.inventory())
    fleet.advance(30)
    rest = asyncio.run(node.inventory())
    assert len(everybody) == 10
    assert {item.vm for item in everybody} - {item.vm for item in rest} == {fleet.vm(VM)}
