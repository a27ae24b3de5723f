"""Small datasets on disk."""

import gzip
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

Make = Callable[..., str]

GAUGES = "t,vm,cpu_pct,mem_active_mb,disk_read_kbs,disk_write_kbs,net_rx_kbs,net_tx_kbs"
COUNTERS = "recv_t,t,vm,cpu_time_ns,disk_rd_bytes,disk_wr_bytes,net_rx_bytes,net_tx_bytes,mem_kb"
VMS = ("vm,host,ncpu,mem_capacity_mb", "a,h0,2,1024", "b,h0,1,2048", "c,h1,4,")


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Return a function that writes a dataset and returns its prefix."""

    def write(
        *,
        traces: Sequence[str] | None = None,
        stream: Sequence[str] | None = None,
        vms: Sequence[str] = VMS,
        lifecycle: Sequence[str] | None = None,
        header: str | None = None,
    ) -> str:
        prefix = tmp_path / "pack"
        (tmp_path / "pack_vms.csv").write_text("\n".join(vms) + "\n")
        for name, lines, columns in (("traces", traces, GAUGES), ("stream", stream, COUNTERS)):
            if lines is not None:
                text = "\n".join([header or columns, *lines]) + "\n"
                with gzip.open(tmp_path / f"pack_{name}.csv.gz", "wt") as file:
                    file.write(text)
        if lifecycle is not None:
            text = "\n".join(["vm,t,operation", *lifecycle]) + "\n"
            (tmp_path / "pack_lifecycle.csv").write_text(text)
        return str(prefix)

    return write
