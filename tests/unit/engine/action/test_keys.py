from dataclasses import replace

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from flatline.engine.action.keys import (
    TrustedKeys,
    open_alert,
    open_entry,
    open_scores,
    parse_private_key,
    parse_public_key,
    private_key_pem,
    public_key_pem,
)
from flatline.engine.errors import KeyDamaged, RecordRejected, SettingsError
from flatline.engine.wire.alert import encode_alert
from flatline.engine.wire.order import KEY_HEADER, Claim, Entry, encode_order, key_id, signed
from flatline.engine.wire.score import Scores
from tests.signing import AGENT_KEY, ENGINE_KEY, FOREIGN_KEY, OPERATOR_KEY, PLANNER_KEY, scored
from tests.signing import TRUSTED as SITE_KEYS
from tests.unit.engine.action.samples import NOW_MS, VM, mark, order
from tests.unit.engine.wire.samples import ALERT, SCORES

PLANNER, AGENT, STRANGER = (
    Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in (1, 2, 3)
)
TRUSTED = TrustedKeys.of(planners=[PLANNER.public_key()], agents=[AGENT.public_key()])


def test_an_order_by_a_planner_and_a_result_by_an_agent_are_read() -> None:
    given, closing = order(), mark(order(), time_ms=NOW_MS)
    assert open_entry(*encode_order(given, PLANNER), trusted=TRUSTED) == given
    assert open_entry(*encode_order(closing, AGENT), trusted=TRUSTED) == closing


def test_an_order_by_anybody_else_is_refused() -> None:
    for key in (AGENT, STRANGER):
        with pytest.raises(RecordRejected, match="bad_signature"):
            open_entry(*encode_order(order(), key), trusted=TRUSTED)


def test_a_result_by_anybody_else_is_refused() -> None:
    for key in (PLANNER, STRANGER):
        with pytest.raises(RecordRejected, match="bad_signature"):
            open_entry(*encode_order(mark(order(), time_ms=NOW_MS), key), trusted=TRUSTED)


CLAIM = Claim(
    incident="a" * 32, step=0, vm=VM, node="n0", agent="n0/r", dry_run=False, time_ms=NOW_MS
)


@pytest.mark.parametrize("key", [PLANNER, STRANGER])
def test_a_claim_by_anybody_but_an_agent_is_refused(key: Ed25519PrivateKey) -> None:
    with pytest.raises(RecordRejected, match="bad_signature"):
        open_entry(*encode_order(CLAIM, key), trusted=TRUSTED)
    assert open_entry(*encode_order(CLAIM, AGENT), trusted=TRUSTED) == CLAIM


@pytest.mark.parametrize(
    ("entry", "what"), [(mark(order(), time_ms=NOW_MS), "a result"), (CLAIM, "a claim")]
)
def test_an_agent_claims_and_closes_the_orders_of_its_own_node_and_no_others(
    entry: Entry, what: str
) -> None:
    key = AGENT.public_key()
    given = order()
    closing = encode_order(entry, AGENT)
    elsewhere = TrustedKeys.of(planners=[], agents=[], node_agents=[("n8", key), ("n9", key)])
    with pytest.raises(RecordRejected, match=f"belongs to n8, n9, not to 'n0', which {what}"):
        open_entry(*closing, trusted=elsewhere)
    here = TrustedKeys.of(planners=[], agents=[], node_agents=[("n8", key), (given.node, key)])
    assert open_entry(*closing, trusted=here) == entry


def test_an_installation_s_own_key_closes_orders_of_every_node_though_a_file_binds_it() -> None:
    key = AGENT.public_key()
    trusted = TrustedKeys.of(planners=[], agents=[key], node_agents=[("n8", key)])
    closing = mark(order(), time_ms=NOW_MS)
    assert open_entry(*encode_order(closing, AGENT), trusted=trusted) == closing


def test_an_order_that_was_altered_after_signing_is_refused() -> None:
    value, headers = encode_order(order(), PLANNER)
    for position in range(0, len(value), 7):
        altered = value[:position] + bytes([value[position] ^ 1]) + value[position + 1 :]
        with pytest.raises(RecordRejected, match="bad_signature"):
            open_entry(altered, headers, trusted=TRUSTED)


def test_an_order_without_its_signature_is_refused() -> None:
    value, headers = encode_order(order(), PLANNER)
    for kept in ((), headers[:1], headers[1:]):
        with pytest.raises(RecordRejected, match="bad_signature"):
            open_entry(value, kept, trusted=TRUSTED)


@pytest.mark.parametrize("named_first", [True, False])
def test_a_record_that_states_two_signers_is_refused(named_first: bool) -> None:
    """An agent's signature with a planner's name gave orders: each was read from another field."""
    value, headers = encode_order(order(), AGENT)
    named = (KEY_HEADER, key_id(PLANNER.public_key()).encode())
    doubled = (named, *headers) if named_first else (*headers, named)
    with pytest.raises(RecordRejected, match="2 headers flatline-key"):
        open_entry(value, doubled, trusted=TRUSTED)
    with pytest.raises(RecordRejected, match="2 headers flatline-signature"):
        open_entry(value, (*headers, headers[1]), trusted=TRUSTED)


