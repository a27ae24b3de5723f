"""The example of a fault kind in CONTRIBUTING is detected and evaluated, in few files."""

from pathlib import Path

import pytest

from tests.examples.planting import check, plant, touched
from tests.tidy.tree import ROOT

EXAMPLE = Path(__file__).with_name("fault_kind")


def test_a_fault_kind_touches_at_most_nine_files() -> None:
    assert len(touched(EXAMPLE)) <= 9


@pytest.mark.slow
def test_a_planted_kind_is_detected_resolved_and_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A small site is played sooner than the changed kernels are compiled.
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    plant(EXAMPLE, tmp_path)
    check(
        tmp_path,
        "tests/simulation/test_swap_storm.py",
        "tests/unit/deploy/test_default_policy.py",
    )


def test_the_contributing_guide_names_every_file_of_the_example() -> None:
    guide = (ROOT / "CONTRIBUTING.md").read_text()
    section = guide.split("## How to add a fault kind")[1].split("\n## ")[0]
    files = {path.replace("swap_storm", "NAME") for path in touched(EXAMPLE)}
    assert not [path for path in sorted(files) if f"`{path}`" not in section]
