"""Detect degrading storage: a VM's writing falls hour after hour while its CPU use continues.

Each hour's writing is compared with the VM's usual writing at that time of day. When a load ends,
writing falls once, and CPU use falls with it. When a disk degrades, writing falls in every hour for
half a day. Six falls in a row are one of the 5,040 orders of seven values, so rare by chance.

An hour needs at least half of its twelve means of five minutes. A VM that is sampled less often
than every 600 s has no such hour and is never reported. The state takes 456 bytes per VM.
"""

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from flatline.models.kernels._jit import inlined

F32 = NDArray[np.float32]

HOUR_S: Final = 3600.0
DAY_HOURS: Final = 24
# Least and greatest length of a fall, in hours. A fall ends in the last hour.
FALLS_LEAST, FALLS_MOST = 6, 12
_PAST: Final = FALLS_MOST + 1

# Fields of a VM's row: its current hour since the epoch, the number of the first mean in it, the
# consecutive falls. By hour of day: usual logarithms of writes and CPU, and days learned. Then the
# last hours, newest first: both logarithms relative to the usual ones, and that of writes itself.
_HOUR, _FIRST, _RUN = 0, 1, 2
_USUAL_WRITE: Final = 3
_USUAL_CPU: Final = _USUAL_WRITE + DAY_HOURS
_DAYS: Final = _USUAL_CPU + DAY_HOURS
_WRITE_SHARE: Final = _DAYS + DAY_HOURS
_CPU_SHARE: Final = _WRITE_SHARE + _PAST
_WRITE: Final = _CPU_SHARE + _PAST
FIELD_COUNT: Final = _WRITE + _PAST

# An hour needs half of its twelve means.
MEANS_LEAST: Final = 6
# The usual logarithm needs three days, so that one unusual day moves it by at most a third. The
# first days weigh 1, 1/2 and 1/3, each further day a quarter: the value adapts in about four days.
_DAYS_LEAST: Final = 3.0
_LEARN: Final = 0.25
# A fall must begin at this rate in bytes/s; below 2 KB/s a single log file dominates the hours. The
# floors (bytes/s, share of all vCPUs) are added before a logarithm is taken, because 0 has none.
_WRITES_LEAST: Final = 2000.0
_WRITE_FLOOR, _CPU_FLOOR = 500.0, 0.001
# Least fall: to half. On most VMs, writing varies less than that about its usual value.
_FALL_NATS: Final = math.log(2.0)
# Less than a hundredth in an hour is no fall.
_STEP_NATS: Final = 0.01
# A fall must begin this close to the usual level, or it may be the end of an unusual day.
_USUAL_NATS: Final = math.log(1.5)
# Writing itself must fall by this part of its fall relative to the usual value, because a rise of
# the usual value alone is no fault.
_OWN_PART: Final = 0.7
# CPU use may fall by at most this part of the fall of writing: guests that wait for their disks
# compute less too, but not as much less.
_CPU_PART: Final = 0.7
# Constants that affect decisions: builds that differ here decide differently.
CONSTANTS: Final = (
    *(FIELD_COUNT, HOUR_S, DAY_HOURS, FALLS_LEAST, FALLS_MOST, MEANS_LEAST, _DAYS_LEAST, _LEARN),
    *(_WRITES_LEAST, _WRITE_FLOOR, _CPU_FLOOR),
    *(_FALL_NATS, _STEP_NATS, _USUAL_NATS, _OWN_PART, _CPU_PART),
)


def new_state(size: int) -> F32:
    """Return the state of `size` new VMs, shape (size, FIELD_COUNT); an unknown hour is NaN."""
    state = np.zeros((size, FIELD_COUNT), np.float32)
    state[:, _WRITE_SHARE:] = np.nan
    return state


@inlined
def is_over(own: F32, hour: float) -> bool:
    """Return whether the VM's current hour has ended; `hour` is that of the newest mean.

    `own` is the VM's row, shape (FIELD_COUNT,), here and in the other functions. Hours are
    numbered since the epoch: 0 is the first.
    """
    return float(own[_HOUR]) != hour


@inlined
def follows(own: F32, hour: float) -> bool:
    """Return whether `hour` is the next one after the VM's current hour; as in `is_over`."""
    return float(own[_HOUR]) + 1.0 == hour


