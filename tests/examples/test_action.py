"""The example of an action in CONTRIBUTING is ordered and carried out, in few files."""

from pathlib import Path

from tests.examples.planting import check, plant, touched

EXAMPLE = Path(__file__).with_name("action")


def test_an_action_touches_at_most_eleven_files() -> None:
    assert len(touched(EXAMPLE)) <= 11


def test_a_planted_action_is_ordered_and_carried_out_by_the_agent(tmp_path: Path) -> None:
    plant(EXAMPLE, tmp_path)
    check(
        tmp_path,
        "tests/unit/engine/roles/test_inject_nmi.py",
        "tests/contracts/hypervisor/test_simulator.py::TestSeenPerfectly"
        "::test_every_action_on_an_unknown_vm_says_so",
    )
