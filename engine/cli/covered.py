"""The witnesses available for each VM, from the latest scores that engines published."""

from typing import NamedTuple
from uuid import UUID

from flatline.engine.cli.validation import latest
from flatline.engine.detection.coverage import advice, is_actionable, witnesses_of
from flatline.engine.ports import Log
from flatline.engine.wire.alert import may_be_reset
from flatline.engine.wire.frame import uuids_of
from flatline.engine.wire.score import Scores, decode_scores
from flatline.engine.wire.topics import SCORES
from flatline.engine.wiring import Process

# Maximum number of VMs named in one line of the doctor.
_NAMED = 3


class Covered(NamedTuple):
    """One VM: its available witnesses, and what to do where there are too few."""

    vm: str
    cell: str
    witnesses: tuple[str, ...]
    actionable: bool
    advice: str

    @property
    def orderable(self) -> bool:
        """Whether a reset of it could be ordered; else it is alerted only."""
        return may_be_reset(self.witnesses)


async def covered(here: Process, log: Log) -> list[Covered]:
    """Return the latest coverage of every VM in the scores of the last five minutes."""
    reported = await latest(here, log, SCORES.name, decode_scores)
    found: dict[str, Covered] = {}
    for scores in sorted(reported, key=lambda one: one.minute_ms):
        found |= {one.vm: one for one in _of(scores)}
    return [found[vm] for vm in sorted(found)]


def _of(scores: Scores) -> list[Covered]:
    uuids = [str(UUID(bytes=vm)) for vm in uuids_of(scores.uuids)]
    return [
        Covered(vm, scores.cell, witnesses_of(bits), is_actionable(has), advice(bits, has))
        for vm, (bits, has) in zip(uuids, scores.covered().tolist(), strict=False)
    ]


def summary(vms: list[Covered]) -> tuple[bool, str]:
    """Return whether an order would be possible for each actionable VM, and a sentence.

    The sentence names up to `_NAMED` VMs for which none is possible, and the remedy for each. True
    if no VM is actionable or none was reported.
    """
    if not vms:
        return True, "No engine has published scores of a VM in the last five minutes."
    open_to_actions = [one for one in vms if one.actionable]
    alone = [one for one in open_to_actions if not one.orderable]
    if not alone:
        return True, f"Each of the {len(open_to_actions)} actionable VMs has a second witness."
    named = "; ".join(f"{one.vm}: {one.advice}" for one in alone[:_NAMED])
    more = f"; and {len(alone) - _NAMED} more" if len(alone) > _NAMED else ""
    return False, (
        f"{len(alone)} of {len(open_to_actions)} actionable VMs have no second witness of a death, "
        f"so their faults lead to alerts and never to orders ({named}{more}). `flatline doctor "
        "--witnesses` lists every VM."
    )
