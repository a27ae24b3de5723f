"""The runbook explains every sentence about a decision, an action or a rejection."""

import re

import pytest

from flatline.engine.roles.all_sentences import SENTENCES
from tests.tidy.tree import ROOT

RUNBOOK = (ROOT / "deploy/RUNBOOK.md").read_text()
ENTRY = re.compile(
    r"^### `(?P<rule>[^`]+)`\n> (?P<sentence>[^\n]+)\n\n"
    r"(?P<meaning>.+?)\n\*\*Do:\*\* (?P<do>[^\n]+)$",
    re.MULTILINE | re.DOTALL,
)


def entries(text: str) -> dict[str, dict[str, str]]:
    found = [match.groupdict() for match in ENTRY.finditer(text)]
    assert len(found) == text.count("\n### "), "an entry of the runbook lacks one of its parts"
    return {entry["rule"]: entry for entry in found}


def test_every_rule_has_its_sentence_its_meaning_and_what_to_do() -> None:
    explained = entries(RUNBOOK)
    assert set(explained) == set(SENTENCES)
    differing = [rule for rule, entry in explained.items() if entry["sentence"] != SENTENCES[rule]]
    assert not differing
    assert not [rule for rule, entry in explained.items() if len(entry["meaning"].split()) < 3]


def test_each_rule_is_explained_once() -> None:
    rules = [match["rule"] for match in ENTRY.finditer(RUNBOOK)]
    assert len(rules) == len(set(rules))


def test_a_rule_without_advice_is_noticed() -> None:
    broken = RUNBOOK.replace("**Do:**", "Do:", 1)
    with pytest.raises(AssertionError, match="lacks one of its parts"):
        entries(broken)
