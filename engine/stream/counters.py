"""Growth of the counters of VMs between two samples, by one rule for history and forecasts.

A missing value is unknown. If a counter decreases or a VM has another instance, a new epoch begins,
and the growth is unknown. The growth of a sum over devices is also unknown if the set of devices
changed. The engine applies the same rule to all VMs in compiled kernels (`models.kernels.ingest`,
`models.kernels.baseline`); a test compares both.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from flatline.engine.wire.frame import VmRows
from flatline.engine.wire.metrics import INTEGER_ROW

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Places = NDArray[np.int64]

# No device transfers so many bytes per second: a higher rate is an error of the counter.
IMPOSSIBLE_PER_S: Final = 1e11
_DEVICES: Final = ("block_", "net_")


def known(rows: VmRows, names: Sequence[str]) -> Floats:
    """Return integer columns of a frame, shape (len(names), n), NaN where not measured.

    `names` are of `wire.metrics.INTEGERS`; n is the number of rows. Exact up to 2^53, which is 104
    days of CPU time in ns; beyond it a difference is off by one or two ns.
    """
    chosen = [INTEGER_ROW[name] for name in names]
    values: Floats = rows.integers[chosen].astype(np.float64)
    if rows.missing is not None:
        values[rows.missing[chosen]] = np.nan
    return values


def growth(values: Floats, before: Floats) -> tuple[Floats, Bools]:
    """Return how much counters grew, and which VMs began a new epoch.

    Parameters
    ----------
    values, before
        Counters of two samples, shape (counters, n), NaN where unknown.

    Returns
    -------
    tuple
        The growth, shape (counters, n), NaN where unknown; and, shape (n,), whether one counter of
        the VM decreased, which makes the growth of all of its counters unknown.
    """
    grown: Floats = values - before
    restarted = np.any(grown < 0.0, axis=0)
    grown[:, restarted] = np.nan
    return grown, restarted


class Counters:
    """The counters in the last sample of a list of VMs, the roster.

    Parameters
    ----------
    names
        The integer columns of a frame that are counted.
    size
        Number of VMs.

    Attributes
    ----------
    values
        Shape (len(names), n); NaN where the last sample did not have the counter.
    instances, device_sets
        Shape (n,): the last known run and set of devices of each VM; NaN where never known.
    """

    def __init__(self, names: Sequence[str], size: int = 0) -> None:
        self.names = tuple(names)
        self.values = np.full((len(names), size), np.nan)
        self.instances = np.full(size, np.nan)
        self.device_sets = np.full(size, np.nan)

    def take(self, rows: VmRows, values: Floats | None = None) -> Floats:
        """Return the growth since the last sample, shape (len(names), n), and store this sample.

        Parameters
        ----------
        rows
            The next sample, in the order of the roster.
        values
            The counters of the sample; None takes the columns `names` of `rows`.

        Returns
        -------
        NDArray
            NaN where a value is unknown or the VM began a new epoch.
        """
        now = known(rows, self.names) if values is None else values
        instances, sets = known(rows, ("instance", "device_set"))
        # Sums over another set of devices cannot be compared. CPU time is not a sum over devices.
        of_devices = np.array([name.startswith(_DEVICES) for name in self.names])
        self.values[np.ix_(of_devices, _differ(sets, self.device_sets))] = np.nan
        grown, _ = growth(now, self.values)
        grown[:, _differ(instances, self.instances)] = np.nan
        self.values = now
        self.instances = np.where(np.isnan(instances), self.instances, instances)
        self.device_sets = np.where(np.isnan(sets), self.device_sets, sets)
        return grown

    def moved(self, places: Places) -> "Counters":
        """Return the counters for a new roster of n VMs.

        `places`, shape (n,), are the old indices (from 0) of its VMs, -1 for a VM that was not in
        the old roster: its values are NaN.
        """
        moved = Counters(self.names, len(places))
        kept = np.flatnonzero(places >= 0)
        for name in ("values", "instances", "device_sets"):
            getattr(moved, name)[..., kept] = getattr(self, name)[..., places[kept]]
        return moved


def _differ(values: Floats, before: Floats) -> Bools:
    """Return where two values are known and differ."""
    differ: Bools = (values != before) & ~np.isnan(values) & ~np.isnan(before)
    return differ
