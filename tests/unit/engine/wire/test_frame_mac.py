"""Accepted and rejected frames, with the reasons."""

import os
from collections.abc import Callable
from functools import partial

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flatline.engine.errors import RecordRejected
from flatline.engine.wire.frame import Frame, VmRows, encode_frame
from flatline.engine.wire.frame_mac import (
    MAC_HEADER,
    FrameKeys,
    FrameSigner,
    KeyName,
    Kind,
    Revoked,
    SiteKey,
    derive_key,
    made_ms,
    new_key_id,
    open_frame,
    parse_key_name,
)
from flatline.engine.wire.order import KEY_HEADER
from tests.unit.engine.wire import samples

NOW_MS = 1_790_000_000_000
SITE = new_key_id(now_ms=NOW_MS, chance=b"\x01\x02")
SERIAL = new_key_id(now_ms=NOW_MS + 1, chance=b"\x03\x04")
SECRET = bytes(range(32))
HEADER = samples.header()
CELL = HEADER.cell.encode()
FRAME = Frame(header=HEADER, rows=samples.rows(3))
VALUE = encode_frame(FRAME)
NODE = KeyName("node", HEADER.node, SITE, SERIAL)
KEYS = FrameKeys({SITE: SiteKey(SECRET)})


def signer(name: KeyName = NODE, secret: bytes = SECRET) -> FrameSigner:
    return FrameSigner(name, derive_key(secret, name), nonce=lambda: os.urandom(12))


def opened(
    value: bytes = VALUE,
    *,
    key: bytes = CELL,
    headers: tuple[tuple[str, bytes], ...] | None = None,
    keys: FrameKeys = KEYS,
    time_ms: int = NOW_MS,
) -> Frame:
    if headers is None:
        headers = signer()(key, value)
    return open_frame(value, record_key=key, headers=headers, time_ms=time_ms, keys=keys)


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(RecordRejected) as caught:
        call()
    assert caught.value.reason == "bad_mac"
    return caught.value.detail


def test_a_frame_of_the_node_that_the_key_is_for_is_read() -> None:
    assert opened() == FRAME


def test_a_frame_without_a_mac_is_refused_with_the_node_and_what_to_do() -> None:
    detail = refusal(lambda: opened(headers=()))
    assert f"claims to be of collector {HEADER.node!r} in cell {HEADER.cell!r}" in detail
    assert "flatline keys create node NAME" in detail
    accepting = FrameKeys({SITE: SiteKey(SECRET)}, accepting_unsigned=True)
    assert opened(headers=(), keys=accepting) == FRAME


def test_a_frame_under_another_cells_key_is_refused_where_no_mac_is_asked_for_too() -> None:
    accepting = FrameKeys({SITE: SiteKey(SECRET)}, accepting_unsigned=True)
    detail = refusal(lambda: opened(headers=(), key=b"c9", keys=accepting))
    assert f"it is of cell {HEADER.cell!r} under record key b'c9'" in detail
    # A node signs for the other cell's key with its own: the frame still names its cell.
    assert "under record key b'c9'" in refusal(
        lambda: opened(key=b"c9", headers=signer()(b"c9", VALUE))
    )


def test_bytes_that_are_no_frame_are_of_nobody() -> None:
    assert "to be of nobody" in refusal(lambda: opened(b"\xc1", headers=()))


def test_where_unsigned_frames_are_accepted_wrong_macs_are_not() -> None:
    accepting = FrameKeys({SITE: SiteKey(SECRET)}, accepting_unsigned=True)
    key_header, mac_header = signer()(CELL, VALUE)
    for headers in ((key_header,), (mac_header,), signer(secret=bytes(32))(CELL, VALUE)):
        refusal(partial(opened, headers=headers, keys=accepting))


@given(position=st.integers(0, len(VALUE) - 1), flip=st.integers(1, 255))
def test_any_altered_byte_is_noticed(position: int, flip: int) -> None:
    altered = VALUE[:position] + bytes([VALUE[position] ^ flip]) + VALUE[position + 1 :]
    headers = signer()(CELL, VALUE)
    refusal(lambda: opened(altered, headers=headers))


@given(position=st.integers(0, 27), flip=st.integers(1, 255))
def test_any_altered_byte_of_nonce_or_tag_is_noticed(position: int, flip: int) -> None:
    key_header, (_, code) = signer()(CELL, VALUE)
    altered = code[:position] + bytes([code[position] ^ flip]) + code[position + 1 :]
    refusal(lambda: opened(headers=(key_header, (MAC_HEADER, altered))))


@pytest.mark.parametrize("length", [0, 1, 11, 12, 27, 29, 1000])
def test_a_mac_of_another_length_is_refused(length: int) -> None:
    key_header, _ = signer()(CELL, VALUE)
    refusal(lambda: opened(headers=(key_header, (MAC_HEADER, bytes(length)))))


def test_a_frame_cannot_be_moved_to_another_cell() -> None:
    headers = signer()(CELL, VALUE)
    assert "altered, moved or forged" in refusal(lambda: opened(key=b"c9", headers=headers))
    # A node may not sign it for another cell than the one inside either.
    assert "under record key b'c9'" in refusal(lambda: opened(key=b"c9"))


