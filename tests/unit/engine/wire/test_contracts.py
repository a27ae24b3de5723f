"""Bytes, schemas and golden files of every contract."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from cloudevents.core.bindings.kafka import KafkaMessage, from_binary_event
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from flatline.engine.errors import RecordRejected
from flatline.engine.wire import schemas
from flatline.engine.wire.alert import alert_id, decode_alert, encode_alert
from flatline.engine.wire.control import decode_control, encode_control
from flatline.engine.wire.forecast import decode_forecasts, encode_forecasts
from flatline.engine.wire.frame import decode_frame, encode_frame
from flatline.engine.wire.journal import decode_entry, encode_entry
from flatline.engine.wire.order import SIGNATURE_HEADER, decode_order, encode_order, key_id
from flatline.engine.wire.rejected import KEPT_BYTES, decode_rejected, encode_rejected
from flatline.engine.wire.score import decode_scores, encode_scores
from flatline.engine.wire.topics import TOPICS
from tests.unit.engine.wire import samples

GOLDEN = Path(__file__).parent / "golden"
TRUSTED = {key_id(samples.KEY.public_key()): samples.KEY.public_key()}
REJECTED = encode_rejected(
    b"junk", topic="t", partition=0, offset=3, reason="malformed", detail="not msgpack"
)


def open_order(value):
    _, headers = encode_order(samples.ORDER, samples.KEY)
    signed = {**dict(headers), SIGNATURE_HEADER: samples.KEY.sign(value)}
    return decode_order(value, tuple(signed.items()), trusted=TRUSTED)[0]


CASES: dict[str, tuple[bytes, Callable[[bytes], Any]]] = {
    "frame": (encode_frame(samples.frame()), decode_frame),
    "alert": (encode_alert(samples.ALERT)[0], decode_alert),
    "order": (encode_order(samples.ORDER, samples.KEY)[0], open_order),
    "closed": (encode_order(samples.RESULT, samples.KEY)[0], open_order),
    "claim": (encode_order(samples.CLAIM, samples.KEY)[0], open_order),
    "journal": (encode_entry(samples.JOURNAL), decode_entry),
    "control": (encode_control(samples.CONTROL), decode_control),
    "score": (encode_scores(samples.SCORES), decode_scores),
    "forecast": (encode_forecasts(samples.FORECASTS), decode_forecasts),
    "rejected": (REJECTED, decode_rejected),
}
VALUES = {
    "alert": samples.ALERT,
    "order": samples.ORDER,
    "closed": samples.RESULT,
    "claim": samples.CLAIM,
    "journal": samples.JOURNAL,
    "control": samples.CONTROL,
    "score": samples.SCORES,
    "forecast": samples.FORECASTS,
}


@pytest.mark.parametrize("name", VALUES)
def test_value_comes_back_as_it_was(name):
    value, decode = CASES[name]
    assert decode(value) == VALUES[name]


@pytest.mark.parametrize("name", CASES)
def test_golden_bytes_of_the_release_still_decode(name):
    value, decode = CASES[name]
    golden = bytes.fromhex((GOLDEN / f"{name}.v1.hex").read_text())
    if name == "frame":
        assert decode(golden).rows == decode(value).rows
        assert decode(golden).header == decode(value).header
    else:
        assert decode(golden) == decode(value)


def test_scores_from_before_they_had_coverage_still_decode():
    golden = bytes.fromhex((GOLDEN / "before_coverage" / "score.v1.hex").read_text())
    assert decode_scores(golden) == msgspec.structs.replace(samples.SCORES, coverage=b"")
    assert decode_scores(golden).covered().shape == (0, 2)


def test_coverage_that_does_not_fit_the_vms_is_refused():
    odd = msgspec.structs.replace(samples.SCORES, coverage=b"123")
    with pytest.raises(RecordRejected):
        decode_scores(encode_scores(odd))


@pytest.mark.parametrize("name", CASES)
def test_bytes_written_today_equal_the_golden_ones(name):
    assert CASES[name][0].hex() == (GOLDEN / f"{name}.v1.hex").read_text().strip()


@pytest.mark.parametrize("name", sorted(schemas.CONTRACTS))
def test_schema_is_valid_and_accepts_what_we_write(name):
    document = schemas.schema(name)
    jsonschema.Draft202012Validator.check_schema(document)
    value = CASES[name][0]
    fields = (
        msgspec.json.decode(value)
        if name in ("alert", "order", "journal", "control")
        else msgspec.json.decode(msgspec.json.encode(msgspec.msgpack.decode(value)))
    )
    jsonschema.validate(fields, document, cls=jsonschema.Draft202012Validator)


@pytest.mark.parametrize("name", sorted(set(CASES) - {"frame"}))
@pytest.mark.parametrize("cut", [0, 1, 20])
def test_truncated_record_is_rejected(name, cut):
    value, decode = CASES[name]
    with pytest.raises(RecordRejected):
        decode(value[:cut])


def test_alert_is_a_cloudevent_that_the_specifications_own_reader_accepts():
    value, headers = encode_alert(samples.ALERT)
    event = from_binary_event(
        KafkaMessage(headers=dict(headers), key=b"cell-a", value=value),
    )
    assert event.get_type() == "io.flatline.alert.v1"
    assert event.get_id() == f"{samples.ALERT.id}/1"
    assert event.get_subject() == samples.ALERT.subject


def test_alert_id_depends_on_scope_subject_and_position_alone():
    base = alert_id(scope="vm", subject="a", position=samples.POSITION)
    moved = msgspec.structs.replace(samples.POSITION, sequence=43)
    assert base == alert_id(scope="vm", subject="a", position=samples.POSITION)
    assert base != alert_id(scope="vm", subject="b", position=samples.POSITION)
    assert base != alert_id(scope="host", subject="a", position=samples.POSITION)
    assert base != alert_id(scope="vm", subject="a", position=moved)


def rejected_order(value, headers, trusted=TRUSTED):
    with pytest.raises(RecordRejected) as caught:
        decode_order(value, headers, trusted=trusted)
    return caught.value.reason


def test_order_with_one_changed_byte_is_rejected():
    value, headers = encode_order(samples.ORDER, samples.KEY)
    changed = value.replace(b'"dry_run":true', b'"dry_run":null')
    assert changed != value
    assert rejected_order(changed, headers) == "bad_signature"


def test_order_without_signature_or_by_a_stranger_is_rejected():
    value, headers = encode_order(samples.ORDER, samples.KEY)
    assert rejected_order(value, ()) == "bad_signature"
    assert rejected_order(value, headers, trusted={}) == "bad_signature"
    stranger = Ed25519PrivateKey.from_private_bytes(bytes(32))
    _, foreign = encode_order(samples.ORDER, stranger)
    forged = tuple({**dict(foreign), "flatline-key": dict(headers)["flatline-key"]}.items())
    assert rejected_order(value, forged) == "bad_signature"


def test_rejected_record_keeps_the_head_and_the_hash_of_the_whole():
    long = b"x" * (KEPT_BYTES + 100)
    kept = decode_rejected(
        encode_rejected(long, topic="t", partition=1, offset=2, reason="oversized", detail="d")
    )
    assert len(kept.head) == KEPT_BYTES
    assert kept.length == len(long)


def test_control_command_ends_by_itself():
    assert samples.CONTROL.holds(now_ms=1_790_000_599_999)
    assert not samples.CONTROL.holds(now_ms=1_790_000_600_000)
    assert not msgspec.structs.replace(samples.CONTROL, active=False).holds(now_ms=0)


def test_scores_whose_values_do_not_fit_are_rejected():
    wrong = msgspec.structs.replace(samples.SCORES, values=b"123")
    with pytest.raises(RecordRejected):
        decode_scores(encode_scores(wrong))


def test_forecasts_come_back_in_shape():
    forecasts = decode_forecasts(encode_forecasts(samples.FORECASTS))
    assert forecasts.vms().shape == (1, 6, 3, 5)
    own = forecasts.own()
    assert own is not None
    assert own[0, 0, 0] == 90
    assert msgspec.structs.replace(forecasts, node_values=b"").own() is None


@pytest.mark.parametrize(
    "wrong", [{"values": b"123"}, {"uuids": b"1"}, {"node_values": b"1234"}], ids=str
)
def test_forecasts_whose_values_do_not_fit_are_rejected(wrong):
    forecasts = msgspec.structs.replace(samples.FORECASTS, **wrong)
    with pytest.raises(RecordRejected):
        decode_forecasts(encode_forecasts(forecasts))


def test_what_an_action_depends_on_is_on_disk_when_the_log_says_so() -> None:
    assert {topic.name for topic in TOPICS if topic.durable} == {
        "flatline.orders.v1",
        "flatline.control.v1",
        "flatline.journal.v1",
    }
