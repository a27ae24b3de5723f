"""A common cause of many VMs is one incident: its attribution, and cases without one."""

from collections.abc import Callable

import pytest

from flatline.engine.detection.configuration import Now
from flatline.engine.detection.gate import explains
from flatline.engine.detection.incidents import settle
from flatline.engine.detection.outcomes import Finding
from flatline.engine.faults import Kind
from flatline.engine.wire.alert import Alert, SamplePosition
from tests.unit.engine.detection.frames_by_hand import FAST, Bench, Guest, cell

WARM_S = 120.0


def quiet(guest: Guest, *, disk: bool = True, network: bool = True) -> None:
    if disk:
        guest.writes = 0.0
    if network:
        guest.sends = 0.0


def crosswise(count: int = 24, *, nodes: int = 4) -> tuple[Bench, list[Guest]]:
    """Return guests dealt to nodes, and crosswise to two pools and two networks."""
    bench, guests = cell(count, nodes=nodes)
    for index, guest in enumerate(guests):
        guest.pool = f"pool-{index // nodes % 2}"
        guest.network = f"net-{index // (2 * nodes) % 2}"
    return bench, guests


def site(count: int = 24, *, nodes: int = 4) -> tuple[Bench, list[Guest]]:
    """Return such guests after they have worked for a while."""
    bench, guests = crosswise(count, nodes=nodes)
    bench.run(WARM_S)
    return bench, guests


def wide(bench: Bench) -> set[tuple[str, str, str]]:
    return {(a.scope, a.subject, a.kind) for a in bench.alerts if a.scope != "vm"}


def test_a_pool_is_blamed_where_its_vms_alone_fell_silent() -> None:
    bench, guests = site()
    for guest in guests:
        if guest.pool == "pool-1":
            quiet(guest)
    bench.run(40.0)
    assert wide(bench) == {("pool", "pool-1", "pool_stall")}


def test_a_network_is_blamed_where_disks_go_on() -> None:
    bench, guests = site()
    for guest in guests:
        if guest.network == "net-1":
            quiet(guest, disk=False)
    bench.run(40.0)
    assert wide(bench) == {("network", "net-1", "network_stall")}


def test_a_network_stall_begins_where_sending_stopped_so_that_the_next_has_another_id() -> None:
    bench, guests = site()
    ids, onsets = [], []
    for _ in range(2):
        began_ms, first = bench.time_ms, bench.places[0].sequence
        for guest in guests:
            if guest.network == "net-1":
                guest.sends = 0.0
        reported = bench.run(40.0)
        for guest in guests:
            guest.works()
        bench.run(1000.0)
        ids.append(reported[0].id)
        onsets.append((reported[0].position.sequence - first, reported[0].onset_ms - began_ms))
    assert onsets == [(0, 2000), (0, 2000)]
    assert len(set(ids)) == 2


def test_a_node_is_blamed_where_all_its_vms_fell_silent_whatever_their_pool() -> None:
    bench, _guests = site()
    for guest in bench.places[2].guests:
        quiet(guest)
    bench.run(40.0)
    assert ("host", "node-2", "host_stall") in wide(bench)
    assert not [alert for alert in bench.alerts if alert.suggested_action == "reboot"]


def test_a_few_dead_guests_of_a_large_pool_are_no_stall() -> None:
    bench, guests = cell(40, nodes=2)
    for guest in guests:
        guest.pool = "pool-a"
    bench.run(WARM_S)
    for guest in guests[:3]:
        guest.panics()
    bench.run(40.0)
    assert not wide(bench)
    assert all("reboot" in bench.suggestions(guest) for guest in guests[:3])


def test_guests_that_die_one_after_the_other_are_no_stall() -> None:
    bench, guests = cell(12)
    for guest in guests:
        guest.pool = "pool-a"
    bench.run(WARM_S)
    for guest in guests[:4]:
        guest.panics()
        bench.run(60.0)
    assert not wide(bench)


@pytest.mark.parametrize(("hit", "is_stall"), [(2, False), (3, True)])
def test_three_vms_are_the_least_that_make_a_stall(hit: int, is_stall: bool) -> None:
    bench, guests = cell(6)
    for guest in guests:
        guest.pool = "pool-a" if guest in guests[:4] else guest.pool
    bench.run(WARM_S)
    for guest in guests[:hit]:
        guest.panics()
    bench.run(40.0)
    assert bool(wide(bench)) == is_stall


