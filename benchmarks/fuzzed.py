"""Records that are no frames, mixed into good ones: seeded, of every kind a log may carry."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import msgspec
import numpy as np

from engine.errors import RecordRejected
from engine.ports import Record
from engine.wire.envelope import MAX_RECORD_BYTES
from engine.wire.frame import Frame, VmRows, decode_frame, encode_frame

Draw = Callable[[np.random.Generator, bytes], bytes]


def _noise(rng: np.random.Generator, good: bytes) -> bytes:
    return rng.bytes(int(rng.integers(0, 2000)))


def _truncated(rng: np.random.Generator, good: bytes) -> bytes:
    return good[: int(rng.integers(0, len(good)))]


def _flipped(rng: np.random.Generator, good: bytes) -> bytes:
    value = bytearray(good)
    for place in rng.integers(0, len(value), int(rng.integers(1, 20))):
        value[place] ^= 1 << int(rng.integers(8))
    return bytes(value)


def _spliced(rng: np.random.Generator, good: bytes) -> bytes:
    start, stop = sorted(int(place) for place in rng.integers(0, len(good), 2))
    return good[:start] + good[stop:] + rng.bytes(int(rng.integers(0, 50)))


def _later_version(rng: np.random.Generator, good: bytes) -> bytes:
    fields = msgspec.msgpack.decode(good)
    return msgspec.msgpack.encode({**fields, "v": int(rng.integers(2, 100))})


def _wrong_type(rng: np.random.Generator, good: bytes) -> bytes:
    fields = msgspec.msgpack.decode(good)
    name = str(rng.choice(sorted(fields)))
    values = (None, -1, 1e308, "text", [1, 2], {"a": [None]}, b"\x00" * 7, True)
    return msgspec.msgpack.encode({**fields, name: values[int(rng.integers(len(values)))]})


def _impossible_header(rng: np.random.Generator, good: bytes) -> bytes:
    fields = msgspec.msgpack.decode(good)
    changes = (
        {"sequence": -1},
        {"mono_ns": -5},
        {"interval_ms": 0},
        {"interval_ms": 10**12},
        {"cell": ""},
        {"run": ""},
        {"role": "owner of all"},
        {"event_time_ns": 2**70 // 2**7},
    )
    header = {**fields["header"], **changes[int(rng.integers(len(changes)))]}
    return msgspec.msgpack.encode({**fields, "header": header})


def _oversized(rng: np.random.Generator, good: bytes) -> bytes:
    return bytes(MAX_RECORD_BYTES + int(rng.integers(1, 9_000_000)))


def _nested(rng: np.random.Generator, good: bytes) -> bytes:
    return b"\x91" * int(rng.integers(10, 5000)) + b"\xc0"


# Oversized records are rare so that a run does not spend its time on allocating them.
KINDS: dict[str, tuple[float, Draw]] = {
    "noise": (0.2, _noise),
    "truncated": (0.2, _truncated),
    "flipped": (0.2, _flipped),
    "spliced": (0.1, _spliced),
    "later_version": (0.1, _later_version),
    "wrong_type": (0.1, _wrong_type),
    "impossible_header": (0.095, _impossible_header),
    "nested": (0.004, _nested),
    "oversized": (0.001, _oversized),
}


def bad_values(good: Iterable[bytes], *, seed: int) -> Iterator[bytes]:
    """Yield one value that is no frame for each good one, drawn from it or from noise.

    Damage that leaves a readable frame (a flipped bit inside a counter) makes a frame like
    any other: the log's own checksums guard against it, not its reader. Such draws are
    drawn again.
    """
    rng = np.random.default_rng(seed)
    weights = np.array([weight for weight, _ in KINDS.values()])
    draws = [draw for _, draw in KINDS.values()]
    for value in good:
        while True:
            drawn = draws[int(rng.choice(len(draws), p=weights / weights.sum()))](rng, value)
            try:
                decode_frame(drawn)
            except RecordRejected:
                break
        yield drawn


def hostile_frame(rng: np.random.Generator, good: Frame, *, cell: str | None) -> Frame:
    """Return a readable frame by a stranger with values nobody should send.

    Invented nodes and VMs, counters at their ends, gauges that are infinite, and sequences
    from nowhere. `cell` None is the cell of the good frame.
    """
    size = int(rng.integers(0, 64))
    header = msgspec.structs.replace(
        good.header,
        cell=cell or good.header.cell,
        node=f"stranger-{rng.integers(1000)}",
        run=rng.bytes(8).hex(),
        sequence=int(rng.integers(0, 2**62)),
        mono_ns=int(rng.integers(0, 2**62)),
        event_time_ns=int(rng.integers(0, 2**62)),
        interval_ms=int(rng.integers(1, 3_600_000)),
    )
    rows = good.rows.select(slice(0, 0))
    if size:
        gauges = rng.choice(
            np.array([np.inf, -np.inf, np.nan, 0.0, 3e38], np.float32),
            (rows.gauges.shape[0], size),
        )
        rows = VmRows(
            uuids=rng.bytes(16 * size),
            integers=rng.integers(0, 2**64, (rows.integers.shape[0], size), np.uint64),
            missing=None,
            gauges=gauges.astype(np.float32),
        )
    node = dict.fromkeys(good.node, float(rng.choice([np.inf, -1.0, np.nan, 1e300])))
    return msgspec.structs.replace(
        good, header=header, rows=rows, events=(), inventory=(), node=node
    )


def mixed(
    records: Iterable[Record],
    *,
    seed: int,
    hostile_every: int = 0,
    hostile_cell: str | None = None,
) -> Iterator[Record]:
    """Yield each good record followed by a bad one, offsets renumbered.

    `hostile_every` > 0 adds a readable but hostile frame after every so many good ones, in
    `hostile_cell` or, where that is None, in the good one's own cell.
    """
    rng = np.random.default_rng(seed)
    offset = 0
    kept = list(records)
    bad = bad_values((record.value for record in kept), seed=seed)
    for number, (record, value) in enumerate(zip(kept, bad, strict=True)):
        values = [record.value, value]
        if hostile_every and number % hostile_every == 0:
            hostile = hostile_frame(rng, decode_frame(record.value), cell=hostile_cell)
            values.append(encode_frame(hostile))
        for each in values:
            yield replace(record, offset=offset, value=each)
            offset += 1
