"""A dataset is UTF-8 text in CSV format, with times in seconds; anything else is rejected."""

import csv
import gzip
import io
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flatline.connectors.traces.dataset import open_dataset
from flatline.connectors.traces.recording import DatasetRecording
from flatline.connectors.traces.table import read_blocks
from flatline.connectors.traces.windows import WindowCounts
from flatline.engine.errors import SettingsError
from flatline.engine.seconds import not_seconds
from flatline.engine.wire.metrics import INTEGER_ROW
from tests.unit.connectors.traces.conftest import GAUGES

# Before 3.13 the csv module writes a lone carriage return without quotes.
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), min_size=1, max_size=8)
FIELDS = st.one_of(
    st.just(""),
    st.sampled_from(["nan", "-NaN", "inf", "0", "1e3", " 7 ", "-2.5"]),
    st.floats(0, 1e12).map(repr),
)


@given(
    rows=st.lists(st.tuples(NAMES, FIELDS, FIELDS), min_size=1, max_size=12),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    end=st.sampled_from(["\n", "\r\n"]),
    last_end=st.booleans(),
    block=st.integers(1, 5),
)
@settings(max_examples=150, deadline=None)
def test_every_table_that_csv_can_write_is_read_as_csv_reads_it(
    tmp_path_factory: pytest.TempPathFactory, rows, quoting, end, last_end, block
) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, quoting=quoting, lineterminator=end)
    writer.writerows([("x", "name", "y"), *((x, name, y) for name, x, y in rows)])
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(text.getvalue().removesuffix("" if last_end else end).encode())
    blocks = list(read_blocks(path, name="name", numbers=["y", "x"], name_bytes=40, rows=block))
    names = [name.decode() for found in blocks for name in found.names.tolist()]
    assert names == [name for name, _, _ in rows]
    numbers = np.concatenate([found.numbers for found in blocks], axis=1)
    for row, place in ((0, 2), (1, 1)):
        for value, written in zip(numbers[row], (one[place] for one in rows), strict=True):
            if not written:
                assert np.isnan(value)
            elif np.isnan(float(written)):
                assert value == np.inf
            else:
                assert value == float(written)


def steady(vms=("a", "b"), *, first=1_700_000_000, step=300, unit=1, windows=4):
    return [
        f"{(first + step * k) * unit},{vm},50,100,1,2,3,4" for k in range(windows) for vm in vms
    ]


@pytest.mark.parametrize(
    "name", ["büro", "虚拟机", "a,,b", 'a"b', "a\r\nb", "nan", "\x85", "=1", "😀"]
)
@pytest.mark.parametrize("others", [["a"], ["a", "x,y"]])
def test_any_name_is_known_in_every_file(make, tmp_path, name, others) -> None:
    def quoted(text: str) -> str:
        return '"' + text.replace('"', '""') + '"' if set(text) & set(',"\n') else text

    vms = [quoted(one) for one in [name, *others]]
    prefix = make(
        traces=steady(vms),
        vms=["vm,host,ncpu,mem_capacity_mb", *(f"{vm},{vm},2,1024" for vm in vms)],
        lifecycle=[f"{vms[0]},1700000300,reboot"],
    )
    dataset = open_dataset(prefix)
    assert {vm.id for vm in dataset.vms} == {name, *others}
    assert all(window.present.all() for window in dataset.windows())
    assert [dataset.vms[one.vm].id for one in dataset.operations] == [name]


def test_an_empty_name_is_not_the_vm_that_is_called_nan(make) -> None:
    vms = ["vm,host,ncpu,mem_capacity_mb", "nan,h0,1,1024"]
    rows = [*steady(["nan"]), "1700009999,,50,100,1,2,3,4"]
    with pytest.raises(SettingsError, match="VM '' is not in the table"):
        list(open_dataset(make(traces=rows, vms=vms)).windows())


def test_quoted_empty_fields_are_missing_and_no_zeros(make) -> None:
    rows = ['"1700000000","a","50","","1","2","3","4"', '"1700000300","a","50","","1","","3","4"']
    windows = list(open_dataset(make(traces=rows)).windows())
    assert np.isnan(windows[1].column("memory_bytes")[0])
    assert np.isnan(windows[1].column("disk_write_bytes_per_s")[0])
    assert windows[0].column("disk_write_bytes_per_s")[0] == 2048.0


