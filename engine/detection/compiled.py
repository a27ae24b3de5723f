"""Has the kernels compiled before a record depends on them."""

from functools import lru_cache

import numpy as np

from engine.detection.forest import FEATURES, new_forest
from engine.detection.replay import run_records
from engine.ports import Record
from engine.wire.frame import UUID_BYTES, Frame, Header, VmRows, encode_frame
from engine.wire.metrics import GAUGES, INTEGERS
from engine.wire.topics import FRAMES


@lru_cache(maxsize=1)
def compile_kernels() -> None:
    """Compile everything a frame runs through: some 20 s, once in a process.

    A frame of one VM is folded into a partition that is then thrown away. Compiled at the
    first real frame instead, the kernels would hold the loop for longer than a group waits
    for a silent member.
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
