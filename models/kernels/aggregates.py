"""Judge VMs by totals alone: silence, CPU level and memory figure, sample by sample.

For VMs without per-vCPU times and without a balloon that dates its reports. Evidence is in nats and
follows from what is learned per VM: how often its silences begin and how long they last (a chain of
Krichevsky-Trofimov estimates), its usual CPU levels (a histogram), and how its memory figure moves
between samples. Silences are counted in samples, not in seconds, because samples are scarce.

Unlike in `blocks`, all fields of a row are stored together: the work on a row is scalar and full of
branches, and a silence touches most of its fields.
"""

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

import flatline.models.kernels.aggregates_evidence as evidence
import flatline.models.kernels.aggregates_layout as at
from flatline.models.kernels._jit import inlined, kernel

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]

# In bytes/s. A rate this high or higher is a counter error, so the sample is unknown.
_IMPOSSIBLE: Final = 2e9
# A boot reads more than `_BOOT_READS` bytes/s, and than `_BOOT_RATIO` times the VM's usual rate.
_BOOT_READS, _BOOT_RATIO = 2e5, 5.0
# From this score on, a silence is suspected to be a fault: its CPU levels are not learned, and its
# length is not learned if a boot ends it.
_SUSPECT_NATS: Final = 9.0
# Changes of the memory figure count as evidence in this many samples from the start of a silence;
# later ones only repeat them. `_MEMORY_PAIRS`: learned changes at which their counts are halved.
_MEMORY_STEPS: Final = 8
_MEMORY_PAIRS: Final = 1000
_HUNG_SENT, _HUNG_CPU = 0.75, 0.6


@inlined
def _begin_run(state: F64, recent: F64, count: int, cpu: float) -> None:
    """Store the state before a silence: levels, activity and the channels in use."""
    seen = min(count, at.WINDOW)
    alive = begun = sent = disk = 0.0
    for back in range(1, seen + 1):
        index = (count - back) % at.WINDOW
        alive += recent[at.RECENT_ALIVE, index]
        begun += recent[at.RECENT_BEGUN, index]
        sent += 1.0 if recent[at.RECENT_SENT, index] > 0.0 else 0.0
        disk += 1.0 if recent[at.RECENT_DISK, index] > 0.0 else 0.0
    usual_sent = sent >= 0.5 * seen
    usual_disk = disk >= 0.5 * seen
    faded = 0.0
    if count >= 3:
        last_sent = last_disk = 0.0
        for back in range(1, 4):
            index = (count - back) % at.WINDOW
            last_sent += recent[at.RECENT_SENT, index]
            last_disk += recent[at.RECENT_DISK, index]
        # A channel that stopped earlier than the rest did not stop because of the same death.
        if (usual_sent and last_sent == 0.0) or (usual_disk and last_disk == 0.0):
            faded = 1.0
    state[at.F_ACTIVE_SHARE] = alive / seen if seen >= at.WINDOW // 2 else 0.0
    state[at.F_RUNS_BEGUN] = begun
    state[at.F_CHANNELS] = (1.0 if usual_sent else 0.0) + (1.0 if usual_disk else 0.0)
    state[at.F_FADED] = faded
    state[at.F_CPU_BEFORE] = evidence.level_before(recent[at.RECENT_CPU], count)
    state[at.F_MEMORY_BEFORE] = evidence.level_before(recent[at.RECENT_MEMORY], count)
    state[at.F_CPU_LOW] = cpu
    state[at.F_CPU_HIGH] = cpu
    state[at.F_HELD] = 0.0
    state[at.F_SHARED] = 0.0
    state[at.F_SUSPECTED] = 0.0
    state[at.F_FIRST_PAIR] = -1.0
    state[at.F_MEMORY_RUN] = 0.0
    for kind in range(at.CATEGORIES):
        state[at.F_RUN_PAIR + kind] = 0.0


@inlined
def _take_memory_in_run(state: F64, memory: float) -> None:
    before = state[at.F_MEMORY_LAST]
    length = state[at.F_RUN]
    if memory != memory:
        return
    state[at.F_MEMORY_RUN] += (math.log(memory + 1.0) - state[at.F_MEMORY_RUN]) / min(length, 8.0)
    if before == before and length <= _MEMORY_STEPS:
        kind = evidence.category(before, memory)
        if length == 1.0:
            state[at.F_FIRST_PAIR] = kind
        else:
            state[at.F_RUN_PAIR + kind] += 1.0


