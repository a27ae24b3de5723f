"""A recording as a bad network delivers it: frames lost, duplicated and out of order."""

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from flatline.engine.ports import RecordedFrame
from flatline.engine.wire.frame import encode_frame


@dataclass(frozen=True, slots=True, kw_only=True)
class Disturbance:
    """Disturbance of frames; records that the engine itself appends do not use the network.

    Attributes
    ----------
    lost, doubled
        Share of the frames that never arrive, and of those that arrive twice.
    late_s
        Maximum delay of each arrival.
    """

    lost: float = 0.0
    doubled: float = 0.0
    late_s: float = 0.0


def disturb(
    recorded_frames: Iterable[RecordedFrame], how: Disturbance, *, seed: int
) -> Iterator[RecordedFrame]:
    """Yield the moments in their new order of arrival, with their arrival times.

    The log dates records as it receives them, so append times follow the order of arrival. Every
    moment uses the same random draws in any case: a loss shifts no other frame.
    """
    rng = np.random.default_rng(seed)
    waiting: list[tuple[int, int, RecordedFrame]] = []
    number = 0
    for recorded in recorded_frames:
        while waiting and waiting[0][0] <= recorded.time_ms:
            yield heapq.heappop(waiting)[2]
        if recorded.frame is not None and recorded.frame.header.role == "shell":
            yield recorded
            continue
        chance, *delays = (float(one) for one in rng.random(3))
        copies = 0 if chance < how.lost else 2 if chance >= 1.0 - how.doubled else 1
        # A waiting frame is kept as bytes.
        value = recorded.value or (
            encode_frame(recorded.frame) if recorded.frame is not None else b""
        )
        for delay in delays[:copies]:
            time_ms = recorded.time_ms + round(1000 * how.late_s * delay)
            number += 1
            arrival = recorded._replace(time_ms=time_ms, value=value)
            heapq.heappush(waiting, (time_ms, number, arrival))
    while waiting:
        yield heapq.heappop(waiting)[2]
