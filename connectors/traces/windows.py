"""Group rows, which come in order of arrival, by time window: arrays of all VMs for each metric.

A window begins with the earliest sample after the previous window and lasts half an interval. So
neither jitter nor a slow drift divides the samples of one round between two windows. A row may take
half an interval to arrive; if many rows take longer, up to 30 s more.
"""

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flatline.engine.stream.counters import growth

F64 = NDArray[np.float64]
Bools = NDArray[np.bool_]

# The values of each VM in a window. CPU in cores; memory is the guest's own figure, a level.
RATES: Final = (
    "cpu_cores",
    "memory_bytes",
    "disk_read_bytes_per_s",
    "disk_write_bytes_per_s",
    "net_rx_bytes_per_s",
    "net_tx_bytes_per_s",
)
_MEMORY: Final = RATES.index("memory_bytes")
_CUMULATIVE: Final = np.array([row for row in range(len(RATES)) if row != _MEMORY])
# Length of a window, and time that a row may take to arrive, as a share of the interval.
_WINDOW_SHARE: Final = 0.5
# Windows wait longer if otherwise more than this share of a block's rows would be late. The batches
# that a collector occasionally delivers late are a fifth of this share, and must not delay frames.
_LATE_SHARE: Final = 0.01
# Maximum of the additional wait; the engine waits as long for the frames that fill a gap.
_REORDER_S: Final = 30.0
# In the order of `RATES`: 65,536 cores, 1 EiB, 1 TiB/s. No VM has more, so a larger value is not a
# measurement. A counter that includes it would not fit into a frame.
_LARGEST_RATES: Final = np.array([[2.0**16], [2.0**60], *[[2.0**40]] * 4])
_LARGEST_COUNTERS: Final = np.array([[2.0**62 / 1e9], [2.0**60], *[[2.0**62]] * 4])
# A collector waits for the row of a VM that had a sample in one of this many last windows.
_EXPECTED_WINDOWS: Final = 3


class Samples(NamedTuple):
    """Rows in order of arrival; `vm` holds indices, `values` has the shape (len(RATES), n)."""

    arrived_s: F64
    time_s: F64
    vm: NDArray[np.intp]
    values: F64


@dataclass(slots=True)
class WindowCounts:
    """Outcome of the rows: read = used + repeated + late + invalid.

    Attributes
    ----------
    invalid
        Rows without any usable rate or counter; memory alone is not sufficient for detection.
    bad_values
        Single fields that are negative, not finite, or larger than any VM has.
    bad_by_rate, good_by_rate
        Shape (len(RATES),): unusable and usable fields of each column.
    """

    read: int = 0
    used: int = 0
    repeated: int = 0
    late: int = 0
    invalid: int = 0
    bad_values: int = 0
    bad_by_rate: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(RATES), np.int64))
    good_by_rate: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(RATES), np.int64))

    def figures(self) -> dict[str, int]:
        """Return the counts of rows as `rows_NAME`, and the columns that are never usable.

        Such a column is `unusable_RATE`, with the number of its unusable fields.
        """
        names = ("read", "used", "repeated", "late", "invalid", "bad_values")
        found: dict[str, int] = {f"rows_{name}": getattr(self, name) for name in names}
        unusable = (self.good_by_rate == 0) & (self.bad_by_rate > 0)
        for row in np.flatnonzero(unusable).tolist():
            found[f"unusable_{RATES[row]}"] = int(self.bad_by_rate[row])
        return found


# If at least this share of the rows missing between two windows came too late, the gap is due to
# the upload of samples and not to silent VMs.
_HIDDEN_SHARE: Final = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """One time window of all VMs.

    Attributes
    ----------
    number
        Whole intervals since the first window; a gap in the data skips numbers.
    start_s
        Time of its earliest sample.
    patience_s
        How long a sample may take to arrive.
    time_s, arrived_s
        Shape (vms,): sample time and arrival time of each VM; NaN without a sample.
    values
        Shape (len(RATES), vms): rates since the VM's previous sample, in the units of `RATES`. NaN
        is unknown: no sample, an empty or unusable field, a counter's first value.
    measured
        Same shape: where the sample has the field, though a counter's rate may be unknown.
    restarted
        Shape (vms,): whether a counter was smaller than before; its rates are then unknown.
    expected
        Shape (vms,): VMs seen recently, for which a collector waits.
    follows_late
        Whether most rows between the previous window and this one were dropped because they arrived
        too late. If so, the gap does not show that any VM was silent.
    """

    number: int
    start_s: float
    patience_s: float
    interval_s: float
    time_s: F64
    arrived_s: F64
    values: F64
    measured: Bools
    restarted: Bools
    expected: Bools
    follows_late: bool = False

    def column(self, name: str) -> F64:
        """Return one metric of all VMs, shape (vms,), by its name in `RATES`; NaN is unknown."""
        row: F64 = self.values[RATES.index(name)]
        return row

    @property
    def present(self) -> Bools:
        """Shape (vms,): VMs with a sample in this window."""
        return ~np.isnan(self.time_s)

    @property
    def has_late(self) -> bool:
        """Whether the window waits for samples that take longer than half an interval."""
        return self.patience_s > _WINDOW_SHARE * self.interval_s


