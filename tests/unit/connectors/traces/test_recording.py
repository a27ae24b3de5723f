from itertools import pairwise
from typing import NamedTuple
from uuid import UUID

import numpy as np
import pytest

from flatline.connectors.traces.dataset import open_dataset
from flatline.connectors.traces.recording import DatasetRecording
from flatline.engine.wire.frame import Frame, decode_frame, encode_frame
from flatline.engine.wire.metrics import INTEGER_ROW, VM_STATES

VMS = ("vm,host,ncpu,mem_capacity_mb", "a,h0,2,1024", "b,h0,1,2048", "c,h1,4,")


def gauges(*, windows, skip=(), io=1.0, cpu=50):
    return [
        f"{300 * k},{vm},{cpu},100,{io},0,3,4"
        for k in range(1, windows + 1)
        for vm in "abc"
        if (k, vm) not in skip
    ]


def recorded_frames_of(recording):
    """Return the moments, all of which have a frame: (time_ms, frame)."""
    found = [(recorded.time_ms, recorded.frame) for recorded in recording.recorded_frames()]
    return [Told(time_ms, frame) for time_ms, frame in found if frame is not None]


class Told(NamedTuple):
    time_ms: int
    frame: Frame


def frames(prefix, node=None):
    found = recorded_frames_of(DatasetRecording(open_dataset(prefix)))
    assert [m.time_ms for m in found] == sorted(m.time_ms for m in found)
    reports = [m for m in found if m.frame.header.role == "collector"]
    return [m for m in reports if node in (None, m.frame.header.node)]


def counter(moment, name, index=0):
    row = INTEGER_ROW[name]
    assert not moment.frame.rows.missing[row, index]
    return int(moment.frame.rows.integers[row, index])


def test_rates_come_back_from_the_counters_of_neighbouring_frames(make) -> None:
    found = frames(make(traces=gauges(windows=4)), "h0")
    for before, after in pairwise(found):
        dt_ns = after.frame.header.mono_ns - before.frame.header.mono_ns
        grown = counter(after, "cpu_time_ns") - counter(before, "cpu_time_ns")
        assert grown / dt_ns == 1.0
        grown = counter(after, "block_rd_bytes") - counter(before, "block_rd_bytes")
        assert grown / (dt_ns / 1e9) == 1024.0
        assert counter(after, "block_wr_bytes") == counter(before, "block_wr_bytes")
    assert counter(found[0], "balloon_rss_kib") == 100 * 1024
    assert counter(found[0], "vcpus", 1) == 1


def test_frames_survive_the_wire_as_they_are(make) -> None:
    for moment in frames(make(traces=gauges(windows=3, skip={(2, "a")}))):
        assert decode_frame(encode_frame(moment.frame)) == moment.frame


def test_a_vm_without_a_sample_is_missing_and_after_the_second_time_its_monitor_is_hung(
    make,
) -> None:
    found = frames(make(traces=gauges(windows=7, skip={(k, "a") for k in (3, 4, 5)})), "h0")
    assert [bool(m.frame.rows.missing[:, 0].all()) for m in found] == [
        *(False, False, True, True, True, False, False),
    ]
    assert [[e.kind for e in m.frame.events] for m in found] == [
        *([], [], [], ["monitor_hung"], [], ["monitor_back"], []),
    ]
    assert all(len(m.frame.rows) == 2 for m in found)


