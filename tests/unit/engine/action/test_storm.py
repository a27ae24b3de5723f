from typing import Any
from uuid import UUID

import msgspec

from flatline.engine.action.admit import admit
from flatline.engine.action.events import ControlSeen
from flatline.engine.action.storm import AUTHOR, SOURCE, Trouble, places_of, storm_pause, troubled
from flatline.engine.wire.control import Control
from tests.unit.engine.action.play import Play
from tests.unit.engine.action.samples import NOW_MS, POLICY, alert, control, order

HALF_HOUR_MS = 1_800_000


def pause(
    count: int, *, vm_count: int = 0, controls: dict[bytes, Control] | None = None, ago_ms: int = 0
) -> Control | None:
    trouble = Trouble({f"vm{number}": NOW_MS - ago_ms for number in range(count)})
    return storm_pause(
        trouble,
        site="site",
        place=("cell", "c0"),
        vm_count=vm_count,
        controls=controls or {},
        now_ms=NOW_MS,
    )


def told(*alerts: dict[str, Any]) -> set[str]:
    trouble: Trouble | None = None
    for changes in alerts:
        trouble = troubled(trouble, alert(**changes))
    assert trouble is not None
    return set(trouble.seen_ms)


def test_three_vms_or_a_fifth_of_the_cell_are_a_storm() -> None:
    assert pause(2) is None
    assert pause(3) is not None
    assert pause(9, vm_count=50) is None
    assert pause(10, vm_count=50) is not None
    assert pause(10, vm_count=51) is None


def test_the_pause_is_for_the_cell_and_ends_after_thirty_calm_minutes() -> None:
    command = pause(3)
    assert command is not None
    assert (command.kind, command.scope, command.subject, command.by) == (
        "pause",
        "cell",
        "c0",
        AUTHOR,
    )
    assert command.until_ms == NOW_MS + HALF_HOUR_MS
    assert command.reason == "3 VMs of cell site/c0 had faults within 5 minutes; the limit is 3"


def test_trouble_older_than_five_minutes_is_no_storm() -> None:
    assert pause(5, ago_ms=300_000) is None


def test_a_young_pause_is_not_written_again_and_an_ageing_one_is() -> None:
    def standing(left_ms: int) -> dict[bytes, Control]:
        return control(scope="cell", subject="c0", source=SOURCE, until_ms=NOW_MS + left_ms)

    assert pause(5, controls=standing(HALF_HOUR_MS)) is None
    assert pause(5, controls=standing(HALF_HOUR_MS - 300_001)) is not None
    assert pause(5, controls=standing(0)) is not None


def test_the_pause_of_a_person_stands_beside_the_breaker_s_and_outlives_it() -> None:
    commands = control(scope="cell", subject="c0")
    command = pause(5, controls=commands)
    assert command is not None
    commands[command.key()] = command
    for now_ms in (NOW_MS, NOW_MS + HALF_HOUR_MS):
        given = order(issued_ms=now_ms, expires_ms=now_ms + 60_000, data_ms=now_ms)
        given = msgspec.structs.replace(given, deadline_ms=now_ms + 300_000)
        admission = admit(given, (), POLICY, at_ms=now_ms, now_ms=now_ms, controls=commands)
        assert admission.sentence == "Cell c0 is paused by ann: work."


def test_what_a_person_cleared_counts_anew_from_then_on() -> None:
    cleared = control(
        scope="cell", subject="c0", source=SOURCE, active=False, time_ms=NOW_MS - 60_000
    )
    assert pause(5, controls=cleared, ago_ms=60_000) is None
    assert pause(5, controls=cleared, ago_ms=59_999) is not None


def test_firing_and_vetoed_vms_are_in_trouble_and_pending_ones_are_not() -> None:
    assert told(
        {"subject": "a"},
        {"subject": "b", "state": "suppressed"},
        {"subject": "c", "state": "pending"},
        {"subject": "d", "state": "resolved"},
    ) == {"a", "b"}


def test_every_vm_that_a_wider_fault_explains_is_in_trouble() -> None:
    assert told({"scope": "pool", "subject": "p", "vms": ("a", "b")}) == {"a", "b"}
    assert told({"scope": "host", "subject": "n", "vms": ("a", "b")}) == set()


def test_the_vms_of_a_silent_host_are_silent() -> None:
    silent = {"scope": "host", "kind": "host_silence", "subject": "n", "vms": ("a", "b")}
    assert told(silent) == {"a", "b"}


def test_trouble_counts_for_the_cell_the_pools_and_the_networks() -> None:
    of_vm = alert(pools=("p1",), networks=("br0",))
    assert set(places_of(of_vm)) == {("cell", "c0"), ("pool", "p1"), ("network", "br0")}
    assert ("pool", "p2") in set(places_of(alert(scope="pool", subject="p2")))


def test_trouble_is_forgotten_after_five_minutes() -> None:
    assert told({"subject": "a"}, {"subject": "b", "decided_ms": NOW_MS + 300_000}) == {"b"}


def test_each_tick_asks_for_a_share_of_many_held_back_until_all_had_their_turn() -> None:
    play = Play()

    def people_say(**changes: Any) -> None:
        (command,) = control(**changes).values()
        play.feed(ControlSeen(command, play.now_ms))

    people_say()
    for n in range(250):
        # Each in a separate cell: no storm breaker trips before the people decide.
        play.fires(
            id=f"{n:032x}", subject=str(UUID(int=n + 1)), cell=f"c{n}", pools=(), networks=()
        )
    # If few, each is answered immediately; if many, the new ones follow within the next second.
    assert [one.rule for one in play.words if one.kind == "refusal"] == ["paused"] * 101
    play.wait(1)
    assert [one.rule for one in play.words if one.kind == "refusal"] == ["paused"] * 250
    people_say(active=False)
    people_say(kind="maintenance")
    reported = []
    for _ in range(4):
        play.words.clear()
        play.wait(1)
        reported.append([one.incident for one in play.words if one.rule == "maintenance"])
    assert [len(ids) for ids in reported] == [100, 100, 50, 0]
    assert len({name for ids in reported for name in ids}) == 250
