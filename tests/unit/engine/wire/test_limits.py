"""Records with extreme numbers, lengths and counts: rejected, each with its reason."""

from typing import Any

import msgspec
import pytest

from flatline.engine.errors import RecordRejected, SnapshotDamaged
from flatline.engine.stream.snapshot_format import decode_manifest
from flatline.engine.wire import limits
from flatline.engine.wire.alert import decode_alert, encode_alert
from flatline.engine.wire.control import decode_control, encode_control
from flatline.engine.wire.forecast import decode_forecasts, encode_forecasts
from flatline.engine.wire.frame import decode_frame, encode_frame
from flatline.engine.wire.journal import decode_entry, encode_entry
from flatline.engine.wire.score import decode_scores, encode_scores
from tests.unit.engine.wire import samples

VM = bytes(range(16))
EVENT = {"id": "e", "kind": "started", "time_ns": 1, "vm": VM}
ITEM = {"vm": VM, "name": "web"}


def frame_with(**changes: Any) -> bytes:
    """Return the bytes of a good frame with some fields of its map replaced."""
    fields = msgspec.msgpack.decode(encode_frame(samples.frame()))
    header = {**fields["header"], **changes.pop("header", {})}
    return msgspec.msgpack.encode({**fields, "header": header, **changes})


HOSTILE: dict[str, dict[str, Any]] = {
    "sequence": {"header": {"sequence": 2**63}},
    "sequence near the end": {"header": {"sequence": 2**63 - 1}},
    "mono_ns": {"header": {"mono_ns": 2**64 - 1}},
    "event time": {"header": {"event_time_ns": 2**63 - 1}},
    "interval": {"header": {"interval_ms": 10**9}},
    "node of a part": {"header": {"node": "n1#1"}},
    "node with a separator": {"header": {"node": "a\x00b"}},
    "cell that ends a line": {"header": {"cell": "cell\n"}},
    "run too long": {"header": {"run": "r" * 129}},
    "event time far": {"events": [{**EVENT, "time_ns": 2**64 - 1}]},
    "event of half a VM": {"events": [{**EVENT, "vm": b"\x01" * 7}]},
    "event detail": {"events": [{**EVENT, "detail": {"until_ms": "9" * 5000}}]},
    "event details": {"events": [{**EVENT, "detail": {str(n): "" for n in range(100)}}]},
    "event kind": {"events": [{**EVENT, "kind": "k" * 65}]},
    "events": {"events": [EVENT] * 5000},
    "items": {"inventory": [ITEM] * 5000},
    "item name": {"inventory": [{**ITEM, "name": "n" * 2000}]},
    "item devices": {"inventory": [{**ITEM, "disks": {f"vd{n}": "p" for n in range(2000)}}]},
    "item memory": {"inventory": [{**ITEM, "memory_bytes": -1}]},
    "item vcpus": {"inventory": [{**ITEM, "vcpus": 2**40}]},
    "item period": {"inventory": [{**ITEM, "balloon_period_s": -5}]},
    "item of half a VM": {"inventory": [{**ITEM, "vm": b"short"}]},
    "gauge": {"node": {"cpu_busy_ratio": float("inf")}},
    "gauge that is none": {"node": {"cpu_busy_ratio": float("nan")}},
    "gauges": {"node": {str(n): 0.0 for n in range(300)}},
    "pools": {"pools": [{"name": "p"}] * 2000},
    "pool latency": {"pools": [{"name": "p", "latency_s": -1.0}]},
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_frame_beyond_a_limit_is_refused_with_its_place(case: str) -> None:
    with pytest.raises(RecordRejected) as refused:
        decode_frame(frame_with(**HOSTILE[case]))
    assert refused.value.reason == "bad_value"
    assert "$." in refused.value.detail


def test_a_vm_that_stands_twice_among_the_rows_is_refused() -> None:
    fields = msgspec.msgpack.decode(encode_frame(samples.frame()))
    uuids = fields["uuids"]
    twice = uuids[:16] + uuids[:16] + uuids[32:]
    with pytest.raises(RecordRejected, match="twice"):
        decode_frame(msgspec.msgpack.encode({**fields, "uuids": twice}))


@pytest.mark.parametrize(
    ("decode", "value", "changes"),
    [
        (decode_alert, lambda: encode_alert(samples.ALERT)[0], {"opened_ms": 2**63}),
        (decode_alert, lambda: encode_alert(samples.ALERT)[0], {"vms": ["v"] * 9999}),
        (decode_control, lambda: encode_control(samples.CONTROL), {"until_ms": 2**70 // 2**7}),
        (decode_entry, lambda: encode_entry(samples.JOURNAL), {"step": -1}),
    ],
)
def test_records_for_people_are_bounded_too(
    decode: Any, value: Any, changes: dict[str, Any]
) -> None:
    fields = msgspec.json.decode(value())
    with pytest.raises(RecordRejected) as refused:
        decode(msgspec.json.encode({**fields, **changes}))
    assert refused.value.reason == "bad_value"


@pytest.mark.parametrize(
    ("decode", "value", "changes"),
    [
        (decode_scores, lambda: encode_scores(samples.SCORES), {"minute_ms": 2**63}),
        (decode_scores, lambda: encode_scores(samples.SCORES), {"features": []}),
        (decode_forecasts, lambda: encode_forecasts(samples.FORECASTS), {"step_s": 0}),
        (decode_forecasts, lambda: encode_forecasts(samples.FORECASTS), {"bands": []}),
    ],
)
def test_records_of_figures_are_bounded_too(
    decode: Any, value: Any, changes: dict[str, Any]
) -> None:
    fields = msgspec.msgpack.decode(value())
    with pytest.raises(RecordRejected) as refused:
        decode(msgspec.msgpack.encode({**fields, **changes}))
    assert refused.value.reason == "bad_value"


def test_a_snapshot_that_names_more_than_can_be_is_damaged() -> None:
    value = {"generation": "g", "next_offset": 1, "time_ms": 0, "chunks": [], "configuration": "c"}
    earlier = {"v": 1, "next_offset": 0, "chunks": 3, "sha256": ""}
    for good, wrong in ((value, {"next_offset": -1}), (earlier, {"chunks": 2**40})):
        decode_manifest(msgspec.msgpack.encode(good))
        with pytest.raises(SnapshotDamaged):
            decode_manifest(msgspec.msgpack.encode({**good, **wrong}))


@pytest.mark.parametrize("text", ["9" * 5000, str(2**63), "²", "", "-1", "1e3"])
def test_a_text_that_is_no_small_number_is_none(text: str) -> None:
    assert limits.small_int(text) is None
    assert limits.small_int("1790000000000") == 1_790_000_000_000
