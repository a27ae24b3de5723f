import gzip

import pytest

from benchmarks.accuracy import GOALS, fell_behind, reached, rule_of, without


@pytest.mark.parametrize(
    ("name", "value", "before", "behind"),
    [
        ("5min.all.panic_reboot", 0.95, 0.96, False),
        ("5min.all.panic_reboot", 0.93, 0.96, True),
        ("5min.all.macro_f1", 0.99, 0.80, False),
        ("10s.all.panic_reboot_p95_s", 54.9, 50.0, False),
        ("10s.all.panic_reboot_p95_s", 55.1, 50.0, True),
        ("5min.all.false_orders", 1.0, 0.0, True),
        ("5min.all.false_orders", 0.0, 3.0, False),
        ("5min.clean.alerts_per_1000", 10.9, 10.0, False),
        ("5min.clean.alerts_per_1000", 11.1, 10.0, True),
        ("5min.orders.without_the_feed", 9.0, 10.0, False),
        ("anything", None, 0.5, True),
        ("anything", 0.1, None, False),
    ],
)
def test_a_figure_falls_behind_beyond_its_tolerance_and_never_by_getting_better(
    name, value, before, behind
) -> None:
    assert fell_behind(name, value, before) is behind


def test_goals_are_held_in_the_direction_of_their_rule() -> None:
    assert reached("10s.all.panic_reboot", 0.99)
    assert not reached("10s.all.panic_reboot", 0.98)
    assert reached("10s.all.panic_reboot_p95_s", 70.0)
    assert not reached("10s.all.panic_reboot_p95_s", None)
    assert reached("no.goal", 1.0) is None
    assert {rule_of(name).better for name in GOALS} == {-1, 1}


def test_a_copy_lacks_just_what_was_taken_out(tmp_path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    with gzip.open(source / "p_stream.csv.gz", "wt") as file:
        file.write("t,vm,mem_kb,x\n1,a,5,6\n2,b,7,8\n")
    (source / "p_vms.csv").write_text("vm\n")
    (source / "p_lifecycle.csv").write_text("vm,t,operation\n")
    (source / "other_vms.csv").write_text("no\n")
    copy = without(source / "p", target, column="mem_kb", lifecycle=False)
    assert copy == target / "p"
    assert sorted(path.name for path in target.iterdir()) == ["p_stream.csv.gz", "p_vms.csv"]
    with gzip.open(target / "p_stream.csv.gz", "rt") as file:
        assert file.read() == "t,vm,mem_kb,x\n1,a,,6\n2,b,,8\n"
