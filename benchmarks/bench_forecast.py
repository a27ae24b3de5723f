"""Quality and cost of forecasts of real VMs, compared with common alternatives.

Reads `bitbrains_clean_dev` and `bitbrains_faults_dev` from ../shared/data beside the repository,
and reports if they are absent. CPU is judged after each VM's first 7 days, at the value 5 and 30
min ahead; persistence is the last value. `faults` has faults and confounders injected after the
first week, which cannot be forecast. `newborn` is a VM without history, `taught` by its class or
`alone`: the error of its first day, the hits of its first hour.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from river import time_series

from benchmarks.report import Figure, report
from flatline.connectors.traces.dataset import open_dataset
from flatline.engine.forecasting.forecast_accuracy import WARM_UP_S, Judge, Verdict
from flatline.engine.wire.score import CLASS_EDGES
from flatline.models.forecaster import Forecaster
from flatline.models.kernels.forecast_row import HORIZONS_S

F64 = NDArray[np.float64]
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
PACKS = ("bitbrains_clean_dev", "bitbrains_faults_dev")
STEP_S = 300
GOALS = {300: 0.86, 1800: 0.72}
# Short horizons in steps.
AHEAD = {300: 1, 1800: 6}
US_GOAL = 2.0
# Four metrics of a thousand VMs: 100 MB of state.
SERIES, FLEET_STEPS = 4_000, 900


def loaded(pack: str) -> tuple[tuple[str, ...], F64]:
    """Return names, and CPU in % as shape (steps, vms)."""
    dataset = open_dataset(DATA / pack)
    slots = list(dataset.windows())
    vcpus = np.array([vm.vcpus for vm in dataset.vms])
    cpu = np.full((slots[-1].number + 1, len(vcpus)), np.nan)
    for slot in slots:
        cpu[slot.number] = slot.values[0]
    return tuple(vm.id for vm in dataset.vms), cpu * (100 / vcpus)


def flatline(names: tuple[str, ...], cpu: F64) -> dict[int, Verdict]:
    """Return the verdicts on Flatline's forecasts."""
    forecaster, judge = Forecaster(len(names), step_s=STEP_S), Judge(("cpu",), names, step_s=STEP_S)
    for number, values in enumerate(cpu, start=1_000_000):
        judge.take(number, values, forecaster.fold(values, number))
    return {one.horizon_s: one for one in judge.verdicts()}


def first_hour(cpu: F64, *, is_taught: bool) -> dict[int, tuple[float, float, float]]:
    """Return, by horizon, MAE / persistence of a first day and the intervals' hits in its hour.

    Each half of the VMs runs for a week and then teaches the other half, whose VMs are new. VMs
    that stay constant to their resolution are left out.
    """
    week, day, hour = WARM_UP_S // STEP_S, 86_400 // STEP_S, 3600 // STEP_S
    found: dict[int, list[tuple[F64, NDArray[np.bool_], NDArray[np.bool_]]]] = {}
    for half in range(2):
        teachers, values = cpu[:week, half::2], cpu[week : week + day + 6, 1 - half :: 2]
        grown_up = Forecaster(teachers.shape[1], step_s=STEP_S)
        for number, known in enumerate(teachers, start=1_000_000):
            grown_up.fold(known, number)
        newborn = Forecaster(values.shape[1], step_s=STEP_S)
        if is_taught:
            _teach(grown_up, newborn, values)
        made = np.array([newborn.fold(v, 1_000_000 + week + k) for k, v in enumerate(values)])
        for horizon, (horizon_s, ahead) in enumerate(AHEAD.items()):
            reported, outcome = made[:day, :, horizon], values[ahead : day + ahead]
            moves = (values[:day] == outcome).mean(axis=0) < 0.5
            reported, outcome, last = reported[:, moves], outcome[:, moves], values[:day, moves]
            missed = np.nanmean(np.abs(reported[..., 0] - outcome), axis=0)
            ratio = missed / np.nanmean(np.abs(last - outcome), axis=0)
            rounded = outcome[:hour].astype(np.float32)
            reported = reported[:hour]
            hits = [
                (reported[..., k] <= rounded) & (rounded <= reported[..., k + 1]) for k in (1, 3)
            ]
            found.setdefault(horizon_s, []).append((ratio, hits[0], hits[1]))
    return {
        horizon_s: (
            float(np.median(np.concatenate([one[0] for one in halves]))),
            float(np.concatenate([one[1] for one in halves], axis=1).mean()),
            float(np.concatenate([one[2] for one in halves], axis=1).mean()),
        )
        for horizon_s, halves in found.items()
    }


def _teach(grown_up: Forecaster, newborn: Forecaster, values: F64) -> None:
    """Initialise new VMs from the profile of their class, as the role does."""
    shares = grown_up.level() / 100.0
    classes = np.searchsorted(CLASS_EDGES, shares, side="right")
    first = np.array([column[~np.isnan(column)][0] for column in values.T]) / 100.0
    for kind in np.unique(classes):
        profile = grown_up.profile(np.flatnonzero(classes == kind))
        members = np.flatnonzero(np.searchsorted(CLASS_EDGES, first, side="right") == kind)
        if profile is not None:
            newborn.start(members, profile)


