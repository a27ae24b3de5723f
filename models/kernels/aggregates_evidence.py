"""Compute the evidence of one VM's silence by totals, in nats: parts of `aggregates`."""

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

import flatline.models.kernels.aggregates_layout as at
from flatline.models.kernels._jit import inlined

F64 = NDArray[np.float64]

# Prior: an active VM falls silent in one sample of a thousand.
_BEGIN_PRIOR, _ALIVE_PRIOR = 0.1, 100.0
# Factor of the rate at which silences began recently, in the second estimate of `surprise_nats`.
_LOCAL_SHARE: Final = 0.3
# Counts are halved above two weeks of 5-minute samples.
_MEMORY_SAMPLES: Final = 4032.0
_CPU_CAP: Final = 5.0
_ONE_CORE_LOW, _ONE_CORE_HIGH = 0.85, 1.3
_ALL_CORES_SHARE: Final = 0.88
_IDLE_CORES: Final = 0.06
_STEP_CORES: Final = 0.25
_ONE_CORE_NATS: Final = 3.5
_HALT_RATIO: Final = 0.35
_MEMORY_FLOOR, _MEMORY_CAP = -7.0, 5.0

# Log-probabilities of the categories (equal, small, fall, other) by which a memory figure changes
# between samples. `_DEAD`, by kind of death: it is frozen; it decays (an estimate of recently
# touched pages halves); it is noise about a low level. `_BUSY`: in a job that computes, where pages
# are touched one after the other.
_DEAD: Final = np.log(
    np.array([[0.97, 0.01, 0.01, 0.01], [0.03, 0.05, 0.90, 0.02], [0.02, 0.15, 0.38, 0.45]])
)
_BUSY: Final = np.log(np.array([0.10, 0.84, 0.03, 0.03]))
# Log-probabilities, for every kind of death, of the first change in a silence: from the sample of
# the death, which mixes before and after, to the first sample after it.
_DYING: Final = np.log(np.array([0.10, 0.20, 0.35, 0.35]))
# Prior counts of the categories, for the changes of a live VM's memory figure.
_PAIR_PRIOR: Final = np.array([1.5, 5.0, 1.5, 2.0])


@inlined
def run_nats(state: F64, first: int, alive: float, steps: int) -> float:
    """Return -log P(a silence begins and lasts `steps` samples), from counts per length.

    Parameters
    ----------
    state
        The VM's row, shape (FIELD_COUNT,).
    first
        Index in `state` of the number of silences that lasted at least one sample. The numbers of
        those of at least two samples, three samples and so on follow.
    alive
        Number of samples with a sign of life.
    steps
        Length of the silence in samples, 1 to `RUN_STEPS`.
    """
    nats = -math.log((state[first] + _BEGIN_PRIOR) / (alive + _ALIVE_PRIOR))
    for step in range(1, steps):
        nats -= math.log((state[first + step] + 0.5) / (state[first + step - 1] + 1.0))
    return nats


@inlined
def learn_run(state: F64, alive: int, first: int, length: int) -> None:
    """Count an ended silence of `length` samples (0 for none), and one sign of life.

    Parameters
    ----------
    state
        The VM's row, shape (FIELD_COUNT,), updated.
    alive
        Index in `state` of the number of signs of life.
    first
        As in `run_nats`.
    """
    state[alive] += 1.0
    for step in range(min(length, at.RUN_STEPS)):
        state[first + step] += 1.0
    if state[alive] > _MEMORY_SAMPLES:
        state[alive] *= 0.5
        for step in range(at.RUN_STEPS):
            state[first + step] *= 0.5


