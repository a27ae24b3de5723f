"""A command with a name that no engine reported recently takes effect, with a warning."""

from pathlib import Path
from uuid import UUID

import pytest

from flatline.engine.wire.alert import encode_alert
from flatline.engine.wire.score import FEATURES, NodeMinute, Scores, encode_scores
from flatline.engine.wire.topics import ALERTS, SCORES
from tests.unit.engine.action.samples import alert
from tests.unit.engine.cli.conftest import Flatline, append
from tests.unit.engine.cli.test_app import MAKE_LOG, VM


@pytest.mark.parametrize(
    ("scope", "reported"),
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
    flatline: Flatline, state: Path, scope: str, reported: str
) -> None:
    flatline(*MAKE_LOG)
    append_scores(state)
    said = flatline("pause", "on", scope, "--reason", "storage work")
    assert said.code == 0
    assert said.out.startswith(f"Actions on {scope} are paused until")
    assert (
        f"no engine has reported {scope} in the last five minutes{reported}. The pause is in force"
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


def test_an_owner_s_command_on_a_vm_that_the_engine_does_not_know_stands_and_is_doubted(
    flatline: Flatline, state: Path
) -> None:
    flatline(*MAKE_LOG)
    append_scores(state)
    said = flatline("event", "reboot", VM[:-1] + "0", "--cell", "c1")
    assert said.code == 0
    assert (
        f"no engine has reported VM {VM[:-1]}0 in the last five minutes (the nearest: {VM}). The "
        "command" in " ".join(said.err.split())
    )


def test_a_warning_about_a_cell_where_the_vm_does_not_run_names_its_cell(
    flatline: Flatline, state: Path
) -> None:
    flatline(*MAKE_LOG)
    append_scores(state)
    said = flatline("event", "reboot", VM.upper(), "--cell", "c2")
    assert said.code == 0
    reported = " ".join(said.err.split())
    assert reported.startswith(
        f"Warning: the engine reports VM {VM} in cell c1 (--cell), not in c2."
    )
    assert flatline("event", "reboot", VM.upper(), "--cell", "c1").err == ""


def test_an_approval_of_an_incident_that_no_engine_reported_stands_and_is_doubted(
    flatline: Flatline, state: Path
) -> None:
    flatline(*MAKE_LOG)
    fires = alert(id="0123456789abcdef" * 2)
    append(state, ALERTS, (b"c1", b"unreadable"), (b"c1", encode_alert(fires)[0]))
    slip = fires.id[:-1] + "0"
    said = flatline("approve", slip, "--reason", "it is dead")
    assert said.code == 0
    reported = " ".join(said.err.split())
    assert f"no engine has reported incident {slip} in the last five minutes" in reported
    assert f"(the nearest: {fires.id}). The approval is in force" in reported
    assert flatline("approve", fires.id, "--reason", "it is dead").err == ""


@pytest.mark.parametrize(("name", "doubted"), [("c1-n1", False), ("c1-n2", True)])
def test_what_no_engine_reported_is_doubted_where_it_is_to_be_forgotten(
    flatline: Flatline, state: Path, name: str, doubted: bool
) -> None:
    flatline(*MAKE_LOG)
    append_scores(state)
    said = flatline("forget", "node", name, "--cell", "c1")
    assert said.code == 0
    assert said.out.startswith(f"The engine of cell c1 is asked to forget node {name}")
    assert (f"no engine has reported node:{name}" in " ".join(said.err.split())) == doubted


def append_scores(state: Path) -> None:
    """Append one minute of cell c1 with two nodes and one VM, as an engine does."""
    scores = Scores(
        site="site", cell="c1", minute_ms=0, uuids=UUID(VM).bytes,
        values=bytes(4 * len(FEATURES)), classes=("steady",), node_load={}, configuration="c",
        nodes={"c1-n0": NodeMinute(vms=1), "c1-n1": NodeMinute()},
        pool_vms={"pool0": 1}, network_vms={"net0": 1},
    )  # fmt: skip
    append(state, SCORES, (b"c1", encode_scores(scores)))