@pytest.mark.parametrize(
    ("encoding", "reported"),
    [
        ("latin-1", "line 6: byte 0xfc, which is not UTF-8. Save the file as UTF-8"),
        ("utf-16", "it is UTF-16 or not text. Save it as UTF-8"),
        ("utf-16-le", "it is UTF-16 or not text. Save it as UTF-8"),
        ("utf-16-be", "it is UTF-16 or not text. Save it as UTF-8"),
        ("cp1252", "line 6: byte 0xfc, which is not UTF-8"),
        ("utf-32", "it is UTF-16 or not text"),
    ],
)
@pytest.mark.parametrize("part", ["traces", "vms"])
def test_other_encodings_are_refused_with_what_to_do(
    make, tmp_path: Path, encoding: str, reported: str, part: str
) -> None:
    vms = ["vm,host,ncpu,mem_capacity_mb", *(f"v{k},h,1,1" for k in range(4)), "büro,h,1,1"]
    rows = ["1700000000,v0,1,1,1,1,1,1"] * 4 + ["1700000300,büro,1,1,1,1,1,1"]
    prefix = make(traces=rows, vms=vms)
    text = "\n".join([GAUGES, *rows] if part == "traces" else vms) + "\n"
    path = tmp_path / f"pack_{part}.csv"
    (tmp_path / "pack_traces.csv.gz").rename(tmp_path / "pack_traces.gone")
    (tmp_path / "pack_traces.csv").write_text("\n".join([GAUGES, *rows]) + "\n")
    path.write_bytes(text.encode(encoding))
    with pytest.raises(SettingsError) as caught:
        list(open_dataset(prefix).windows())
    assert reported in str(caught.value)


@pytest.mark.parametrize(
    ("row", "reported"),
    [
        ('1700000600,"a,50,100,1,2,3,4', "A quoted field must end with a quote before a comma"),
        ('1700000600,"a"x,50,100,1,2,3,4', "A quoted field must end with a quote before a comma"),
        ("1700000600,a,5_0,100,1,2,3,4", "cpu_pct is '5_0', not a number"),
        ('1700000600,"a","5_0",100,1,2,3,4', "cpu_pct is '5_0', not a number"),
        ('1700000600,"a",fünf,100,1,2,3,4', "cpu_pct is 'fünf', not a number"),
        ("1700000600,a,50\0,100,1,2,3,4", "line 10: a NUL byte"),
        ('1700000600,"a",50,100,1,2,3', "7 fields, but the header has 8"),
        ("1700000600,a,50,5,100,1,2,3,4", "9 fields, but the header has 8"),
        ("1700000600,a,50,,5,100,1,2,3,4", "10 fields, but the header has 8"),
        ("2023-11-14T22:23:20Z,a,50,100,1,2,3,4", "not a number: write seconds since the epoch"),
    ],
)
def test_what_csv_cannot_read_is_reported_with_its_line(make, row: str, reported: str) -> None:
    with pytest.raises(SettingsError) as caught:
        list(open_dataset(make(traces=[*steady(), row])).windows())
    assert reported in str(caught.value)
    assert "line 1" in str(caught.value)


@pytest.mark.parametrize("again", ["t", "vm", "cpu_pct"])
def test_a_column_that_the_header_names_twice_is_refused(make, again: str) -> None:
    rows = [f"{row},7" for row in steady()]
    with pytest.raises(SettingsError, match=f"the header names {again} more than once"):
        open_dataset(make(traces=rows, header=f"{GAUGES},{again}"))


def test_a_table_of_vms_with_a_column_twice_is_refused(make) -> None:
    vms = ["vm,host,ncpu,mem_capacity_mb,ncpu", "a,h0,2,1024,4", "b,h0,2,1024,4"]
    with pytest.raises(SettingsError, match="the header names ncpu more than once"):
        open_dataset(make(traces=steady(), vms=vms))


def test_another_separator_is_reported(make) -> None:
    with pytest.raises(SettingsError, match="Fields are separated by commas"):
        open_dataset(make(traces=[], header=GAUGES.replace(",", ";")))


UNITS = [("milliseconds", 10**3), ("microseconds", 10**6), ("nanoseconds", 10**9)]


@pytest.mark.parametrize(("unit", "factor"), UNITS)
def test_times_in_another_unit_are_refused_with_that_unit(make, unit: str, factor: int) -> None:
    reported = f"it looks like {unit}; divide the times by {factor:,}"
    with pytest.raises(SettingsError, match=reported):
        open_dataset(make(traces=steady(unit=factor)))
    late = [*steady(), f"{1_700_003_000 * factor},a,1,1,1,1,1,1"]
    with pytest.raises(SettingsError, match=f"near line 10: t is .*{reported}"):
        list(open_dataset(make(traces=late)).windows())
    with pytest.raises(
        SettingsError, match=f"line 2: t is 1700000300{str(factor)[1:]}, .*{reported}"
    ):
        open_dataset(make(traces=steady(), lifecycle=[f"a,{1_700_000_300 * factor},reboot"]))


