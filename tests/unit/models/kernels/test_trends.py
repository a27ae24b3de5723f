import math

import numpy as np
import pytest

from flatline.models.kernels import aggregates_layout, hours, trends
from flatline.models.kernels.trends import OUT, OUT_ROWS, fold_trends
from tests.reference.hours_twin import HoursTwin

FOLDS = pytest.mark.parametrize("fold", [fold_trends, fold_trends.py_func], ids=["jit", "python"])


class One:
    """One VM of four vCPUs with known low CPU levels."""

    def __init__(self, fold=fold_trends, dt_s=300.0, vcpus=4):
        self.fold, self.dt_s, self.vcpus = fold, dt_s, vcpus
        self.state, self.means = trends.new_state(1), trends.new_means(1)
        self.hours = hours.new_state(1)
        self.time_s = 480_000 * 3600.0
        self.vitals = aggregates_layout.new_state(1)
        self.vitals[0, aggregates_layout.F_LEVEL + 4] = 2000 * 300 / dt_s
        self.out = np.zeros((1, OUT_ROWS))
        self.closed = 0

    def sample(self, *, cpu=0.1, reads=0.0, writes=9000.0, sent=900.0, memory=1000.0):
        rates = np.array([[cpu], [reads], [writes], [sent]], np.float32)
        vcpus = np.array([self.vcpus], np.int64)
        self.time_s += self.dt_s
        self.closed += self.fold(
            self.state,
            self.means,
            self.hours,
            rates,
            np.array([memory]),
            vcpus,
            self.vitals,
            self.dt_s,
            self.time_s,
            self.out,
        )
        return {name: float(self.out[0, row]) for name, row in OUT.items()}

    def works(self, count=40, **what):
        said = {}
        for _ in range(count):
            said = self.sample(**what)
        return said


@FOLDS
def test_a_ramp_of_memory_rises_and_a_wave_does_not(fold):
    leak, wave = One(fold), One(fold)
    for step in range(60):
        said = leak.sample(memory=1000.0 * 1.02**step)
        calm = wave.sample(memory=1000.0 + 100 * (step % 7))
    assert said["rises"] == trends.RISES
    assert said["growth"] == pytest.approx(1.02**trends.RISES)
    assert calm["rises"] < 28


@FOLDS
def test_means_are_of_five_minutes_whatever_the_interval(fold):
    fine, coarse = One(fold, dt_s=10.0), One(fold)
    fine.works(30 * 40)
    coarse.works(40)
    assert fine.closed == coarse.closed == 40
    assert np.allclose(fine.means, coarse.means, equal_nan=True)


def boots(one, *, spike):
    one.works()
    one.sample(cpu=spike, writes=4000.0, sent=300.0)
    return one.sample(cpu=1.5, reads=1.2e6, writes=90_000.0, sent=2000.0)["booted"]


def test_a_spike_then_a_boot_is_a_crash_and_an_orderly_reboot_is_not():
    assert boots(One(), spike=1.4) == 1
    assert boots(One(), spike=0.05) == 0


def test_a_backup_that_reads_much_is_no_boot():
    one = One()
    one.works()
    one.sample(cpu=1.4)
    assert one.sample(cpu=1.5, reads=2e7, writes=90_000.0)["booted"] == 0


def test_whole_cores_held_for_an_hour_beside_usual_work_run_away():
    one = One()
    one.works()
    assert one.works(8, cpu=2.1)["runaway_cores"] == 0
    assert one.works(5, cpu=2.1)["runaway_cores"] == 2


def test_many_cores_are_whole_though_each_lacks_a_hundredth():
    one = One(vcpus=32)
    one.works()
    assert one.works(13, cpu=24.7)["runaway_cores"] == 25


def test_a_job_that_reads_and_writes_for_its_cores_does_not_run_away():
    one = One()
    one.works()
    assert one.works(13, cpu=2.1, writes=400_000.0)["runaway_cores"] == 0


def test_a_level_that_the_vm_knows_does_not_run_away():
    one = One()
    one.vitals[0, aggregates_layout.F_LEVEL + 9] = 500.0
    one.works()
    assert one.works(13, cpu=2.1)["runaway_cores"] == 0


def test_writing_as_never_before_with_all_cpu_is_a_flood_and_writing_as_ever_is_not():
    new, old = One(), One()
    new.works()
    old.works(writes=3e7)
    assert new.works(2, cpu=3.9, writes=3e7)["flood"] == 2
    assert old.works(2, cpu=3.9, writes=3e7)["flood"] == 0


def test_a_victim_gets_less_of_its_work_done():
    one = One()
    one.works()
    assert one.works(4, writes=4000.0, sent=400.0)["work_share"] == pytest.approx(0.444, abs=0.01)


def days_of(one, *, days, shares=(), cpu=1.0, writes=20_000.0):
    """Run ordinary days, then hours with these shares of the usual writing."""
    for share in (*([1.0] * 24 * days), *shares):
        said = one.works(12, writes=writes * share, cpu=cpu * share**0.4)
    return said, one.sample()