def test_a_host_without_samples_writes_no_frame_and_starts_anew(make) -> None:
    prefix = make(traces=gauges(windows=6, skip={(k, "c") for k in (3, 4)}))
    found = frames(prefix, "h1")
    assert [m.time_ms // 300_000 for m in found] == [1, 2, 5, 6]
    assert [m.frame.header.run for m in found] == ["run-0", "run-0", "run-1", "run-1"]
    assert [m.frame.header.sequence for m in found] == [0, 1, 0, 1]


def test_silence_is_data_because_ticks_go_on(make) -> None:
    recording = DatasetRecording(open_dataset(make(traces=gauges(windows=2))))
    ticks = [m for m in recorded_frames_of(recording) if m.frame.header.role == "shell"]
    assert [m.time_ms for m in ticks] == [300_000 + 30_000 * k for k in range(1, 10)]
    assert [m.frame.header.sequence for m in ticks] == list(range(9))


def test_late_starters_join_the_roster_when_they_are_first_seen(make) -> None:
    found = frames(make(traces=gauges(windows=3, skip={(1, "b")})), "h0")
    assert [len(m.frame.rows) for m in found] == [1, 2, 2]
    assert [[i.name for i in m.frame.inventory] for m in found] == [["a"], ["a", "b"], []]


def test_what_the_platform_did_is_reported_as_libvirt_and_owners_do(make) -> None:
    prefix = make(
        traces=gauges(windows=8, cpu=0, io=0).copy(),
        lifecycle=["a,700,power_off", "b,800,reboot", "a,1600,power_on", "c,1000,live_migration"],
    )
    recording = DatasetRecording(open_dataset(prefix))
    recorded_frames = recorded_frames_of(recording)
    reported = [
        (m.time_ms, m.frame.header.role, e.kind, recording.names[str(UUID(bytes=e.vm))])
        for m in recorded_frames
        for e in m.frame.events
    ]
    assert reported == [
        (800_000, "owner", "owner_reboot", "b"),
        (900_000, "collector", "shutdown", "a"),
        (900_000, "collector", "stopped", "a"),
        (900_000, "collector", "rebooted", "b"),
        (1_200_000, "collector", "migrated_out", "c"),
        (1_200_000, "collector", "migrated_in", "c"),
        (1_800_000, "collector", "started", "a"),
    ]


def test_a_vm_that_is_off_is_shut_off_until_it_is_on_or_moves(make) -> None:
    rows = [f"{300 * k},{vm},{0 if k != 5 else 9},1,0,0,0,0" for k in range(1, 8) for vm in "abc"]
    prefix = make(traces=rows, lifecycle=["a,800,power_off", "a,2000,power_on"])
    states = [counter(m, "state") for m in frames(prefix, "h0")]
    running, off = VM_STATES.index("running"), VM_STATES.index("shut_off")
    assert states == [running, running, off, off, running, off, running]
    assert [counter(m, "instance") for m in frames(prefix, "h0")][-2:] == [1, 2]


def test_a_stream_waits_for_who_was_seen_lately_but_not_longer_than_half_an_interval(make) -> None:
    rows = []
    for k in range(1, 12):
        for vm, lag in (("a", 0.1), ("b", 0.7)):
            if (vm, k) not in {("b", j) for j in range(5, 12)}:
                rows.append((10 * k + lag, f"{10 * k + lag},{10 * k},{vm},0,0,0,0,0,1"))
    found = frames(make(stream=[row for _, row in sorted(rows)]), "h0")
    lags = [round(m.time_ms / 1000 - 10 * k, 3) for k, m in enumerate(found, start=1)]
    assert lags == [0.7, 0.7, 0.7, 0.7, 5.0, 5.0, 5.0, 0.1, 0.1, 0.1, 0.1]


def test_frames_of_rows_that_overtake_each_other_are_late_and_evenly_spaced(make) -> None:
    rng = np.random.default_rng(3)
    rows = [(10 * k + rng.uniform(0, 30), 10 * k, vm) for k in range(1, 200) for vm in "abc"]
    stream = [f"{arrived},{t},{vm},0,0,0,0,0,1" for arrived, t, vm in sorted(rows)]
    for node in ("h0", "h1"):
        found = frames(make(stream=stream), node)
        assert [m.frame.header.event_time_ns // 10**9 for m in found] == [*range(10, 2000, 10)]
        assert [m.time_ms for m in found] == [1000 * (t + 35) for t in range(10, 2000, 10)]


def test_a_counter_that_began_anew_is_smaller_in_the_frame_too(make) -> None:
    rows = [f"{10 * k},{10 * k},a,{v},0,0,0,0,1" for k, v in enumerate((5, 9, 2, 4), start=1)]
    values = [counter(m, "cpu_time_ns") for m in frames(make(stream=rows), "h0")]
    assert values == [0, 4, 0, 2]


@pytest.mark.parametrize("column", [5, 6])
def test_an_empty_column_is_missing_everywhere(make, column) -> None:
    fields = [["10", "10", "a", "1", "1", "1", "1", "1", "1"] for _ in range(3)]
    for k, row in enumerate(fields):
        row[0] = row[1] = str(10 * (k + 1))
        row[column] = ""
    name = {5: "block_wr_bytes", 6: "net_rx_bytes"}[column]
    for moment in frames(make(stream=[",".join(row) for row in fields]), "h0"):
        assert moment.frame.rows.missing[INTEGER_ROW[name], 0]
        assert not moment.frame.rows.missing[INTEGER_ROW["cpu_time_ns"], 0]
        assert np.isnan(moment.frame.rows.gauges).all()


def test_a_sample_gap_whose_rows_came_too_late_is_an_outage_and_nobodys_silence(make) -> None:
    """Agents that upload rarely: only the newest rows of each upload are on time."""
    rows, counted = [], 1_000
    for upload in range(1, 5):
        sent = 900 * upload
        for sampled in range(sent - 890, sent + 1, 10):
            counted += 10
            rows += [f"{sent + 1},{sampled},{vm},{counted},1,1,1,1,1" for vm in "abc"]
    recording = DatasetRecording(open_dataset(make(stream=rows)))
    found = recorded_frames_of(recording)
    ticks = [m.time_ms for m in found if m.frame.header.role == "shell"]
    reports = [m.time_ms for m in found if m.frame.header.role == "collector"]
    assert recording.figures()["rows_late"] > 0.9 * recording.figures()["rows_read"]
    gaps = [(a, b) for a, b in pairwise(reports) if b - a > 60_000]
    assert len(gaps) == 3
    for before, after in gaps:
        within = [moment for moment in ticks if before + 60_000 < moment < after]
        assert not within
        # A tick behind the gap confirms that its time is correct.
        assert after in ticks


def test_a_sample_gap_in_which_nothing_was_sampled_is_silence(make) -> None:
    rows, counted = [], 1_000
    for sampled in [*range(10, 600, 10), *range(1_800, 2_400, 10)]:
        counted += 10
        rows += [f"{sampled + 1},{sampled},{vm},{counted},1,1,1,1,1" for vm in "abc"]
    # A single late row hides nothing.
    rows.insert(3 * 59, "1700,700,a,1600,1,1,1,1,1")
    found = recorded_frames_of(DatasetRecording(open_dataset(make(stream=rows))))
    ticks = [m.time_ms for m in found if m.frame.header.role == "shell"]
    assert sum(700_000 < moment < 1_700_000 for moment in ticks) > 500