def test_a_stall_holds_until_its_vms_move_again() -> None:
    bench, guests = site()
    members = [guest for guest in guests if guest.pool == "pool-1"]
    for guest in members:
        quiet(guest)
    bench.run(600.0)
    pool = [alert for alert in bench.alerts if alert.scope == "pool"]
    assert {alert.state for alert in pool} == {"firing"}
    assert {alert.transition for alert in pool} == {0}
    assert not [alert for alert in bench.alerts if alert.scope == "vm"]
    for guest in members:
        guest.works()
    bench.run(10.0)
    assert bench.alerts[-1].state == "resolved"


def test_a_stall_lists_its_vms_and_says_how_many_of_how_many() -> None:
    bench, guests = site()
    members = [guest for guest in guests if guest.pool == "pool-1"]
    for guest in members:
        quiet(guest)
    bench.run(20.0)
    alert = next(alert for alert in bench.alerts if alert.scope == "pool")
    assert set(alert.vms) == {guest.text for guest in members}
    assert alert.suggested_action == "host_alert"
    assert alert.sentence == (
        "Storage pool pool-1: 12 of 12 active VMs lost disk I/O together. This is one incident of "
        "the pool, and it inhibits verdicts on the VMs of cell cell."
    )


def test_a_silence_of_a_stall_is_not_learned_as_a_habit() -> None:
    bench, guests = site()
    members = [guest for guest in guests if guest.pool == "pool-1"]
    for guest in members:
        quiet(guest)
    bench.run(60.0)
    for guest in members:
        guest.works()
    bench.run(60.0)
    table = bench.partition.cells["cell"].tables["node-0"]
    index = table.indices[next(g for g in bench.places[0].guests if g in members).uuid]
    assert float(table.gaps[0, 3 + 5, index]) == 0.0


def test_who_died_in_a_stall_is_found_after_it() -> None:
    bench, guests = site()
    members = [guest for guest in guests if guest.pool == "pool-1"]
    for guest in members:
        quiet(guest)
    members[0].panics()
    bench.run(60.0)
    for guest in members[1:]:
        guest.works()
    bench.run(60.0)
    firing = [alert for alert in bench.of(members[0]) if alert.state == "firing"]
    assert isinstance(firing[-1], Alert)
    assert firing[-1].suggested_action == "reboot"


@pytest.mark.parametrize(
    ("kind", "is_explained"),
    [(Kind.MEM_LEAK, True), (Kind.DEGRADING_STORAGE, True), (Kind.NODE_CONTENTION, True),
     (Kind.PANIC_SPIN, False), (Kind.HUNG_IO, False)],
)  # fmt: skip
def test_only_a_silence_reported_before_a_stall_is_not_taken_back_by_it(
    kind: Kind, is_explained: bool
) -> None:
    bench, guests = site()
    members = [guest for guest in guests if guest.pool == "pool-1"]
    state = bench.partition.cells["cell"]
    reported = Finding(
        scope="vm",
        subject=members[0].text,
        kind=kind,
        firing=True,
        severity="warning",
        suggestion="alert",
        confidence=0.9,
        onset_ms=bench.time_ms,
        position=SamplePosition(node="node-0", role="collector", run="r", sequence=1),
        sentence="It was told.",
    )
    for guest in members:
        quiet(guest)
    bench.run(20.0)
    (cause,) = state.common_causes.values()
    settle(state, [reported], Now(bench.time_ms, FAST))
    early_ms = cause.onset_ms - 40_000
    found = explains(state, members[0].uuid, onset_ms=early_ms, configuration=FAST)
    assert (found is cause) == is_explained
    assert explains(state, members[0].uuid, onset_ms=cause.onset_ms, configuration=FAST) is cause


def dying(*, writers: int = 24, paused: int = 0) -> tuple[Bench, Guest, list[Guest]]:
    """Return a guest that will get an order at the next sample, and those that share its pool."""
    bench, guests = crosswise()
    dead = guests[4]
    mates = [guest for guest in guests if guest.pool == dead.pool and guest is not dead]
    for guest in mates[writers:]:
        guest.writes = 0.0
    bench.run(WARM_S)
    for guest in mates[:paused]:
        guest.state = "paused"
    dead.panics()
    bench.run(28.0)
    assert asked(bench, dead) == "alert"
    return bench, dead, mates


def asked(bench: Bench, guest: Guest) -> str:
    return bench.of(guest)[-1].suggested_action


def test_an_order_follows_where_the_pool_goes_on() -> None:
    bench, dead, _ = dying()
    bench.run(2.0)
    assert asked(bench, dead) == "reboot"


