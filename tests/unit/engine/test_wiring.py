"""The combination of settings, policy and node."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from flatline.connectors.simulator.fleet import build_world
from flatline.connectors.simulator.plan import WorldPlan
from flatline.engine.errors import AlreadyRunning, HistoryUnreachable, SettingsError
from flatline.engine.frame_keyring import FrameKeyring
from flatline.engine.keyring import own_key
from flatline.engine.roles.detect import Detector
from flatline.engine.roles.forecasting import Foreteller
from flatline.engine.roles.record import Recorder
from flatline.engine.roles.run import Opener
from flatline.engine.roles.state_keys import StateKeys
from flatline.engine.settings import load_settings
from flatline.engine.wire.order import key_id
from flatline.engine.wiring import (
    act_opener,
    authority,
    engine_opener,
    open_log,
    process,
    simulated_nodes,
    this_node,
)
from flatline.engine.wiring_history import history_opener, open_queries
from flatline.engine.wiring_planning import forecast_opener
from tests.contracts.history.remembered import RememberedRows


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLATLINE_CONFIG", raising=False)
    monkeypatch.setattr("flatline.engine.settings.DEFAULT_FILE", tmp_path / "absent.toml")
    monkeypatch.setenv("FLATLINE_STATE__FOLDER", str(tmp_path / "state"))


def open_agent(policy: str, *, real: bool) -> list[str]:
    """Open an agent under a shipped policy, and return the warnings."""
    settings, _ = load_settings()
    here = process(settings)
    node = this_node(settings)
    if not real:
        node = simulated_nodes(build_world(WorldPlan(seed=1), here.clock))[0]
    with capture_logs() as lines:
        act_opener(here, lambda: open_log(here), node, authority(settings, shipped=policy))
    return [line["event"] for line in lines if line["log_level"] == "warning"]


def test_a_demo_s_policy_is_refused_where_the_vms_are_real() -> None:
    with pytest.raises(SettingsError, match=r"'demo' is for a simulated fleet.*Set policy\.file"):
        open_agent("demo", real=True)


def test_a_lab_s_policy_on_real_vms_is_warned_of() -> None:
    (warning,) = open_agent("lab", real=True)
    assert warning.startswith("Policy 'lab' is for a lab")


def test_any_policy_is_taken_without_a_warning_where_nothing_is_real() -> None:
    assert [open_agent(policy, real=False) for policy in ("demo", "lab", "default")] == [[]] * 3


def test_the_default_policy_is_taken_without_a_warning_where_the_vms_are_real() -> None:
    assert not open_agent("default", real=True)


@pytest.mark.asyncio
async def test_a_history_that_cannot_be_written_is_reported_before_the_first_row(
    tmp_path: Path,
) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "history").write_text("a file of somebody else's")
    here = process(load_settings()[0])
    frames = FrameKeyring.in_memory(here.clock)
    with pytest.raises(HistoryUnreachable, match=r"history cannot be written: File exists"):
        async with history_opener(here, lambda: open_log(here), frames)():
            pass


@pytest.mark.asyncio
async def test_queries_of_a_store_that_only_takes_rows_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "flatline.engine.wiring_history.open_history", lambda _process: RememberedRows()
    )
    with pytest.raises(SettingsError, match=r"history\.kind is 'embedded', which answers no"):
        async with open_queries(process(load_settings()[0])):
            raise AssertionError("it was opened")


def test_an_agent_on_kafka_makes_no_key_that_could_give_orders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLATLINE_LOG__KIND", "kafka")
    monkeypatch.setenv("FLATLINE_KEYS__FRAMES", "accept")
    open_agent("default", real=True)
    assert {file.name for file in (tmp_path / "state" / "keys").iterdir()} == {
        "agent.key",
        "agent.pub",
    }


@pytest.mark.asyncio
async def test_a_second_agent_of_one_hypervisor_is_refused_whatever_node_it_names() -> None:
    settings, _ = load_settings()
    here = process(settings)
    policy = authority(settings)

    def agent_of(name: str) -> Opener:
        site = settings.site.model_copy(update={"node": name})
        node = this_node(settings.model_copy(update={"site": site}))
        # Only the locks count here: nothing of libvirt is opened.
        ports: dict[str, Any] = {"actuator": unopened, "evidence": unopened, "watch": unopened}
        node = replace(node, **ports)
        return act_opener(here, lambda: open_log(here), node, policy)

    async with agent_of("n1")():
        with pytest.raises(AlreadyRunning, match="already is the agent of qemu:///system"):
            async with agent_of("n2")():
                raise AssertionError("two agents of one hypervisor")
    async with agent_of("n2")():
        pass


@asynccontextmanager
async def unopened() -> AsyncIterator[Any]:
    """Replace a port that a test opens and never uses."""
    yield None


@pytest.mark.asyncio
async def test_every_role_with_a_state_signs_it_with_this_machine_s_engine_key() -> None:
    settings, _ = load_settings()
    here = process(settings)
    frames = FrameKeyring.in_memory(here.clock)
    async with open_log(here) as log:
        openers = (
            history_opener(here, lambda: nullcontext(log), frames),
            forecast_opener(here, lambda: nullcontext(log), frames),
            engine_opener(here, lambda: nullcontext(log), authority(settings)),
        )
        own = key_id(own_key(settings.key_folder, "engine").public_key())
        for opener in openers:
            async with opener() as role:
                assert isinstance(role, Recorder | Foreteller | Detector)
                keys = role._consumer._saving.keys
                assert isinstance(keys, StateKeys)
                assert key_id(keys.key.public_key()) == own
                assert own in keys.trusted.current().engines
