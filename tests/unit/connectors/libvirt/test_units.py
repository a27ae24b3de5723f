"""The systemd units start existing commands, and keep read and write access apart."""

from configparser import ConfigParser
from pathlib import Path

import pytest
from typer.main import get_command

from flatline.engine.cli.app import app
from flatline.engine.errors import HypervisorStuck, SettingsError, StateError

UNITS = Path(__file__).resolve().parents[4] / "deploy/systemd"
NAMES = ("flatline-collector.service", "flatline-agent.service")


def service(name: str) -> dict[str, list[str]]:
    """Return the settings of [Service]; a repeated setting has several values."""
    parser = ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # systemd is case-sensitive
    parser.read(UNITS / name)
    values: dict[str, list[str]] = {key: [] for key in parser["Service"]}
    for line in (UNITS / name).read_text().splitlines():
        key, _, value = line.partition("=")
        if key in values:
            values[key] += value.split()
    return values


@pytest.mark.parametrize(("name", "subcommand"), [(NAMES[0], "collect"), (NAMES[1], "act")])
def test_a_unit_starts_a_subcommand_that_exists(name: str, subcommand: str) -> None:
    assert service(name)["ExecStart"][1] == subcommand
    assert subcommand in get_command(app).commands  # type: ignore[attr-defined]


def test_only_the_agent_may_write_to_libvirtd() -> None:
    collector, agent = service(NAMES[0]), service(NAMES[1])
    assert agent["SupplementaryGroups"] == ["libvirt"]
    assert "SupplementaryGroups" not in collector
    assert collector["DynamicUser"] == ["yes"]
    assert "User" not in collector
    assert agent["User"] == ["flatline-agent"]


@pytest.mark.parametrize("name", NAMES)
def test_a_unit_writes_nowhere_but_into_its_state(name: str) -> None:
    unit = service(name)
    assert unit["ProtectSystem"] == ["strict"]
    assert unit["CapabilityBoundingSet"] == []
    assert "ReadWritePaths" not in unit


@pytest.mark.parametrize("name", NAMES)
def test_a_stuck_hypervisor_is_restarted_and_wrong_settings_are_not(name: str) -> None:
    unit = service(name)
    assert unit["Restart"] == ["on-failure"]
    given_up = {int(code) for code in unit["RestartPreventExitStatus"]}
    assert HypervisorStuck.exit_code not in given_up
    assert SettingsError.exit_code in given_up


def test_an_agent_whose_ledger_is_damaged_waits_for_a_person() -> None:
    assert str(StateError.exit_code) in service(NAMES[1])["RestartPreventExitStatus"]
