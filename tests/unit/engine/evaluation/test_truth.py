import pytest

from flatline.engine.errors import SettingsError
from flatline.engine.evaluation.truth import COLUMNS, parse_truth


def rows(*lines):
    return [
        (number, dict(zip(COLUMNS, line.split(","), strict=True)))
        for number, line in enumerate(lines, start=2)
    ]


def truth(*lines, vcpus=None):
    return parse_truth(rows(*lines), source="e.csv", vcpus=vcpus or {})


def test_members_of_a_silent_host_are_one_occurrence_though_they_begin_hours_apart() -> None:
    found = truth(
        "a,h0,1000,4000,host_silence,fault,host_alert,followed by boot storm",
        "b,h0,8200,9000,host_silence,fault,host_alert,",
        "c,h1,1000,4000,host_silence,fault,host_alert,",
        "a,h0,9000,9900,host_silence,fault,host_alert,",
    )
    assert [(one.host, sorted(one.vms), one.start_s, one.end_s) for one in found] == [
        ("h0", ["a", "b"], 1000.0, 9000.0),
        ("h1", ["c"], 1000.0, 4000.0),
        ("h0", ["a"], 9000.0, 9900.0),
    ]


def test_a_fleet_is_one_occurrence_whatever_the_hosts() -> None:
    [one] = truth(
        "a,h0,100,700,fleet_io_silence,confounder,fleet_alert,",
        "b,h1,1000,1600,fleet_io_silence,confounder,fleet_alert,",
    )
    assert (one.is_fault, one.is_fleet, one.vms) == (False, True, {"a", "b"})


def test_of_a_noisy_neighbour_the_aggressor_is_the_fault_and_the_rest_are_victims() -> None:
    [one] = truth(
        "b,h0,100,700,noisy_neighbour,fault,none,role=victim;pre_active=1.00",
        "a,h0,160,700,noisy_neighbour,fault,migrate,role=aggressor;pre_active=0.00",
        "c,h0,220,700,noisy_neighbour,fault,none,role=victim",
    )
    assert (one.expected, one.vms, one.victims) == ("migrate", {"a"}, {"b", "c"})
    assert one.start_s == 160.0


@pytest.mark.parametrize(
    ("note", "detectable"),
    [("pre_active=0.50", True), ("pre_active=0.49", False), ("pre_active_min=0.2", False)],
)
def test_a_panic_of_an_idle_guest_does_not_count(note, detectable) -> None:
    [one] = truth(f"a,h0,1,2,panic_spin,fault,reboot,busy_cores=1;{note}")
    assert one.detectable is detectable
    [other] = truth(f"a,h0,1,2,hung_io,fault,migrate,{note}")
    assert other.detectable


@pytest.mark.parametrize(
    ("kind", "note", "vcpus", "shape"),
    [
        ("panic_spin", "busy_cores=1", 4, "one core"),
        ("panic_spin", "busy_cores=1", 1, "all cores"),
        ("panic_spin", "busy_cores=8", 8, "all cores"),
        ("panic_halt", "", 1, "halt"),
        ("hung_io", "", 1, ""),
    ],
)
def test_shapes_of_panics(kind, note, vcpus, shape) -> None:
    [one] = truth(f"a,h0,1,2,{kind},fault,reboot,{note}", vcpus={"a": vcpus})
    assert one.shape == shape


def test_what_cannot_be_used_is_reported_with_its_line() -> None:
    with pytest.raises(SettingsError, match="line 3: class is 'guess'"):
        truth("a,h,1,2,hung_io,fault,migrate,", "a,h,1,2,hung_io,guess,none,")
    with pytest.raises(SettingsError, match="line 2: t_start or t_end is not a number"):
        truth("a,h,soon,2,hung_io,fault,migrate,")
