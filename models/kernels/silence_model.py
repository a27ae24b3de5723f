"""Learn how long each VM is silent: the gap model (silence model), in seconds, per VM.

A gap is the time between two signs of life. Its survival function P(gap ≥ t) is stored as
counts at log-spaced edges (the empirical estimator with Krichevsky-Trofimov's prior of
one half), so the evidence of a silence follows from the VM's own past. Ten silent seconds are more
evidence for a guest that writes every second than for one that writes hourly. A VM without learned
gaps gives at most 0.7 nats.

A silence that another event cut short is a censored observation: it would have lasted longer. Its
end is not that of a gap, so it is not counted as a gap. But it shows that the VM survives silences
of this length, and counts as survived. The error is then towards too little surprise.
"""

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from flatline.models.kernels._jit import inlined, kernel
from flatline.models.kernels.blocks import BLOCK_ROWS

F32 = NDArray[np.float32]
I8 = NDArray[np.int8]
U8 = NDArray[np.uint8]

# Edges 2**0 to 2**15 s: one second to nine hours. Fields of a row: length of the current silence in
# s, whether it has an external explanation, number of gaps, and the number that survived each edge.
EDGE_COUNT: Final = 16
RUN, HELD, LIVE = 0, 1, 2
SURVIVED: Final = 3
FIELD_COUNT: Final = SURVIVED + EDGE_COUNT

OUT: Final = {"run_s": 0, "nats": 1}
OUT_ROWS: Final = len(OUT)

SILENT: Final = 0
ALIVE: Final = 1
UNKNOWN: Final = -1
# Another event than a sign of life ended the silence, which would have lasted longer.
CUT_SHORT: Final = 2

# In s. Counts are halved when there are more gaps than samples in this time, so that they adapt.
MEMORY_S: Final = 7 * 86_400.0

# Value of `share` in `fold_life` with which the whole silence is compared with the past.
WHOLE: Final = np.float32(1)

_ZERO: Final = np.float32(0)
_ONE: Final = np.float32(1)
_HALF: Final = np.float32(0.5)


def new_state(blocks: int) -> F32:
    """Return the state of new VMs, shape (blocks, FIELD_COUNT, BLOCK_ROWS)."""
    return np.zeros((blocks, FIELD_COUNT, BLOCK_ROWS), np.float32)


@kernel
def _surprise(state: F32, index: int, run_s: np.float32) -> np.float32:
    """Return -log P(gap ≥ run_s), interpolated between edges on the log of time."""
    position = np.float32(math.log2(max(run_s, _ONE)))
    edge = min(int(position), EDGE_COUNT - 1)
    total = state[LIVE, index] + _ONE
    here = np.float32(math.log((state[SURVIVED + edge, index] + _HALF) / total))
    if edge == EDGE_COUNT - 1:
        return -here
    further = np.float32(math.log((state[SURVIVED + edge + 1, index] + _HALF) / total))
    return -(here + (position - np.float32(edge)) * (further - here))


@inlined
def _learn(fields: F32, index: int, run_s: np.float32, is_cut_short: bool) -> None:
    """Count an ended gap, or a silence that was cut short."""
    if not is_cut_short:
        fields[LIVE, index] += _ONE
    edge = 0
    # The edges ascend, so a short run ends the loop after the first comparison.
    while edge < EDGE_COUNT and run_s >= np.float32(1 << edge):
        lasted = fields[SURVIVED + edge, index] + _ONE
        fields[SURVIVED + edge, index] = min(lasted, fields[LIVE, index])
        edge += 1


@kernel
def fold_life(
    state: F32, alive: I8, hold: U8, dt_s: np.float32, out: F32, share: np.float32
) -> int:
    """Fold one sample's signs of life into every row's gap model, in place.

    Parameters
    ----------
    state
        Shape (blocks, FIELD_COUNT, BLOCK_ROWS), updated.
    alive
        Shape (blocks * BLOCK_ROWS): `ALIVE`, `SILENT`, `CUT_SHORT` or `UNKNOWN`. Unknown time
        neither ends a gap nor adds to it.
    hold
        Shape (blocks * BLOCK_ROWS): non-zero where a silence has an external explanation (a pool
        that stalls, a lifecycle operation, a confirmed fault): its gap is not learned as
        usual.
    dt_s
        Time since the sample before.
    out
        Shape (2, blocks * BLOCK_ROWS), overwritten; rows as `OUT`: length of the row's silence
        in s, and how surprising it is for this VM, in nats; both 0 when alive.
    share
        Factor on the length of a silence before it is compared with the past. 1 gives the nats of
        its whole length, 1/4 those of a quarter, so that only a silence several times longer than
        usual is surprising.

    Returns
    -------
    int
        Number of silent rows.
    """
    silent = 0
    cap = np.float32(MEMORY_S) / dt_s
    for block in range(state.shape[0]):
        fields = state[block]
        for index in range(BLOCK_ROWS):
            i = block * BLOCK_ROWS + index
            sign = alive[i]
            run = fields[RUN, index]
            if sign in (ALIVE, CUT_SHORT):
                learned = fields[HELD, index] == _ZERO
                if learned:
                    _learn(fields, index, run, sign == CUT_SHORT)
                    if fields[LIVE, index] > cap:
                        for field in range(LIVE, FIELD_COUNT):
                            fields[field, index] *= _HALF
                fields[RUN, index] = _ZERO
                fields[HELD, index] = _ZERO
                out[0, i] = _ZERO
                out[1, i] = _ZERO
                continue
            if sign == SILENT:
                run += dt_s
                fields[RUN, index] = run
            if hold[i] != 0 and run > _ZERO:
                fields[HELD, index] = _ONE
            out[0, i] = run
            out[1, i] = _surprise(fields, index, share * run) if run > _ZERO else _ZERO
            silent += 1 if run > _ZERO else 0
    return silent
