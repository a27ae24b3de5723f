"""Screen each node's lanes in a slot with `models.kernels.glance`, by configuration."""

from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from engine.detection.cell import Cell
from engine.detection.configuration import Configuration
from engine.detection.lanes import F, I
from engine.wire.metrics import VM_STATES
from models.kernels import glance as kernel

_PLACES: Final = {**F, **I, "crashed": VM_STATES.index("crashed")}
_ROWS: Final = np.array([_PLACES[name] for name in kernel.Rows._fields])


@lru_cache(maxsize=16)
def _limits(configuration: Configuration) -> NDArray[np.float64]:
    of_rate = {"totals_alert_nats": configuration.totals_nats("alert")}
    return np.array(
        [
            of_rate[name] if name in of_rate else getattr(configuration, name)
            for name in kernel.Limits._fields
        ],
        np.float64,
    )


def glance(cell: Cell, configuration: Configuration) -> None:
    """Flag the lanes of a cell that need further examination in this slot."""
    limits = _limits(configuration)
    for name, lanes in cell.lanes.items():
        node = cell.nodes[name]
        absent_s = max(
            configuration.vm_silence_s, configuration.unseen_member_samples * node.interval_ms / 1e3
        )
        kernel.glance(
            lanes.floats,
            lanes.integers,
            lanes.life,
            lanes.disk,
            lanes.signs,
            lanes.shows,
            _ROWS,
            limits,
            float(node.dt_s),
            float(absent_s),
            len(lanes),
            lanes.finds,
            lanes.found,
        )