@pytest.mark.parametrize("unit", [60, 3600, 86_400])
def test_times_in_minutes_hours_or_days_are_refused(make, unit: int) -> None:
    rows = [
        f"{(1_700_000_000 + 10 * k) / unit:.9f},{vm},5,1,1,1,1,1" for k in range(9) for vm in "ab"
    ]
    with pytest.raises(SettingsError, match="not in minutes, hours or days"):
        open_dataset(make(traces=rows))


@pytest.mark.parametrize("memory", ["-1", "1e300", "1e13"])
def test_a_memory_that_no_vm_has_is_refused(make, memory: str) -> None:
    vms = ["vm,host,ncpu,mem_capacity_mb", f"a,h0,2,{memory}", "b,h0,2,"]
    with pytest.raises(SettingsError, match=r"line 2: mem_capacity_mb is .* must be 0 to"):
        open_dataset(make(traces=steady(), vms=vms))


@pytest.mark.parametrize("value", ["1e300", "1e19"])
@pytest.mark.parametrize("place", range(2, 8))
def test_a_value_that_no_vm_has_is_counted_and_changes_nothing_else(make, place, value) -> None:
    """From that row on, the sum would not fit the counter of a frame."""
    rows = [row.split(",") for row in steady(windows=6)]
    rows[4][place] = value
    recording = DatasetRecording(open_dataset(make(traces=[",".join(row) for row in rows])))
    frames = [one.frame for one in recording.recorded_frames() if one.frame and len(one.frame.rows)]
    assert recording.figures()["rows_bad_values"] == 1
    last = [int(frame.rows.integers[INTEGER_ROW["cpu_time_ns"], 0]) for frame in frames[-2:]]
    assert last[1] - last[0] == 300 * 10**9


@pytest.mark.parametrize("value", ["1e300", "18446744073709551615"])
def test_a_counter_that_no_frame_holds_is_a_bad_value(make, value: str) -> None:
    rows = [f"{t},{t},a,{t}000000000,{t},{t},{t},{t},7" for t in range(1000, 4000, 300)]
    rows[4] = rows[4].replace("2200000000000", value)
    assert counted(make, stream=rows)["rows_bad_values"] == 1


@pytest.mark.parametrize("where", ["first", "last", "lifecycle"])
def test_a_time_that_is_years_away_is_refused_and_not_waited_for(make, where: str) -> None:
    row = "{},a,50,100,1,2,3,4"
    rows, lifecycle = steady(), None
    if where == "lifecycle":
        lifecycle = ["a,100,reboot"]
    else:
        rows = [row.format(5), *rows] if where == "first" else [*rows, row.format(4_102_444_800)]
    recording = DatasetRecording(open_dataset(make(traces=rows, lifecycle=lifecycle)))
    with pytest.raises(SettingsError, match="One of these times is wrong"):
        list(islice(recording.recorded_frames(), 1000))


@pytest.mark.parametrize("column", ["recv_t", "t"])
@pytest.mark.parametrize(("unit", "factor"), UNITS)
def test_both_times_of_a_stream_are_seconds(make, column: str, unit: str, factor: int) -> None:
    times = {"recv_t": 1_700_000_000, "t": 1_700_000_000}
    times[column] *= factor
    row = f"{times['recv_t']},{times['t']},a,1,1,1,1,1,1"
    with pytest.raises(SettingsError, match=f" {column} is .*it looks like {unit}"):
        open_dataset(make(stream=[row]))


@given(st.integers(10**9, 4 * 10**9))
def test_every_moment_of_this_century_is_seconds_in_seconds_alone(seconds: int) -> None:
    assert not_seconds(seconds) is None
    for unit, factor in UNITS:
        assert unit in (not_seconds(float(seconds) * factor) or "")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -1.0, 1e30, 1e300])
def test_what_is_no_time_at_all_has_no_unit(value: float) -> None:
    assert not_seconds(value) == "not a time in seconds since the epoch"


def test_milliseconds_that_count_from_zero_and_rounded_times_are_refused(make) -> None:
    reported = "apart, at most 3,600 s are allowed. Check that t is in seconds"
    with pytest.raises(SettingsError, match=reported):
        open_dataset(make(traces=steady(first=0, step=10_000)))
    rounded = [f"{1_700_000_000 + 10 * k:.5e},{vm},5,1,1,1,1,1" for k in range(2000) for vm in "ab"]
    with pytest.raises(SettingsError, match=reported):
        open_dataset(make(traces=rounded))


