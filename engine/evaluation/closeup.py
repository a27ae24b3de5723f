"""During a replay, collect the signals of chosen VMs around misses and false alarms."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple
from uuid import UUID

from flatline.engine.detection.cell import Cell
from flatline.engine.detection.configuration import Configuration
from flatline.engine.detection.likelihoods import likelihoods
from flatline.engine.ports import RecordedFrame
from flatline.engine.wire.frame import uuids_of
from flatline.engine.wire.metrics import INTEGER_ROW

# Counters whose growth is drawn, with the factor to the drawn unit.
_COUNTERS: Final = {
    "cpu_cores": ("cpu_time_ns", 1e-9),
    "disk_read_bytes_per_s": ("block_rd_bytes", 1.0),
    "disk_write_bytes_per_s": ("block_wr_bytes", 1.0),
    "net_rx_bytes_per_s": ("net_rx_bytes", 1.0),
    "net_tx_bytes_per_s": ("net_tx_bytes", 1.0),
}
_MEMORY: Final = "memory_bytes"


class Window(NamedTuple):
    """A time of interest, s since the epoch."""

    start_s: float
    end_s: float

    def holds(self, time_s: float) -> bool:
        """Return whether the window contains a moment."""
        return self.start_s <= time_s <= self.end_s


@dataclass(slots=True)
class Closeup:
    """Signals and evidence (in nats) of one VM; NaN is unknown.

    `times_s` are the times of the values in `signals`, `thought_s` those of the values in `nats`.
    """

    times_s: list[float] = field(default_factory=list)
    signals: dict[str, list[float]] = field(default_factory=dict)
    thought_s: list[float] = field(default_factory=list)
    nats: dict[str, list[float]] = field(default_factory=dict)

    def cut(self, window: Window) -> "Closeup":
        """Return the part within a window."""
        seen = [index for index, time_s in enumerate(self.times_s) if window.holds(time_s)]
        thought = [index for index, time_s in enumerate(self.thought_s) if window.holds(time_s)]
        return Closeup(
            [self.times_s[index] for index in seen],
            {name: [values[index] for index in seen] for name, values in self.signals.items()},
            [self.thought_s[index] for index in thought],
            {name: [values[index] for index in thought] for name, values in self.nats.items()},
        )


class CloseupCollector:
    """Collect close-ups during a replay.

    Parameters
    ----------
    wanted
        Windows by VM, by the recording's own ids.
    names
        UUID text → id in the recording.
    """

    def __init__(
        self,
        wanted: Mapping[str, Iterable[Window]],
        *,
        names: Mapping[str, str],
        configuration: Configuration,
    ) -> None:
        uuids = {name: uuid for uuid, name in names.items()}
        self._configuration = configuration
        self._windows = {
            UUID(uuids.get(vm, vm)).bytes: tuple(windows) for vm, windows in wanted.items()
        }
        self._ids = {uuid: names.get(str(UUID(bytes=uuid)), "") for uuid in self._windows}
        self._before: dict[bytes, tuple[int, dict[str, int]]] = {}
        self._rosters: dict[bytes, list[tuple[int, bytes]]] = {}
        self._judged_windows: dict[str, int] = {}
        self.closeups = {vm: Closeup() for vm in wanted}

    def see(self, recorded: RecordedFrame, cells: Mapping[str, Cell]) -> None:
        """Record the signals and the evidence of one frame, after the replay has folded it.

        `cells` has the engine's state of each cell by name, after the fold. Frames must be given in
        the order of the recording. The results are in the attribute `closeups`, by VM as in
        `wanted`.
        """
        frame = recorded.frame
        if frame is None:
            return
        event_s = frame.header.event_time_ns / 1e9
        if len(frame.rows):
            for index, vm in self._indices(frame.rows.uuids):
                self._measure(recorded, index, vm, event_s)
        for name, cell in cells.items():
            if cell.counts.windows != self._judged_windows.get(name):
                self._judged_windows[name] = cell.counts.windows
                self._think(cell, event_s)

    def _indices(self, roster: bytes) -> list[tuple[int, bytes]]:
        found = self._rosters.get(roster)
        if found is None:
            vms = enumerate(uuids_of(roster))
            found = [(index, vm) for index, vm in vms if vm in self._windows]
            self._rosters[roster] = found
        return found

    def _near(self, vm: bytes, time_s: float) -> bool:
        return any(window.holds(time_s) for window in self._windows[vm])

    def _measure(self, recorded: RecordedFrame, index: int, vm: bytes, event_s: float) -> None:
        frame = recorded.frame
        if frame is None or not self._near(vm, event_s):
            return
        rows = frame.rows
        now: dict[str, int] = {}
        for name in (*(counter for counter, _ in _COUNTERS.values()), "balloon_rss_kib"):
            row = INTEGER_ROW[name]
            if rows.missing is None or not rows.missing[row, index]:
                now[name] = int(rows.integers[row, index])
        mono_ns = frame.header.mono_ns
        before_ns, before = self._before.get(vm, (mono_ns, {}))
        self._before[vm] = (mono_ns, now)
        closeup = self.closeups[self._ids[vm] or str(UUID(bytes=vm))]
        closeup.times_s.append(event_s)
        for signal, (counter, unit) in _COUNTERS.items():
            rate = float("nan")
            if (
                counter in now
                and now[counter] >= before.get(counter, 2**64)
                and mono_ns > before_ns
            ):
                rate = (now[counter] - before[counter]) * unit * 1e9 / (mono_ns - before_ns)
            closeup.signals.setdefault(signal, []).append(rate)
        memory = now.get("balloon_rss_kib")
        closeup.signals.setdefault(_MEMORY, []).append(
            float("nan") if memory is None else memory * 1024.0
        )

    def _think(self, cell: Cell, event_s: float) -> None:
        for vm in self._windows:
            if vm not in cell.vms or not self._near(vm, event_s):
                continue
            closeup = self.closeups[self._ids[vm] or str(UUID(bytes=vm))]
            found = likelihoods(cell, vm, self._configuration)
            known = len(closeup.thought_s)
            closeup.thought_s.append(event_s)
            for name in found.keys() - closeup.nats.keys():
                closeup.nats[name] = [float("nan")] * known
            for name, values in closeup.nats.items():
                values.append(found.get(name, float("nan")))
