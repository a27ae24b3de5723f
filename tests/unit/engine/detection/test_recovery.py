"""The end of an incident: verified after an action, by itself, or never."""

from typing import get_args

import pytest

from flatline.engine.wire.alert import Alert, AlertState, Counted
from tests.unit.engine.detection.frames_by_hand import EPOCH_MS, FAST, Bench, Guest, cell


def rebootable() -> tuple[Bench, Guest, Alert]:
    bench, guests = cell(4, nodes=2)
    bench.run(120.0)
    guests[0].panics()
    bench.run(FAST.self_reboot_s + 3.0)
    alert = bench.of(guests[0])[-1]
    assert alert.suggested_action == "reboot"
    return bench, guests[0], alert


def reset(bench: Bench, guest: Guest, alert: Alert, *, dry_run: str = "false") -> None:
    """Report the agent's reset, and let the guest boot and work again if it was real."""
    detail = {"incident": alert.id, "step": "1", "action": "reset", "dry_run": dry_run}
    bench.said("agent", "action_sent", guest, **detail)
    if dry_run == "false":
        bench.places[0].tell("rebooted", guest)
        guest.works()
    bench.said("agent", "action_returned", guest, **detail)


def test_a_guest_that_boots_after_a_reset_is_verified() -> None:
    bench, guest, alert = rebootable()
    reset(bench, guest, alert)
    bench.run(30.0)
    last = bench.of(guest)[-1]
    assert (last.id, last.state) == (alert.id, "resolved")
    assert last.resolution is not None
    assert last.resolution.verified
    assert (last.resolution.action, last.resolution.order_step) == ("reset", 1)
    assert (last.resolution.stable_s or 0.0) >= FAST.verify_stable_s


def test_a_boot_counts_only_after_it_was_stable() -> None:
    bench, guest, alert = rebootable()
    reset(bench, guest, alert)
    bench.run(FAST.verify_stable_s - 2.0)
    assert bench.of(guest)[-1].state == "firing"


def test_a_reset_that_does_not_help_keeps_the_alert_firing_every_minute() -> None:
    bench, guest, alert = rebootable()
    detail = {"incident": alert.id, "step": "1", "action": "reset", "dry_run": "false"}
    bench.said("agent", "action_returned", guest, **detail)
    bench.run(180.0)
    later = [one for one in bench.of(guest) if one.decided_ms > alert.decided_ms]
    assert {one.state for one in later} == {"firing"}
    assert {one.transition for one in later} == {alert.transition}
    assert len(later) == 3


def test_a_guest_that_panics_again_after_its_boot_is_not_verified() -> None:
    bench, guest, alert = rebootable()
    reset(bench, guest, alert)
    bench.run(6.0)
    guest.panics()
    bench.run(120.0)
    assert not [
        one for one in bench.of(guest) if one.resolution is not None and one.resolution.verified
    ]
    assert len({one.id for one in bench.of(guest)}) == 1


def test_a_guest_that_does_not_come_up_after_its_reset_keeps_its_alert_firing() -> None:
    bench, guest, alert = rebootable()
    detail = {"incident": alert.id, "step": "1", "action": "reset", "dry_run": "false"}
    bench.places[0].tell("rebooted", guest)
    bench.said("agent", "action_returned", guest, **detail)
    bench.run(150.0)
    later = [one for one in bench.of(guest) if one.decided_ms > alert.decided_ms]
    assert {one.state for one in later} == {"firing"}
    assert {one.id for one in later} == {alert.id}
    assert len(later) >= 2


def test_a_guest_that_moves_without_a_boot_was_not_helped_by_a_reset() -> None:
    bench, guest, alert = rebootable()
    detail = {"incident": alert.id, "step": "1", "action": "reset", "dry_run": "false"}
    bench.said("agent", "action_returned", guest, **detail)
    guest.works()
    bench.run(30.0)
    last = bench.of(guest)[-1]
    assert last.resolution is not None
    assert not last.resolution.verified
    assert last.resolution.reason == "it is active again by itself"


def test_a_dry_run_is_not_taken_for_what_helped() -> None:
    bench, guest, alert = rebootable()
    reset(bench, guest, alert, dry_run="true")
    guest.works()
    bench.run(30.0)
    last = bench.of(guest)[-1]
    assert last.state == "resolved"
    assert last.resolution is not None
    assert not last.resolution.verified


def test_publishing_again_does_not_renew_what_was_seen() -> None:
    bench, guest, alert = rebootable()
    assert alert.data_ms is not None
    assert alert.decided_ms - alert.data_ms <= 2_000
    names = ("block_wr_bytes", "block_rd_bytes", "net_tx_bytes")
    assert alert.counted == Counted(**{name: int(guest.counters[name]) for name in names})
    bench.run(120.0)
    renewed = bench.of(guest)[-1].data_ms
    assert renewed is not None
    assert renewed > alert.data_ms + 60_000
    bench.places[0].reachable = False
    bench.run(300.0)
    last = bench.of(guest)[-1]
    assert (last.state, last.data_ms) == ("firing", renewed)
    assert last.decided_ms > EPOCH_MS + 500_000


