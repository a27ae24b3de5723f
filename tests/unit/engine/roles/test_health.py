"""The answers of the probes, by the reports of the parts."""

from structlog.testing import capture_logs

from flatline.connectors.clock import ManualClock
from flatline.engine.roles.health import Health


def test_a_process_without_parts_is_alive_and_not_ready() -> None:
    health = Health(ManualClock())
    assert health.live().ok
    assert health.ready().sentences == ("No part has started yet.",)


def test_a_part_that_goes_on_is_ready() -> None:
    health = Health(ManualClock())
    health.progress("sampling")
    assert health.ready().ok


def test_a_part_that_waits_is_alive_and_not_ready_and_says_why() -> None:
    health = Health(ManualClock())
    health.waiting("log", "The broker gives no answer.")
    assert health.live().ok
    assert health.ready().sentences == ("log is waiting: The broker gives no answer.",)


def test_a_silent_part_is_stuck_after_its_time_and_not_before() -> None:
    clock = ManualClock()
    health = Health(clock, stuck_after_s=60)
    health.progress("sampling")
    clock.advance(60)
    assert health.live().ok
    clock.advance(1)
    assert health.live().sentences == ("sampling has not reported for 61 s.",)
    assert not health.ready().ok


def test_a_part_that_ended_on_purpose_is_not_missed() -> None:
    clock = ManualClock()
    health = Health(clock)
    health.progress("sampling")
    health.progress("log")
    health.done("sampling")
    clock.advance(3600)
    health.progress("log")
    assert health.ready().ok


def test_views_of_two_roles_report_to_one_process() -> None:
    health = Health(ManualClock())
    health.of("collect n1").progress("log")
    health.of("collect n2").waiting("log", "It is away.")
    assert health.ready().sentences == ("collect n2: log is waiting: It is away.",)


def test_a_part_that_is_expected_keeps_the_process_from_being_ready() -> None:
    health = Health(ManualClock())
    health.progress("sampling")
    health.expect("log")
    assert health.ready().sentences == ("log is waiting: It has not started yet.",)
    health.progress("log")
    assert health.ready().ok


def test_a_wait_is_reported_once_and_its_end_with_its_length() -> None:
    clock = ManualClock()
    health = Health(clock)
    with capture_logs() as logs:
        for _ in range(3):
            health.waiting("log", "It is away.")
            clock.advance(10)
        health.progress("log")
        health.progress("log")
    assert [entry["event"] for entry in logs] == ["log is waiting: It is away.", "log continues."]
    assert logs[1]["waited_s"] == 30.0
