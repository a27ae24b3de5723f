"""The operator's curve, and what each layer is worth: one figure changed at a time.

Every error rate of the sequential test is multiplied by exp(-shift): below 0 more is found and
more is wrong, above 0 less of both. The shipped point is shift 0. An ablation takes one layer
or signal away and leaves the rest as it is.

    python -m benchmarks.accuracy_curve              # both, over all developer data
    python -m benchmarks.accuracy_curve --shifts -2,0,2 --no-ablation
"""

import argparse
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Final

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
from benchmarks.report import Figure, report
from engine.detection.compiled import compile_kernels
from engine.detection.configuration import Configuration
from engine.evaluation.judging import Judgement
from engine.evaluation.scores import Scores

SHIFTS: Final = (-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0)
# By the fields that carry a layer; a number so large or small takes it out of the decision.
_NEVER: Final = 1_000_000
LAYERS: Final[Mapping[str, Mapping[str, float]]] = {
    "no fleet gate": {"gate_members": _NEVER, "totals_shared_members": _NEVER},
    "no wait for who reboots by himself": {
        "self_reboot_s": 0.0,
        "order_samples": 1,
        "totals_order_s": 0.0,
    },
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
    """Return the configuration without a layer; constants this release lacks are passed over."""
    known = {field.name for field in fields(Configuration)}
    changes = {name: value for name, value in layer.items() if name in known}
    return replace(Configuration(), **changes)  # type: ignore[arg-type]  # numbers all of them


Replays = Callable[[str, Configuration], Replayed]


def row(name: str, configuration: Configuration, replay: Replays) -> dict[str, Figure]:
    """Return one line of the table: recall, delay and false orders over all developer data."""
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


def from_data(data: Path) -> Replays:
    """Return what replays a dataset as it is."""
    return lambda name, configuration: replayed(data / name, configuration=configuration)


def from_copies(folder: Path) -> Replays:
    """Return what replays the copies in a folder."""
    return lambda name, configuration: replayed(folder / name, configuration=configuration)


def ablations(data: Path) -> Iterator[dict[str, Figure]]:
    """Yield a line for each layer and signal taken away."""
    for name, layer in LAYERS.items():
        yield row(name, lacking(layer), from_data(data))
    memory = {FAULTS: "mem_active_mb", CLEAN: "mem_active_mb", FAST: "mem_kb"}
    for name, column, lifecycle in (
        ("no memory figure", memory, True),
        ("no lifecycle feed", {}, False),
    ):
        with tempfile.TemporaryDirectory() as folder:
            for dataset in (FAULTS, CLEAN, FAST):
                left_out = column.get(dataset, "")
                without(data / dataset, Path(folder), column=left_out, lifecycle=lifecycle)
            yield row(name, Configuration(), from_copies(Path(folder)))


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description="The operator's curve and the ablation table.")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the developer data")
    parser.add_argument("--shifts", default=",".join(f"{shift:g}" for shift in SHIFTS))
    parser.add_argument("--no-ablation", action="store_true")
    asked = parser.parse_args()
    compile_kernels()
    rows = [
        row(f"shift {shift:+g}", shifted(shift), from_data(asked.data))
        for shift in (float(text) for text in asked.shifts.split(","))
    ]
    if not asked.no_ablation:
        rows += ablations(asked.data)
    shipped = [line for line in rows if line["variant"] == "shift +0"]
    report(
        "accuracy_curve",
        claim="What is found against what is wrong, when every threshold shifts by so many nats, "
        "and without one layer; goal: no false order at the shipped point",
        rows=rows,
        goals_met=all(line["false_orders"] == 0 for line in shipped),
    )


if __name__ == "__main__":
    main()
