"""The long run over simulated sites, in slices: each site's figures are stored, and all are summed.

A site that was played with these constants is not played again, so a run can be interrupted at any
time and continued with the same command. `code` distinguishes sites judged by older code. Compiled
kernels are kept for the next slice; each worker is a fork that has them and plays its own share.

    python -m benchmarks.long_run --interval-s 10 --minutes 7           # as many as fit
    python -m benchmarks.long_run --interval-s 10 --workers 2           # on both cores
    python -m benchmarks.long_run --interval-s 2 --first 3000 --sites 4
    python -m benchmarks.long_run --interval-s 10 --sites 0             # only sum
"""

import argparse
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from benchmarks import corpus
from benchmarks.accuracy import GOALS
from benchmarks.report import REPORTS, Figure, report
from flatline.engine.detection.compiled import compile_kernels
from flatline.engine.detection.configuration import Configuration, configuration_hash
from flatline.engine.evaluation.rate_bounds import binomial_lower
from flatline.engine.evaluation.scores import rate
from flatline.engine.kernel_cache import compile_kept
from tests import slices

FIRST_SEED: Final = 2000  # above those of the release gate, which were used for tuning
SITE_SECONDS: Final = 3600.0


class Site(msgspec.Struct, frozen=True, kw_only=True):
    """The result of one site.

    `delays_s` has one entry for each death with a second witness: from the death to the correct
    suggestion, None without one. `alert_only` counts the other deaths, and `alerted` those of them
    that were alerted.
    """

    seed: int
    code: str
    vm_days: float
    delays_s: list[float | None]
    false_orders: list[str]
    false_alerts: int
    alert_only: int = 0
    alerted: int = 0


def played(seed: int, *, interval_s: float, code: str) -> Site:
    """Play one site."""
    (one,) = corpus.play([seed], interval_s=interval_s, seconds=SITE_SECONDS)
    judgement = one.judgement
    return Site(
        seed=seed,
        code=code,
        vm_days=one.vm_days,
        delays_s=[
            None if found.suggestion_s is None else round(found.suggestion_s, 3)
            for found in judgement.findings
            if found.occurrence.kind in corpus.DEATHS and found.occurrence.detectable
        ],
        false_orders=[
            f"{order.behind.kind if order.behind else 'nothing known'}: {order.line.sentence}"
            for order in judgement.false_orders
        ],
        false_alerts=len(judgement.false_alerts),
        alert_only=one.alert_only,
        alerted=sum(
            found.alert_s is not None
            for found in judgement.findings
            if found.occurrence.kind in corpus.DEATHS and not found.occurrence.detectable
        ),
    )


def play_share(
    seeds: Sequence[int], *, interval_s: float, code: str, folder: Path, until_s: float
) -> None:
    """Play one site after the other and store each, until the monotonic clock reaches `until_s`."""
    for seed in seeds:
        if time.monotonic() >= until_s:
            break
        site = played(seed, interval_s=interval_s, code=code)
        path = folder / f"{seed}.json"
        path.with_suffix(".new").write_bytes(msgspec.json.encode(site))
        path.with_suffix(".new").replace(path)


def summed(sites: Iterable[Site], *, interval_s: float) -> dict[str, Figure]:
    """Return the figures of all sites together."""
    found = list(sites)
    delays = [delay for site in found for delay in site.delays_s]
    ordered = [delay for delay in delays if delay is not None]
    vm_days = sum(site.vm_days for site in found)
    alone = sum(site.alert_only for site in found)
    orders = rate(sum(len(site.false_orders) for site in found), vm_days)
    return {
        "interval_s": interval_s,
        "seeds": len(found),
        "codes": len({site.code for site in found}),
        "vm_days": round(vm_days, 1),
        "deaths": len(delays),
        "alert_only": alone,
        "alert_only_share": round(alone / max(1, alone + len(delays)), 4),
        "alert_only_told": sum(site.alerted for site in found),
        "recall": len(ordered) / len(delays) if delays else None,
        "recall_lower": round(binomial_lower(len(ordered), len(delays)), 4),
        "median_s": float(np.median(ordered)) if ordered else None,
        "p95_s": float(np.quantile(ordered, 0.95)) if ordered else None,
        "false_orders": orders.count,
        "upper_per_1000": orders.upper,
        "false_alerts_per_1000": rate(sum(site.false_alerts for site in found), vm_days).per_1000,
    }


def meets(row: dict[str, Figure]) -> bool:
    """Return whether recall, delay and false orders reach the goals of the release gate."""
    prefix = f"simulated_{row['interval_s']:g}s"
    recall, p95_s = row["recall"], row["p95_s"]
    return (
        recall is not None
        and p95_s is not None
        and float(recall) >= GOALS[f"{prefix}.panic_reboot"]
        and float(p95_s) <= GOALS[f"{prefix}.panic_reboot_p95_s"]
        and row["false_orders"] == 0
    )


def kept_in(folder: Path) -> dict[int, Site]:
    """Return the sites stored in a folder, by seed."""
    sites = (
        msgspec.json.decode(path.read_bytes(), type=Site) for path in sorted(folder.glob("*.json"))
    )
    return {site.seed: site for site in sites}


def main() -> None:
    """Play the missing sites and sum all."""
    parser = argparse.ArgumentParser(description="The long run over simulated sites, in slices.")
    parser.add_argument("--interval-s", type=float, choices=(2.0, 10.0), default=10.0)
    parser.add_argument("--first", type=int, default=FIRST_SEED, help="seed of the first site")
    parser.add_argument("--sites", type=int, default=1200, help="1,200 are 10,000 VM-days")
    parser.add_argument("--minutes", type=float, default=7.0, help="begin no site after these")
    parser.add_argument("--workers", type=int, default=1, help="sites played at the same time")
    asked = parser.parse_args()
    until_s = time.monotonic() + 60.0 * asked.minutes
    name = f"long_run_{asked.interval_s:g}s"
    folder = REPORTS / f"{name}-{configuration_hash(Configuration())}"
    folder.mkdir(parents=True, exist_ok=True)
    missing = sorted(set(range(asked.first, asked.first + asked.sites)) - set(kept_in(folder)))
    play = partial(
        play_share,
        interval_s=asked.interval_s,
        code=slices.code(),
        folder=folder,
        until_s=until_s,
    )
    if missing:
        compile_kept(compile_kernels, REPORTS / "kernels")
        shares = [missing[first :: asked.workers] for first in range(asked.workers)]
        with ProcessPoolExecutor(asked.workers, mp_context=get_context("fork")) as pool:
            list(pool.map(play, shares))
    row = summed(kept_in(folder).values(), interval_s=asked.interval_s)
    report(
        name,
        claim="Simulated sites of 200 VMs full of look-alikes, an hour each; goal: "
        "10,000 VM-days on 50 seeds or more, recall 0.99, 95th percentile 45 s, no false order",
        rows=[row],
        goals_met=meets(row) and float(row["vm_days"] or 0.0) >= 10_000,
    )


if __name__ == "__main__":
    main()