@inlined
def level_before(row: F64, count: int) -> float:
    """Return the median of the second to seventh sample before now, NaN if there is none.

    The last sample before a silence is left out, because it mixes the time before and after the
    beginning. The median ignores the spike of one or two samples that a dying kernel often causes.

    Parameters
    ----------
    row
        Shape (WINDOW,): one window of `new_recent`; sample i is at i modulo `WINDOW`.
    count
        Number of samples before now.
    """
    found = np.empty(6)
    size = 0
    for back in range(2, 8):
        if back <= count:
            value = row[(count - back) % at.WINDOW]
            index = size
            while index > 0 and found[index - 1] > value:
                found[index] = found[index - 1]
                index -= 1
            found[index] = value
            size += 1
    if size == 0:
        return math.nan
    return float(0.5 * (found[(size - 1) // 2] + found[size // 2]))


@inlined
def category(before: float, now: float) -> int:
    """Return the category of the change between two memory figures in KiB, such as `EQUAL`.

    No figure is NaN.
    """
    if before == now:
        return at.EQUAL
    ratio = (now + 1.0) / (before + 1.0)
    if ratio < 0.8:
        return at.FALLEN
    return at.SMOOTH if 0.93 < ratio < 1.08 else at.JUMPED


@inlined
def band(share: float) -> int:
    """Return the index of the CPU level that contains a share of all vCPUs, 0 to `LEVELS` - 1."""
    band = 0
    while band < at.LEVELS - 1 and share >= at.LEVEL_EDGES[band]:
        band += 1
    return band


@inlined
def level_nats(state: F64, share: float) -> float:
    """Return how unusual a CPU level is for the VM, in nats, at most `_CPU_CAP`.

    It is -log of a sum: the frequency of the level and half of that of each neighbour. `state` is
    the VM's row, shape (FIELD_COUNT,); `share` is the share of all vCPUs in use.
    """
    here = band(share)
    total = 0.0
    for level in range(at.LEVELS):
        total += state[at.F_LEVEL + level]
    mass = state[at.F_LEVEL + here]
    if here > 0:
        mass += 0.5 * state[at.F_LEVEL + here - 1]
    if here < at.LEVELS - 1:
        mass += 0.5 * state[at.F_LEVEL + here + 1]
    return min(_CPU_CAP, -math.log(min(1.0, (mass + 0.5) / (total + 1.0))))


@inlined
def cpu_shape(state: F64, cpu: float, vcpus: float) -> int:
    """Return the kind of CPU use in the silence, one of the `SHAPE_` constants.

    `SHAPE_ONE_CORE` and `SHAPE_ALL_CORES` describe the whole silence, `SHAPE_IDLE` this sample.

    Parameters
    ----------
    state
        The VM's row, shape (FIELD_COUNT,).
    cpu
        Cores used in this sample; not NaN.
    vcpus
        Number of vCPUs, at least 1.
    """
    if (
        vcpus > 1
        and state[at.F_CPU_LOW] >= _ONE_CORE_LOW
        and state[at.F_CPU_HIGH] <= _ONE_CORE_HIGH
    ):
        return at.SHAPE_ONE_CORE
    if state[at.F_CPU_LOW] >= _ALL_CORES_SHARE * vcpus:
        return at.SHAPE_ALL_CORES
    return at.SHAPE_IDLE if cpu <= _IDLE_CORES * min(vcpus, 2.0) else at.SHAPE_MIXED


@inlined
def cpu_nats(state: F64, shape: int, cpu: float, vcpus: float) -> float:
    """Return the evidence of the CPU level; 0 if it was similar before, or for `SHAPE_MIXED`.

    Parameters
    ----------
    state, cpu, vcpus
        As in `cpu_shape`. A level before the silence that is NaN counts as different.
    shape
        As `cpu_shape` returned it.

    Returns
    -------
    float
        In nats, not negative.
    """
    before = state[at.F_CPU_BEFORE]
    usual = level_nats(state, cpu / vcpus)
    if shape == at.SHAPE_ONE_CORE:
        # No live guest uses exactly one core while it is silent (research: seen in 22 of 22 panics,
        # and in no natural silence).
        return max(usual, _ONE_CORE_NATS) if not abs(cpu - before) < _STEP_CORES else 0.0
    if shape == at.SHAPE_ALL_CORES:
        return usual if not before >= 0.8 * cpu else 0.0
    if shape == at.SHAPE_IDLE:
        # A halt is a fall of the CPU use. A guest that was idle before shows none.
        return usual if not cpu >= _HALT_RATIO * before else 0.0
    return 0.0


@inlined
def memory_nats(state: F64, memory: float) -> tuple[float, int]:
    """Return the evidence of the memory figure for a death, and the likeliest kind of death.

    Parameters
    ----------
    state
        The VM's row, shape (FIELD_COUNT,).
    memory
        The figure of this sample in KiB; not NaN.

    Returns
    -------
    tuple
        Nats, negative where the guest is probably alive; and one of the `MEMORY_` constants. 0 and
        `MEMORY_UNKNOWN` while too few figures are known.
    """
    own = np.empty(at.CATEGORIES)
    total = 0.0
    for kind in range(at.CATEGORIES):
        own[kind] = state[at.F_PAIR + kind] + _PAIR_PRIOR[kind]
        total += own[kind]
    if total < 30.0 or state[at.F_MEMORY_MEAN] <= 0.0:
        return 0.0, at.MEMORY_UNKNOWN
    alive = busy = frozen = decay = noise = 0.0
    for kind in range(at.CATEGORIES):
        count = state[at.F_RUN_PAIR + kind]
        alive += count * math.log(own[kind] / total)
        busy += count * _BUSY[kind]
        frozen += count * _DEAD[0, kind]
        decay += count * _DEAD[1, kind]
        noise += count * _DEAD[2, kind]
    first = int(state[at.F_FIRST_PAIR])
    # If the figure of this VM often stays equal, an equal first pair is no evidence.
    if first >= 0 and not (first == at.EQUAL and own[at.EQUAL] > 0.4 * total):
        alive += math.log(own[first] / total)
        busy += _BUSY[first]
        frozen += _DYING[first]
        decay += _DYING[first]
        noise += _DYING[first]
    spread = max(0.4, math.sqrt(state[at.F_MEMORY_VARIANCE]))
    below = (state[at.F_MEMORY_MEAN] - state[at.F_MEMORY_RUN]) / spread
    if memory < 0.35 * state[at.F_MEMORY_BEFORE] and below > 1.0:
        low = min(2.5, below - 0.5)
        decay += low
        noise += low
    most = max(frozen, max(decay, noise))
    parts = math.exp(frozen - most) + math.exp(decay - most) + math.exp(noise - most)
    nats = most + math.log(parts / 3.0) - max(alive, busy)
    nats = min(_MEMORY_CAP, max(_MEMORY_FLOOR, nats))
    if nats < 0.0:
        return nats, at.MEMORY_ALIVE
    if most == frozen:
        return nats, at.MEMORY_FROZEN
    return nats, at.MEMORY_DECAY if most == decay else at.MEMORY_NOISE


@inlined
def surprise_nats(state: F64, alive: int, run: float, begun: float) -> float:
    """Return how surprising a silence of `run` samples is: the lower of two estimates.

    The first takes the rate at which silences begin from the VM's whole history. The second takes
    it from the last `at.WINDOW` samples, in which `begun` silences began before this one; with 0 it
    is not used. `state` is the VM's row, shape (FIELD_COUNT,); `alive` is the index in it of the
    number of signs of life, which the counts per length follow. The result is in nats.
    """
    steps = min(int(run), at.RUN_STEPS)
    nats = run_nats(state, alive + 1, state[alive], steps)
    if begun > 0.0:
        local = -math.log(_LOCAL_SHARE * begun / at.WINDOW)
        for step in range(1, steps):
            local -= math.log((state[alive + 1 + step] + 0.5) / (state[alive + step] + 1.0))
        nats = min(nats, local)
    return nats
