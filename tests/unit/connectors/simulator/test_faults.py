"""The observable effects of each fault, and its end."""

import pytest

from flatline.connectors.simulator.plan import Incident
from tests.unit.connectors.simulator.screening_plan import Glance, after, incident, site, watch


def test_a_spinning_kernel_burns_one_core_and_stands_still_otherwise() -> None:
    dead = after(watch(incident("panic_spin"), workload="database").glances(20), 11.0)
    assert all(0.99 <= (glance.cores or 0) <= 1.03 for glance in dead)
    assert all(glance.busy == 1 for glance in dead)
    assert all((glance.reads, glance.writes, glance.sends) == (0, 0, 0) for glance in dead)
    assert sum(glance.receives or 0 for glance in dead) > 0
    assert {glance.state for glance in dead} == {"running"}
    ages = [glance.age_s or 0 for glance in dead]
    assert ages == sorted(ages)
    assert ages[-1] > 20


def test_a_kernel_that_spins_on_all_vcpus_burns_them_all() -> None:
    eye = watch(incident("panic_spin", vcpus=0))
    dead = after(eye.glances(10), 11.0)
    vcpus = eye.fleet.world.topology.vcpus[3]
    assert vcpus > 1
    assert all(glance.cores == pytest.approx(vcpus, rel=0.03) for glance in dead)
    assert all(glance.busy == vcpus for glance in dead)


def test_a_halted_kernel_burns_nothing() -> None:
    dead = after(watch(incident("panic_halt")).glances(10), 11.0)
    assert all((glance.cores or 0) < 0.01 for glance in dead)
    assert all((glance.writes, glance.sends) == (0, 0) for glance in dead)


def test_a_panic_device_reports_and_stops_the_vm() -> None:
    eye = watch(incident("panic_spin"), panic_device_ratio=1.0)
    glances = eye.glances(10)
    assert ("panicked", "crashed") in [glance.events for glance in glances]
    assert after(glances, 11.0)[-1].state == "crashed"
    assert after(glances, 11.0)[-1].cores == 0.0


def test_a_hung_userland_leaves_a_kernel_that_answers() -> None:
    hung = after(watch(incident("hung_userland")).glances(40), 13.0)
    assert all((glance.writes, glance.reads) == (0, 0) for glance in hung)
    assert all((glance.cores or 0) < 0.05 for glance in hung)
    assert all((glance.age_s or 0) <= 6 for glance in hung)
    assert sum(glance.sends or 0 for glance in hung) > 0


@pytest.mark.parametrize("kind", ["hung_io", "pool_stall"])
def test_stuck_storage_completes_nothing_while_the_balloon_stays_fresh(kind: str) -> None:
    glances = watch(incident(kind, lasts_s=30)).glances(30)
    stuck = [glance for glance in after(glances, 11.0) if glance.at_s <= 41]
    assert all((glance.writes, glance.reads) == (0, 0) for glance in stuck)
    assert all((glance.age_s or 0) <= 6 for glance in stuck)
    assert sum(glance.sends or 0 for glance in stuck) > 0
    assert (glances[-1].writes or 0) > 0


def test_a_stalled_pool_stops_its_vms_and_no_others() -> None:
    fleet = site(incident("pool_stall", lasts_s=60), pools_per_cell=2)
    fleet.advance(20)
    stuck = fleet.world.rates.stuck(slice(None))
    assert stuck.sum() == (fleet.world.topology.pool == 0).sum() == fleet.world.plan.vms / 2
    pools = {pool.name: pool.latency_s for pool in fleet.hypervisor("c0-n0").observe().pools}
    assert pools["c0-pool0"] is None
    assert pools["c0-pool1"] == pytest.approx(0.0008, rel=0.2)


def test_a_crash_reboot_reports_that_it_rebooted_and_reads_at_boot() -> None:
    glances = watch(incident("crash_reboot")).glances(20)
    assert ("rebooted",) in [glance.events for glance in glances]
    assert max(glance.reads or 0 for glance in glances) > 100
    assert (glances[-1].writes or 0) > 0


def test_a_guest_that_heals_itself_is_dead_for_as_long_as_planned() -> None:
    eye = watch(incident("self_heal", lasts_s=20))
    glances = eye.glances(40)
    assert [glance.at_s for glance in glances if "rebooted" in glance.events] == [32.0]
    (death,) = eye.fleet.truth.deaths
    assert death.repaired_by == "itself"
    assert eye.fleet.truth.dead_since_ns(3) is None


def test_a_guest_that_heals_itself_is_not_stopped_by_its_panic_device() -> None:
    eye = watch(incident("self_heal", lasts_s=20), panic_device_ratio=1.0)
    glances = eye.glances(40)
    reported = [glance.events for glance in glances if "panicked" in glance.events]
    assert reported == [("panicked",)]
    assert {glance.state for glance in glances} == {"running"}
    assert [glance.at_s for glance in glances if "rebooted" in glance.events] == [32.0]


