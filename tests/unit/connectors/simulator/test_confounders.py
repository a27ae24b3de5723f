"""The observable effects of each confounder, and its end."""

import pytest

from tests.unit.connectors.simulator.screening_plan import after, incident, site, watch


def test_a_gap_leaves_no_row_at_all() -> None:
    glances = watch(incident("short_gap", lasts_s=10)).glances(14)
    assert [glance.at_s for glance in glances if not glance.present] == [12, 14, 16, 18, 20]


def test_an_owners_reboot_writes_back_then_boots_in_the_same_instance() -> None:
    eye = watch(incident("owner_reboot"))
    glances = eye.glances(25)
    assert [glance.at_s for glance in glances if "rebooted" in glance.events] == [16.0]
    assert len({glance.instance for glance in glances}) == 1
    assert not eye.fleet.truth.deaths
    assert not eye.fleet.truth.harms


def test_a_migration_by_the_platform_is_reported_and_starts_new_counters() -> None:
    eye = watch(incident("live_migration"))
    target = eye.fleet.hypervisor("c0-n1")
    glances = eye.glances(15)
    assert glances[-1].present is False
    assert ("job_ended", "migrated_out") in [glance.events for glance in glances]
    assert [event.kind for event in target.drain_events()] == ["migrated_in"]
    assert [(move.source, move.target) for move in eye.fleet.truth.moves] == [("c0-n0", "c0-n1")]


def test_a_paused_vm_stands_still_and_goes_on() -> None:
    glances = watch(incident("pause", lasts_s=20)).glances(20)
    paused = [glance for glance in after(glances, 11.0) if glance.at_s <= 31]
    assert all((glance.state, glance.cores, glance.writes) == ("paused", 0, 0) for glance in paused)
    reported = [kind for glance in glances for kind in glance.events]
    assert reported == ["paused", "resumed"]
    assert (glances[-1].writes or 0) > 0


def test_a_frozen_file_system_holds_back_the_disk_alone() -> None:
    glances = watch(incident("snapshot_freeze", lasts_s=10)).glances(14)
    frozen = [glance for glance in after(glances, 11.0) if glance.at_s <= 21]
    assert all(glance.writes == 0 and (glance.sends or 0) > 0 for glance in frozen)
    assert (glances[-1].writes or 0) > 0


def test_a_backup_reads_tens_of_megabytes() -> None:
    glances = watch(incident("backup_window", lasts_s=20)).glances(20)
    window = [glance for glance in after(glances, 11.0) if glance.at_s <= 31]
    assert all((glance.reads or 0) > 60 for glance in window)


def test_a_compute_batch_is_all_cpu_and_no_io_then_results() -> None:
    eye = watch(incident("batch_compute", lasts_s=40, results_s=20))
    glances = eye.glances(40)
    computing = [glance for glance in after(glances, 12.0) if glance.at_s <= 51]
    vcpus = eye.fleet.world.topology.vcpus[3]
    assert all((glance.cores or 0) > 0.97 * vcpus for glance in computing)
    assert all((glance.writes, glance.reads) == (0, 0) for glance in computing)
    assert all((glance.age_s or 0) <= 6 for glance in computing)
    results = [glance for glance in after(glances, 52.0) if glance.at_s <= 70]
    assert all((glance.writes or 0) > 30 for glance in results)


def test_a_batch_that_ended_leaves_a_floor_of_writes() -> None:
    glances = watch(incident("batch_end_idle", lasts_s=60)).glances(35)
    rested = [glance for glance in after(glances, 12.0) if glance.at_s <= 71]
    assert all((glance.cores or 0) < 0.15 for glance in rested)
    assert sum(glance.writes or 0 for glance in rested) > 0


def test_a_vm_that_is_off_is_no_row_and_comes_back_as_a_new_instance() -> None:
    eye = watch(incident("power_off", lasts_s=20))
    glances = eye.glances(20)
    assert ("shutdown", "stopped") in [glance.events for glance in glances]
    assert [glance.at_s for glance in glances if not glance.present] == [
        16,
        18,
        20,
        22,
        24,
        26,
        28,
        30,
    ]
    assert ("started",) in [glance.events for glance in glances]
    assert glances[-1].instance != glances[0].instance


def test_a_glitch_is_one_wild_value_and_a_reset_starts_at_zero() -> None:
    wild = watch(incident("counter_glitch", lasts_s=2))
    before = wild.fleet.hypervisor("c0-n0").observe().rows.integers[9, 3]
    wild.fleet.advance(12)
    during = wild.fleet.hypervisor("c0-n0").observe().rows.integers[9, 3]
    assert during - before > 1 << 32
    reset = watch(incident("counter_reset")).glances(8)
    assert min(glance.cores or 0 for glance in reset) < 0
    assert len({glance.instance for glance in reset}) == 1


@pytest.mark.parametrize(("spins", "cores"), [(0, (0.0, 0.05)), (1, (0.98, 1.05))])
def test_a_boot_prompt_never_moves(spins: int, cores: tuple[float, float]) -> None:
    glances = watch(incident("boot_prompt", at_s=0, spins=spins)).glances(10)
    assert all(cores[0] <= (glance.cores or 0) <= cores[1] for glance in glances[1:])
    assert all(not glance.writes and not glance.sends for glance in glances)
    assert all(glance.age_s is None for glance in glances)


def test_a_boot_storm_starts_all_vms_of_a_node_at_once() -> None:
    fleet = site(incident("boot_storm", lasts_s=10))
    eye = fleet.hypervisor("c0-n0")
    fleet.advance(30)
    started = [event for event in eye.drain_events() if event.kind == "started"]
    assert len(started) == 10
    assert len({event.time_ns for event in started}) == 1
    fleet.advance(30)
    assert fleet.conditions()["running"] == fleet.world.plan.vms


def test_fleet_silence_stops_counters_and_leaves_cpu_alone() -> None:
    eye = watch(incident("fleet_io_silence", lasts_s=40, share=1.0))
    glances = eye.glances(40)
    silent = [glance for glance in after(glances, 11.0) if glance.at_s <= 51]
    assert all((glance.writes, glance.sends) == (0, 0) for glance in silent)
    assert all((glance.cores or 0) > 0.02 for glance in silent)
    assert (glances[-1].writes or 0) > 0
