"""100,000 records that are no frames among as many good ones: what becomes of each."""

import time
from itertools import islice

from benchmarks.fuzzed import mixed
from benchmarks.report import report
from benchmarks.workloads import fleet_frame
from engine.detection.configuration import Configuration
from engine.detection.partition import Partition
from engine.errors import REJECTION_REASONS
from engine.ports import Record
from engine.wire import topics
from engine.wire.frame import encode_frame
from engine.wire.rejected import decode_rejected

GOOD = 100_000
NODES = 20
VMS = 8


def good_records() -> list[Record]:
    """Return frames of 20 nodes of one cell, each one sample after the other."""
    return [
        Record(
            topic=topics.FRAMES.name,
            partition=0,
            offset=number,
            time_ms=1_790_000_000_000 + 2000 * (number // NODES),
            key=b"cell-1",
            value=encode_frame(
                fleet_frame(VMS, sequence=number // NODES, node=f"node-{number % NODES}")
            ),
        )
        for number in range(GOOD)
    ]


def main() -> None:
    """Run, print and write the report."""
    good = good_records()
    partition = Partition(Configuration())
    reasons = dict.fromkeys(sorted(REJECTION_REASONS), 0)
    crashes = 0
    began_s = time.perf_counter()
    records = mixed(good, seed=20261123)
    while batch := list(islice(records, 1000)):
        for record in batch:
            try:
                outputs = partition.fold(record)
            except Exception:  # noqa: BLE001 -- any escape at all is what is counted here
                crashes += 1
                continue
            for output in outputs:
                if output.topic == topics.REJECTED.name:
                    reasons[decode_rejected(output.value).reason] += 1
    counters = partition.counters
    goals_met = (
        crashes == 0
        and counters.processed == GOOD
        and sum(reasons.values()) == counters.rejected == GOOD
        and counters.balanced(partition.waiting())
    )
    row = {
        "good": GOOD,
        "bad": GOOD,
        "crashes": crashes,
        "processed": counters.processed,
        "duplicate": counters.duplicate,
        "late": counters.late,
        "shed": counters.shed,
        "rejected": counters.rejected,
        "seconds": round(time.perf_counter() - began_s, 1),
    }
    report(
        "fuzz",
        claim="bad records 1:1 among good ones: 0 crashes, 0 good lost, each bad one counted",
        rows=[{**row, **{f"rejected_{name}": count for name, count in reasons.items() if count}}],
        goals_met=goals_met,
    )


if __name__ == "__main__":
    main()
