"""The transfer of a frame's columns into rows: the kernel and its twin agree."""

import numpy as np
import pytest

from flatline.engine.detection import rates
from flatline.engine.detection.configuration import Configuration
from flatline.engine.detection.vm_table import I, VmTable
from flatline.engine.wire.frame import VmRows
from flatline.engine.wire.metrics import GAUGES, INTEGER_ROW, INTEGERS, VM_STATES
from flatline.models.kernels import ingest
from tests.reference import ingest_twin

VMS = 150
ROSTER = np.arange(VMS, dtype=">u8").repeat(2).tobytes()


def frames(rng, *, whole):
    """Yield frames of guests that boot, stop, lose counters and values."""
    integers = rng.integers(0, 10**9, (len(INTEGERS), VMS))
    for _ in range(30):
        integers += rng.integers(0, 10**6, integers.shape)
        integers[:, rng.random(VMS) < 0.03] //= 7
        integers[INTEGER_ROW["instance"]] += rng.random(VMS) < 0.05
        integers[INTEGER_ROW["state"]] = rng.integers(0, len(VM_STATES) + 2, VMS)
        missing = None if whole else rng.random(integers.shape) < 0.1
        if missing is not None and rng.random() < 0.5:
            missing[INTEGER_ROW["vcpu_delay_ns"]] = True
        yield VmRows(
            uuids=ROSTER,
            integers=np.where(False if missing is None else missing, 0, integers).astype(np.uint64),
            missing=missing,
            gauges=np.full((len(GAUGES), VMS), np.nan, np.float32),
        )


def states(rng, *, whole):
    table = VmTable(ROSTER)
    for number, rows in enumerate(frames(rng, whole=whole)):
        table.integers[I["migrated"], :VMS] |= rng.random(VMS) < 0.02
        rates.fold_rows(
            table,
            rows,
            dt_s=None if number in {0, 20} else 10.0,
            sequence=number,
            event_ms=10_000 * number,
            configuration=Configuration(),
        )
        found = {name: array.copy() for name, array in table.to_arrays().items()}
        yield found | {name: array.copy() for name, array in table.taken._asdict().items()}


@pytest.mark.parametrize("whole", [True, False])
def test_the_kernels_do_what_their_twins_do_to_the_bit(monkeypatch, whole) -> None:
    compiled = list(states(np.random.default_rng(5), whole=whole))
    monkeypatch.setattr(rates, "_take_rows", ingest_twin.take_rows)
    monkeypatch.setattr(rates, "_note_rates", ingest_twin.note_rates)
    plain = list(states(np.random.default_rng(5), whole=whole))
    begun = set()
    for number, (ours, theirs) in enumerate(zip(compiled, plain, strict=True)):
        begun |= set(ours["epochs"].tolist())
        for name, array in ours.items():
            np.testing.assert_array_equal(array, theirs[name], err_msg=f"{name} at {number}")
    assert begun == {ingest.SAME_EPOCH, ingest.NEW_EPOCH, ingest.NEW_BOOT}
