"""Learn how long each VM is silent: the gap model (silence model), in seconds, per VM.

A gap is the time between two signs of life. Its survival function P(gap ≥ t) is stored as
counts at log-spaced edges (the empirical estimator with Krichevsky-Trofimov's prior of
one half), so the evidence of a silence follows from the VM's own past. Ten seconds are worth more
for a guest that writes every second than for one that writes hourly, and a new VM cannot surprise
at all.

A silence that another event cut short would have lasted longer. It does not show how gaps end, so
it is not counted as a gap. But it shows that the VM lives with silences of this length and counts
as survived, so that a silence rather surprises too little than too much.
"""

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.kernels._jit import inlined, kernel
from models.kernels.lanes import LANES

F32 = NDArray[np.float32]
I8 = NDArray[np.int8]
U8 = NDArray[np.uint8]

# Edges 2**0 to 2**15 s: one second to nine hours.
EDGE_COUNT: Final = 16
RUN, HELD, LIVE = 0, 1, 2
SURVIVED: Final = 3
FIELD_COUNT: Final = SURVIVED + EDGE_COUNT

OUT: Final = {"run_s": 0, "nats": 1}
OUT_ROWS: Final = len(OUT)

SILENT: Final = 0
ALIVE: Final = 1
UNKNOWN: Final = -1
# A silence that ended without a sign of life: it would have lasted longer.
CUT_SHORT: Final = 2

# Counts are halved after a week of samples, so that the model can adapt.
MEMORY_S: Final = 7 * 86_400.0

# The whole silence, for `share` of `fold_life`.
WHOLE: Final = np.float32(1)

_ZERO: Final = np.float32(0)
_ONE: Final = np.float32(1)
_HALF: Final = np.float32(0.5)


def new_state(blocks: int) -> F32:
    """Return the state of new VMs, shape (blocks, FIELD_COUNT, LANES)."""
    return np.zeros((blocks, FIELD_COUNT, LANES), np.float32)


@kernel
def _surprise(state: F32, lane: int, run_s: np.float32) -> np.float32:
    """Return -log P(gap ≥ run_s), interpolated between edges on the log of time."""
    place = np.float32(math.log2(max(run_s, _ONE)))
    edge = min(int(place), EDGE_COUNT - 1)
    total = state[LIVE, lane] + _ONE
    here = np.float32(math.log((state[SURVIVED + edge, lane] + _HALF) / total))
    if edge == EDGE_COUNT - 1:
        return -here
    further = np.float32(math.log((state[SURVIVED + edge + 1, lane] + _HALF) / total))
    return -(here + (place - np.float32(edge)) * (further - here))


@inlined
def _learn(fields: F32, lane: int, run_s: np.float32, is_cut_short: bool) -> None:
    """Count an ended gap, or a silence that was cut short."""
    if not is_cut_short:
        fields[LIVE, lane] += _ONE
    edge = 0
    # The edges ascend, so a short run ends the loop after the first comparison.
    while edge < EDGE_COUNT and run_s >= np.float32(1 << edge):
        lasted = fields[SURVIVED + edge, lane] + _ONE
        fields[SURVIVED + edge, lane] = min(lasted, fields[LIVE, lane])
        edge += 1


@kernel
def fold_life(
    state: F32, alive: I8, hold: U8, dt_s: np.float32, out: F32, share: np.float32
) -> int:
    """Fold one sample's signs of life into every lane's gap model, in place.

    Parameters
    ----------
    state
        Shape (blocks, FIELD_COUNT, LANES), updated.
    alive
        Shape (blocks * LANES): `ALIVE`, `SILENT`, `CUT_SHORT` or `UNKNOWN`. Unknown time neither
        ends a gap nor adds to it.
    hold
        Shape (blocks * LANES): non-zero where a silence has an external explanation (a pool
        that stalls, a lifecycle operation, a confirmed fault): its gap is not learned as
        usual.
    dt_s
        Time since the sample before.
    out
        Shape (2, blocks * LANES), overwritten; rows as `OUT`: length of the lane's silence
        in s, and how surprising it is for this VM, in nats; both 0 when alive.
    share
        Share of a silence that is compared with the past: 1 gives the nats of a silence of
        the same length, 1/4 those of a quarter of it, so that only a silence several times
        longer than usual surprises.

    Returns
    -------
    int
        Number of silent lanes.
    """
    silent = 0
    cap = np.float32(MEMORY_S) / dt_s
    for block in range(state.shape[0]):
        fields = state[block]
        for lane in range(LANES):
            i = block * LANES + lane
            sign = alive[i]
            run = fields[RUN, lane]
            if sign in (ALIVE, CUT_SHORT):
                learned = fields[HELD, lane] == _ZERO
                if learned:
                    _learn(fields, lane, run, sign == CUT_SHORT)
                    if fields[LIVE, lane] > cap:
                        for field in range(LIVE, FIELD_COUNT):
                            fields[field, lane] *= _HALF
                fields[RUN, lane] = _ZERO
                fields[HELD, lane] = _ZERO
                out[0, i] = _ZERO
                out[1, i] = _ZERO
                continue
            if sign == SILENT:
                run += dt_s
                fields[RUN, lane] = run
            if hold[i] != 0 and run > _ZERO:
                fields[HELD, lane] = _ONE
            out[0, i] = run
            out[1, i] = _surprise(fields, lane, share * run) if run > _ZERO else _ZERO
            silent += 1 if run > _ZERO else 0
    return silent
