"""A pause of a name that no engine told of lately stands, and is doubted."""

from pathlib import Path
from uuid import UUID

import pytest

from engine.wire.score import FEATURES, NodeMinute, Scores, encode_scores
from engine.wire.topics import SCORES
from tests.unit.engine.cli.conftest import Flatline, append
from tests.unit.engine.cli.test_app import MAKE_LOG, VM


@pytest.mark.parametrize(
    ("scope", "told"),
    [
        ("cell:c10", " (the nearest: c1)"),
        ("node:c1-n2", " (the nearest: c1-n1, c1-n0)"),
        ("cell:basement", ""),
        ("pool:pool1", " (the nearest: pool0)"),
        ("network:net1", " (the nearest: net0)"),
        ("vm:" + VM[:-1] + "0", f" (the nearest: {VM})"),
    ],
)
def test_a_pause_of_what_the_engine_does_not_know_stands_and_is_doubted(
    flatline: Flatline, state: Path, scope: str, told: str
) -> None:
    flatline(*MAKE_LOG)
    append_scores(state)
    said = flatline("pause", "on", scope, "--reason", "storage work")
    assert said.code == 0
    assert said.out.startswith(f"Nothing is done to {scope} until")
    assert (
        f"no engine told of {scope} in the last five minutes{told}. The pause stands"
        in " ".join(said.err.split())
    )
    assert scope.partition(":")[2] in flatline("pause", "show").out


@pytest.mark.parametrize(
    "scope", ["cell:c1", "node:c1-n0", "pool:pool0", "network:net0", "vm:" + VM, "zone:z9", "site"]
)
def test_a_pause_of_what_the_engine_knows_or_nobody_can_tell_is_not_doubted(
    flatline: Flatline, state: Path, scope: str
) -> None:
    flatline(*MAKE_LOG)
    append_scores(state)
    said = flatline("pause", "on", scope, "--reason", "storage work")
    assert (said.code, said.err) == (0, "")


def test_a_pause_in_a_log_without_scores_is_not_doubted(flatline: Flatline) -> None:
    said = flatline("pause", "on", "cell:c9", "--reason", "storage work")
    assert (said.code, said.err) == (0, "")


def append_scores(state: Path) -> None:
    """Append one minute of cell c1 with two nodes and one VM, as an engine does."""
    scores = Scores(
        site="site", cell="c1", minute_ms=0, uuids=UUID(VM).bytes,
        values=bytes(4 * len(FEATURES)), classes=("steady",), node_load={}, configuration="c",
        nodes={"c1-n0": NodeMinute(vms=1), "c1-n1": NodeMinute()},
        pool_vms={"pool0": 1}, network_vms={"net0": 1},
    )  # fmt: skip
    append(state, SCORES, (b"c1", encode_scores(scores)))