def test_a_crash_kernel_writes_its_dump_then_reboots() -> None:
    glances = watch(incident("kdump", lasts_s=30)).glances(40)
    dumping = [glance for glance in after(glances, 11.0) if glance.at_s <= 41]
    assert all((glance.writes or 0) > 200 for glance in dumping)
    assert all(glance.sends == 0 for glance in dumping)
    assert any("rebooted" in glance.events for glance in glances)


def test_a_crash_kernel_is_silent_on_one_vcpu_until_it_has_booted() -> None:
    glances = watch(incident("kdump", lasts_s=50, boots_s=20)).glances(60)
    booting = [glance for glance in after(glances, 13.0) if glance.at_s <= 31]
    assert all((glance.writes, glance.reads, glance.sends) == (0, 0, 0) for glance in booting)
    assert all(glance.cores == pytest.approx(1.0, rel=0.1) for glance in booting)
    dumping = [glance for glance in after(glances, 33.0) if glance.at_s <= 61]
    assert all((glance.writes or 0) > 200 for glance in dumping)
    assert any("rebooted" in glance.events for glance in glances)


def test_degrading_storage_takes_longer_and_serves_less() -> None:
    eye = watch(incident("degrading_storage", at_s=60, lasts_s=600, factor=8, ramp_s=100))
    calm = watch()
    for each in (eye, calm):
        each.glances(90)
    worse, usual = eye.glances(30), calm.glances(30)

    def served(glances: list[Glance]) -> float:
        return sum(glance.writes or 0 for glance in glances)

    assert 0.15 < served(worse) / served(usual) < 0.3
    assert eye.fleet.world.guests.slowness[3] == 8.0
    eye.glances(220)
    assert eye.fleet.world.guests.slowness[3] == 1.0


def test_a_leak_fills_memory_and_ends_in_thrashing() -> None:
    glances = watch(incident("mem_leak", lasts_s=400, fills_in_s=200)).glances(150)
    usable = [glance.usable_kib or 0 for glance in glances]
    assert usable[80] < 0.4 * usable[3]
    full = after(glances, 225.0)[0]
    assert full.usable_kib == min(usable)
    assert max(glance.faults or 0 for glance in glances) > 500


def test_a_runaway_process_burns_a_core_beside_the_usual_work() -> None:
    glances = watch(incident("cpu_runaway"), workload="web").glances(20)
    before = max(glance.cores or 0 for glance in glances[1:5])
    mad = after(glances, 11.0)
    assert all((glance.cores or 0) > before + 0.5 for glance in mad)
    assert all((glance.sends or 0) > 0 for glance in mad)


def test_a_noisy_neighbour_squeezes_the_others_and_not_itself() -> None:
    noise = Incident(
        kind="noisy_neighbour", at_s=11, duration_s=40, vms=(4,), params={"share": 0.5}
    )
    eye = watch(noise)
    glances = eye.glances(40)
    pressed = [glance for glance in after(glances, 12.0) if glance.at_s <= 51]
    assert all((glance.steal or 0) > 0.7 * (glance.cores or 0) > 0 for glance in pressed)
    assert glances[-1].steal == pytest.approx(0.0, abs=0.01)
    aggressor = watch(noise)
    aggressor.vm = aggressor.fleet.vm(4)
    loud = after(aggressor.glances(20), 12.0)
    assert all((glance.writes or 0) > 100 and (glance.steal or 0) < 0.2 for glance in loud)


def test_a_sick_node_withholds_cpu_until_it_is_well() -> None:
    glances = watch(incident("sick_node", lasts_s=30, share=0.6)).glances(30)
    sick = [glance for glance in after(glances, 11.0) if glance.at_s <= 41]
    assert all((glance.steal or 0) > (glance.cores or 0) for glance in sick)
    assert glances[-1].steal == pytest.approx(0.0, abs=0.01)


def test_a_sick_node_says_so_in_its_pressure() -> None:
    fleet = site(incident("sick_node", lasts_s=30, share=0.6))
    node = fleet.hypervisor("c0-n0")
    well = node.observe().node["psi_cpu_some_ratio"]
    fleet.advance(20)
    assert well < 0.1 < 0.5 < node.observe().node["psi_cpu_some_ratio"]


def test_a_silent_monitor_leaves_what_libvirt_knows_by_itself() -> None:
    glances = watch(incident("vm_silence", lasts_s=20)).glances(20)
    silent = [glance for glance in after(glances, 11.0) if glance.at_s <= 31]
    assert all(glance.present and glance.hung for glance in silent)
    assert all(glance.writes is None and glance.age_s is None for glance in silent)
    assert all((glance.cores or 0) > 0 for glance in silent)
    reported = [kind for glance in glances for kind in glance.events]
    assert reported == ["monitor_hung", "monitor_back"]


def test_a_stalled_network_stops_packets_and_no_disk() -> None:
    glances = watch(incident("network_stall", lasts_s=30)).glances(15)
    cut_off = after(glances, 11.0)
    assert all((glance.sends, glance.receives) == (0, 0) for glance in cut_off)
    assert sum(glance.writes or 0 for glance in cut_off) > 0