def interval_of(blocks: Iterable[Samples]) -> float | None:
    """Return the usual interval in s between samples of one VM, None where no VM has two.

    It is the median of all intervals, rounded to two significant digits if that changes it by at
    most 2 %. Reading stops after the first block in which a VM has two samples.
    """
    vm, time_s = np.empty(0, np.intp), np.empty(0)
    for block in blocks:
        vm, time_s = np.concatenate([vm, block.vm]), np.concatenate([time_s, block.time_s])
        order = np.lexsort((time_s, vm))
        between_s = np.diff(time_s[order])
        steps_s = between_s[(np.diff(vm[order]) == 0) & (between_s > 0)]
        if len(steps_s):
            median = float(np.median(steps_s))
            plain = float(f"{median:.2g}")
            return plain if abs(median - plain) <= 0.02 * plain else median
    return None


def windows(
    blocks: Iterator[Samples],
    *,
    vcpus: F64,
    interval_s: float,
    is_stream: bool,
    counts: WindowCounts,
) -> Iterator[Window]:
    """Yield windows, oldest first; a window is closed once no more rows for it can be on time.

    Parameters
    ----------
    blocks
        Rows in order of arrival; no block is empty.
    vcpus
        Shape (vms,); only its length is used, as the number of VMs.
    is_stream
        Whether the values other than memory are counters, from which rates are computed.
    counts
        Updated with the outcome of each row.
    """
    state = _State(len(vcpus), is_stream=is_stream, interval_s=interval_s)
    largest = _LARGEST_COUNTERS if is_stream else _LARGEST_RATES
    waiting = Samples(np.empty(0), np.empty(0), np.empty(0, np.intp), np.empty((len(RATES), 0)))
    for block in blocks:
        counts.read += len(block.vm)
        known = (block.values >= 0) & (block.values <= largest)
        bad = (~known & ~np.isnan(block.values)).sum(axis=1)
        counts.bad_values += int(bad.sum())
        counts.bad_by_rate += bad
        counts.good_by_rate += known.sum(axis=1)
        clean = np.where(known, block.values, np.nan)
        waiting = Samples(
            np.concatenate([waiting.arrived_s, block.arrived_s]),
            np.concatenate([waiting.time_s, block.time_s]),
            np.concatenate([waiting.vm, block.vm]),
            np.concatenate([waiting.values, clean], axis=1),
        )
        state.learn_patience(block)
        now_s = float(block.arrived_s[-1])
        waiting = yield from _closed(state, waiting, now_s, counts)
    rest = yield from _closed(state, waiting, np.inf, counts)
    # The remaining rows are late, and newer than all windows: only a row on time begins a window.
    counts.late += len(rest.vm)


class _State:
    """State carried from window to window."""

    def __init__(self, size: int, *, is_stream: bool, interval_s: float) -> None:
        self.is_stream = is_stream
        self.interval_s = interval_s
        self.span_s = _WINDOW_SHARE * interval_s
        self.patience_s = self.span_s
        self.start_s = -np.inf
        self.number = -1
        self.counters = np.full((len(RATES), size), np.nan)
        self.counted_s = np.full((len(RATES), size), np.nan)
        self.seen = np.full(size, -(1 << 40), np.int64)

    def learn_patience(self, block: Samples) -> None:
        """Extend the wait from this block on, if many rows take long to arrive.

        The wait is never shortened, because rows for which a window was to wait would become late.
        """
        longest_s = self.span_s + _REORDER_S
        took_s = block.arrived_s - block.time_s
        took_s = np.where(took_s <= longest_s, took_s, 0.0)
        while (took_s > self.patience_s).mean() > _LATE_SHARE:
            self.patience_s = min(2 * self.patience_s, longest_s)


