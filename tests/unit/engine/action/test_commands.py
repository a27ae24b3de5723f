"""Rights on the control topic, and the state after a record under a key is rejected."""

from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from flatline.engine.action.commands import Heard, fold_command, hear
from flatline.engine.action.keys import TrustedKeys
from flatline.engine.wire.control import REFUSED, UNREADABLE, Control, encode_control
from flatline.engine.wire.order import KEY_HEADER, key_id, signed
from tests.signing import AGENT_KEY, FOREIGN_KEY, OPERATOR_KEY, PLANNER_KEY, TRUSTED

NOW_MS = 1_790_000_000_000


def word(**changes: Any) -> Control:
    values: dict[str, Any] = {
        "kind": "pause", "scope": "cell", "subject": "c1", "active": True, "by": "bob",
        "reason": "work", "time_ms": NOW_MS,
    }  # fmt: skip
    return Control(**(values | changes))


class Reader:
    """A reader of the topic from its beginning."""

    def __init__(self, trusted: TrustedKeys = TRUSTED) -> None:
        self.controls: Mapping[bytes, Control] = {}
        self._trusted = trusted

    def read(
        self,
        control: Control,
        key: Ed25519PrivateKey | None = None,
        *,
        at_ms: int = NOW_MS,
        under: bytes | None = None,
    ) -> Heard:
        value = encode_control(control)
        return self.take(
            control.key() if under is None else under,
            value,
            () if key is None else signed(value, key),
            at_ms=at_ms,
        )

    def take(
        self, key: bytes, value: bytes, headers: tuple[tuple[str, bytes], ...], *, at_ms: int
    ) -> Heard:
        heard = hear(
            key, value, headers, time_ms=at_ms, trusted=self._trusted, controls=self.controls
        )
        self.controls = fold_command(self.controls, key, heard)
        return heard

    def paused(self, at_ms: int = NOW_MS) -> bool:
        return any(
            held.kind in {"pause", "maintenance", "quarantine"} and held.holds(now_ms=at_ms)
            for held in self.controls.values()
        )


@pytest.mark.parametrize("kind", ["pause", "maintenance", "quarantine"])
def test_anybody_may_say_a_command_that_makes_the_rules_stricter(kind: Any) -> None:
    reader = Reader()
    heard = reader.read(word(kind=kind))
    assert heard.rejected is None
    assert reader.paused()
    assert [held.by for held in reader.controls.values()] == ["bob (not signed)"]


@pytest.mark.parametrize("key", [None, PLANNER_KEY, AGENT_KEY, FOREIGN_KEY])
@pytest.mark.parametrize("kind", ["pause", "maintenance", "quarantine"])
def test_a_command_is_not_taken_back_without_an_operator(
    kind: Any, key: Ed25519PrivateKey | None
) -> None:
    reader = Reader()
    reader.read(word(kind=kind))
    heard = reader.read(word(kind=kind, active=False), key)
    assert heard.rejected is not None
    assert heard.rejected.reason == "bad_signature"
    assert heard.displaces
    assert reader.paused()


def test_an_operator_takes_a_command_back_and_is_known_by_the_name_of_the_key() -> None:
    reader = Reader()
    reader.read(word())
    heard = reader.read(word(active=False, by="somebody else"), OPERATOR_KEY)
    assert heard.rejected is None
    assert not reader.paused()
    assert [held.by for held in reader.controls.values()] == ["ann"]


@pytest.mark.parametrize("kind", ["approval", "mode", "policy", "silence"])
def test_commands_that_may_loosen_need_an_operator(kind: Any) -> None:
    said = word(kind=kind, scope="vm", subject="a" * 32)
    for key in (None, PLANNER_KEY, FOREIGN_KEY):
        heard = Reader().read(said, key)
        assert heard.rejected is not None
        assert heard.rejected.reason == "bad_signature"
    assert Reader().read(said, OPERATOR_KEY).command == msgspec.structs.replace(said, by="ann")


def test_nobody_but_an_operator_shortens_a_pause() -> None:
    soon_ms = NOW_MS + 1_000
    reader = Reader()
    reader.read(word())
    assert reader.read(word(until_ms=soon_ms)).rejected is not None
    assert reader.paused(soon_ms + 1)
    assert reader.read(word(until_ms=soon_ms), OPERATOR_KEY).rejected is None
    assert not reader.paused(soon_ms + 1)
    # A later end is stricter.
    assert reader.read(word(until_ms=soon_ms + 1)).rejected is None


