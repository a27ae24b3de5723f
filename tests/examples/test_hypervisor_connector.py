"""The example of a hypervisor connector in CONTRIBUTING keeps the contracts, in few files."""

from pathlib import Path

from tests.examples.planting import check, plant, touched

EXAMPLE = Path(__file__).with_name("hypervisor_connector")


def test_a_hypervisor_connector_touches_at_most_nine_files() -> None:
    assert len(touched(EXAMPLE)) <= 9


def test_a_planted_connector_keeps_every_promise_of_its_ports(tmp_path: Path) -> None:
    plant(EXAMPLE, tmp_path)
    check(tmp_path, "tests/contracts/hypervisor/test_memory.py")
