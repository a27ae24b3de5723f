"""A node's wall clock that steps: told, and left behind at once."""

from typing import Any

import msgspec
import pytest

from engine.wire.frame import Header
from tests.unit.engine.detection.frames_by_hand import Bench, cell


def stepping(bench: Bench, node: str, steps_ms: list[int]) -> None:
    """Let the wall clock of a node be off by the last of `steps_ms` from now on."""
    header = bench.header

    def shifted(name: str, *rest: Any) -> Header:
        made = header(name, *rest)
        shift_ns = (steps_ms[-1] if name == node else 0) * 1_000_000
        return msgspec.structs.replace(made, event_time_ns=made.event_time_ns + shift_ns)

    bench.header = shifted  # type: ignore[assignment,method-assign]


@pytest.mark.parametrize("step_s", [-86_400, -3_600, -60, 3_600])
def test_a_guest_that_dies_after_a_step_is_found_as_soon_as_before(step_s: int) -> None:
    bench, guests = cell(6, nodes=2)
    steps_ms = [0]
    stepping(bench, "node-0", steps_ms)
    bench.run(120.0)
    steps_ms.append(1000 * step_s)
    bench.run(30.0)
    (told, *_) = [alert for alert in bench.alerts if alert.kind == "clock_step"]
    assert told.subject == "node-0"
    assert f"{abs(step_s)} s" in told.sentence
    assert not bench.partition.cells["cell"].nodes["node-0"].stale
    guests[0].panics()
    bench.run(50.0)
    assert "reboot" in bench.suggestions(guests[0])
    bench.run(240.0)
    assert [alert.state for alert in bench.alerts if alert.kind == "clock_step"][-1] == "resolved"


def test_a_late_frame_is_no_step() -> None:
    bench, _ = cell(4, nodes=2)
    bench.run(60.0)
    bench.delay_ms = 40_000
    bench.run(20.0)
    assert bench.partition.cells["cell"].nodes["node-0"].stale
    assert not [alert for alert in bench.alerts if alert.kind == "clock_step"]