RAMP = tuple(0.9**hour for hour in range(1, 9))


@FOLDS
def test_writing_that_falls_in_each_of_seven_hours_to_half_is_a_degrading_disk(fold):
    said, reported = days_of(One(fold), days=4, shares=RAMP)
    assert said["slowed_hours"] == 7  # the eighth is over with the next sample
    assert reported["slowed_hours"] == 7
    assert reported["write_share"] == pytest.approx(0.9**8, rel=0.05)


@pytest.mark.parametrize(
    ("why", "shares", "more"),
    [
        ("it falls once and stays", (0.3,) * 8, {}),
        ("it falls less than to half", tuple(0.95**hour for hour in range(1, 9)), {}),
        ("it rises in between", (0.9, 0.8, 0.7, 0.6, 0.65, 0.5, 0.4, 0.3), {}),
        ("it hardly writes", RAMP, {"writes": 1500.0}),
        ("its habits are not known", RAMP, {"days": 2}),
        ("it falls back from an unusual day", tuple(3 * 0.85**hour for hour in range(9)), {}),
    ],
    ids=lambda value: value.replace(" ", "_") if isinstance(value, str) else "",
)
def test_other_falls_of_writing_are_no_degrading_disk(why, shares, more):
    _, reported = days_of(One(), shares=shares, **({"days": 4} | more))
    assert reported["slowed_hours"] == 0, why


@FOLDS
def test_falls_are_looked_for_within_half_a_day_however_long_the_row(fold):
    one = One(fold)
    # Twelve of these falls are not to half, all fourteen together would be.
    days_of(one, days=4, shares=tuple(0.95**hour for hour in range(1, 15)))
    assert one.out[0, OUT["slowed_hours"]] == 0
    assert one.out[0, OUT["write_share"]] == pytest.approx(0.95**14, rel=0.05)


def test_an_hour_that_a_clock_set_back_makes_long_is_unknown():
    one = One()
    days_of(one, days=4)
    for _ in range(3):
        one.works(11)
        one.time_s -= 11 * 300.0
    one.works(10)
    said = one.works(2)
    assert math.isnan(said["write_share"])
    assert one.works(12)["write_share"] > 0


def test_what_showed_is_no_news_after_an_hour_without_a_sample_and_is_before():
    one = One()
    one.works()
    assert one.works(13, cpu=2.1)["runaway_cores"] == 2
    assert one.works(11, cpu=math.nan)["runaway_cores"] == 2
    assert all(math.isnan(value) for value in one.sample(cpu=math.nan).values())
    one.sample(cpu=2.1)
    assert one.works(11, cpu=math.nan)["runaway_cores"] == 2


def test_a_load_that_ends_takes_its_cpu_along_and_is_no_degrading_disk():
    one = One()
    days_of(one, days=4)
    one.works(11)
    for share in RAMP:
        one.works(12, writes=20_000.0 * share, cpu=share)
    assert one.sample()["slowed_hours"] == 0


def test_less_writing_than_on_the_days_before_at_that_hour_alone_is_no_fall():
    one = One()
    evening = [1.0] * 12 + [1.2, 1.5, 1.8, 2.2, 2.7, 3.3, 4.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    for share in (*(evening * 4), *([1.0] * 19)):
        said = one.works(12, writes=20_000.0 * share)
    assert said["write_share"] < 0.5
    assert said["slowed_hours"] == 0


@pytest.mark.parametrize("seed", range(6))
def test_hours_that_fall_are_those_of_the_twin(seed):
    rng = np.random.default_rng(seed)
    one, twin = One(), HoursTwin(cores=4.0)
    before: list[tuple[float, float]] = []
    number, reported, short = 480_000, 0, 0
    level = 0.0
    for hour in range(24 * 30):
        # Mostly the usual level, sometimes a ramp, a missing sample or a missing hour.
        level = 0.0 if hour % 60 < 45 else level - rng.uniform(-0.02, 0.15)
        means = [
            (
                float(np.float32(9e3 * math.exp(level + 0.02 * rng.standard_normal()))),
                float(np.float32(math.exp(0.4 * level + 0.01 * rng.standard_normal()))),
            )
            for _ in range(12)
        ]
        if rng.random() < 0.02:
            one.time_s += 3600.0 * rng.integers(1, 3)
        known = set(rng.permutation(12)[: rng.integers(3, 9) if rng.random() < 0.05 else 12])
        for index, (writes, cpu) in enumerate(means):
            said = one.sample(writes=writes, cpu=cpu if index in known else math.nan)
            if index == min(known) and before:
                expected = twin.hour(number, before)
                assert said["slowed_hours"] == expected[0]
                assert said["write_share"] == pytest.approx(expected[1], rel=1e-3, nan_ok=True)
                reported += expected[0] > 0
                short += len(before) < 6
        before, number = [means[index] for index in sorted(known)], int(one.time_s - 150) // 3600
    assert reported > 0
    assert short > 0
