import asyncio
import gzip
import sqlite3
from contextlib import closing

import pytest

from flatline.connectors.clock import SystemClock
from flatline.connectors.embedded.log import EmbeddedConfig, EmbeddedLog
from flatline.connectors.embedded.recording import FILE_NAME, FrameRecording
from flatline.connectors.simulator.plan import Incident, WorldPlan
from flatline.connectors.traces.dataset import open_dataset
from flatline.connectors.traces.recording import DatasetRecording
from flatline.engine.cli.usable import data_warnings
from flatline.engine.errors import SettingsError
from flatline.engine.wire.topics import FRAMES
from tests.contracts.recording.suite import RecordingContract
from tests.simulation.site_records import Site

PLAN = WorldPlan(
    seed=5,
    cells=2,
    nodes_per_cell=1,
    vms_per_node=3,
    incidents=(Incident(kind="panic_spin", at_s=30, vms=(1,)),),
)


def write_log(folder, *, extra=()) -> None:
    async def main() -> None:
        async with EmbeddedLog(EmbeddedConfig(folder, partitions=2), clock=SystemClock()) as log:
            for record in Site(PLAN).run(60):
                await log.append(
                    FRAMES.name, key=record.key, value=record.value, time_ms=record.time_ms
                )
            for value in extra:
                await log.append(FRAMES.name, key=b"k", value=value, time_ms=2**41)

    asyncio.run(main())


class TestGauges(RecordingContract):
    @pytest.fixture
    def recording(self, tmp_path):
        rows = [f"{300 * k},{vm},1,2,3,4,5,6" for k in range(1, 9) for vm in "ab" if k % 4]
        (tmp_path / "p_vms.csv").write_text(
            "vm,host,ncpu,mem_capacity_mb\na,h0,1,100\nb,h1,2,100\n"
        )
        (tmp_path / "p_lifecycle.csv").write_text("vm,t,operation\na,700,reboot\n")
        columns = "t,vm,cpu_pct,mem_active_mb,disk_read_kbs,disk_write_kbs,net_rx_kbs,net_tx_kbs"
        with gzip.open(tmp_path / "p_traces.csv.gz", "wt") as file:
            file.write("\n".join([columns, *rows]) + "\n")
        return DatasetRecording(open_dataset(tmp_path / "p"))


class TestCounters(RecordingContract):
    @pytest.fixture
    def recording(self, tmp_path):
        rows = [
            f"{10 * k + lag},{10 * k},{vm},{k},{k},{k},{k},{k},5"
            for k in range(1, 20)
            for vm, lag in (("a", 0.1), ("b", 0.4))
        ]
        (tmp_path / "p_vms.csv").write_text(
            "vm,host,ncpu,mem_capacity_mb\na,h0,1,100\nb,h1,2,100\n"
        )
        columns = (
            "recv_t,t,vm,cpu_time_ns,disk_rd_bytes,disk_wr_bytes,net_rx_bytes,net_tx_bytes,mem_kb"
        )
        (tmp_path / "p_stream.csv").write_text("\n".join([columns, *rows]) + "\n")
        return DatasetRecording(open_dataset(tmp_path / "p"))


class TestRecordedFrames(RecordingContract):
    @pytest.fixture
    def recording(self, tmp_path):
        write_log(tmp_path)
        return FrameRecording(tmp_path)

    def test_what_is_no_frame_comes_as_bytes_for_the_engine_to_reject(self, tmp_path) -> None:
        write_log(tmp_path, extra=(b"noise",))
        recorded_frames = list(FrameRecording(tmp_path).recorded_frames())
        assert [recorded.value for recorded in recorded_frames if recorded.frame is None] == [
            b"noise"
        ]

    def test_what_is_no_frame_is_counted_and_reported(self, tmp_path) -> None:
        write_log(tmp_path, extra=(b"noise", b""))
        recording = FrameRecording(tmp_path)
        read = len(list(recording.recorded_frames()))
        assert recording.figures() == {"records_read": read, "records_unreadable": 2}
        [reported] = data_warnings(recording.figures())
        assert (
            reported
            == f"2 of {read} records are not frames that this release can read, and were left out."
        )

    @pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
    def test_a_file_that_is_damaged_in_the_middle_is_reported(self, tmp_path, share) -> None:
        write_log(tmp_path)
        path = tmp_path / FILE_NAME
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        content = bytearray(path.read_bytes())
        begin = int(len(content) * share) // 4096 * 4096
        content[begin : begin + 8192] = bytes(8192)
        path.write_bytes(content)
        with pytest.raises(SettingsError, match="is damaged and cannot be read completely"):
            list(FrameRecording(tmp_path).recorded_frames())

    def test_a_log_without_its_records_is_reported(self, tmp_path) -> None:
        write_log(tmp_path)
        with closing(sqlite3.connect(tmp_path / FILE_NAME)) as connection:
            connection.execute("DROP TABLE record")
        with pytest.raises(SettingsError, match="no such table: record"):
            FrameRecording(tmp_path)

    def test_a_folder_without_frames_is_reported(self, tmp_path) -> None:
        with pytest.raises(SettingsError, match="holds no recorded frames"):
            FrameRecording(tmp_path)

    def test_a_file_that_is_no_log_is_reported(self, tmp_path) -> None:
        (tmp_path / FILE_NAME).write_bytes(b"this is no database at all" * 100)
        with pytest.raises(SettingsError, match="is not a recorded log of frames"):
            FrameRecording(tmp_path)

    def test_reading_changes_nothing(self, tmp_path) -> None:
        write_log(tmp_path)
        before = sqlite3.connect(tmp_path / FILE_NAME).execute("SELECT * FROM partition").fetchall()
        list(FrameRecording(tmp_path).recorded_frames())
        after = sqlite3.connect(tmp_path / FILE_NAME).execute("SELECT * FROM partition").fetchall()
        assert before == after
