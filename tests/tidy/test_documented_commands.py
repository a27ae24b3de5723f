"""Every command that documents and messages tell people to type is valid."""

import re
import shlex
from typing import Any

import pytest
from typer.main import get_command

from flatline.engine.cli.app import app
from flatline.engine.roles.all_sentences import SENTENCES
from tests.tidy.tree import ROOT

DOCUMENTS = (
    *("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "benchmarks/README.md"),
    *("deploy/RUNBOOK.md", "deploy/grafana/PLANNERS.md"),
)
# In text between backquotes, or on a separate line of a block.
_TYPED = re.compile(r"`flatline ([^`]+)`|^(?:\.venv/bin/)?flatline ([^#\n]+)", re.MULTILINE)
_SAID = re.compile(r"\bflatline ((?:approve|pause|event)[^.:]*)")
_VALUES = {
    "UUID": "5f8c1c2e-0000-4000-8000-000000000001",
    "SCOPE": "site",
    "{scope}": "site",
    "{incident}": "0" * 32,
}


def typed(text: str, pattern: re.Pattern[str]) -> list[str]:
    found = [next(filter(None, match.groups())) for match in pattern.finditer(text)]
    return [re.sub(r"\[|\]", "", " ".join(one.split())) for one in found]


COMMANDS = sorted(
    {one for name in DOCUMENTS for one in typed((ROOT / name).read_text(), _TYPED)}
    | {one for sentence in SENTENCES.values() for one in typed(sentence, _SAID)}
)


def parse(words: list[str]) -> None:
    command: Any = get_command(app)
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    if words:
        assert not hasattr(command, "commands") or words[0].startswith("-"), f"no {words[0]}"
        # A bare name refers to the command; with one argument it must be valid as written.
        command.make_context("flatline", [_VALUES.get(word, word) for word in words])


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_people_are_asked_to_type_can_be_typed(command: str) -> None:
    parse(shlex.split(command))


@pytest.mark.parametrize("command", ["pause on site", "paws on site", "capacity report --lost n1"])
def test_a_command_that_cannot_be_typed_is_noticed(command: str) -> None:
    with pytest.raises(Exception, match=r"[Mm]issing|no paws|[Nn]o such option"):
        parse(shlex.split(command))
