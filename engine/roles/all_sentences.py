"""The sentences of all decisions, actions and refusals, by stable names.

A name consists of a part of the program and a rule, such as `admit.vm_day`; journal entries contain
the rule. The runbook explains each sentence, and a test verifies that the runbook is complete.
"""

from collections.abc import Mapping
from typing import Final

from flatline.engine.action import (
    admit,
    ledger,
    ordering,
    preflight_sentences,
    state,
    storm,
    target,
)
from flatline.engine.roles import calling, guest_probing, notify, results

_PARTS: Final[Mapping[str, Mapping[str, str]]] = {
    "admit": admit.SENTENCES,
    "look": preflight_sentences.SENTENCES,
    "ledger": ledger.SENTENCES,
    "order": ordering.SENTENCES,
    "plan": state.SENTENCES,
    "storm": storm.SENTENCES,
    "target": target.SENTENCES,
    "act": {**results.SENTENCES, **calling.SENTENCES, **guest_probing.SENTENCES},
    "notify": notify.SENTENCES,
}

SENTENCES: Final[Mapping[str, str]] = {
    f"{part}.{rule}": template
    for part, sentences in _PARTS.items()
    for rule, template in sentences.items()
}