def us_per_update(cpu: F64) -> float:
    """Return μs an update of one metric of one VM, in a fleet whose state exceeds every cache.

    An update is one mean through all candidates of all three horizons. Every step of 5 min ends a
    slot, so each also forecasts a day ahead; of the role's steps of 1 min every fifth does. Each
    series replays the CPU of one of the pack's VMs, a few steps later than the one before. All
    steps do the same work, so the least disturbed tenth is the cost.
    """
    fleet = np.stack([np.roll(cpu[:, k % cpu.shape[1]], 7 * k) for k in range(SERIES)], axis=1)
    forecaster = Forecaster(SERIES, step_s=STEP_S)
    spent = []
    for number, values in enumerate(fleet[:FLEET_STEPS], start=1_000_000):
        began = time.thread_time()
        forecaster.fold(values, number)
        spent.append(time.thread_time() - began)
    return float(np.quantile(spent[FLEET_STEPS // 2 :], 0.1)) * 1e6 / SERIES


def ewma(values: F64, ahead: int) -> F64:
    """Return an EWMA with weight 0.3 for any horizon."""
    made, mean = np.empty(len(values)), values[0]
    for step, value in enumerate(values):
        mean += 0.3 * (value - mean)
        made[step] = mean
    return made


def yesterday(values: F64, ahead: int) -> F64:
    """Return the value one day before the forecast time."""
    made = values.copy()
    made[288:] = values[ahead : len(values) - 288 + ahead] if ahead else values[:-288]
    return made


def river_holt(values: F64, ahead: int) -> F64:
    """Return the forecast of `river.time_series.HoltWinters(0.3, 0.1)`."""
    model: Any = time_series.HoltWinters(alpha=0.3, beta=0.1)  # type: ignore[no-untyped-call]
    made = values.copy()
    for step, value in enumerate(values):
        model.learn_one(float(value))
        if step:
            made[step] = model.forecast(horizon=ahead)[-1]
    return made


OTHERS: dict[str, Callable[[F64, int], F64]] = {
    "EWMA 0.3": ewma,
    "yesterday": yesterday,
    "River Holt": river_holt,
}


def others(cpu: F64, horizon_s: int) -> dict[str, tuple[float, float]]:
    """Return, for each alternative, its median ratio and μs a sample."""
    ahead, first = AHEAD[horizon_s], WARM_UP_S // STEP_S
    ratios: dict[str, list[float]] = {name: [] for name in OTHERS}
    spent = dict.fromkeys(OTHERS, 0.0)
    samples = 0
    for column in cpu.T:
        known = np.flatnonzero(~np.isnan(column))
        series = column[known[0] :]
        filled = series[
            np.maximum.accumulate(np.where(np.isnan(series), 0, np.arange(len(series))))
        ]
        judged = ~np.isnan(series[first:-ahead]) & ~np.isnan(series[first + ahead :])
        outcome = series[first + ahead :][judged]
        persisted = np.abs(series[first:-ahead][judged] - outcome).mean()
        samples += len(series)
        for name, method in OTHERS.items():
            began = time.thread_time()
            made = method(filled, ahead)
            spent[name] += time.thread_time() - began
            if persisted > 0:
                miss = np.abs(made[first:-ahead][judged] - outcome).mean()
                ratios[name].append(float(miss / persisted))
    return {
        name: (float(np.median(found)), spent[name] * 1e6 / samples)
        for name, found in ratios.items()
    }


def main() -> int:
    """Measure and report; return 0 with a message where the data is absent."""
    packs = [pack for pack in PACKS if (DATA / f"{pack}_traces.csv.gz").exists()]
    if not packs:
        Console().print(f"forecast: no traces in {DATA.name}; so nothing was measured.")
        return 0
    rows: list[dict[str, Figure]] = []
    met = True
    for pack in packs:
        names, cpu = loaded(pack)
        verdicts, us = flatline(names, cpu), us_per_update(cpu)
        newborn = {how: first_hour(cpu, is_taught=how == "taught") for how in ("taught", "alone")}
        met &= us <= US_GOAL
        for horizon_s in HORIZONS_S:
            one = verdicts[horizon_s]
            rows.append(
                {
                    "pack": pack.split("_")[1],
                    "min": horizon_s // 60,
                    "method": "flatline",
                    "mae_ratio": one.mae_ratio,
                    "worst": f"{one.worst} {one.worst_ratio:.2f}",
                    "in_90": one.coverage_90,
                    "least_decile": one.lowest_decile_90,
                    "in_50": one.coverage_50,
                    "moving_90": one.moving_90,
                    "moving_50": one.moving_50,
                    "us_update": us,
                }
            )
            if horizon_s not in GOALS:
                continue
            met &= pack != PACKS[0] or one.mae_ratio <= GOALS[horizon_s]
            met &= 0.88 <= one.coverage_90 <= 0.92 and one.lowest_decile_90 >= 0.87
            met &= 0.47 <= one.moving_50 <= 0.55
            for name, of_horizon in newborn.items():
                ratio, in_90, in_50 = of_horizon[horizon_s]
                rows.append(
                    dict.fromkeys(rows[0])
                    | {
                        "pack": pack.split("_")[1],
                        "min": horizon_s // 60,
                        "method": f"newborn, {name}",
                        "mae_ratio": ratio,
                        "moving_90": in_90,
                        "moving_50": in_50,
                    }
                )
            for name, (ratio, us_other) in others(cpu, horizon_s).items():
                empty: dict[str, Figure] = dict.fromkeys(rows[0])
                known: dict[str, Figure] = {
                    "pack": pack.split("_")[1],
                    "min": horizon_s // 60,
                    "method": name,
                    "mae_ratio": ratio,
                    "us_update": us_other,
                }
                rows.append(empty | known)
    report(
        "forecast",
        claim=(
            "CPU forecasts: median MAE / persistence (clean VMs: <= 0.86 at 5 min, <= 0.72 at 30),"
            " 90 % interval 0.88-0.92, in each tenth of VMs >= 0.87, 50 % interval of VMs that move"
            " 0.47-0.55; one update of a metric in a fleet of a thousand VMs costs <= 2 μs"
        ),
        rows=rows,
        goals_met=bool(met),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
