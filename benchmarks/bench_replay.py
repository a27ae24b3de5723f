"""Cost of a replay: the whole per-sample path on one core, and its growth with the fleet.

The path is complete: CSV, frames, folding, verdicts, planner. The same run also measures a common
alternative: the naive rule of a CPU spike followed by silence, with a Python object per VM, over
the same rows.
"""

import csv
import gzip
import tempfile
import time
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.report import Figure, report
from flatline.engine.cli.replay_command import replay_policy
from flatline.engine.detection.compiled import compile_kernels
from flatline.engine.roles.replay import Replayer
from flatline.engine.wiring import open_recording

INTERVAL_S: Final = 10
VMS_PER_HOST: Final = 50
GOAL_US: Final = 5.0
GOAL_TIMES_REAL: Final = 1000.0
# VMs and slots: about as many rows each, except the largest, where a slot is a tenth of them.
CASES: Final = ((100, 600), (1_000, 180), (10_000, 18), (100_000, 6))


def write_dataset(folder: Path, *, vms: int, slots: int) -> Path:
    """Write a stream of counters of working VMs, each sampled at a different time."""
    rng = np.random.default_rng(vms)
    prefix = folder / f"of_{vms}"
    hosts = [f"v{vm:06d},h{vm // VMS_PER_HOST:05d},{1 + vm % 4},4096" for vm in range(vms)]
    table = "\n".join(["vm,host,ncpu,mem_capacity_mb", *hosts])
    prefix.with_name(f"{prefix.name}_vms.csv").write_text(table + "\n")
    columns = "recv_t,t,vm,cpu_time_ns,disk_rd_bytes,disk_wr_bytes,net_rx_bytes,net_tx_bytes,mem_kb"
    counters = np.zeros((vms, 5), np.int64)
    path = prefix.with_name(f"{prefix.name}_stream.csv.gz")
    with gzip.open(path, "wt", compresslevel=1) as file:
        file.write(columns + "\n")
        for slot in range(slots):
            busy = rng.random((vms, 4)) < 0.8
            counters[:, 0] += rng.integers(10**9, 9 * 10**9, vms)
            counters[:, 1:] += (rng.exponential(20_000, (vms, 4)) * busy).astype(np.int64)
            taken = 1.7e9 + INTERVAL_S * slot + rng.uniform(0.0, 0.9, vms)
            arrived = taken + rng.uniform(0.01, 0.2, vms)
            memory = rng.integers(300_000, 400_000, vms)
            for vm in np.argsort(arrived):
                values = ",".join(map(str, counters[vm]))
                file.write(f"{arrived[vm]:.2f},{taken[vm]:.2f},v{vm:06d},{values},{memory[vm]}\n")
    return prefix


def replay_cost(prefix: Path) -> tuple[float, float, int]:
    """Return CPU seconds of a replay, the time it spans and its rows."""
    recording = open_recording(str(prefix))
    policy = replay_policy(None, interval_s=recording.interval_s)
    replayer = Replayer(recording, policies={"policy": policy})
    began_s = time.process_time()
    for _ in replayer.run():
        pass
    return time.process_time() - began_s, replayer.spanned_s, replayer.vm_samples


class NaiveVm:
    """CPU above mean + 3 sd, then I/O below 5 % of its mean: the most obvious rule."""

    def __init__(self) -> None:
        self.mean = self.variance = self.io = 0.0
        self.before: list[float] | None = None
        self.spiked = 0

    def see(self, values: list[float]) -> bool:
        """Return whether a sample of this VM raises an alarm."""
        before, self.before = self.before, values
        if before is None:
            return False
        cpu = values[0] - before[0]
        io = sum(values[1:5]) - sum(before[1:5])
        self.spiked = 2 if cpu > self.mean + 3 * self.variance**0.5 else self.spiked - 1
        alarm = self.spiked > 0 and io < 0.05 * self.io
        off = cpu - self.mean
        self.mean += 0.02 * off
        self.variance += 0.02 * (off * off - self.variance)
        self.io += 0.02 * (io - self.io)
        return alarm


def naive_cost(prefix: Path) -> tuple[float, int]:
    """Return CPU seconds of the naive rule over the same rows."""
    vms: dict[str, NaiveVm] = {}
    rows = 0
    began_s = time.process_time()
    with gzip.open(prefix.with_name(f"{prefix.name}_stream.csv.gz"), "rt") as file:
        reader = csv.reader(file)
        next(reader)
        for fields in reader:
            vms.setdefault(fields[2], NaiveVm()).see([float(text) for text in fields[3:8]])
            rows += 1
    return time.process_time() - began_s, rows


def measure(folder: Path, *, vms: int, slots: int) -> dict[str, Figure]:
    """Return one row of the table."""
    prefix = write_dataset(folder, vms=vms, slots=slots)
    cost_s, spanned_s, rows = replay_cost(prefix)
    naive_s, naive_rows = naive_cost(prefix)
    return {
        "vms": vms,
        "rows": rows,
        "us_per_row": round(cost_s / rows * 1e6, 2),
        "times_real": round(spanned_s / cost_s),
        "naive_us_per_row": round(naive_s / naive_rows * 1e6, 2),
    }


def main() -> None:
    """Measure every case and report."""
    compile_kernels()
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(Path(folder), vms=vms, slots=slots) for vms, slots in CASES]
    thousand = next(row for row in rows if row["vms"] == 1_000)
    report(
        "replay",
        claim=f"A replay on one core, {VMS_PER_HOST} VMs a host, every {INTERVAL_S} s; goals: "
        f"{GOAL_US:g} µs a row, {GOAL_TIMES_REAL:,.0f} times real time at 1,000 VMs",
        rows=rows,
        goals_met=all(float(row["us_per_row"] or 0) <= GOAL_US for row in rows)
        and float(thousand["times_real"] or 0) >= GOAL_TIMES_REAL,
    )


if __name__ == "__main__":
    main()
