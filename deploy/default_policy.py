"""Write the escalation policies of the shipped default policy from the rows of `engine.faults`.

python -m deploy.default_policy
"""

from pathlib import Path
from typing import Final

import msgspec

from flatline.engine.faults import Kind, Step

FILE: Final = Path(__file__).parents[1] / "engine/action/policies/default.toml"
_WIDTH: Final = 100
_LADDERS: Final = "\n[ladders]\n"


def rendered(text: str) -> str:
    """Return the text of the policy with the escalation policies of all kinds."""
    head = text[: text.index(_LADDERS)]
    lines: list[str] = []
    reported = set()
    for kind in Kind:
        escalation = kind.fault.escalation
        if not escalation.steps:
            continue
        if escalation.why not in reported:
            lines.append(f"# {escalation.why}")
        reported.add(escalation.why)
        lines += _ladder(kind, [_step(step) for step in escalation.steps])
    return head + _LADDERS + "\n".join(lines) + "\n"


def _ladder(kind: Kind, steps: list[str]) -> list[str]:
    line = f"{kind} = [{', '.join(steps)}]"
    if len(line) <= _WIDTH:
        return [line]
    return [f"{kind} = [", *(f"    {step}," for step in steps), "]"]


def _step(step: Step) -> str:
    is_verified = step.action not in {"notify", "quarantine", "save_evidence"}
    shown = {
        name: value
        for name, value in msgspec.structs.asdict(step).items()
        if name == "action" or (is_verified and value)
    }
    parts = (f"{name} = {msgspec.json.encode(value).decode()}" for name, value in shown.items())
    return "{ " + ", ".join(parts) + " }"


if __name__ == "__main__":
    FILE.write_text(rendered(FILE.read_text()))
