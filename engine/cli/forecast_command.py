"""`flatline forecast DATASET`: forecasts of a recorded dataset as a table, in time order.

A forecast uses only data up to its time `t`. This is the time of the VM's last sample in the step
at whose end the forecast is made.
"""

import contextlib
import gzip
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple, TextIO

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from flatline.connectors.traces.dataset import Dataset
from flatline.connectors.traces.windows import Window, WindowCounts
from flatline.engine.errors import SettingsError, StateUnwritable
from flatline.engine.forecasting.forecast_accuracy import Judge, Verdict
from flatline.engine.plain_text import csv_field
from flatline.engine.wiring_planning import compile_forecaster
from flatline.models.forecaster import Forecaster
from flatline.models.kernels.forecast_row import BANDS, HORIZONS_S, SLOT_S

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

COLUMNS: Final = ("t", "vm", "metric", "horizon_s", *BANDS)
# The columns of a dataset in the order of `connectors.traces.windows.RATES`, and the factors that
# convert rates to the units of these columns.
METRICS: Final = (
    ("cpu_pct", 100.0),
    ("mem_active_mb", 1024.0**-2),
    ("disk_read_kbs", 1 / 1024),
    ("disk_write_kbs", 1 / 1024),
    ("net_rx_kbs", 1 / 1024),
    ("net_tx_kbs", 1 / 1024),
)
_MINUTE_S: Final = 60
# Endings of a dataset's own files, which no table may replace.
_PARTS: Final = ("vms.csv", "lifecycle.csv", "events.csv")
# Nine significant digits represent a float32 exactly, so that no interval becomes narrower.
_ROW: Final = "%s,%s,%s,%d,%.9g,%.9g,%.9g,%.9g,%.9g\n"


class Outcome(NamedTuple):
    """Rows written, rows read by outcome, and the cost of one update of a series in μs."""

    rows: int
    figures: dict[str, int]
    series: int
    updates: int
    us_per_update: float
    verdicts: list[Verdict]


def verdict_table(verdicts: list[Verdict]) -> Table:
    """Return the verdicts as a table for a terminal."""
    table = Table(
        *("metric", "ahead", "MAE / persistence", "worst VM", "in 90 %", "least decile", "in 50 %"),
        title=(
            "after the first 7 days of each VM; in brackets without VMs that mostly repeat one "
            "value"
        ),
    )
    for one in verdicts:
        table.add_row(
            one.metric,
            f"{one.horizon_s // 60} min",
            f"{one.mae_ratio:.3f}",
            f"{one.worst} {one.worst_ratio:.2f}",
            f"{one.coverage_90:.3f} ({one.moving_90:.3f})",
            f"{one.lowest_decile_90:.3f}",
            f"{one.coverage_50:.3f} ({one.moving_50:.3f})",
        )
    return table


class _Step(NamedTuple):
    """One closed step: shape (metrics, vms), and the time of each VM's last sample."""

    number: int
    values: F64
    time_s: F64


def step_of(dataset: Dataset) -> int:
    """Return the step of a dataset's forecasts in s: 60, or 300 if its samples are rarer.

    Raises
    ------
    SettingsError
        The dataset's interval is longer than 5 min, the shortest horizon.
    """
    if dataset.interval_s > 1.1 * SLOT_S:
        raise SettingsError(
            f"{dataset.samples}: samples are {dataset.interval_s:g} s apart. Forecasts require an "
            f"interval of at most {SLOT_S} s."
        )
    return _MINUTE_S if dataset.interval_s <= _MINUTE_S else SLOT_S


