"""Every sentence with which something is decided, done or refused, by a stable name.

A name is the part that says it and the rule, `admit.vm_day`; journal entries carry the rule.
The runbook explains each of them, and a test keeps it complete.
"""

from collections.abc import Mapping
from typing import Final

from engine.action import admit, ledger, look, ordering, state, storm, target
from engine.roles import calling, marks, notify, watching

_PARTS: Final[Mapping[str, Mapping[str, str]]] = {
    "admit": admit.SENTENCES,
    "look": look.SENTENCES,
    "ledger": ledger.SENTENCES,
    "order": ordering.SENTENCES,
    "plan": state.SENTENCES,
    "storm": storm.SENTENCES,
    "target": target.SENTENCES,
    "act": {**marks.SENTENCES, **calling.SENTENCES, **watching.SENTENCES},
    "notify": notify.SENTENCES,
}

SENTENCES: Final[Mapping[str, str]] = {
    f"{part}.{rule}": template
    for part, sentences in _PARTS.items()
    for rule, template in sentences.items()
}
