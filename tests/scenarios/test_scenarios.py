"""Every scenario meets its expectations; no healthy VM is harmed, no action is done twice."""

from pathlib import Path

import pytest

from flatline.connectors.simulator import virtual_time
from tests.scenarios.playing import played, read, read_expected, shortcomings

HERE = Path(__file__).parent
SCENARIOS = sorted(path.parent for path in HERE.glob("*/scenario.toml"))

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("folder", SCENARIOS, ids=lambda folder: folder.name)
def test_it_comes_true(folder: Path) -> None:
    lines = virtual_time.run(played(read(folder)))
    missing = shortcomings(lines, read_expected(folder))
    harms = [str(line) for line in lines if line.what in ("HARM", "TWICE")]
    course = "\n".join(str(line) for line in lines if line.what != "journal")
    assert not missing + harms, "\n".join([*missing, *harms, "What happened:", course])
