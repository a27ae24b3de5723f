import numpy as np
import pytest

from models.kernels import trends, vitals_layout
from models.kernels.trends import OUT, OUT_ROWS, fold_trends

FOLDS = pytest.mark.parametrize("fold", [fold_trends, fold_trends.py_func], ids=["jit", "python"])


class One:
    """One VM of four vCPUs that knows low CPU levels."""

    def __init__(self, fold=fold_trends, dt_s=300.0):
        self.fold, self.dt_s = fold, dt_s
        self.state, self.means = trends.new_state(1), trends.new_means(1)
        self.vitals = vitals_layout.new_state(1)
        self.vitals[0, vitals_layout.F_LEVEL + 4] = 2000 * 300 / dt_s
        self.out = np.zeros((1, OUT_ROWS))
        self.closed = 0

    def sample(self, *, cpu=0.1, reads=0.0, writes=9000.0, sent=900.0, memory=1000.0):
        rates = np.array([[cpu], [reads], [writes], [sent]], np.float32)
        vcpus = np.array([4], np.int64)
        self.closed += self.fold(
            self.state,
            self.means,
            rates,
            np.array([memory]),
            vcpus,
            self.vitals,
            self.dt_s,
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


def test_a_job_that_reads_and_writes_for_its_cores_does_not_run_away():
    one = One()
    one.works()
    assert one.works(13, cpu=2.1, writes=400_000.0)["runaway_cores"] == 0


def test_a_level_that_the_vm_knows_does_not_run_away():
    one = One()
    one.vitals[0, vitals_layout.F_LEVEL + 9] = 500.0
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