def test_who_finds_only_the_refused_record_holds_what_its_key_restricted() -> None:
    """Compaction keeps the newest record of a key: the pause before it is gone from the log."""
    late = Reader()
    heard = late.read(word(active=False))
    assert heard.rejected is not None
    (held,) = late.controls.values()
    assert (held.kind, held.scope, held.subject, held.source) == ("pause", "cell", "c1", REFUSED)
    assert late.paused(NOW_MS + 10**12)
    # An unauthorised record under that key ends nothing; an operator's does.
    late.read(word(until_ms=NOW_MS + 1))
    assert late.paused(NOW_MS + 2)
    late.read(word(active=False), OPERATOR_KEY)
    assert not late.paused()


def test_the_record_of_another_key_displaces_nothing() -> None:
    reader, late = Reader(), Reader()
    pause = word(scope="site", subject="")
    reader.read(pause)
    other = word(scope="vm", subject="of no interest", until_ms=NOW_MS + 1)
    assert reader.read(other, under=pause.key()).displaces
    assert reader.paused(NOW_MS + 2)
    late.read(other, under=pause.key())
    (held,) = late.controls.values()
    assert (held.scope, held.active, held.until_ms) == ("site", True, None)


def test_an_empty_value_deletes_a_key_and_not_the_pause() -> None:
    reader = Reader()
    pause = word()
    reader.read(pause)
    assert reader.take(pause.key(), b"", (), at_ms=NOW_MS).displaces
    assert reader.paused()
    assert pause.key() in reader.controls


def test_the_bytes_that_ended_last_week_s_pause_do_not_end_today_s() -> None:
    over, later_ms = word(active=False), NOW_MS + 7 * 86_400_000
    reader = Reader()
    reader.read(word())
    reader.read(over, OPERATOR_KEY)
    reader.read(word(time_ms=later_ms), at_ms=later_ms)
    heard = reader.read(over, OPERATOR_KEY, at_ms=later_ms + 1)
    assert heard.rejected is not None
    assert "may be a copy" in heard.rejected.detail
    assert reader.paused()


def test_an_end_that_was_signed_before_the_pause_is_said_again_in_vain() -> None:
    reader = Reader()
    over = word(active=False)
    reader.read(over, OPERATOR_KEY)
    reader.read(word(time_ms=NOW_MS + 60_000), at_ms=NOW_MS + 60_000)
    heard = reader.read(over, OPERATOR_KEY, at_ms=NOW_MS + 61_000)
    assert heard.rejected is not None
    assert "older than the command that it would end" in heard.rejected.detail
    assert reader.paused()


def test_a_copied_end_lifts_no_later_pause_of_an_author_whose_clock_is_behind() -> None:
    reader = Reader()
    reader.read(word())
    over = word(active=False, time_ms=NOW_MS + 10_000)
    assert reader.read(over, OPERATOR_KEY, at_ms=NOW_MS + 10_000).rejected is None
    # By its author's clock this pause is older than the end; the log appended it later.
    reader.read(word(time_ms=NOW_MS - 120_000), at_ms=NOW_MS + 60_000)
    heard = reader.read(over, OPERATOR_KEY, at_ms=NOW_MS + 61_000)
    assert heard.rejected is not None
    assert "older than the command that it would end" in heard.rejected.detail
    assert reader.paused()


def test_a_copied_end_that_was_dated_ahead_of_the_log_lifts_no_pause() -> None:
    reader = Reader()
    over = word(active=False, time_ms=NOW_MS + 120_000)
    reader.read(word(), at_ms=NOW_MS + 60_000)
    heard = reader.read(over, OPERATOR_KEY, at_ms=NOW_MS + 61_000)
    assert heard.rejected is not None
    assert "is dated 59 s after it reached the log" in heard.rejected.detail
    assert "set the clock of its author" in heard.rejected.detail
    assert reader.paused()


def test_a_copied_end_under_any_key_ends_no_hold_that_is_newer() -> None:
    reader, key = Reader(), b"nonsense"
    over = word(active=False, scope="site", subject="")
    reader.read(over, OPERATOR_KEY)
    reader.take(key, b"nonsense", (), at_ms=NOW_MS + 1_000)
    assert reader.read(over, OPERATOR_KEY, at_ms=NOW_MS + 2_000, under=key).rejected is not None
    assert reader.paused()
    later = msgspec.structs.replace(over, time_ms=NOW_MS + 2_000)
    assert reader.read(later, OPERATOR_KEY, at_ms=NOW_MS + 2_000, under=key).rejected is None
    assert not reader.paused()


def test_a_copied_end_under_another_key_is_known_to_displace_the_pause_there() -> None:
    reader = Reader()
    pause = word(scope="site", subject="")
    reader.read(pause)
    heard = reader.read(word(active=False), OPERATOR_KEY, under=pause.key())
    assert heard.displaces
    assert reader.paused()


