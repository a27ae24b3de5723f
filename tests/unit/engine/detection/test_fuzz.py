"""Bad bytes among good ones: none of them stops the engine, and no good one is lost."""

import msgspec
import numpy as np

from flatline.engine.detection.partition import Partition
from flatline.engine.detection.replayed import run_records
from flatline.engine.ports import Record
from flatline.engine.wire.rejected import decode_rejected
from tests.unit.engine.detection.frames_by_hand import FAST, cell

# A hundredth of a release's fuzzing; `FUZZED` increases it by hand.
FUZZED = 1000


def spoiled(value: bytes, rng: np.random.Generator) -> bytes:
    """Return bytes that certainly differ from the original frame."""
    kind = int(rng.integers(5))
    if kind == 0:
        return value[: int(rng.integers(len(value)))]
    if kind == 1:
        return rng.bytes(int(rng.integers(1, 200)))
    if kind == 2:
        return msgspec.msgpack.encode({"v": int(rng.integers(2, 100)), "rest": value})
    if kind == 3:
        return b""
    return b"\x91" * int(rng.integers(1, 3000))


def test_fuzzed_records_are_kept_with_their_reason_and_no_good_one_is_lost(
    rng: np.random.Generator,
) -> None:
    bench, guests = cell(4, nodes=2)
    bench.run(120.0)
    guests[0].panics()
    bench.run(40.0)
    good = bench.records
    whole = run_records(good, FAST)
    partition = Partition(FAST)
    reasons: dict[str, int] = {}
    alerts = []
    offset = 0
    per_record = FUZZED // len(good) + 1
    bad = 0
    for record in good:
        values = [spoiled(record.value, rng) for _ in range(per_record)]
        bad += len(values)
        for value in [*values, record.value]:
            one = Record(
                topic=record.topic,
                partition=0,
                offset=offset,
                time_ms=record.time_ms,
                key=record.key,
                value=value,
            )
            offset += 1
            for output in partition.fold(one):
                if output.alert is not None:
                    alerts.append(output.alert)
                elif output.topic == "flatline.rejected.v1":
                    reason = decode_rejected(output.value).reason
                    reasons[reason] = reasons.get(reason, 0) + 1
    counters = partition.counters
    assert counters.balanced(partition.waiting())
    assert counters.processed == len(good)
    assert counters.rejected == bad == sum(reasons.values())
    assert set(reasons) >= {"malformed", "truncated", "unknown_version"}
    assert alerts == whole.alerts
