"""An added or removed disk or card changes the sums: neither a sign of life nor a boot."""

import pytest

from tests.unit.engine.detection.frames_by_hand import Bench, Guest, cell


def with_devices(guest: Guest, *, number: int, jump: float) -> None:
    """Let the sums of all counters but the CPU's cover another set of devices from now on."""
    guest.counters["device_set"] = float(number)
    for name in ("block_wr_bytes", "block_rd_bytes", "net_tx_bytes"):
        guest.counters[name] = guest.counters.get(name, 1e9) + jump


def watched() -> tuple[Bench, Guest]:
    bench, guests = cell(4, interval_s=10.0)
    for guest in guests:
        guest.counters["device_set"] = 1.0
    bench.run(900.0)
    return bench, guests[0]


@pytest.mark.parametrize("jump", [5e8, -5e8], ids=["a disk comes", "a disk goes"])
def test_a_dead_guest_stays_dead_when_its_devices_change(jump: float) -> None:
    bench, guest = watched()
    guest.panics()
    bench.run(60.0)
    (before,) = {alert.id for alert in bench.of(guest)}
    with_devices(guest, number=2, jump=jump)
    bench.run(60.0)
    assert {alert.id for alert in bench.of(guest)} == {before}
    assert (bench.of(guest)[-1].state, bench.of(guest)[-1].suggested_action) == ("firing", "reboot")


@pytest.mark.parametrize("jump", [5e8, -5e8], ids=["a disk comes", "a disk goes"])
def test_a_guest_whose_devices_change_has_not_booted(jump: float) -> None:
    bench, guest = watched()
    with_devices(guest, number=2, jump=jump)
    bench.run(60.0)
    assert bench.of(guest) == []
    table = bench.partition.cells["cell"].tables["node-0"]
    index = table.indices[guest.uuid]
    assert table.figure("epoch_s", index) > 900.0
    # It dies directly after that, and is detected like any other.
    guest.panics()
    bench.run(60.0)
    assert bench.of(guest)[-1].suggested_action == "reboot"
