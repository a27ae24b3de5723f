"""Size and CPU cost of a frame of 200 VMs, beside other encodings of it.

Every encoding starts and ends with the arrays of the collector and the engine, and returns every
value; the same run checks that.
"""

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np

from benchmarks.report import report
from benchmarks.timing import alternate
from benchmarks.workloads import fleet_frame
from flatline.engine.wire import metrics
from flatline.engine.wire.frame import UUID_BYTES, Frame, Header, VmRows, decode_frame, encode_frame
from flatline.engine.wire.vcpus import VcpuRows
from flatline.models.codecs.columns import widen

VMS = 200
# µs a frame, µs a frame, bytes a VM-sample; the fleet has 2.65 vCPUs a VM.
ENCODE_GOAL_US, DECODE_GOAL_US, SIZE_GOAL_BYTES = 8.0, 10.0, 145.0

Codec = tuple[Callable[[Frame], bytes], Callable[[bytes], VmRows]]

_NAMES = [metric.name for metric in (*metrics.INTEGERS, *metrics.GAUGES)]
_Row = msgspec.defstruct(
    "Row",
    [
        ("uuid", bytes),
        *((metric.name, int | None) for metric in metrics.INTEGERS),
        *((metric.name, float | None) for metric in metrics.GAUGES),
        ("vcpu_times_ns", list[int]),
    ],
)
_Table = msgspec.defstruct("Table", [("header", Header), ("rows", list[_Row])])  # type: ignore[valid-type]


class _Raw(msgspec.Struct):
    header: Header
    uuids: bytes
    integers: bytes
    missing: bytes
    gauges: bytes
    vcpu_counts: bytes
    vcpu_times: bytes


def _vcpus(rows: VmRows) -> VcpuRows:
    if rows.vcpus is None:
        raise ValueError("a frame of this benchmark has the time of each vCPU")
    return rows.vcpus


def row_objects(encoder: Any, decoder: Any) -> Codec:  # noqa: ANN401
    """Return the most common codec: a list of objects with named fields."""

    def encode(frame: Frame) -> bytes:
        rows = frame.rows
        gauges = np.where(np.isnan(rows.gauges), None, rows.gauges.astype(object))  # type: ignore[call-overload]
        integers = np.where(rows.present(), rows.integers.astype(object), None)  # type: ignore[call-overload]
        times = np.split(_vcpus(rows).times_ns, _vcpus(rows).bounds()[1:-1])
        values = zip(integers.T.tolist(), gauges.T.tolist(), times, strict=True)
        objects = [
            _Row(rows.vm(vm), *ints, *floats, used.tolist())
            for vm, (ints, floats, used) in enumerate(values)
        ]
        encoded: bytes = encoder.encode(_Table(frame.header, objects))
        return encoded

    def decode(value: bytes) -> VmRows:
        rows = decoder.decode(value).rows
        table = [msgspec.structs.astuple(row)[1:] for row in rows]
        count = len(metrics.INTEGERS)
        integers = np.array([row[:count] for row in table], object).T
        missing = np.array([[reported is None for reported in column] for column in integers])
        return VmRows(
            uuids=b"".join(row.uuid for row in rows),
            integers=np.where(missing, 0, integers).astype(np.uint64),
            missing=missing,
            gauges=np.array([row[count:-1] for row in table], np.float32).T,
            vcpus=VcpuRows(
                counts=np.array([len(row[-1]) for row in table], np.uint16),
                times_ns=np.array([time for row in table for time in row[-1]], np.uint64),
                missing=None,
            ),
        )

    return encode, decode


def raw_columns() -> Codec:
    """Return the codec that copies: every column with 8 bytes a value."""
    encoder, decoder = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder(_Raw)

    def encode(frame: Frame) -> bytes:
        rows = frame.rows
        raw = _Raw(
            frame.header,
            rows.uuids,
            rows.integers.tobytes(),
            np.packbits(~rows.present()).tobytes(),
            rows.gauges.tobytes(),
            _vcpus(rows).counts.tobytes(),
            _vcpus(rows).times_ns.tobytes(),
        )
        return encoder.encode(raw)

    def decode(value: bytes) -> VmRows:
        raw = decoder.decode(value)
        size = len(raw.uuids) // UUID_BYTES
        integers = np.frombuffer(raw.integers, np.uint64).reshape(-1, size)
        bits = np.unpackbits(np.frombuffer(raw.missing, np.uint8), count=integers.size)
        gauges = np.frombuffer(raw.gauges, np.float32).reshape(-1, size)
        vcpus = VcpuRows(
            counts=np.frombuffer(raw.vcpu_counts, np.uint16),
            times_ns=np.frombuffer(raw.vcpu_times, np.uint64),
            missing=None,
        )
        return VmRows(
            uuids=raw.uuids,
            integers=integers,
            missing=bits.reshape(integers.shape).astype(np.bool_),
            gauges=gauges,
            vcpus=vcpus,
        )

    return encode, decode


CODECS: dict[str, Codec] = {
    "flatline, engine (compiled)": (encode_frame, lambda value: decode_frame(value, widen).rows),
    "flatline, node (NumPy)": (encode_frame, lambda value: decode_frame(value).rows),
    "raw columns of 8 bytes": raw_columns(),
    "msgpack row objects": row_objects(msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder(_Table)),
    "JSON row objects": row_objects(msgspec.json.Encoder(), msgspec.json.Decoder(_Table)),
}


def main() -> None:
    """Measure and report."""
    frame = fleet_frame(VMS)
    values = {name: encode(frame) for name, (encode, _) in CODECS.items()}
    encoding = alternate({name: lambda e=c[0]: e(frame) for name, c in CODECS.items()})  # type: ignore[misc]
    decoding = alternate(
        {name: lambda d=c[1], v=values[name]: d(v) for name, c in CODECS.items()}  # type: ignore[misc]
    )
    rows: list[dict[str, str | int | float | bool | None]] = [
        {
            "codec": name,
            "encode_us": encoding[name] * 1e6,
            "decode_us": decoding[name] * 1e6,
            "encode_us_per_vm_sample": encoding[name] * 1e6 / VMS,
            "decode_us_per_vm_sample": decoding[name] * 1e6 / VMS,
            "bytes_per_vm_sample": len(values[name]) / VMS,
            "lossless": decode(values[name]) == frame.rows,
        }
        for name, (_, decode) in CODECS.items()
    ]
    own = rows[0]
    report(
        "codec",
        claim=f"A frame of {VMS} VMs, {len(_NAMES)} metrics: goals {ENCODE_GOAL_US:g} µs to"
        f" encode, {DECODE_GOAL_US:g} to decode, {SIZE_GOAL_BYTES:g} bytes a VM-sample",
        rows=rows,
        goals_met=all(row["lossless"] is True for row in rows)
        and float(own["encode_us"] or 0) <= ENCODE_GOAL_US
        and float(own["decode_us"] or 0) <= DECODE_GOAL_US
        and float(own["bytes_per_vm_sample"] or 0) <= SIZE_GOAL_BYTES,
    )


if __name__ == "__main__":
    main()
