"""Compile the kernels before the first record needs them."""

from functools import lru_cache

import numpy as np

from flatline.engine.detection.forest import FEATURES, new_forest
from flatline.engine.detection.replayed import run_records
from flatline.engine.ports import Record
from flatline.engine.wire.frame import UUID_BYTES, Frame, Header, VmRows, encode_frame
from flatline.engine.wire.metrics import GAUGES, INTEGERS
from flatline.engine.wire.topics import FRAMES


@lru_cache(maxsize=1)
def compile_kernels() -> None:
    """Compile all kernels that a frame uses: about 20 s, once per process.

    A frame of one VM is folded into a temporary partition. If compilation started with the first
    real frame, it would block the event loop for longer than the consumer group's session timeout.
    """
    header = Header(
        site="-",
        zone="-",
        cell="-",
        node="-",
        role="collector",
        run="-",
        sequence=0,
        event_time_ns=0,
        mono_ns=0,
        interval_ms=1000,
    )
    rows = VmRows(
        uuids=bytes(UUID_BYTES),
        integers=np.zeros((len(INTEGERS), 1), np.uint64),
        missing=None,
        gauges=np.zeros((len(GAUGES), 1), np.float32),
    )
    value = encode_frame(Frame(header=header, rows=rows))
    run_records(
        Record(FRAMES.name, 0, offset, 1000 * (1 + offset), b"-", value) for offset in range(2)
    )
    samples = np.zeros((1, len(FEATURES)))
    new_forest().score_then_learn(samples, np.zeros(1, np.int64))