@inlined
def _take_memory_alive(state: F64, memory: float, slow: float) -> None:
    before = state[at.F_MEMORY_LAST]
    if memory != memory:
        return
    pairs = 0.0
    if before == before:
        state[at.F_PAIR + evidence.category(before, memory)] += 1.0
        for kind in range(at.CATEGORIES):
            pairs += state[at.F_PAIR + kind]
        if pairs >= _MEMORY_PAIRS:
            for kind in range(at.CATEGORIES):
                state[at.F_PAIR + kind] *= 0.5
    weight = max(slow, 1.0 / (pairs + 1.0))
    off = math.log(memory + 1.0) - state[at.F_MEMORY_MEAN]
    state[at.F_MEMORY_MEAN] += weight * off
    state[at.F_MEMORY_VARIANCE] = (1.0 - weight) * (
        state[at.F_MEMORY_VARIANCE] + weight * off * off
    )


@inlined
def _fold_disk(
    state: F64, recent: F64, out: F64, disk: float, sent: float, cpu: float, count: int, dt_s: float
) -> None:
    """Track silences of the disk alone, because a guest with a hung disk continues to send."""
    if disk > 0.0:
        evidence.learn_run(state, at.F_DISK_ALIVE, at.F_DISK_ALIVE + 1, int(state[at.F_DISK_RUN]))
        state[at.F_DISK_RUN] = 0.0
        state[at.F_DISK_RUN_S] = 0.0
        state[at.F_DISK_HUNG] = 0.0
        return
    if state[at.F_DISK_RUN] == 0.0:
        state[at.F_DISK_CPU_BEFORE] = evidence.level_before(recent[at.RECENT_CPU], count)
        state[at.F_DISK_SENT_BEFORE] = evidence.level_before(recent[at.RECENT_SENT], count)
        begun = 0.0
        for back in range(2, min(count, at.WINDOW) + 1):
            before, after = (count - back) % at.WINDOW, (count - back + 1) % at.WINDOW
            if recent[at.RECENT_DISK, before] > 0.0 and recent[at.RECENT_DISK, after] == 0.0:
                begun += 1.0
        state[at.F_DISK_BEGUN] = begun
    state[at.F_DISK_RUN] += 1.0
    state[at.F_DISK_RUN_S] += dt_s
    out[at.O_DISK_RUN] = state[at.F_DISK_RUN]
    out[at.O_DISK_RUN_S] = state[at.F_DISK_RUN_S]
    out[at.O_DISK] = evidence.surprise_nats(
        state, at.F_DISK_ALIVE, state[at.F_DISK_RUN], state[at.F_DISK_BEGUN]
    )
    out[at.O_DISK_CPU_BEFORE] = state[at.F_DISK_CPU_BEFORE]
    before = state[at.F_DISK_SENT_BEFORE]
    share = sent / before if before > 0.0 else 1.0
    out[at.O_SENT] = share
    # The guest still sends, but it sends and computes less: typical of waiting for a disk.
    if 0.0 < share < _HUNG_SENT and cpu < _HUNG_CPU * state[at.F_DISK_CPU_BEFORE]:
        state[at.F_DISK_HUNG] += 1.0
    out[at.O_DISK_HUNG] = state[at.F_DISK_HUNG]


@inlined
def _end_run(state: F64, reads: float, slow: float) -> None:
    """Fold a sign of life: end the silence before it, if there was one, and learn its length.

    Not learned are silences with an external explanation, and suspected faults ended by a boot.
    """
    booted = reads > max(_BOOT_READS, _BOOT_RATIO * state[at.F_READ_MEAN])
    explained = state[at.F_HELD] > 0.0 or state[at.F_SHARED] != 0.0
    if not explained and not (state[at.F_SUSPECTED] > 0.0 and booted):
        evidence.learn_run(state, at.F_ALIVE, at.F_ALIVE + 1, int(state[at.F_RUN]))
    state[at.F_RUN] = 0.0
    state[at.F_RUN_S] = 0.0
    state[at.F_HELD] = 0.0
    state[at.F_SHARED] = 0.0
    state[at.F_SUSPECTED] = 0.0
    weight = max(slow, 1.0 / (state[at.F_ALIVE] + 1.0))
    state[at.F_READ_MEAN] += weight * (reads - state[at.F_READ_MEAN])


@inlined
def _weigh(state: F64, out: F64, cpu: float, cores: float, memory: float) -> float:
    """Write the evidence for a death in this silence, and return its sum in nats."""
    shape = evidence.cpu_shape(state, cpu, cores)
    nats, mode = 0.0, at.MEMORY_UNKNOWN
    if memory == memory:
        nats, mode = evidence.memory_nats(state, memory)
    out[at.O_RUN] = state[at.F_RUN]
    out[at.O_RUN_S] = state[at.F_RUN_S]
    out[at.O_SILENCE] = evidence.surprise_nats(
        state, at.F_ALIVE, state[at.F_RUN], state[at.F_RUNS_BEGUN]
    )
    out[at.O_CPU] = evidence.cpu_nats(state, shape, cpu, cores)
    out[at.O_MEMORY] = nats
    out[at.O_SHAPE] = shape
    out[at.O_MODE] = mode
    out[at.O_ACTIVE] = state[at.F_ACTIVE_SHARE]
    out[at.O_FADED] = state[at.F_FADED]
    out[at.O_CHANNELS] = state[at.F_CHANNELS]
    out[at.O_CPU_BEFORE] = state[at.F_CPU_BEFORE]
    score = float(out[at.O_SILENCE] + out[at.O_CPU] + nats)
    if score >= _SUSPECT_NATS:
        state[at.F_SUSPECTED] = 1.0
    return score


