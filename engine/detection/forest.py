"""Half-space trees per workload class over the samples that surprised: a second opinion.

What learns online annotates an alert and never leads to an order. Every feature is bounded,
and a score stays below its maximum, so two strange samples can still be told apart.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from engine.detection.cell import Cell
from engine.detection.lanes import F, Lanes
from engine.detection.minutes import CLASS_COUNT, class_indices
from engine.wire.alert import EvidenceItem
from models.half_space_trees import HalfSpaceForest
from models.kernels import baseline

FEATURES: Final = (
    "cpu_share",
    "delay_share",
    "disk_silence",
    "silence",
    "z_cpu",
    "z_read",
    "z_send",
    "z_write",
)
# A silence of this many nats is as surprising as they count here; a z of this is half way.
_NATS_CAP: Final = 8.0
_Z_HALF: Final = 6.0
# Of the samples that surprise a baseline one in twenty reaches it, on simulated sites.
STRANGE_SCORE: Final = 0.9


def new_forest() -> HalfSpaceForest:
    """Return a forest that has learned nothing, one model a workload class."""
    return HalfSpaceForest(features=FEATURES, model_count=CLASS_COUNT)


def score_gated(cell: Cell) -> None:
    """Score the samples of this slot that surprised a baseline, then let their class learn."""
    for name in sorted(cell.lanes):
        lanes = cell.lanes[name]
        size = len(lanes)
        if name not in cell.reported or not size:
            continue
        gated = np.flatnonzero(lanes.counted[baseline.OUT["gate"], :size] > 0)
        if len(gated):
            samples = _samples(lanes, gated)
            classes = class_indices(lanes)[gated]
            lanes.row("forest_score")[gated] = cell.forest.score_then_learn(samples, classes)


def _samples(lanes: Lanes, gated: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return shape (gated, len(FEATURES)), each value in [0, 1], NaN where unknown."""
    vcpus = np.maximum(lanes.numbers("vcpus")[gated], 1)
    columns = {
        "cpu_share": np.clip(lanes.floats[F["cpu"], gated] / vcpus, 0.0, 1.0),
        "delay_share": np.clip(lanes.row("contention")[gated], 0.0, 1.0),
        "disk_silence": np.clip(lanes.disk[1, gated] / _NATS_CAP, 0.0, 1.0),
        "silence": np.clip(lanes.life[1, gated] / _NATS_CAP, 0.0, 1.0),
        "z_cpu": _squashed(lanes.counted[4, gated]),
        "z_read": _squashed(lanes.counted[5, gated]),
        "z_write": _squashed(lanes.counted[6, gated]),
        "z_send": _squashed(lanes.counted[7, gated]),
    }
    return np.stack([columns[name] for name in FEATURES], axis=1).astype(np.float64)


def _squashed(z: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return z mapped onto (0, 1), 0.5 at 0: monotonic, so nothing saturates."""
    wide = z.astype(np.float64)
    result: NDArray[np.float64] = 0.5 + 0.5 * wide / (np.abs(wide) + _Z_HALF)
    return result


def opinion(lanes: Lanes, lane: int) -> EvidenceItem | None:
    """Return how strange the VM's last surprise was among its class; None where not scored."""
    score = lanes.figure("forest_score", lane)
    if not score >= 0.0:
        return None
    strange = "strange" if score >= STRANGE_SCORE else "not strange"
    return EvidenceItem(
        signal="forest",
        value=round(score, 4),
        limit=STRANGE_SCORE,
        text=f"for its class of workloads this is {strange}",
    )
