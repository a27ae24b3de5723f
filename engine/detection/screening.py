"""Screen each node's rows in a window with `models.kernels.screening`, by configuration."""

from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from flatline.engine.detection.cell import Cell
from flatline.engine.detection.configuration import Configuration
from flatline.engine.detection.vm_table import F, I
from flatline.engine.wire.metrics import VM_STATES
from flatline.models.kernels import screening as kernel

_INDICES: Final = {**F, **I, "crashed": VM_STATES.index("crashed")}
_ROWS: Final = np.array([_INDICES[name] for name in kernel.Rows._fields])


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


def screen(cell: Cell, configuration: Configuration) -> None:
    """Flag the rows of a cell that need further examination in this window."""
    limits = _limits(configuration)
    for name, table in cell.tables.items():
        node = cell.nodes[name]
        absent_s = max(
            configuration.vm_silence_s, configuration.unseen_member_samples * node.interval_ms / 1e3
        )
        kernel.screen(
            table.floats,
            table.integers,
            table.life,
            table.disk,
            table.signs,
            table.shows,
            _ROWS,
            limits,
            float(node.dt_s),
            float(absent_s),
            len(table),
            table.flags,
            table.found,
        )