@inlined
def begin_hour(own: F32, hour: float, first: int) -> None:
    """Begin an hour with the mean of number `first`; `own` is updated, arguments as in `is_over`.

    The means of five minutes are numbered per VM from 0, in order of time.
    """
    own[_HOUR] = np.float32(hour)
    own[_FIRST] = np.float32(first)


@inlined
def means_of(own: F32, count: int) -> int:
    """Return the number of means in the ended hour; the last of `count` is in the next one.

    `count` is the number of means of the VM so far; `own` is as in `is_over`.
    """
    return count - 1 - int(own[_FIRST])


@inlined
def forget_row(own: F32) -> None:
    """Reset the count of consecutive falls: an hour is missing or has no usual value.

    `own` is as in `is_over`, and is updated.
    """
    own[_RUN] = np.float32(0.0)
    own[_WRITE_SHARE] = np.float32(np.nan)


@inlined
def _follow(own: F32, index: int, writes: float, cpu: float) -> None:
    """Insert an hour as the newest, and update the count of consecutive falls.

    `index` is its hour of the day; `writes` and `cpu` are logarithms.
    """
    share = writes - float(own[_USUAL_WRITE + index])
    fell = share < float(own[_WRITE_SHARE]) - _STEP_NATS
    own[_RUN] = np.float32(min(float(own[_RUN]) + 1.0, float(FALLS_MOST)) if fell else 0.0)
    for back in range(_PAST - 1, 0, -1):
        own[_WRITE_SHARE + back] = own[_WRITE_SHARE + back - 1]
        own[_CPU_SHARE + back] = own[_CPU_SHARE + back - 1]
        own[_WRITE + back] = own[_WRITE + back - 1]
    own[_WRITE_SHARE] = np.float32(share)
    own[_CPU_SHARE] = np.float32(cpu - float(own[_USUAL_CPU + index]))
    own[_WRITE] = np.float32(writes)


@inlined
def _falls(own: F32) -> float:
    """Return the number of consecutive hours with a fall typical of a degrading disk, or 0."""
    for length in range(FALLS_LEAST, int(own[_RUN]) + 1):
        before = float(own[_WRITE_SHARE + length])
        fall = before - float(own[_WRITE_SHARE])
        by_itself = float(own[_WRITE + length]) - float(own[_WRITE])
        less_cpu = float(own[_CPU_SHARE + length]) - float(own[_CPU_SHARE])
        if fall < _FALL_NATS or abs(before) > _USUAL_NATS:
            continue
        if float(own[_WRITE + length]) < math.log(_WRITES_LEAST + _WRITE_FLOOR):
            continue
        if by_itself >= _OWN_PART * fall and less_cpu <= _CPU_PART * fall:
            return float(length)
    return 0.0


@inlined
def close_hour(own: F32, writes: float, cpu: float, cores: float) -> float:
    """Fold an ended hour.

    Parameters
    ----------
    own
        The VM's row, shape (FIELD_COUNT,), whose hour has ended. Updated.
    writes, cpu
        Medians of the hour's means, bytes/s and cores; NaN if there were too few.
    cores
        Number of vCPUs, at least 1.

    Returns
    -------
    float
        Number of consecutive hours with a fall typical of a degrading disk; 0 for none.
    """
    index = int(own[_HOUR]) % DAY_HOURS
    if not (writes == writes and cpu == cpu):
        forget_row(own)
        return 0.0
    days = float(own[_DAYS + index])
    log_writes, log_cpu = math.log(writes + _WRITE_FLOOR), math.log(cpu + _CPU_FLOOR * cores)
    found = 0.0
    if days >= _DAYS_LEAST:
        _follow(own, index, log_writes, log_cpu)
        found = _falls(own)
    else:
        forget_row(own)
    weight = max(_LEARN, 1.0 / (days + 1.0))
    for row, value in ((_USUAL_WRITE + index, log_writes), (_USUAL_CPU + index, log_cpu)):
        usual = float(own[row])
        own[row] = np.float32(usual + weight * (value - usual))
    own[_DAYS + index] = np.float32(min(days + 1.0, _DAYS_LEAST))
    return found


@inlined
def write_share(own: F32) -> float:
    """Return the last hour's writing as a share of its usual value; NaN if unknown.

    `own` is as in `is_over`.
    """
    return math.exp(float(own[_WRITE_SHARE]))