def run_forecast(dataset: Dataset, *, out: Path, judged: bool) -> Outcome:
    """Write the forecasts of a dataset to `out` (gzipped where it ends in .gz).

    `judged` is whether the forecasts are compared with the actual values; without it the result has
    no verdicts.

    Raises
    ------
    SettingsError
        The dataset cannot be used, or `out` is one of its files.
    StateUnwritable
        `out` cannot be written.
    """
    _refuse_own_file(dataset, out)
    step_s = step_of(dataset)
    names = tuple(vm.id for vm in dataset.vms)
    forecaster = Forecaster(len(METRICS) * len(names), step_s=step_s)
    judge = Judge(tuple(name for name, _ in METRICS), names, step_s=step_s) if judged else None
    compile_forecaster()  # so that the measured time excludes the compilation
    quoted = tuple(map(csv_field, names))
    counts = WindowCounts()
    rows = updates = 0
    spent_s = 0.0
    try:
        with _opened(out) as file:
            file.write(",".join(COLUMNS) + "\n")
            for step in _steps(dataset, step_s, counts):
                values = step.values.reshape(-1)
                began_s = time.perf_counter()
                made = forecaster.fold(values, step.number)
                spent_s += time.perf_counter() - began_s
                updates += int((~np.isnan(values)).sum())
                rows += _write(file, step, quoted, made)
                if judge is not None:
                    judge.take(step.number, values, made)
    except OSError as error:
        raise StateUnwritable(f"{out} cannot be written: {error}. Use another --out") from error
    return Outcome(
        rows=rows,
        figures=counts.figures(),
        series=len(forecaster),
        updates=updates,
        us_per_update=spent_s * 1e6 / max(updates, 1),
        verdicts=[] if judge is None else judge.verdicts(),
    )


def _refuse_own_file(dataset: Dataset, out: Path) -> None:
    folder = dataset.samples.parent
    own = (dataset.samples, *(folder / f"{dataset.name}_{part}" for part in _PARTS))
    if out.exists() and any(path.exists() and out.samefile(path) for path in own):
        raise SettingsError(f"{out} is a file of the dataset itself. Use another --out.")


def _opened(out: Path) -> contextlib.AbstractContextManager[TextIO]:
    if out.suffix == ".gz":
        return gzip.open(out, "wt", compresslevel=1, encoding="utf-8", newline="")
    return out.open("w", encoding="utf-8", newline="")


def _steps(dataset: Dataset, step_s: int, counts: WindowCounts) -> Iterator[_Step]:
    """Yield closed steps; several samples of one step are averaged."""
    units = np.array([[unit] for _, unit in METRICS])
    vcpus = np.array([vm.vcpus for vm in dataset.vms], np.float64)
    begun: list[Window] = []
    number = first = -1
    # Sample times drift. If interval and step have the same length, steps are counted by the number
    # of the time window, so that no step gets two samples and no step is empty.
    counted = 0.9 * step_s < dataset.interval_s
    for slot in dataset.windows(counts):
        if first < 0:
            first = int(slot.start_s // step_s) + 1
        now = first + slot.number if counted else int(slot.start_s // step_s) + 1
        if begun and now != number:
            yield _closed(begun, number, units, vcpus)
            begun = []
        number = now
        begun.append(slot)
    if begun:
        yield _closed(begun, number, units, vcpus)


def _closed(slots: list[Window], number: int, units: F64, vcpus: F64) -> _Step:
    times = np.stack([slot.time_s for slot in slots])
    if len(slots) == 1:
        values = slots[0].values
    else:
        stacked = np.stack([slot.values for slot in slots])
        known = ~np.isnan(stacked)
        count = known.sum(axis=0)
        total = np.where(known, stacked, 0.0).sum(axis=0)
        values = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    values = values * units
    values[0] /= vcpus
    seen = ~np.isnan(times).all(axis=0)
    time_s = np.full(times.shape[1], np.nan)
    time_s[seen] = np.nanmax(times[:, seen], axis=0)
    return _Step(number, values, time_s)


def _write(file: TextIO, step: _Step, names: tuple[str, ...], made: F32) -> int:
    """Write the forecasts of a step: by VM, then metric, then horizon."""
    shaped = made.reshape(len(METRICS), len(names), len(HORIZONS_S), len(BANDS))
    lines = []
    for place in np.flatnonzero(~np.isnan(step.time_s)):
        at = repr(float(step.time_s[place])).removesuffix(".0")
        name = names[place]
        for row, (metric, _) in enumerate(METRICS):
            for horizon_s, bands in zip(HORIZONS_S, shaped[row, place].tolist(), strict=True):
                if bands[0] == bands[0]:
                    lines.append(_ROW % (at, name, metric, horizon_s, *bands))
    file.write("".join(lines))
    return len(lines)
