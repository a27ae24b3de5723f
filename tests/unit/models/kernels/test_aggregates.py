import numpy as np
import pytest

from flatline.models.kernels import aggregates
from flatline.models.kernels.aggregates_layout import (
    OUT,
    OUT_ROWS,
    SHAPE_ALL_CORES,
    SHAPE_IDLE,
    SHAPE_ONE_CORE,
    WINDOW,
    new_recent,
    new_state,
)
from tests.reference.aggregates_twin import AggregatesTwin

FOLDS = pytest.mark.parametrize(
    "fold",
    [aggregates.fold_aggregates, aggregates.fold_aggregates.py_func],
    ids=["compiled", "python"],
)
SLOW = 0.003


class One:
    """One VM of four vCPUs, sampled every five minutes."""

    def __init__(self, fold=aggregates.fold_aggregates):
        self.fold = fold
        self.state = new_state(1)
        self.recent = new_recent(1)
        self.out = np.zeros((1, OUT_ROWS))

    def sample(
        self, *, cpu=0.8, reads=0.0, writes=9000.0, sent=900.0, memory=1000.0, held=False, vcpus=4
    ):
        rates = np.array([[cpu], [reads], [writes], [sent]], np.float32)
        self.fold(
            self.state,
            self.recent,
            rates,
            np.array([memory]),
            np.array([vcpus], np.int64),
            np.array([not np.isnan(cpu)]),
            np.array([held], np.uint8),
            300.0,
            SLOW,
            self.out,
        )
        return {name: self.out[0, row] for name, row in OUT.items()}

    def silent(self, count, **what):
        said = {}
        for _ in range(count):
            said = self.sample(writes=0.0, sent=0.0, **what)
        return said


def working(samples=600, seed=3):
    one, rng = One(), np.random.default_rng(seed)
    for _ in range(samples):
        one.sample(cpu=rng.uniform(0.3, 0.8), memory=1000.0 * rng.uniform(0.6, 1.4))
    return one


@FOLDS
def test_aggregates_match_reference(fold):
    rng = np.random.default_rng(20261124)
    one, twin = One(fold), AggregatesTwin()
    for _ in range(1100 if fold is aggregates.fold_aggregates else 300):
        moved = bool(rng.random() < 0.8)
        # Evidence for an alert is not learned where a boot ends it, so CPU shows nothing here.
        memory = float(rng.choice(np.array([400.0, 1000.0, 1030.0, 1000.0])))
        sent = 900.0 if moved else 0.0
        said = one.sample(cpu=2.2, writes=0.0, sent=sent, memory=memory)
        expected = twin.learn_one(moved=moved, memory=memory, slow=SLOW)
        assert said["run"] == expected.run
        assert said["silence_nats"] == pytest.approx(expected.silence_nats)
        assert said["memory_nats"] == pytest.approx(expected.memory_nats)


@FOLDS
def test_silence_of_the_disk_alone_matches_reference(fold):
    rng = np.random.default_rng(20261126)
    # A silence from before the window is not known to have begun there.
    one, twin = One(fold), AggregatesTwin(window=WINDOW - 1)
    for step in range(1100 if fold is aggregates.fold_aggregates else 300):
        moved = step == 0 or bool(rng.random() < 0.8)
        said = one.sample(writes=9000.0 if moved else 0.0)
        expected = twin.learn_one(moved=moved, memory=1000.0, slow=SLOW)
        assert said["disk_run"] == expected.run
        assert said["disk_nats"] == pytest.approx(expected.silence_nats)


def test_a_disk_that_paused_often_of_late_surprises_little_by_one_pause_more():
    said = []
    for since in (WINDOW, 0):
        one = working()
        for _ in range(6):
            one.sample(writes=0.0)
            one.sample()
        for _ in range(since):
            one.sample()
        said.append(one.sample(writes=0.0)["disk_nats"])
    long_ago, of_late = said
    assert long_ago > of_late + 2


