"""Probe answers by agent and time: none hides a death that follows it."""

import pytest

from flatline.engine.detection.cell import Vm
from tests.unit.engine.detection.frames_by_hand import FAST, Bench, Guest, cell
from tests.unit.engine.detection.test_ownership import copy_of

ANSWERS = ["probe_answered", "agent_answered"]
AHEAD_S = 3600.0


def quiet(*, delay_ms: int = 0) -> tuple[Bench, Guest]:
    """Return a cell of two nodes without any event yet; the guest is on the first."""
    bench, guests = cell(4, nodes=2)
    bench.delay_ms = delay_ms
    bench.run(120.0)
    return bench, guests[0]


def vm_of(bench: Bench, guest: Guest) -> Vm:
    return bench.partition.cells["cell"].vms[guest.uuid]


@pytest.mark.parametrize("kind", ANSWERS)
def test_an_answer_that_is_dated_ahead_hides_no_later_death(kind: str) -> None:
    bench, guest = quiet()
    bench.said_ahead(AHEAD_S, "agent", kind, guest)
    bench.run(10.0)
    guest.panics()
    bench.run(60.0)
    assert "reboot" in bench.suggestions(guest)


@pytest.mark.parametrize("kind", ["agent_silent", "console_panic", "probe_silent", "watchdog"])
def test_a_lack_of_answers_that_is_dated_ahead_proves_no_later_death(kind: str) -> None:
    bench, guest = quiet()
    if kind == "watchdog":
        bench.places[0].tell(kind, guest)
        event = bench.places[0].events.pop()
        bench.places[0].mono_ns += round(AHEAD_S * 1e9)
        bench.places[0].tell(kind, guest)
        bench.places[0].mono_ns -= round(AHEAD_S * 1e9)
        assert bench.places[0].events[0].time_ns - event.time_ns == AHEAD_S * 1e9
    else:
        last = str(bench.time_ms)
        bench.said_ahead(AHEAD_S, "agent", kind, guest, last_answer_ms=last)
    bench.run(10.0)
    vm = vm_of(bench, guest)
    assert max([vm.probe_silent_ms, *vm.said.values()]) <= bench.time_ms


@pytest.mark.parametrize("kind", ANSWERS)
@pytest.mark.parametrize("node", ["node-1", "node-9"], ids=["of the cell", "of no cell"])
def test_an_agent_of_a_node_that_does_not_have_the_vm_hears_no_answer(kind: str, node: str) -> None:
    bench, guest = quiet()
    guest.panics()
    bench.run(10.0)
    before = bench.partition.counters.foreign
    bench.said("agent", kind, guest, node=node)
    assert bench.partition.counters.foreign == before + 1
    bench.run(60.0)
    assert "reboot" in bench.suggestions(guest)


@pytest.mark.parametrize("kind", ANSWERS)
def test_an_answer_heard_on_the_vm_s_node_means_alive(kind: str) -> None:
    bench, guest = quiet()
    guest.panics()
    bench.run(10.0)
    bench.said("agent", kind, guest)
    bench.run(120.0)
    assert "reboot" not in bench.suggestions(guest)


def test_so_it_does_where_the_clock_of_the_node_is_ahead_of_the_log_s() -> None:
    bench, guest = quiet(delay_ms=-120_000)
    guest.panics()
    bench.run(10.0)
    bench.said("agent", "probe_answered", guest)
    bench.run(120.0)
    assert "reboot" not in bench.suggestions(guest)


def test_so_it_does_where_another_node_lists_the_vm() -> None:
    bench, guest = quiet()
    twin = copy_of(guest)
    twin.state = "paused"
    bench.places[1].guests.append(twin)
    bench.run(4.0)
    guest.panics()
    bench.run(10.0)
    bench.said("agent", "probe_answered", guest, node="node-1")
    bench.run(60.0)
    assert "reboot" not in bench.suggestions(guest)


def test_the_node_that_a_vm_left_hears_it_during_the_move_and_not_later() -> None:
    bench, guest = quiet()
    source, target = bench.places
    moved = copy_of(guest)
    source.tell("migrated_out", guest)
    source.guests.remove(guest)
    target.guests.append(moved)
    target.tell("migrated_in", moved)
    bench.run(4.0)
    vm = vm_of(bench, guest)
    assert (vm.node, vm.former) == (target.name, source.name)
    bench.said("agent", "probe_answered", moved, node=source.name)
    during_ms = vm_of(bench, guest).probe_answered_ms
    assert during_ms == bench.time_ms
    bench.run(FAST.lifecycle_hold_s + 10.0)
    bench.said("agent", "probe_answered", moved, node=source.name)
    assert vm_of(bench, guest).probe_answered_ms == during_ms
