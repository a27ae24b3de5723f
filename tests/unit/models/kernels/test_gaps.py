import numpy as np
import pytest

from models.kernels import gaps
from models.kernels.lanes import LANES
from tests.reference.gaps_twin import GapsTwin

FOLDS = pytest.mark.parametrize(
    "fold", [gaps.fold_life, gaps.fold_life.py_func], ids=["compiled", "python"]
)
SIGNS = {True: gaps.ALIVE, False: gaps.SILENT, None: gaps.UNKNOWN}


class Lanes:
    def __init__(self, fold=gaps.fold_life):
        self.fold = fold
        self.state = gaps.new_state(1)
        self.out = np.zeros((gaps.OUT_ROWS, LANES), np.float32)

    def sample(self, *, alive, held=False, dt_s=2.0, share=1.0, cut_short=False):
        signs = np.full(LANES, gaps.CUT_SHORT if cut_short else SIGNS[alive], np.int8)
        hold = np.full(LANES, held, np.uint8)
        self.fold(self.state, signs, hold, np.float32(dt_s), self.out, np.float32(share))
        return float(self.out[0, 0]), float(self.out[1, 0])


@FOLDS
def test_gaps_match_reference(fold):
    rng = np.random.default_rng(20261123)
    lanes, twin = Lanes(fold), GapsTwin()
    steps = 1500 if fold is gaps.fold_life else 300
    for _ in range(steps):
        alive = rng.choice(np.array([True, False, None]), p=[0.6, 0.35, 0.05])
        sample = {"alive": alive, "held": bool(rng.random() < 0.02), "dt_s": 2.0}
        sample["cut_short"] = bool(rng.random() < 0.1)
        run_s, nats = lanes.sample(**sample)
        expected = twin.learn_one(**sample)
        assert run_s == pytest.approx(expected[0])
        assert nats == pytest.approx(expected[1], abs=1e-3)


def test_silence_of_a_steady_writer_surprises_more_with_every_second():
    lanes = Lanes()
    for _ in range(2000):
        lanes.sample(alive=True)
    nats = [lanes.sample(alive=False)[1] for _ in range(5)]
    assert nats == sorted(nats)
    assert nats[-1] > 7


def test_silence_of_an_hourly_writer_does_not_surprise():
    lanes = Lanes()
    for _ in range(20):
        lanes.sample(alive=True)
        for _ in range(1800):
            lanes.sample(alive=False)
    lanes.sample(alive=True)
    for _ in range(300):
        _, nats = lanes.sample(alive=False)
    assert nats < 1


def test_newborn_vm_cannot_surprise():
    lanes = Lanes()
    for _ in range(10):
        lanes.sample(alive=True)
    for _ in range(100):
        _, nats = lanes.sample(alive=False)
    assert nats < 4


def test_unknown_time_neither_ends_nor_extends_a_gap():
    lanes = Lanes()
    lanes.sample(alive=True)
    lanes.sample(alive=False)
    before = lanes.sample(alive=False)
    assert lanes.sample(alive=None) == before


def test_explained_silence_is_not_learned_as_a_habit():
    explained, habit = Lanes(), Lanes()
    for lanes, held in ((explained, True), (habit, False)):
        for _ in range(500):
            lanes.sample(alive=True)
        for _ in range(60):
            lanes.sample(alive=False, held=held)
        lanes.sample(alive=True)
        for _ in range(20):
            lanes.sample(alive=False)
    assert explained.out[1, 0] > habit.out[1, 0] + 0.5


def test_a_share_of_a_silence_is_held_against_the_past():
    whole, quarter = Lanes(), Lanes()
    for lanes in (whole, quarter):
        for _ in range(2000):
            lanes.sample(alive=True)
            lanes.sample(alive=False)
    for _ in range(16):
        (_, nats), (_, less) = whole.sample(alive=False), quarter.sample(alive=False, share=0.25)
    # 32 s are longer than ever, and so are the 8 s of a quarter of it; a quarter of 4 s is usual.
    assert nats == pytest.approx(less, abs=1e-3)
    assert nats > 7
    whole.sample(alive=True), quarter.sample(alive=True)
    for _ in range(2):
        (_, nats), (_, less) = whole.sample(alive=False), quarter.sample(alive=False, share=0.25)
    assert nats > 7
    assert less < 1


def test_silences_that_were_all_cut_short_say_nothing_of_how_one_ends():
    lanes = Lanes()
    for _ in range(2000):
        lanes.sample(alive=False)
        lanes.sample(alive=None, cut_short=True)
    for _ in range(100):
        _, nats = lanes.sample(alive=False)
    assert nats < 1


def test_a_silence_that_was_cut_short_makes_one_as_long_surprise_less():
    lives, cut = Lanes(), Lanes()
    for number in range(2000):
        for lanes in (lives, cut):
            lanes.sample(alive=True)
        if number % 100 == 0:
            for _ in range(20):
                cut.sample(alive=False)
            cut.sample(alive=None, cut_short=True)
    for _ in range(18):
        (_, nats), (_, less) = lives.sample(alive=False), cut.sample(alive=False)
    assert nats > 7
    assert less < nats - 2
    for _ in range(46):
        (_, nats), (_, less) = lives.sample(alive=False), cut.sample(alive=False)
    assert less == pytest.approx(nats, abs=0.1)  # longer than any of them
