"""Check that the ground truth belongs to a replay, by its VMs and times."""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Final

from flatline.engine.evaluation.lines import Summary
from flatline.engine.evaluation.truth import Occurrence

_DAY_S: Final = 86_400.0


def strangers(truth: Iterable[Occurrence], summary: Summary) -> Iterator[str]:
    """Yield a sentence for each occurrence that the replay cannot have seen.

    These are occurrences of which no VM is in the replay, or whose time is outside that of the
    replay.
    """
    # The summary counts whole days, so this end may be up to one day late. That is precise enough
    # to detect the ground truth of another recording.
    ends_s = summary.began_s + _DAY_S * len(summary.vm_days_by_day)
    for one in truth:
        if one.vms.isdisjoint(summary.vm_days_by_vm):
            yield f"VM {min(one.vms)} of its {one.kind} does not occur in the replay"
        elif one.start_s > ends_s or one.end_s < summary.began_s:
            yield (
                f"its {one.kind} of {min(one.vms)} on {_day(one.start_s)} is outside "
                f"{_day(summary.began_s)} to {_day(ends_s)}"
            )


def _day(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).date().isoformat()
