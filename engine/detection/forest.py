"""Score surprising samples with half-space trees, one model per workload class.

The models learn online, so the score only annotates alerts and never leads to an order. Every
feature is bounded. The z scores approach their bounds without reaching them, so that two strange
samples still differ.
"""

from typing import Final

import numpy as np

from flatline.engine.detection.cell import Cell
from flatline.engine.detection.vm_table import VmTable
from flatline.engine.wire.alert import EvidenceItem
from flatline.engine.wire.score import CLASS_EDGES, CLASSES
from flatline.models.half_space_trees import HalfSpaceForest
from flatline.models.kernels import forest as kernel

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
# Of the samples that surprise a baseline, one in twenty reaches this score on simulated sites.
STRANGE_SCORE: Final = 0.9


def new_forest() -> HalfSpaceForest:
    """Return an untrained forest with one model per workload class."""
    return HalfSpaceForest(features=FEATURES, model_count=len(CLASSES))


def score_gated(cell: Cell) -> None:
    """Score the samples of this window that surprised a baseline, then train their class.

    The scores, 0 to 1, are stored in the row `forest_score` of each table; other rows keep theirs.
    """
    for name in sorted(cell.tables):
        table = cell.tables[name]
        size = len(table)
        if name not in cell.reported or not size:
            continue
        gated, classes = np.empty((2, size), np.int64)
        samples = np.empty((size, kernel.FEATURES))
        count = kernel.take_gated(
            table.counted,
            table.baseline,
            table.row("cpu"),
            table.row("contention"),
            table.numbers("vcpus"),
            table.life[1],
            table.disk[1],
            CLASS_EDGES,
            size,
            gated,
            samples,
            classes,
        )
        if count:
            scores = cell.forest.score_then_learn(samples[:count], classes[:count])
            table.row("forest_score")[gated[:count]] = scores


def opinion(table: VmTable, index: int) -> EvidenceItem | None:
    """Return how strange the VM's last surprising sample was for its class; None if not scored.

    `index` is the row of the VM, from 0. The evidence has no nats: it does not change a verdict.
    """
    score = table.figure("forest_score", index)
    if not score >= 0.0:
        return None
    strange = "strange" if score >= STRANGE_SCORE else "not unusual"
    return EvidenceItem(
        signal="forest",
        value=round(score, 4),
        limit=STRANGE_SCORE,
        text=f"The forest score is {strange} for this class of workloads",
    )
