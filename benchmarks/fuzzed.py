"""Invalid frames mixed into good ones: seeded, of every kind that a log may contain."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import msgspec
import numpy as np

from flatline.engine.errors import RecordRejected
from flatline.engine.ports import Record
from flatline.engine.wire import limits
from flatline.engine.wire.envelope import MAX_RECORD_BYTES
from flatline.engine.wire.frame import (
    Event,
    Frame,
    InventoryItem,
    PoolSample,
    Role,
    VmRows,
    decode_frame,
    encode_frame,
)
from flatline.engine.wire.metrics import EVENT_KINDS

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
    """Yield one invalid value for each good one, derived from it or from noise.

    Damage that leaves a readable frame (a flipped bit inside a counter) makes a frame like any
    other: the log's own checksums guard against it, not its reader. Such draws are repeated.
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


_NO_ROWS = VmRows.empty()
_DETAILS = ("until_ms", "last_answer_ms", "incident", "step", "action", "dry_run", "scope", "name")
_FOES = ("stranger", "node", "second collector")


def _edge(rng: np.random.Generator, most: int) -> int:
    """Return a number that readers accept, mostly one of the limits."""
    ends = (0, 1, most, most - 1, most // 2)
    is_end = rng.random() < 0.7
    return ends[int(rng.integers(len(ends)))] if is_end else int(rng.integers(most))


def _text(rng: np.random.Generator) -> str:
    """Return a text unsuitable as a name: long, empty, digits, markup or control characters."""
    texts = ("", "9" * 1000, "\x00", "[/red]", "../" * 20, "名", "-1", "1e309", "nan", "\u202e")
    return texts[int(rng.integers(len(texts)))]


def _hostile_rows(rng: np.random.Generator, good: VmRows, uuids: bytes) -> VmRows:
    """Return rows of these VMs with extreme counters and gauges."""
    size = len(uuids) // 16
    shape = (good.integers.shape[0], size)
    integers = rng.integers(0, 2**64, shape, np.uint64)
    integers[rng.random(shape) < 0.4] = np.uint64(2**64 - 1)
    integers[rng.random(shape) < 0.3] = 0
    missing = rng.random(shape) < 0.2
    integers[missing] = 0
    values = np.array([np.nan, 0.0, -1.0, 3e38, -3e38], np.float32)
    gauges = rng.choice(values, (good.gauges.shape[0], size)).astype(np.float32)
    return VmRows(uuids=uuids, integers=integers, missing=missing, gauges=gauges)


def hostile_frame(rng: np.random.Generator, good: Frame, *, cell: str | None) -> Frame:
    """Return a readable frame with hostile values in every field.

    From an unknown node, or from the node of the good frame in another run: extreme counters,
    clocks and sequences, events and inventory of its own and of foreign VMs, and in any role.
    `cell` None is the cell of the good frame.
    """
    foe = _FOES[int(rng.integers(len(_FOES)))] if cell is None else "stranger"
    vms = [good.rows.vm(column) for column in range(len(good.rows))]
    vms = [*vms[: int(rng.integers(len(vms) + 1))], *(rng.bytes(16) for _ in range(3))]
    if foe == "stranger":
        vms = [rng.bytes(16) for _ in range(int(rng.integers(0, 24)))]
    roles: tuple[Role, ...] = ("collector", "collector", "collector", "agent", "owner", "shell")
    header = msgspec.structs.replace(
        good.header,
        cell=cell or good.header.cell,
        node=f"stranger-{rng.integers(50)}" if foe == "stranger" else good.header.node,
        role=roles[int(rng.integers(len(roles)))],
        run=good.header.run if foe == "node" and rng.random() < 0.2 else rng.bytes(8).hex(),
        sequence=_edge(rng, limits.MAX_COUNT),
        mono_ns=_edge(rng, limits.MAX_COUNT),
        event_time_ns=_edge(rng, limits.MAX_TIME_S * 10**9),
        interval_ms=1 + _edge(rng, limits.MAX_INTERVAL_MS - 1),
    )
    events = tuple(
        Event(
            id=_text(rng),
            kind=str(rng.choice([*EVENT_KINDS, "never heard of"])),
            time_ns=_edge(rng, limits.MAX_TIME_S * 10**9),
            vm=None if not vms or rng.random() < 0.1 else vms[int(rng.integers(len(vms)))],
            detail={name: _text(rng) for name in _DETAILS if rng.random() < 0.5},
        )
        for _ in range(int(rng.integers(0, 6)))
    )
    inventory = tuple(
        InventoryItem(
            vm=vm,
            name=_text(rng),
            tenant=_text(rng) if rng.random() < 0.5 else None,
            group=_text(rng) if rng.random() < 0.5 else None,
            actionable=bool(rng.random() < 0.5),
            vcpus=_edge(rng, limits.MAX_VCPUS),
            memory_bytes=_edge(rng, limits.MAX_BYTES),
            disks={_text(rng): _text(rng) for _ in range(3)},
            nics={_text(rng): _text(rng) for _ in range(3)},
            balloon_period_s=_edge(rng, limits.MAX_PERIOD_S),
        )
        for vm in vms[: int(rng.integers(0, 6))]
    )
    pool = PoolSample(
        name=_text(rng),
        capacity_bytes=_edge(rng, limits.MAX_BYTES),
        latency_s=float(rng.choice([0.0, 1e300])),
    )
    figures = (-1.0, 0.0, 1e300, -1e300)
    return msgspec.structs.replace(
        good,
        header=header,
        rows=_hostile_rows(rng, good.rows, b"".join(vms)) if rng.random() < 0.8 else _NO_ROWS,
        events=events,
        inventory=inventory,
        node={name: float(rng.choice(figures)) for name in good.node if rng.random() < 0.8},
        pools=(pool,) if rng.random() < 0.3 else (),
    )


def mixed(
    records: Iterable[Record],
    *,
    seed: int,
    hostile_every: int = 0,
    hostile_cell: str | None = None,
) -> Iterator[Record]:
    """Yield each good record followed by a bad one, offsets renumbered.

    `hostile_every` > 0 adds a readable but hostile frame after every `hostile_every` good ones, in
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