def test_a_guest_whose_node_fell_silent_is_not_to_be_rebooted_any_more() -> None:
    bench, guest, alert = rebootable()
    bench.places[0].reachable = False
    bench.run(180.0)
    last = bench.of(guest)[-1]
    assert (last.state, last.suggested_action) == ("firing", "alert")
    assert last.transition == alert.transition + 1


def test_a_guest_that_is_well_again_is_not_to_be_rebooted_while_it_is_watched() -> None:
    bench, guest, alert = rebootable()
    reset(bench, guest, alert)
    bench.run(FAST.verify_stable_s - 2.0)
    last = bench.of(guest)[-1]
    assert (last.state, last.suggested_action) == ("firing", "alert")
    bench.run(20.0)
    assert bench.of(guest)[-1].state == "resolved"


@pytest.mark.parametrize("outcome", ["refused", "expired"])
def test_a_call_that_was_not_made_is_not_taken_for_what_helped(outcome: str) -> None:
    bench, guest, alert = rebootable()
    detail = {"incident": alert.id, "step": "1", "action": "reset", "outcome": outcome}
    bench.said("agent", "action_returned", guest, **detail)
    bench.places[0].tell("rebooted", guest)
    guest.works()
    bench.run(30.0)
    last = bench.of(guest)[-1]
    assert last.resolution is not None
    assert not last.resolution.verified
    assert last.resolution.reason == "it rebooted by itself"


def test_a_guest_that_moves_again_by_itself_resolves_its_alert() -> None:
    bench, guest, _alert = rebootable()
    guest.works()
    bench.run(20.0)
    last = bench.of(guest)[-1]
    assert last.state == "resolved"
    assert last.resolution is not None
    assert last.resolution.reason == "it is active again by itself"


def test_a_migrated_vm_is_verified_where_it_gets_its_cpu() -> None:
    bench, _guests = cell(8, nodes=2)
    bench.run(120.0)
    bench.places[0].busy = 1.0
    sufferer = bench.places[0].guests[0]
    sufferer.delay = 0.4
    bench.run(50.0)
    alert = bench.of(sufferer)[-1]
    assert alert.suggested_action == "migrate"
    detail = {"incident": alert.id, "step": "1", "action": "migrate", "dry_run": "false"}
    bench.said("agent", "action_returned", sufferer, **detail)
    bench.places[0].guests.remove(sufferer)
    bench.places[1].guests.append(sufferer)
    sufferer.instance, sufferer.counters, sufferer.delay = 40, {}, 0.0
    bench.places[1].tell("migrated_in", sufferer)
    bench.run(60.0)
    last = bench.of(sufferer)[-1]
    assert last.resolution is not None
    assert last.resolution.verified
    assert last.resolution.action == "migrate"
    assert "node-1" in last.resolution.reason


def test_a_vm_that_is_stopped_ends_its_alert() -> None:
    bench, guest, _ = rebootable()
    bench.places[0].guests.remove(guest)
    bench.places[0].tell("stopped", guest)
    bench.run(20.0)
    last = bench.of(guest)[-1]
    assert last.state == "resolved"
    assert last.resolution is not None
    assert last.resolution.reason == "it was shut down"


def test_a_crash_that_heals_itself_is_reported_as_one_fault() -> None:
    bench, guests = cell(4)
    bench.run(120.0)
    guests[0].panics()
    bench.run(12.0)
    bench.places[0].tell("rebooted", guests[0])
    guests[0].works()
    bench.run(60.0)
    assert len({alert.id for alert in bench.of(guests[0])}) == 1
    assert bench.of(guests[0])[-1].state == "resolved"


def test_a_reboot_that_nobody_announced_is_reported_and_ends() -> None:
    bench, guests = cell(4)
    bench.run(120.0)
    bench.places[0].tell("rebooted", guests[0])
    bench.run(60.0)
    published = bench.of(guests[0])
    assert {alert.kind for alert in published} == {"crash_reboot"}
    assert published[0].severity == "info"
    assert published[-1].state == "resolved"


def test_a_reboot_that_its_owner_announced_is_not_reported() -> None:
    bench, guests = cell(4)
    bench.run(120.0)
    bench.said("owner", "owner_reboot", guests[0])
    bench.places[0].tell("rebooted", guests[0])
    bench.run(60.0)
    assert not bench.of(guests[0])


def test_a_storm_of_boots_is_not_reported_vm_by_vm() -> None:
    bench, guests = cell(10)
    bench.run(120.0)
    for guest in guests:
        bench.places[0].tell("rebooted", guest)
    bench.run(60.0)
    assert not bench.alerts


def test_transitions_count_changes_only() -> None:
    bench, guest, alert = rebootable()
    reset(bench, guest, alert)
    bench.run(30.0)
    transitions = [one.transition for one in bench.of(guest)]
    assert transitions == list(range(len(transitions)))


@pytest.mark.parametrize("state", [state for state in get_args(AlertState) if state != "pending"])
def test_every_state_can_be_reached(state: str) -> None:
    bench, guest, alert = rebootable()
    if state == "suppressed":
        bench.said("owner", "owner_reboot", guest)
    elif state == "resolved":
        reset(bench, guest, alert)
    bench.run(30.0)
    assert bench.of(guest)[-1].state == state