def test_a_key_speaks_for_its_own_node_alone() -> None:
    other = KeyName("node", "n9", SITE, SERIAL)
    detail = refusal(lambda: opened(headers=signer(other)(CELL, VALUE)))
    assert f"of node {HEADER.node!r} but signed with key {SERIAL} of node n9" in detail


@pytest.mark.parametrize(
    ("kind", "roles"),
    [("node", {"collector", "agent"}), ("engine", {"shell"}), ("owner", {"owner"})],
)
def test_a_key_writes_the_roles_of_its_kind_alone(kind: Kind, roles: set[str]) -> None:
    name = KeyName(kind, HEADER.node, SITE, SERIAL)
    for role in ("collector", "agent", "shell", "owner"):
        header = msgspec.structs.replace(HEADER, role=role)
        frame = Frame(header=header, rows=VmRows.empty())
        value = encode_frame(frame)
        headers = signer(name)(CELL, value)
        if role in roles:
            assert opened(value, headers=headers) == frame
        else:
            detail = refusal(partial(opened, value, headers=headers))
            assert f"may not write frames of role {role}" in detail


@pytest.mark.parametrize("part", ["kind", "name", "serial", "until"])
def test_no_part_of_a_key_s_name_can_be_changed(part: str) -> None:
    changes = {
        "kind": KeyName("owner", HEADER.node, SITE, SERIAL),
        "name": KeyName("node", "n9", SITE, SERIAL),
        "serial": KeyName("node", HEADER.node, SITE, "0" * 16),
        "until": KeyName("node", HEADER.node, SITE, SERIAL, 1 + NOW_MS // 1000),
    }
    _, mac_header = signer()(CELL, VALUE)
    headers = ((KEY_HEADER, str(changes[part]).encode()), mac_header)
    assert "altered, moved or forged" in refusal(lambda: opened(headers=headers))


@pytest.mark.parametrize(
    "text", ["", "node", "node/n1", "node/../x/y/0", f"host/n1/{SITE}/{SERIAL}/0", "é" * 300]
)
def test_a_header_that_names_no_key_is_refused(text: str) -> None:
    headers = ((KEY_HEADER, text.encode()), (MAC_HEADER, bytes(28)))
    refusal(lambda: opened(headers=headers))


def test_two_site_keys_count_while_they_are_rotated_and_none_that_is_not_here() -> None:
    newer = new_key_id(now_ms=NOW_MS + 5, chance=b"ab")
    name = KeyName("node", HEADER.node, newer, SERIAL)
    headers = signer(name, bytes(32))(CELL, VALUE)
    both = FrameKeys({SITE: SiteKey(SECRET), newer: SiteKey(bytes(32))})
    assert opened(keys=both) == opened(headers=headers, keys=both) == FRAME
    detail = refusal(lambda: opened(headers=headers))
    assert f"the site key {newer}, which this machine does not have" in detail


def test_keys_end_by_the_log_s_time() -> None:
    ends = FrameKeys({SITE: SiteKey(SECRET, until_ms=NOW_MS + 1_000)})
    assert opened(keys=ends, time_ms=NOW_MS + 999) == FRAME
    assert "has expired" in refusal(lambda: opened(keys=ends, time_ms=NOW_MS + 1_000))
    short = KeyName("node", HEADER.node, SITE, SERIAL, NOW_MS // 1000 + 1)
    headers = signer(short)(CELL, VALUE)
    assert opened(headers=headers, time_ms=NOW_MS + 999) == FRAME
    assert "has expired" in refusal(lambda: opened(headers=headers, time_ms=NOW_MS + 1_000))


@pytest.mark.parametrize(
    "revoked",
    [
        Revoked(ids=frozenset({SERIAL})),
        Revoked(ids=frozenset({SITE})),
        Revoked(names={f"node/{HEADER.node}": NOW_MS + 1}),
    ],
)
def test_a_revoked_key_counts_no_more(revoked: Revoked) -> None:
    keys = FrameKeys({SITE: SiteKey(SECRET)}, revoked=revoked)
    assert "is revoked" in refusal(lambda: opened(keys=keys))


def test_a_key_made_after_its_node_was_revoked_counts() -> None:
    keys = FrameKeys(
        {SITE: SiteKey(SECRET)}, revoked=Revoked(names={f"node/{HEADER.node}": NOW_MS})
    )
    assert opened(keys=keys) == FRAME


def test_a_flood_of_invented_keys_does_not_grow_what_is_kept() -> None:
    keys = FrameKeys({SITE: SiteKey(SECRET)})
    for number in range(9_000):
        name = KeyName("node", f"n{number}", SITE, SERIAL)
        headers = ((KEY_HEADER, str(name).encode()), (MAC_HEADER, bytes(28)))
        with pytest.raises(RecordRejected):
            keys.writer(b"", record_key=b"c", headers=headers, time_ms=NOW_MS)
    assert len(keys._ciphers) <= 8192


def test_names_survive_their_text_and_ids_tell_their_age() -> None:
    name = KeyName("owner", "a.b-c_d", SITE, SERIAL, 1_800_000_000)
    assert parse_key_name(str(name)) == name
    assert made_ms(SITE) == NOW_MS
    assert SITE < SERIAL