def test_a_second_silent_sample_of_a_steady_sender_surprises_more_than_the_first():
    one = working()
    first = one.silent(1)["silence_nats"]
    assert one.silent(1)["silence_nats"] > first > 6


def test_silences_that_began_lately_make_the_next_one_usual():
    one = working()
    for _ in range(4):
        one.silent(1)
        one.sample()
    assert one.silent(2)["silence_nats"] < working().silent(2)["silence_nats"] - 2


def test_one_core_all_cores_and_none_are_distinguished():
    assert working().silent(2, cpu=1.02)["shape"] == SHAPE_ONE_CORE
    assert working().silent(2, cpu=3.9)["shape"] == SHAPE_ALL_CORES
    assert working().silent(2, cpu=0.01)["shape"] == SHAPE_IDLE


def test_a_level_that_was_there_before_the_silence_is_worth_nothing():
    one = One()
    for _ in range(600):
        one.sample(cpu=1.0)
    assert one.silent(2, cpu=1.0)["cpu_nats"] == 0
    assert working().silent(2, cpu=1.0)["cpu_nats"] >= 3.5


def test_a_guest_that_used_no_cpu_before_its_silence_has_not_halted() -> None:
    resting = working()
    for _ in range(8):
        resting.sample(cpu=0.0)
    assert resting.silent(2, cpu=0.0)["cpu_nats"] == 0
    assert working().silent(2, cpu=0.0)["cpu_nats"] > 2


@pytest.mark.parametrize("figures", [[700.0] * 4, [500.0, 250.0, 120.0, 60.0]])
def test_a_figure_that_stands_still_or_dies_away_speaks_for_a_death(figures):
    one = working()
    for figure in figures:
        said = one.silent(1, memory=figure)
    assert said["memory_nats"] >= 2


def test_a_figure_that_creeps_on_speaks_against_it():
    one = working()
    one.sample(memory=1000.0)
    for figure in (1010.0, 1023.0, 1037.0):
        said = one.silent(1, memory=figure)
    assert said["memory_nats"] <= -3


def test_a_figure_that_always_stands_still_says_nothing_by_it():
    one = One()
    for _ in range(600):
        one.sample(memory=1000.0)
    assert one.silent(4, memory=1000.0)["memory_nats"] < 0.5


def test_what_stopped_one_channel_before_the_rest_did_not_die():
    one = working()
    for _ in range(4):
        one.sample(sent=0.0)
    assert one.silent(2)["faded"] == 1
    assert working().silent(2)["faded"] == 0


def test_an_explained_silence_teaches_no_habit_and_an_unexplained_one_does():
    after = {}
    for held in (True, False):
        one = working()
        one.silent(3, held=held)
        for _ in range(30):
            one.sample()
        after[held] = one.silent(2)["silence_nats"]
    assert after[True] > after[False] + 1


def test_an_alarming_silence_that_a_boot_ends_is_not_learned():
    after = {}
    for reads in (2e6, 0.0):
        one = working()
        assert one.silent(3, cpu=0.01)["silence_nats"] > 9
        one.sample(reads=reads)
        for _ in range(30):
            one.sample()
        after[reads] = one.silent(2)["silence_nats"]
    assert after[2e6] > after[0.0] + 1


@pytest.mark.parametrize("what", [{"cpu": np.nan}, {"writes": 4e9}])
def test_what_is_not_known_neither_ends_a_silence_nor_prolongs_it(what):
    one = working()
    one.silent(2)
    said = one.sample(sent=0.0, **{"writes": 0.0, **what})
    assert said["run"] == 2
    assert said["known"] == 0
    assert one.silent(1)["run"] == 3


def test_how_long_a_vm_is_out_of_sight_is_counted():
    one = working()
    assert one.sample(cpu=np.nan)["unseen_s"] == 300
    assert one.sample(cpu=np.nan)["unseen_s"] == 600
    assert one.sample()["unseen_s"] == 0
