"""Compute figures of a judgement: recall, delay, classification, and false alarms with bounds."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec
import numpy as np

from flatline.engine.evaluation.judging import Finding, Judgement, within_samples
from flatline.engine.evaluation.rate_bounds import binomial_lower, rate_upper
from flatline.engine.evaluation.truth import KINDS, PANICS

SAMPLES: Final = (1, 2, 3, 4, 5, 6)
MISSED: Final = "nothing"
_PER: Final = 1000.0


class Recall(msgspec.Struct, frozen=True, kw_only=True):
    """Share of occurrences that were found, and the delay.

    `lower` is the exact 95 % lower bound of the recall. `within` is the share found, by the number
    of samples within which it was found. `median_s`, `p95_s` and `worst_s` are delays of the found
    occurrences; None if none was found.
    """

    total: int
    found: int
    recall: float | None
    lower: float
    within: dict[str, float]
    median_s: float | None
    p95_s: float | None
    worst_s: float | None


class Rate(msgspec.Struct, frozen=True, kw_only=True):
    """A count, its rate per 1,000 VM-days, and the exact 95 % upper bound of that rate."""

    count: int
    vm_days: float
    per_1000: float | None
    upper: float | None


class KindScore(msgspec.Struct, frozen=True, kw_only=True):
    """Classification figures of one kind.

    `recall` is None if the kind did not occur, `precision` if it was never reported, and `f1` if it
    neither occurred nor was reported.
    """

    total: int
    right: int
    false: int
    precision: float | None
    recall: float | None
    f1: float | None


class Scores(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of one evaluation.

    Attributes
    ----------
    alerts, suggestions
        Recall of any alert, and of the right suggestion: by kind, for `panic` (both kinds of panic)
        and by `panic: shape`. Panics that are not visible in the data are left out; `undetectable`
        counts them.
    false_orders, false_alerts, all_alerts
        Wrong suggestions to act on a VM, incidents that belong to no fault, and incidents of any
        kind.
    orders_behind, alerts_behind
        Number of false orders and of false alerts, by the kind of the occurrence behind them.
    repeated
        Number of incidents beyond the first about an occurrence, by kind of the occurrence.
    confusion
        True kind → reported kind → count. `nothing` as true kind counts false alarms, as reported
        kind misses.
    macro_f1
        Mean F1 of the kinds that occurred.
    """

    alerts: dict[str, Recall]
    suggestions: dict[str, Recall]
    undetectable: int
    false_orders: Rate
    false_alerts: Rate
    all_alerts: Rate
    orders_behind: dict[str, int]
    alerts_behind: dict[str, int]
    repeated: dict[str, int]
    kinds: dict[str, KindScore]
    macro_f1: float | None
    confusion: dict[str, dict[str, int]]


def score(judgement: Judgement, *, interval_s: float, vm_days: float) -> Scores:
    """Return the figures of a judgement over `vm_days` VM-days.

    `interval_s` is the sampling interval of the recording.
    """
    faults = [f for f in judgement.findings if f.occurrence.is_fault]
    seen = [f for f in faults if f.occurrence.detectable]
    # A confounder that requires an alert of its own also counts for recall and delay.
    asking = [
        f
        for f in judgement.findings
        if not f.occurrence.is_fault and f.occurrence.expected not in {"", "none"}
    ]
    groups = _groups([*seen, *asking])
    kinds, confusion = _kinds(seen, judgement)
    scored = [kind.f1 for kind in kinds.values() if kind.total]
    return Scores(
        alerts={
            name: _recall([f.alert_s for f in group], interval_s) for name, group in groups.items()
        },
        suggestions={
            name: _recall([f.suggestion_s for f in group], interval_s)
            for name, group in groups.items()
        },
        undetectable=len(faults) - len(seen),
        false_orders=rate(len(judgement.false_orders), vm_days),
        false_alerts=rate(len(judgement.false_alerts), vm_days),
        all_alerts=rate(len(judgement.reported), vm_days),
        orders_behind=_counted(
            _name(order.behind.kind if order.behind else "") for order in judgement.false_orders
        ),
        alerts_behind=_counted(
            _name(alert.behind.kind if alert.behind else "") for alert in judgement.false_alerts
        ),
        repeated=_counted(f.occurrence.kind for f in judgement.findings for _ in range(f.extra)),
        kinds=kinds,
        macro_f1=float(np.mean([f1 or 0.0 for f1 in scored])) if scored else None,
        confusion=confusion,
    )


def rate(count: int, vm_days: float) -> Rate:
    """Return a count over VM-days with its bound; rate and bound are None without VM-days."""
    return Rate(
        count=count,
        vm_days=round(vm_days, 3),
        per_1000=count * _PER / vm_days if vm_days > 0 else None,
        upper=rate_upper(count, vm_days),
    )


def _name(kind: str) -> str:
    return kind or "nothing known"


def _counted(names: Iterable[str]) -> dict[str, int]:
    return dict(Counter(names).most_common())


def _groups(findings: Sequence[Finding]) -> dict[str, list[Finding]]:
    """Return findings by kind, panics also together and by shape."""
    groups: dict[str, list[Finding]] = {}
    for finding in findings:
        occurrence = finding.occurrence
        groups.setdefault(occurrence.kind, []).append(finding)
        if occurrence.kind in PANICS:
            groups.setdefault("panic", []).append(finding)
            groups.setdefault(f"panic: {occurrence.shape}", []).append(finding)
    return dict(sorted(groups.items()))


def _recall(delays: Sequence[float | None], interval_s: float) -> Recall:
    found = sorted(delay for delay in delays if delay is not None)
    total = len(delays)
    return Recall(
        total=total,
        found=len(found),
        recall=len(found) / total if total else None,
        lower=round(binomial_lower(len(found), total), 4),
        within={
            str(samples): sum(within_samples(d, samples, interval_s) for d in delays) / total
            for samples in SAMPLES
            if total
        },
        median_s=float(np.median(found)) if found else None,
        p95_s=float(np.quantile(found, 0.95)) if found else None,
        worst_s=found[-1] if found else None,
    )


def _kinds(
    findings: Sequence[Finding], judgement: Judgement
) -> tuple[dict[str, KindScore], dict[str, dict[str, int]]]:
    confusion: dict[str, Counter[str]] = {}
    for finding in findings:
        row = confusion.setdefault(finding.occurrence.kind, Counter())
        row[finding.kind or MISSED] += 1
    for alert in judgement.false_alerts:
        confusion.setdefault(MISSED, Counter())[alert.incident.firing[-1].kind] += 1
    scores = {}
    for kind in KINDS:
        row = confusion.get(kind, Counter())
        total, right = sum(row.values()), row[kind]
        false = sum(other[kind] for name, other in confusion.items() if name != kind)
        scores[kind] = _kind_score(total=total, right=right, false=false)
    return scores, {name: dict(row.most_common()) for name, row in sorted(confusion.items())}


def _kind_score(*, total: int, right: int, false: int) -> KindScore:
    precision = right / (right + false) if right + false else None
    recall = right / total if total else None
    f1 = 2 * right / (2 * right + false + total - right) if total + false else None
    return KindScore(
        total=total, right=right, false=false, precision=precision, recall=recall, f1=f1
    )
