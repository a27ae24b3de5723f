import numpy as np
import pytest

from flatline.models.kernels import silence_model
from flatline.models.kernels.blocks import BLOCK_ROWS
from tests.reference.silence_model_twin import SilenceModelTwin

FOLDS = pytest.mark.parametrize(
    "fold", [silence_model.fold_life, silence_model.fold_life.py_func], ids=["compiled", "python"]
)
SIGNS = {True: silence_model.ALIVE, False: silence_model.SILENT, None: silence_model.UNKNOWN}


class VmTable:
    def __init__(self, fold=silence_model.fold_life):
        self.fold = fold
        self.state = silence_model.new_state(1)
        self.out = np.zeros((silence_model.OUT_ROWS, BLOCK_ROWS), np.float32)

    def sample(self, *, alive, held=False, dt_s=2.0, share=1.0, cut_short=False):
        signs = np.full(BLOCK_ROWS, silence_model.CUT_SHORT if cut_short else SIGNS[alive], np.int8)
        hold = np.full(BLOCK_ROWS, held, np.uint8)
        self.fold(self.state, signs, hold, np.float32(dt_s), self.out, np.float32(share))
        return float(self.out[0, 0]), float(self.out[1, 0])


@FOLDS
def test_gaps_match_reference(fold):
    rng = np.random.default_rng(20261123)
    table, twin = VmTable(fold), SilenceModelTwin()
    steps = 1500 if fold is silence_model.fold_life else 300
    for _ in range(steps):
        alive = rng.choice(np.array([True, False, None]), p=[0.6, 0.35, 0.05])
        sample = {"alive": alive, "held": bool(rng.random() < 0.02), "dt_s": 2.0}
        sample["cut_short"] = bool(rng.random() < 0.1)
        run_s, nats = table.sample(**sample)
        expected = twin.learn_one(**sample)
        assert run_s == pytest.approx(expected[0])
        assert nats == pytest.approx(expected[1], abs=1e-3)


def test_silence_of_a_steady_writer_surprises_more_with_every_second():
    table = VmTable()
    for _ in range(2000):
        table.sample(alive=True)
    nats = [table.sample(alive=False)[1] for _ in range(5)]
    assert nats == sorted(nats)
    assert nats[-1] > 7


def test_silence_of_an_hourly_writer_does_not_surprise():
    table = VmTable()
    for _ in range(20):
        table.sample(alive=True)
        for _ in range(1800):
            table.sample(alive=False)
    table.sample(alive=True)
    for _ in range(300):
        _, nats = table.sample(alive=False)
    assert nats < 1


def test_newborn_vm_cannot_surprise():
    table = VmTable()
    for _ in range(10):
        table.sample(alive=True)
    for _ in range(100):
        _, nats = table.sample(alive=False)
    assert nats < 4


def test_unknown_time_neither_ends_nor_extends_a_gap():
    table = VmTable()
    table.sample(alive=True)
    table.sample(alive=False)
    before = table.sample(alive=False)
    assert table.sample(alive=None) == before


def test_explained_silence_is_not_learned_as_a_habit():
    explained, habit = VmTable(), VmTable()
    for indices, held in ((explained, True), (habit, False)):
        for _ in range(500):
            indices.sample(alive=True)
        for _ in range(60):
            indices.sample(alive=False, held=held)
        indices.sample(alive=True)
        for _ in range(20):
            indices.sample(alive=False)
    assert explained.out[1, 0] > habit.out[1, 0] + 0.5


def test_a_share_of_a_silence_is_held_against_the_past():
    whole, quarter = VmTable(), VmTable()
    for indices in (whole, quarter):
        for _ in range(2000):
            indices.sample(alive=True)
            indices.sample(alive=False)
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
    table = VmTable()
    for _ in range(2000):
        table.sample(alive=False)
        table.sample(alive=None, cut_short=True)
    for _ in range(100):
        _, nats = table.sample(alive=False)
    assert nats < 1


def test_a_silence_that_was_cut_short_makes_one_as_long_surprise_less():
    lives, cut = VmTable(), VmTable()
    for number in range(2000):
        for indices in (lives, cut):
            indices.sample(alive=True)
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