def test_no_order_follows_in_the_sample_in_which_the_pool_stops() -> None:
    bench, dead, mates = dying()
    for guest in mates:
        guest.writes = 0.0
    bench.run(2.0)
    assert asked(bench, dead) == "alert"
    for guest in mates:
        guest.works()
    bench.run(2.0)
    assert asked(bench, dead) == "reboot"


@pytest.mark.parametrize("signal", ["network", "life"])
def test_nor_where_its_network_or_its_node_stops(signal: str) -> None:
    bench, dead, _ = dying()
    home = next(place for place in bench.places if dead in place.guests)
    for guest in [one for place in bench.places for one in place.guests]:
        if signal == "network" and guest.network == dead.network:
            guest.sends = 0.0
        if signal == "life" and guest in home.guests:
            quiet(guest)
    bench.run(2.0)
    assert asked(bench, dead) == "alert"


def test_it_does_follow_where_half_of_the_pool_goes_on() -> None:
    bench, dead, mates = dying()
    for guest in mates[: len(mates) // 2]:
        guest.writes = 0.0
    bench.run(2.0)
    assert asked(bench, dead) == "reboot"


def test_it_does_follow_where_the_pool_is_hardly_used() -> None:
    bench, dead, mates = dying(writers=2)
    every = [one for place in bench.places for one in place.guests]
    # Some of another pool rest as well, as on every site.
    for guest in [*mates[:2], *[one for one in every if one.pool != dead.pool][:2]]:
        guest.writes = 0.0
    bench.run(2.0)
    assert asked(bench, dead) == "reboot"


def is_paused(guest: Guest) -> None:
    guest.state = "paused"


def has_a_hung_monitor(guest: Guest) -> None:
    guest.measured = False


@pytest.mark.parametrize("goes_out_of_sight", [is_paused, has_a_hung_monitor])
def test_it_does_follow_where_the_pools_vms_went_out_of_sight_after_a_sample_of_silence(
    goes_out_of_sight: Callable[[Guest], None],
) -> None:
    bench, dead, mates = dying()
    for guest in mates:
        guest.writes = 0.0
    bench.run(2.0)
    assert asked(bench, dead) == "alert"
    for guest in mates:
        goes_out_of_sight(guest)
    bench.run(2.0)
    assert asked(bench, dead) == "reboot"


def test_vms_that_were_paused_at_work_do_not_hide_that_the_pool_stops() -> None:
    bench, dead, mates = dying(paused=7)
    for guest in mates:
        guest.writes = 0.0
    bench.run(2.0)
    assert asked(bench, dead) == "alert"


def test_a_stall_ends_where_those_that_fell_silent_are_paused_and_a_later_death_is_reported() -> (
    None
):
    bench, guests = site()
    *quiesced, dead = (guest for guest in guests if guest.pool == "pool-1")
    for guest in quiesced:
        quiet(guest)
    bench.run(10.0)
    assert wide(bench) == {("pool", "pool-1", "pool_stall")}
    for guest in quiesced:
        guest.state = "paused"
    bench.run(60.0)
    assert bench.alerts[-1].state == "resolved"
    dead.panics()
    bench.run(40.0)
    assert asked(bench, dead) == "reboot"


def resting(*, writes_at_times: bool) -> tuple[Bench, Guest]:
    """Return a guest that dies twelve minutes after the others of its pool fell silent."""
    bench, guests = site()
    *others, worker = (guest for guest in guests if guest.pool == "pool-1")

    def rest(now_s: float) -> None:
        """Let the others write once a minute at most, each at its own time."""
        for number, guest in enumerate(others):
            is_due = writes_at_times and round(now_s / 2.0) % 30 == 2 * number
            guest.writes, guest.sends = (5_000.0 if is_due else 0.0), 0.0

    bench.run(720.0, rest)
    assert wide(bench) == {("pool", "pool-1", "pool_stall")}
    worker.panics()
    bench.run(40.0, rest)
    return bench, worker


def test_who_dies_long_after_others_ended_their_work_together_is_found() -> None:
    bench, dead = resting(writes_at_times=True)
    assert asked(bench, dead) == "reboot"


def test_a_pool_in_which_some_are_silent_for_good_explains_who_falls_silent_later() -> None:
    bench, stalled = resting(writes_at_times=False)
    assert not bench.of(stalled)


def test_what_the_hypervisor_holds_as_crashed_waits_for_no_pool() -> None:
    bench, guests = site()
    dead = guests[4]
    dead.panics(cores=0.0)
    dead.state = "crashed"
    bench.run(6.0)
    for guest in guests:
        if guest.pool == dead.pool:
            guest.writes = 0.0
    bench.run(2.0)
    assert asked(bench, dead) == "reboot"