@pytest.mark.parametrize("column", ["vm", "host"])
def test_names_longer_than_any_name_are_refused(make, column: str) -> None:
    fields = {"vm": "a", "host": "h"} | {column: "n" * 256}
    vms = ["vm,host,ncpu,mem_capacity_mb", f"{fields['vm']},{fields['host']},1,1"]
    reported = f"line 2: {column} has 256 characters, must have 1 to 255"
    with pytest.raises(SettingsError, match=reported):
        open_dataset(make(traces=steady([fields["vm"]]), vms=vms))


def counted(make, **files: list[str]) -> dict[str, int]:
    recording = DatasetRecording(open_dataset(make(**files)))
    for _ in recording.recorded_frames():
        pass
    figures = recording.figures()
    kinds = ("used", "repeated", "late", "invalid")
    assert figures["rows_read"] == sum(figures[f"rows_{kind}"] for kind in kinds)
    return figures


def test_rows_without_one_usable_rate_are_invalid(make) -> None:
    bad = ["1700001200,a,-1,100,-1,-1,-1,-1", "1700001200,b,,100,,,,", "1700001500,a,,,,,,"]
    figures = counted(make, traces=[*steady(), *bad])
    assert (figures["rows_used"], figures["rows_invalid"]) == (8, 3)
    assert not any(name.startswith("unusable") for name in figures)


def test_a_column_without_one_usable_value_is_named(make) -> None:
    rows = [row.replace(",50,", ",-50,").replace(",4", ",inf") for row in steady()]
    figures = counted(make, traces=rows)
    assert figures["unusable_cpu_cores"] == figures["unusable_net_tx_bytes_per_s"] == 8
    assert figures["rows_used"] == 8


@pytest.mark.parametrize("period", [90, 900, 3600])
@pytest.mark.parametrize("block", [100_000, 37])
def test_every_row_of_uploads_in_batches_is_counted(
    make, monkeypatch: pytest.MonkeyPatch, period: int, block: int
) -> None:
    small = partial(read_blocks, rows=block)
    monkeypatch.setattr("flatline.connectors.traces.dataset.read_blocks", small)
    rows = [
        ((t // period + 1) * period + 1, t, vm)
        for t in range(1_700_000_000, 1_700_007_200, 10)
        for vm in "ab"
    ]
    stream = [f"{arrived},{t},{vm},{t},{t},0,0,0,1" for arrived, t, vm in rows]
    figures = counted(make, stream=stream)
    assert figures["rows_read"] == len(rows)


@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 600), st.booleans()), max_size=60))
@settings(max_examples=60, deadline=None)
def test_read_is_what_was_used_repeated_late_and_invalid(
    tmp_path_factory: pytest.TempPathFactory, rows
) -> None:
    folder = tmp_path_factory.getbasetemp()
    arrivals = sorted((t + delay, t, is_good) for t, delay, is_good in rows)
    (folder / "any_vms.csv").write_text("vm,host,ncpu,mem_capacity_mb\na,h,1,1\n")
    text = "recv_t,t,vm,cpu_time_ns,disk_rd_bytes,disk_wr_bytes,net_rx_bytes,net_tx_bytes,mem_kb"
    begin = [(0, 0, True), (10, 10, True)]
    for arrived, t, is_good in [*begin, *((a + 10, t, good) for a, t, good in arrivals)]:
        text += f"\n{arrived},{t},a," + ("1,1,1,1,1,1" if is_good else "-1,-1,,,,1")
    (folder / "any_stream.csv").write_text(text + "\n")
    counts = WindowCounts()
    for _ in open_dataset(folder / "any").windows(counts):
        pass
    assert counts.read == len(rows) + 2
    assert counts.read == counts.used + counts.repeated + counts.late + counts.invalid


@pytest.mark.parametrize("cut", [8, 1, 500])
def test_a_compressed_file_that_is_cut_off_is_reported(make, tmp_path: Path, cut: int) -> None:
    rng = np.random.default_rng(3)
    rows = [f"{1_700_000_000 + 300 * k},a,{rng.random()},1,1,1,1,1" for k in range(500)]
    prefix = make(traces=rows)
    path = tmp_path / "pack_traces.csv.gz"
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(SettingsError, match=r"truncated or damaged .*Copy or create it again"):
        list(open_dataset(prefix).windows())
    path.write_bytes(gzip.compress(b""))
    with pytest.raises(SettingsError, match="Its header is empty"):
        open_dataset(prefix)
