"""Define the state layout of `models.kernels.aggregates`: fields, windows and results by name."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]

# Samples in a window. The newest is at index (`samples` - 1) modulo `WINDOW`; the field `samples`
# counts all samples of a VM.
WINDOW: Final = 24
RECENT_CPU, RECENT_DISK, RECENT_SENT, RECENT_MEMORY, RECENT_ALIVE, RECENT_BEGUN = range(6)
RECENT_ROWS: Final = 6

# Samples after which the evidence of a silence stops growing: longer silences are as typical of an
# idle guest as of a dead one.
RUN_STEPS: Final = 6
# Categories of the change between two memory figures: none, small, a fall by over a fifth, other.
CATEGORIES: Final = 4
EQUAL, SMOOTH, FALLEN, JUMPED = range(CATEGORIES)
# Edges of the CPU levels (bins of a histogram) as shares of all vCPUs. They are dense where halted
# and idle guests differ.
LEVEL_EDGES: Final = np.array(
    [0.002, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.25, 0.4, 0.55, 0.7, 0.8, 0.9, 0.97]
)
LEVELS: Final = len(LEVEL_EDGES) + 1

# Fields of a VM's row. `run` is the length of the current silence in samples, `run_1` and so on are
# numbers of past silences of at least that length, `alive` is the number of samples with life;
# `disk_…` are the same for the disk alone. `pair_…` count changes of the memory figure by category.
_NAMES: Final = (
    "samples",
    "run",
    "run_s",
    "alive",
    *(f"run_{step}" for step in range(1, RUN_STEPS + 1)),
    "read_mean",
    "cpu_before",
    "cpu_low",
    "cpu_high",
    "memory_last",
    "memory_before",
    "memory_mean",
    "memory_variance",
    "memory_run",
    "first_pair",
    *(f"pair_{kind}" for kind in range(CATEGORIES)),
    *(f"run_pair_{kind}" for kind in range(CATEGORIES)),
    "active_share",
    "runs_begun",
    "channels",
    "faded",
    "held",
    "shared",
    "suspected",
    "disk_run",
    "disk_run_s",
    "disk_alive",
    *(f"disk_run_{step}" for step in range(1, RUN_STEPS + 1)),
    "disk_cpu_before",
    "disk_sent_before",
    "disk_begun",
    "disk_hung",
    "unseen_s",
    *(f"level_{level}" for level in range(LEVELS)),
)
FIELD: Final = {name: row for row, name in enumerate(_NAMES)}
FIELD_COUNT: Final = len(_NAMES)

OUT: Final = {
    name: row
    for row, name in enumerate(
        (
            "run",
            "run_s",
            "silence_nats",
            "cpu_nats",
            "memory_nats",
            "shape",
            "memory_mode",
            "active_share",
            "faded",
            "channels",
            "cpu_before",
            "disk_run",
            "disk_run_s",
            "disk_nats",
            "disk_cpu_before",
            "sent_share",
            "disk_hung",
            "unseen_s",
            "known",
        )
    )
}
OUT_ROWS: Final = len(OUT)
SHAPE_MIXED, SHAPE_ONE_CORE, SHAPE_ALL_CORES, SHAPE_IDLE = range(4)
MEMORY_ALIVE, MEMORY_UNKNOWN, MEMORY_FROZEN, MEMORY_NOISE, MEMORY_DECAY = range(-1, 4)

F_SAMPLES: Final = FIELD["samples"]
F_RUN: Final = FIELD["run"]
F_RUN_S: Final = FIELD["run_s"]
F_ALIVE: Final = FIELD["alive"]
F_READ_MEAN: Final = FIELD["read_mean"]
F_CPU_BEFORE: Final = FIELD["cpu_before"]
F_CPU_LOW: Final = FIELD["cpu_low"]
F_CPU_HIGH: Final = FIELD["cpu_high"]
F_MEMORY_LAST: Final = FIELD["memory_last"]
F_MEMORY_BEFORE: Final = FIELD["memory_before"]
F_MEMORY_MEAN: Final = FIELD["memory_mean"]
F_MEMORY_VARIANCE: Final = FIELD["memory_variance"]
F_MEMORY_RUN: Final = FIELD["memory_run"]
F_FIRST_PAIR: Final = FIELD["first_pair"]
F_PAIR: Final = FIELD["pair_0"]
F_RUN_PAIR: Final = FIELD["run_pair_0"]
F_ACTIVE_SHARE: Final = FIELD["active_share"]
F_RUNS_BEGUN: Final = FIELD["runs_begun"]
F_CHANNELS: Final = FIELD["channels"]
F_FADED: Final = FIELD["faded"]
F_HELD: Final = FIELD["held"]
F_SHARED: Final = FIELD["shared"]
# Value of `shared` for a silence that began together with those of other VMs and outlasts them. The
# value is 1 while the silence is shared.
OUTLASTED: Final = -1.0
F_SUSPECTED: Final = FIELD["suspected"]
F_DISK_RUN: Final = FIELD["disk_run"]
F_DISK_RUN_S: Final = FIELD["disk_run_s"]
F_DISK_ALIVE: Final = FIELD["disk_alive"]
F_DISK_CPU_BEFORE: Final = FIELD["disk_cpu_before"]
F_DISK_SENT_BEFORE: Final = FIELD["disk_sent_before"]
F_DISK_BEGUN: Final = FIELD["disk_begun"]
F_DISK_HUNG: Final = FIELD["disk_hung"]
F_UNSEEN_S: Final = FIELD["unseen_s"]
F_LEVEL: Final = FIELD["level_0"]

O_RUN: Final = OUT["run"]
O_RUN_S: Final = OUT["run_s"]
O_SILENCE: Final = OUT["silence_nats"]
O_CPU: Final = OUT["cpu_nats"]
O_MEMORY: Final = OUT["memory_nats"]
O_SHAPE: Final = OUT["shape"]
O_MODE: Final = OUT["memory_mode"]
O_ACTIVE: Final = OUT["active_share"]
O_FADED: Final = OUT["faded"]
O_CHANNELS: Final = OUT["channels"]
O_CPU_BEFORE: Final = OUT["cpu_before"]
O_DISK_RUN: Final = OUT["disk_run"]
O_DISK_RUN_S: Final = OUT["disk_run_s"]
O_DISK: Final = OUT["disk_nats"]
O_DISK_CPU_BEFORE: Final = OUT["disk_cpu_before"]
O_SENT: Final = OUT["sent_share"]
O_DISK_HUNG: Final = OUT["disk_hung"]
O_UNSEEN: Final = OUT["unseen_s"]
O_KNOWN: Final = OUT["known"]


def new_state(size: int) -> F64:
    """Return the state of `size` new VMs, shape (size, FIELD_COUNT); columns as `FIELD`."""
    state = np.zeros((size, FIELD_COUNT))
    state[:, F_MEMORY_LAST] = np.nan
    return state


def new_recent(size: int) -> F64:
    """Return the empty windows of `size` new VMs, shape (size, RECENT_ROWS, WINDOW)."""
    return np.zeros((size, RECENT_ROWS, WINDOW))