def test_keys_survive_their_text() -> None:
    private = parse_private_key(private_key_pem(PLANNER), source="k")
    assert private.private_bytes_raw() == PLANNER.private_bytes_raw()
    public = parse_public_key(public_key_pem(PLANNER.public_key()), source="k")
    assert public.public_bytes_raw() == PLANNER.public_key().public_bytes_raw()


def test_what_is_no_key_is_refused_by_name() -> None:
    other = X25519PrivateKey.generate()
    private = other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = other.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for text in (b"", b"nonsense", private):
        with pytest.raises(KeyDamaged, match=r"^the-file .* Move the file away"):
            parse_private_key(text, source="the-file")
    for text in (b"", b"nonsense", public):
        with pytest.raises(SettingsError, match=r"^the-file "):
            parse_public_key(text, source="the-file")


def test_an_alert_counts_only_with_an_engine_s_signature() -> None:
    engine = Ed25519PrivateKey.from_private_bytes(bytes([4]) * 32)
    trusted = TrustedKeys.of(
        planners=[PLANNER.public_key()], agents=[AGENT.public_key()], engines=[engine.public_key()]
    )
    value, headers = encode_alert(ALERT)
    assert open_alert(value, (*headers, *signed(value, engine)), trusted=trusted) == ALERT
    other, _ = encode_alert(msgspec.structs.replace(ALERT, kind="panic_halt"))
    forged: list[tuple[bytes, tuple[tuple[str, bytes], ...]]] = [
        (value, headers),
        (other, (*headers, *signed(value, engine))),
        *((value, (*headers, *signed(value, key))) for key in (PLANNER, AGENT, STRANGER)),
    ]
    for record in forged:
        with pytest.raises(RecordRejected) as refusal:
            open_alert(*record, trusted=trusted)
        assert refusal.value.reason == "bad_signature"


def refused_scores(scores: Scores, key: Ed25519PrivateKey | None = ENGINE_KEY) -> str:
    value, headers = scored(scores, key=key or ENGINE_KEY)
    with pytest.raises(RecordRejected) as refusal:
        open_scores(
            value, headers if key else (), trusted=SITE_KEYS, site="lab", time_ms=SCORES.minute_ms
        )
    return str(refusal.value)


@pytest.mark.parametrize("key", [None, PLANNER_KEY, AGENT_KEY, OPERATOR_KEY, FOREIGN_KEY])
def test_scores_count_only_with_an_engine_s_signature(key: Ed25519PrivateKey | None) -> None:
    value, headers = scored(SCORES)
    late_ms = SCORES.minute_ms + 120_000
    opened = open_scores(value, headers, trusted=SITE_KEYS, site="lab", time_ms=late_ms)
    assert opened == SCORES
    assert refused_scores(SCORES, key).startswith("bad_signature")


def test_scores_of_another_site_or_of_a_minute_to_come_do_not_count() -> None:
    other = msgspec.structs.replace(SCORES, site="elsewhere")
    assert "scores are of site 'elsewhere', but this site is 'lab'" in refused_scores(other)
    ahead = msgspec.structs.replace(SCORES, minute_ms=SCORES.minute_ms + 60_000)
    assert "are dated 60 s ahead of the log" in refused_scores(ahead)


def test_an_engine_s_key_that_has_ended_signs_no_scores() -> None:
    ended = replace(SITE_KEYS, until_ms={key_id(ENGINE_KEY.public_key()): SCORES.minute_ms})
    value, headers = scored(SCORES)
    with pytest.raises(RecordRejected, match="expired_key"):
        open_scores(value, headers, trusted=ended, site="lab", time_ms=SCORES.minute_ms)


def test_a_key_that_has_ended_signs_nothing_that_the_log_took_later() -> None:
    ended_ms = 1_800_000_000_000
    ids = {key_id(key.public_key()): ended_ms for key in (PLANNER, AGENT)}
    trusted = TrustedKeys.of(
        planners=[PLANNER.public_key()],
        agents=[AGENT.public_key()],
        engines=[PLANNER.public_key()],
        until_ms=ids,
    )
    value, headers = encode_alert(ALERT)
    alert = value, (*headers, *signed(value, PLANNER))
    records = encode_order(order(), PLANNER), encode_order(mark(order(), time_ms=NOW_MS), AGENT)
    for record in records:
        open_entry(*record, trusted=trusted, time_ms=ended_ms - 1)
        with pytest.raises(RecordRejected, match=r"expired_key: .* expired at 2027-01-15T08:00:00"):
            open_entry(*record, trusted=trusted, time_ms=ended_ms)
    open_alert(*alert, trusted=trusted, time_ms=ended_ms - 1)
    with pytest.raises(RecordRejected, match="expired_key"):
        open_alert(*alert, trusted=trusted, time_ms=ended_ms)
