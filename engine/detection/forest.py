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
_Z_FROM: Final = FEATURES.index("z_cpu")
_Z_ROWS: Final = np.array(
    [
        baseline.OUT[f"z_{name}"]
        for name in (
            "cpu_cores",
            "disk_rd_bytes_per_s",
            "net_tx_bytes_per_s",
            "disk_wr_bytes_per_s",
        )
    ]
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
    samples = np.empty((len(gated), len(FEATURES)))
    samples[:, 0] = lanes.floats[F["cpu"], gated] / vcpus
    samples[:, 1] = lanes.row("contention")[gated]
    samples[:, 2] = lanes.disk[1, gated] / _NATS_CAP
    samples[:, 3] = lanes.life[1, gated] / _NATS_CAP
    shares = samples[:, :_Z_FROM]
    np.clip(shares, 0.0, 1.0, out=shares)
    z = lanes.counted[_Z_ROWS[:, None], gated].astype(np.float64)
    # Mapped onto (0, 1), 0.5 at 0: monotonic, so nothing saturates.
    samples[:, _Z_FROM:] = (0.5 + 0.5 * z / (np.abs(z) + _Z_HALF)).T
    return samples


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