def test_a_mode_that_was_taken_back_is_not_put_back_by_its_copy() -> None:
    reader = Reader()
    auto = word(kind="mode", scope="tenant", subject="acme", mode="auto")
    reader.read(auto, OPERATOR_KEY)
    over = msgspec.structs.replace(auto, active=False, time_ms=NOW_MS + 1_000)
    reader.read(over, OPERATOR_KEY, at_ms=NOW_MS + 1_000)
    assert reader.read(auto, OPERATOR_KEY, at_ms=NOW_MS + 2_000).rejected is not None
    assert not reader.controls[auto.key()].active


def test_a_mode_that_is_written_back_goes_on_holding_and_ends_no_hold() -> None:
    reader, later_ms = Reader(), NOW_MS + 86_400_000
    auto = word(kind="mode", scope="tenant", subject="acme", mode="auto")
    reader.read(auto, OPERATOR_KEY)
    reader.take(auto.key(), b"nonsense", (), at_ms=later_ms)
    assert reader.read(auto, OPERATOR_KEY, at_ms=later_ms + 1).rejected is None
    assert reader.controls[auto.key()].mode == "auto"
    assert reader.paused(later_ms)
    assert reader.read(auto, at_ms=later_ms + 2).rejected is not None


def test_a_copy_of_an_operator_s_old_pause_ends_no_hold() -> None:
    reader, later_ms = Reader(), NOW_MS + 86_400_000
    short = word(until_ms=NOW_MS + 60_000)
    reader.read(word(active=False))
    reader.read(short, OPERATOR_KEY, at_ms=later_ms)
    assert reader.paused(later_ms)


def test_a_pause_dated_far_ahead_can_be_ended_today() -> None:
    reader = Reader()
    reader.read(word(time_ms=NOW_MS + 10**12))
    assert reader.read(word(active=False), OPERATOR_KEY).rejected is None
    assert not reader.paused()


def test_an_operator_s_key_counts_until_it_ends() -> None:
    name = key_id(OPERATOR_KEY.public_key())
    trusted = TrustedKeys.of(
        planners=[],
        agents=[],
        operators=[OPERATOR_KEY.public_key()],
        names={name: "ann"},
        until_ms={name: NOW_MS + 1_000},
    )
    reader = Reader(trusted)
    reader.read(word())
    over = word(active=False, time_ms=NOW_MS + 1_000)
    heard = reader.read(over, OPERATOR_KEY, at_ms=NOW_MS + 1_000)
    assert heard.rejected is not None
    assert heard.rejected.reason == "expired_key"
    assert reader.paused()
    # Records appended before that stay valid, at any time of reading.
    assert reader.read(word(active=False), OPERATOR_KEY, at_ms=NOW_MS + 999).rejected is None


def test_a_key_that_ended_signs_nothing_beside_the_name_of_one_that_did_not() -> None:
    other = Ed25519PrivateKey.from_private_bytes(bytes([9]) * 32)
    trusted = TrustedKeys.of(
        planners=[],
        agents=[],
        operators=[OPERATOR_KEY.public_key(), other.public_key()],
        until_ms={key_id(OPERATOR_KEY.public_key()): NOW_MS - 1},
    )
    reader = Reader(trusted)
    reader.read(word())
    over = word(active=False)
    value = encode_control(over)
    named = (KEY_HEADER, key_id(other.public_key()).encode())
    heard = reader.take(over.key(), value, (named, *signed(value, OPERATOR_KEY)), at_ms=NOW_MS)
    assert heard.rejected is not None
    assert reader.paused()


@pytest.mark.parametrize("source", [UNREADABLE, REFUSED])
def test_nobody_speaks_as_a_hold(source: str) -> None:
    reader = Reader()
    said = word(source=source, until_ms=NOW_MS + 1)
    for key in (word().key(), said.key()):
        reader.read(word(active=False), under=key)
        reader.read(said, under=key)
        assert reader.paused(NOW_MS + 2)
        reader.controls = {}


@pytest.mark.parametrize(
    ("key", "scope", "kind"),
    [
        (b"pause/pool/a/b/", "site", "pause"),
        (b"nonsense", "site", "pause"),
        (b"policy/site//", "site", "pause"),
        (b"pause/cell/c1//breaker", "cell", "pause"),
        (b"mode/tenant/acme/reset", "tenant", "mode"),
        (b"quarantine/vm/x/", "vm", "quarantine"),
    ],
)
def test_a_hold_is_of_what_the_key_says_and_of_the_site_where_it_does_not(
    key: bytes, scope: str, kind: str
) -> None:
    reader = Reader()
    reader.read(word(active=False), under=key)
    (held,) = reader.controls.values()
    assert (held.scope, held.kind, held.active, held.until_ms) == (scope, kind, True, None)
    assert kind != "mode" or held.mode == "observe"


@pytest.mark.parametrize("kind", ["approval", "silence"])
def test_a_refused_command_that_restricts_nothing_holds_nothing(kind: Any) -> None:
    reader = Reader()
    reader.read(word(kind=kind))
    assert not reader.controls
