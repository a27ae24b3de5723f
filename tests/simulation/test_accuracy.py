"""Detection compared with committed figures: simulated confounders, and recorded counters."""

import pytest

from benchmarks import corpus
from benchmarks.accuracy import DATA, committed, fast_figures, fell_behind
from flatline.engine.evaluation.scores import score

# Other seeds than those of the figures, which are for the release; these run at every change.
SEEDS = (501, 502)
SECONDS = 2400.0


@pytest.mark.slow
def test_look_alikes_lead_to_no_order_and_the_dead_are_found() -> None:
    played = list(corpus.play(SEEDS, interval_s=10.0, seconds=SECONDS))
    judgement, vm_days = corpus.together(played)
    scores = score(judgement, interval_s=10.0, vm_days=vm_days)
    wrong = [(order.line.sentence, order.behind) for order in judgement.false_orders]
    assert wrong == []
    # A VM without a second witness is only alerted: all others get orders.
    alone = sum(one.alert_only for one in played)
    deaths = len(SEEDS) * sum(corpus.DEATHS.values()) - alone
    assert 0 < alone < deaths
    assert scores.suggestions["panic"].total == deaths
    assert scores.suggestions["panic"].found >= 0.95 * deaths
    assert (scores.suggestions["panic"].p95_s or 0.0) <= 90.0


@pytest.mark.slow
@pytest.mark.data
def test_recorded_counters_are_judged_no_worse_than_committed() -> None:
    before = committed()
    figures = fast_figures(DATA)
    assert figures.keys() <= before.keys()
    behind = {
        name: (value, before[name])
        for name, value in figures.items()
        if fell_behind(name, value, before[name])
    }
    assert behind == {}
