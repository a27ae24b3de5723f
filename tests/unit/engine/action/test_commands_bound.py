"""The state after more control commands than the limit."""

import msgspec
import pytest

from flatline.engine.action.layered import Layered
from flatline.engine.wire.control import TOO_MANY, Control, held_key
from tests.signing import OPERATOR_KEY
from tests.unit.engine.action.test_commands import NOW_MS, Reader, word

MOST = 10_000


@pytest.fixture
def full() -> Reader:
    """Return a reader with the maximum number of pauses, each of one VM for a minute."""
    reader = Reader()
    for number in range(MOST):
        reader.read(of_vm(number))
    assert len(reader.controls) == MOST
    return reader


def of_vm(number: int, **changes: object) -> Control:
    said = word(scope="vm", subject=f"vm {number}", until_ms=NOW_MS + 60_000)
    return msgspec.structs.replace(said, **changes)


def paused_sites(reader: Reader) -> list[tuple[bytes, Control]]:
    return [
        (key, one)
        for key, one in reader.controls.items()
        if one.scope == "site" and one.holds(now_ms=NOW_MS + 10**9)
    ]


def test_a_pause_beyond_the_bound_pauses_the_site_until_an_operator_ends_it(full: Reader) -> None:
    for number in range(MOST, MOST + 50):
        full.read(of_vm(number))
    ((key, held),) = paused_sites(full)
    assert held.source == TOO_MANY
    assert "10000 control commands are kept, and pause of vm 'vm 10049' is not" in held.reason
    assert "flatline pause show" in held.reason
    assert len(full.controls) == MOST + 1
    over = word(scope="site", subject="", active=False)
    full.read(over, under=held_key(key))
    full.read(over)
    assert paused_sites(full)
    full.read(over, OPERATOR_KEY, under=held_key(key))
    assert not paused_sites(full)
    # The limit is still reached: the next one pauses the site again.
    full.read(of_vm(MOST))
    assert paused_sites(full)


def test_an_end_that_was_signed_before_a_pause_beyond_the_bound_does_not_end_it(
    full: Reader,
) -> None:
    full.read(of_vm(MOST))
    ((key, _),) = paused_sites(full)
    full.read(of_vm(MOST + 1), at_ms=NOW_MS + 10)
    over = word(scope="site", subject="", active=False)
    full.read(over, OPERATOR_KEY, at_ms=NOW_MS + 11, under=held_key(key))
    assert paused_sites(full)


def test_refused_records_beyond_the_bound_pause_the_site(full: Reader) -> None:
    full.read(word(kind="quarantine", scope="vm", subject="x", active=False))
    ((_, held),) = paused_sites(full)
    assert held.source == TOO_MANY


def test_commands_that_are_over_make_room(full: Reader) -> None:
    later_ms = NOW_MS + 60_000
    full.read(of_vm(MOST, until_ms=None), at_ms=later_ms)
    assert not paused_sites(full)
    assert [one.subject for one in full.controls.values()] == [f"vm {MOST}"]


def test_a_mode_that_was_taken_back_goes_on_being_known_when_room_is_made(full: Reader) -> None:
    auto = word(kind="mode", scope="tenant", subject="acme", mode="auto")
    full.read(auto, OPERATOR_KEY)
    over = msgspec.structs.replace(auto, active=False, time_ms=NOW_MS + 59_000)
    full.read(over, OPERATOR_KEY, at_ms=NOW_MS + 59_000)
    full.read(of_vm(MOST, until_ms=None), at_ms=NOW_MS + 60_000)
    assert len(full.controls) == 2
    assert full.read(auto, OPERATOR_KEY, at_ms=NOW_MS + 60_001).rejected is not None


def test_an_operator_s_command_and_a_longer_pause_are_kept_beyond_the_bound(full: Reader) -> None:
    said = of_vm(MOST, until_ms=None)
    full.read(said, OPERATOR_KEY)
    full.read(of_vm(7, until_ms=None))
    assert full.controls[said.key()].by == "ann"
    assert full.controls[of_vm(7).key()].until_ms is None
    assert not paused_sites(full)


def test_a_record_with_a_key_of_any_length_pauses_the_site_and_is_not_kept() -> None:
    reader = Reader()
    for number in range(3):
        reader.take(b"pause/vm/%d" % number + b"x" * 900_000, b"nonsense", (), at_ms=NOW_MS)
    ((key, held),) = reader.controls.items()
    assert (held.scope, held.source, len(key) < 100) == ("site", TOO_MANY, True)
    assert reader.paused()


def test_of_a_reason_that_anybody_gave_no_more_is_kept_than_can_be_shown() -> None:
    reader = Reader()
    reader.read(word(reason="x" * 60_000))
    (held,) = reader.controls.values()
    assert len(held.reason) == 1_024


def test_a_command_costs_no_copy_of_all_the_others(full: Reader) -> None:
    assert isinstance(full.controls, Layered)
