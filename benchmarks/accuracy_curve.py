"""The operating curve and the contribution of each layer: one parameter changed at a time.

Every error rate of the sequential test is multiplied by exp(-shift): below 0 recall and false
alerts rise, above 0 both fall. The shipped configuration is shift 0. An ablation removes one layer
or signal and keeps the rest.

Half-space trees and class profiles have no row: they annotate alerts, and no verdict depends on
them.

    python -m benchmarks.accuracy_curve                  # all rows, without time limit
    python -m benchmarks.accuracy_curve --minutes 7      # start no row after 7 min; continue later
    python -m benchmarks.accuracy_curve --only "shift +0,no fleet gate"
"""

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Final

from rich.console import Console

from benchmarks.accuracy import (
    CLEAN,
    DATA,
    FAST,
    FAULTS,
    Replayed,
    clean_figures,
    replayed,
    without,
)
from benchmarks.report import REPORTS, Figure, report
from flatline.engine.detection.compiled import compile_kernels
from flatline.engine.detection.configuration import Configuration
from flatline.engine.evaluation.judging import Judgement
from flatline.engine.evaluation.scores import Scores
from tests import slices

SHIFTS: Final = (-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0)
# Fields that control a layer, with a value so large or small that it has no effect on decisions.
_NEVER: Final = 1_000_000
LAYERS: Final[Mapping[str, Mapping[str, float]]] = {
    "no fleet gate": {"gate_members": _NEVER, "totals_shared_members": _NEVER},
    "no wait for who reboots by himself": {"self_reboot_s": 0.0, "totals_order_s": 0.0},
    "no cap on silence": {"silence_cap_nats": 1e6, "totals_silence_cap_nats": 1e6},
    "no holds after lifecycle events": {
        "lifecycle_hold_s": 0.0,
        "hold_samples": 0,
        "owner_reboot_hold_s": 0.0,
        "boot_hold_s": 0.0,
    },
    "no doubt from a living memory figure": {
        "totals_memory_alive_nats": -1e6,
        "totals_memory_doubt_nats": -1e6,
    },
    "no patience with computing jobs": {"totals_all_cores_samples": 2},
    "no veto when samples are missing": {"unseen_ratio": 2.0},
}


def shifted(shift: float) -> Configuration:
    """Return the configuration with every error rate times exp(-shift)."""
    shipped = Configuration()
    rates = {
        field.name: min(0.5, getattr(shipped, field.name) * math.exp(-shift))
        for field in fields(Configuration)
        if field.name.endswith("_rate")
    }
    return replace(shipped, **rates)


def lacking(layer: Mapping[str, float]) -> Configuration:
    """Return the configuration without a layer; constants that this release lacks are skipped."""
    known = {field.name for field in fields(Configuration)}
    changes = {name: value for name, value in layer.items() if name in known}
    return replace(Configuration(), **changes)  # type: ignore[arg-type]  # all are numbers


Replays = Callable[[str, Configuration], Replayed]


def row(name: str, configuration: Configuration, replay: Replays) -> dict[str, Figure]:
    """Return one row of the table: recall, delay and false orders over all developer data."""
    faults, clean = replay(FAULTS, configuration), replay(CLEAN, configuration)
    fast = replay(FAST, configuration)
    scores, _ = faults.scores()
    quick, _ = fast.scores()
    reboot = scores.suggestions["panic"]
    found: dict[str, Figure] = {"variant": name}
    for samples in ("2", "3", "6"):
        found[f"reboot_within_{samples}"] = reboot.within[samples]
    found["alert_within_2"] = scores.alerts["panic"].within["2"]
    found["reboot"] = reboot.recall
    found["macro_f1"] = scores.macro_f1
    found["false_orders"] = scores.false_orders.count + _orders(clean) + _orders(fast)
    found["clean_alerts_per_1000"] = clean_figures(clean)["alerts_per_1000"]
    found["reboot_10s"] = quick.suggestions["panic"].recall
    found["median_10s_s"] = quick.suggestions["panic"].median_s
    return found


def _orders(replay: Replayed) -> int:
    judged: tuple[Scores, Judgement] = replay.scores()
    return judged[0].false_orders.count


def from_folder(folder: Path) -> Replays:
    """Return a function that replays the datasets of a folder."""
    return lambda name, configuration: replayed(folder / name, configuration=configuration)


def variants(data: Path) -> dict[str, Callable[[str], dict[str, Figure]]]:
    """Return functions that compute each row, by name: the curve, then each layer and signal."""
    made: dict[str, Callable[[str], dict[str, Figure]]] = {
        f"shift {shift:+g}": partial(_replayed_as, shifted(shift), data) for shift in SHIFTS
    }
    made |= {name: partial(_replayed_as, lacking(layer), data) for name, layer in LAYERS.items()}
    memory = {FAULTS: "mem_active_mb", CLEAN: "mem_active_mb", FAST: "mem_kb"}
    made["no memory figure"] = partial(_replayed_without, data, memory, lifecycle=True)
    made["no lifecycle feed"] = partial(_replayed_without, data, {}, lifecycle=False)
    return made


def _replayed_as(configuration: Configuration, data: Path, name: str) -> dict[str, Figure]:
    return row(name, configuration, from_folder(data))


def _replayed_without(
    data: Path, columns: Mapping[str, str], name: str, *, lifecycle: bool
) -> dict[str, Figure]:
    with tempfile.TemporaryDirectory() as folder:
        for dataset in (FAULTS, CLEAN, FAST):
            column = columns.get(dataset, "")
            without(data / dataset, Path(folder), column=column, lifecycle=lifecycle)
        return row(name, Configuration(), from_folder(Path(folder)))


def main() -> None:
    """Compute the missing rows, and report all."""
    parser = argparse.ArgumentParser(description="The operator's curve and the ablation table.")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the developer data")
    parser.add_argument("--only", help="names of lines, with commas between")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no line after these")
    asked = parser.parse_args()
    until_s = time.monotonic() + 60.0 * asked.minutes
    made = variants(asked.data)
    names = asked.only.split(",") if asked.only else list(made)
    kept = REPORTS / "accuracy_curve_lines.json"
    lines: dict[str, dict[str, Figure]] = slices.earlier(kept).get("lines", {})
    missing = [name for name in names if name not in lines]
    if missing:
        compile_kernels()
    for name in missing:
        if time.monotonic() >= until_s:
            break
        lines[name] = made[name](name)
        slices.keep(kept, {"lines": lines})
        Console().print_json(json.dumps(lines[name]), indent=None)
    rows = [lines[name] for name in made if name in lines]
    shipped = lines.get("shift +0")
    report(
        "accuracy_curve",
        claim="What is found against what is wrong, when every threshold shifts by so many nats, "
        "and without one layer; goal: no false order at the shipped point",
        rows=rows,
        goals_met=shipped is not None and shipped["false_orders"] == 0,
    )


if __name__ == "__main__":
    main()