def _closed(
    state: _State, rows: Samples, now_s: float, counts: WindowCounts
) -> Generator[Window, None, Samples]:
    """Yield the windows that ended before `now_s`; return the rows of later windows."""
    span_s, patience_s = state.span_s, state.patience_s
    # A window of `span_s` is complete when the time has passed in which its last sample can arrive.
    on_time = rows.arrived_s - rows.time_s <= patience_s
    starts = _starts(np.unique(rows.time_s[on_time]), state.start_s, span_s)
    done = starts[starts + (span_s + patience_s) < now_s]
    window = np.searchsorted(done, rows.time_s, side="right") - 1
    begun = np.concatenate([[-np.inf], done])[window + 1]
    belongs = rows.time_s < begun + span_s
    horizon_s = (done[-1] if len(done) else state.start_s) + span_s
    past = rows.time_s < horizon_s
    late = past & ~(belongs & on_time)
    counts.late += int(late.sum())
    usable = np.flatnonzero(belongs & on_time)
    usable = usable[np.argsort(window[usable], kind="stable")]
    edges = np.searchsorted(window[usable], np.arange(len(done) + 1))
    # Number of dropped rows between each window and the previous one.
    before_s = np.where(np.isfinite(begun), begun, state.start_s)
    between = rows.time_s[late & (rows.time_s >= before_s + state.interval_s)]
    hidden = np.bincount(np.searchsorted(done, between, side="right"), minlength=len(done) + 1)
    for index, start_s in enumerate(done):
        chosen = usable[edges[index] : edges[index + 1]]
        number = state.number
        made = _window(state, rows, chosen, float(start_s), counts)
        missed = (made.number - number - 1) * int(made.present.sum())
        is_hidden = number >= 0 and missed > 0 and hidden[index] >= _HIDDEN_SHARE * missed
        yield replace(made, follows_late=is_hidden)
    rest = ~past
    return Samples(rows.arrived_s[rest], rows.time_s[rest], rows.vm[rest], rows.values[:, rest])


def _starts(times: F64, last_s: float, span_s: float) -> F64:
    """Return where windows begin among ascending times, each at least `span_s` long."""
    found = []
    index = int(np.searchsorted(times, last_s + span_s)) if np.isfinite(last_s) else 0
    while index < len(times):
        found.append(times[index])
        index = int(np.searchsorted(times, times[index] + span_s))
    return np.array(found)


def _window(
    state: _State, rows: Samples, chosen: NDArray[np.intp], start_s: float, counts: WindowCounts
) -> Window:
    size = len(state.seen)
    # Store backwards, so that of several samples of one VM the one that arrived first is kept.
    backwards = chosen[::-1]
    vm = rows.vm[backwards]
    time_s = np.full(size, np.nan)
    arrived_s = np.full(size, np.nan)
    values = np.full((len(RATES), size), np.nan)
    time_s[vm] = rows.time_s[backwards]
    arrived_s[vm] = rows.arrived_s[backwards]
    values[:, vm] = rows.values[:, backwards]
    present = ~np.isnan(time_s)
    usable = present & ~np.isnan(values[_CUMULATIVE]).all(axis=0)
    counts.used += int(usable.sum())
    counts.invalid += int((present & ~usable).sum())
    counts.repeated += len(chosen) - int(present.sum())
    steps = 1 if state.number < 0 else round((start_s - state.start_s) / state.interval_s)
    state.number += max(1, steps)
    state.start_s = start_s
    restarted = np.zeros(size, np.bool_)
    measured = ~np.isnan(values)
    if state.is_stream:
        values, restarted = _rates(state, values, time_s)
    expected = state.number - state.seen <= _EXPECTED_WINDOWS
    state.seen[present] = state.number
    return Window(
        number=state.number,
        start_s=start_s,
        patience_s=state.patience_s,
        interval_s=state.interval_s,
        time_s=time_s,
        arrived_s=arrived_s,
        values=values,
        measured=measured,
        restarted=restarted,
        expected=expected,
    )


def _rates(state: _State, values: F64, time_s: F64) -> tuple[F64, Bools]:
    """Return rates from counters, and the VMs whose counters restarted.

    After an empty field, the next rate is the mean over the time since the last known value.
    """
    grown, restarted = growth(values[_CUMULATIVE], state.counters[_CUMULATIVE])
    lasted_s = (time_s - state.counted_s)[_CUMULATIVE]
    rates = values.copy()
    rates[_CUMULATIVE] = np.where(
        lasted_s > 0, grown / np.where(lasted_s > 0, lasted_s, 1.0), np.nan
    )
    known = ~np.isnan(values)
    forgotten = known | restarted
    state.counters = np.where(forgotten, values, state.counters)
    state.counted_s = np.where(known, time_s, state.counted_s)
    return rates, restarted
