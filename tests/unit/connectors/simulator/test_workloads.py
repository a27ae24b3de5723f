import numpy as np
import pytest

from flatline.connectors.simulator.plan import WORKLOADS
from flatline.connectors.simulator.workloads import (
    COMPUTING,
    FREE,
    PROFILES,
    RESTED,
    WRITING,
    Activity,
    Habits,
)

SIZE = 40


def habits(name: str, *, step_s: float = 1.0) -> tuple[Habits, np.random.Generator]:
    rng = np.random.default_rng(11)
    return Habits(np.full(SIZE, WORKLOADS.index(name)), rng, step_s=step_s), rng


def live(name: str, *, seconds: int, forced: int = FREE, from_s: float = 36_000.0) -> Activity:
    made, rng = habits(name)
    times_s = np.arange(float(seconds))
    chance = rng.random((seconds, SIZE), np.float32)
    course = made.course(
        times_s=times_s,
        days_s=(from_s + times_s) % 86_400,
        normal=rng.standard_normal((seconds, SIZE)),
        chance=chance,
    )
    return made.activity(course, forced=np.full(SIZE, forced, np.uint8), chance=chance)


def test_every_workload_has_a_profile() -> None:
    assert set(PROFILES) == set(WORKLOADS)


def test_a_batch_computes_without_any_io_then_writes_its_results() -> None:
    steps = live("batch", seconds=6000)
    cpu, work, floor = steps.cpu_share, steps.work, steps.floor
    computing = cpu > 0.95
    assert 0.2 < computing.mean() < 0.55
    assert not work[computing].any()
    assert not floor[computing].any()
    begins = np.argwhere(~computing[1:] & computing[:-1])
    assert len(begins) > 10
    assert all(work[second + 1, vm] > 0 for second, vm in begins)


def test_a_cron_guest_is_silent_by_habit() -> None:
    steps = live("cron", seconds=4000)
    cpu, work, floor = steps.cpu_share, steps.work, steps.floor
    silent = (work == 0) & (floor == 0)
    assert 0.9 < silent.mean() < 0.995
    assert (cpu[~silent] > 0.05).all()


def test_a_bursty_guest_flips_between_work_and_rest() -> None:
    work = live("bursty", seconds=4000).work > 0
    flips = (work[1:] != work[:-1]).sum(axis=0)
    assert 0.1 < work.mean() < 0.5
    assert (flips > 4).all()


def test_a_web_guest_works_more_at_its_peak_hour_than_at_night() -> None:
    day = live("web", seconds=300, from_s=14 * 3600.0).cpu_share.mean()
    night = live("web", seconds=300, from_s=2 * 3600.0).cpu_share.mean()
    assert day > 1.8 * night


def test_cached_writes_reach_the_disk_in_the_long_run() -> None:
    flush = live("web", seconds=1000).flush
    assert flush.mean(axis=0) == pytest.approx(1.0, abs=0.02)
    assert flush.min() < 0.5 < 2.0 < flush.max()


@pytest.mark.parametrize(
    ("forced", "cpu", "works"),
    [(COMPUTING, (0.98, 1.0), False), (RESTED, (0.0, 0.0), False), (WRITING, (0.3, 0.3), True)],
)
def test_an_incident_overrules_the_habit(
    forced: int, cpu: tuple[float, float], works: bool
) -> None:
    steps = live("web", seconds=20, forced=forced)
    share = steps.cpu_share
    assert cpu[0] <= share.min() <= share.max() <= cpu[1]
    assert (steps.work > 0).all() == works


def test_all_parameters_lie_in_their_profiles_range() -> None:
    made, _ = habits("database")
    low, high = PROFILES["database"].writes
    assert ((made.writes >= low) & (made.writes <= high)).all()
    assert np.unique(made.writes).size == SIZE