@inlined
def _fold_row(
    state: F64,
    recent: F64,
    out: F64,
    cpu: float,
    reads: float,
    writes: float,
    sent: float,
    memory: float,
    cores: float,
    held: bool,
    dt_s: float,
    slow: float,
) -> None:
    """Fold one known sample of one VM."""
    out[at.O_KNOWN] = 1.0
    disk = reads + writes
    count = int(state[at.F_SAMPLES])
    is_silent = disk == 0.0 and sent == 0.0
    score = 0.0
    if is_silent:
        if state[at.F_RUN] == 0.0:
            _begin_run(state, recent, count, cpu)
        state[at.F_RUN] += 1.0
        state[at.F_RUN_S] += dt_s
        state[at.F_CPU_LOW] = min(state[at.F_CPU_LOW], cpu)
        state[at.F_CPU_HIGH] = max(state[at.F_CPU_HIGH], cpu)
        if held:
            state[at.F_HELD] = 1.0
        _take_memory_in_run(state, memory)
        score = _weigh(state, out, cpu, cores, memory)
    else:
        _end_run(state, reads, slow)
        _take_memory_alive(state, memory, slow)
    if score < _SUSPECT_NATS:
        state[at.F_LEVEL + evidence.band(cpu / cores)] += 1.0
    _fold_disk(state, recent, out, disk, sent, cpu, count, dt_s)
    if memory == memory:
        state[at.F_MEMORY_LAST] = memory
    index = count % at.WINDOW
    recent[at.RECENT_CPU, index] = cpu
    recent[at.RECENT_DISK, index] = disk
    recent[at.RECENT_SENT, index] = sent
    recent[at.RECENT_MEMORY, index] = memory if memory == memory else 0.0
    recent[at.RECENT_ALIVE, index] = 0.0 if is_silent else 1.0
    recent[at.RECENT_BEGUN, index] = 1.0 if is_silent and state[at.F_RUN] == 1.0 else 0.0
    state[at.F_SAMPLES] += 1.0


@kernel
def fold_aggregates(
    state: F64,
    recent: F64,
    rates: F32,
    memory: F64,
    vcpus: I64,
    measured: NDArray[np.bool_],
    held: U8,
    dt_s: float,
    slow: float,
    out: F64,
) -> int:
    """Fold one sample of every row, in place, and write the evidence of its silence.

    Parameters
    ----------
    state, recent
        Made by `aggregates_layout.new_state` and `new_recent`; updated.
    rates
        Shape (≥ 4, rows): CPU in cores, bytes/s read, written and sent; NaN is unknown.
    memory
        Shape (rows,): the guest's memory figure in KiB; NaN is unknown.
    vcpus
        Shape (rows,); below 1 counts as 1.
    measured
        Shape (rows,): whether the VM was measured in this sample.
    held
        Shape (rows,): non-zero where a silence has an external explanation, so that it is
        not learned as usual.
    dt_s, slow
        Time since the sample before, and the weight of one sample in a mean over a day.
    out
        Shape (rows, OUT_ROWS), overwritten; columns as `OUT`. Evidence is 0 without a silence.

    Returns
    -------
    int
        Number of silent rows.
    """
    silent = 0
    for index in range(state.shape[0]):
        fields, window, result = state[index], recent[index], out[index]
        result[:] = 0.0
        fields[at.F_UNSEEN_S] = 0.0 if measured[index] else fields[at.F_UNSEEN_S] + dt_s
        result[at.O_UNSEEN] = fields[at.F_UNSEEN_S]
        cpu = float(rates[0, index])
        reads, writes, sent = float(rates[1, index]), float(rates[2, index]), float(rates[3, index])
        usable = reads < _IMPOSSIBLE and writes < _IMPOSSIBLE and sent < _IMPOSSIBLE
        if cpu != cpu or not usable:
            # An unknown sample neither ends nor prolongs a silence.
            result[at.O_RUN] = fields[at.F_RUN]
            result[at.O_RUN_S] = fields[at.F_RUN_S]
            continue
        _fold_row(
            fields, window, result, cpu, reads, writes, sent, memory[index],
            float(max(vcpus[index], 1)), held[index] != 0, dt_s, slow,
        )  # fmt: skip
        silent += 1 if fields[at.F_RUN] > 0.0 else 0
    return silent
