"""Nodes with scripted VMs, as the records of a log."""

import hashlib
from dataclasses import dataclass, field

import numpy as np

from flatline.engine.ports import Record
from flatline.engine.wire.frame import Frame, Header, VmRows, encode_frame
from flatline.engine.wire.metrics import GAUGES, INTEGER_ROW, INTEGERS

EPOCH_MS = 1_767_261_600_000
MIB = 1 << 20


def uuid_of(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=16).digest()


@dataclass
class Machine:
    """One VM; `cores` is its CPU use from now on."""

    name: str
    cores: float = 0.5
    vcpus: int = 2
    memory_mib: int = 512
    writes: float = 4096.0
    instance: int = 1
    cpu_ns: float = 0.0
    written: float = 0.0
    missing: bool = False


@dataclass
class Fleet:
    """Nodes with their machines, sampled every `interval_s`."""

    nodes: dict[str, list[Machine]]
    interval_s: int = 20
    now_s: int = 0
    offset: int = 0
    sequences: dict[str, int] = field(default_factory=dict)

    def step(self) -> list[Record]:
        """Advance by an interval; return a frame of each node."""
        self.now_s += self.interval_s
        return [self.frame(node) for node in self.nodes]

    def frame(self, node: str) -> Record:
        machines = self.nodes[node]
        size = len(machines)
        integers = np.zeros((len(INTEGERS), size), np.uint64)
        absent = np.ones((len(INTEGERS), size), np.bool_)
        for column, machine in enumerate(machines):
            machine.cpu_ns += machine.cores * 1e9 * self.interval_s
            machine.written += machine.writes * self.interval_s
            values = {
                "cpu_time_ns": machine.cpu_ns,
                "block_rd_bytes": 0,
                "block_wr_bytes": machine.written,
                "net_rx_bytes": 0,
                "net_tx_bytes": machine.written,
                "balloon_rss_kib": machine.memory_mib * 1024,
                "vcpus": machine.vcpus,
                "instance": machine.instance,
            }
            for name, value in values.items():
                if not machine.missing:
                    integers[INTEGER_ROW[name], column] = int(value)
                    absent[INTEGER_ROW[name], column] = False
        sequence = self.sequences.get(node, 0)
        self.sequences[node] = sequence + 1
        header = Header(
            site="site",
            zone="zone",
            cell="cell",
            node=node,
            role="collector",
            run="run-1",
            sequence=sequence,
            event_time_ns=(EPOCH_MS + self.now_s * 1000) * 1_000_000,
            mono_ns=self.now_s * 1_000_000_000,
            interval_ms=self.interval_s * 1000,
        )
        frame = Frame(
            header=header,
            rows=VmRows(
                uuids=b"".join(uuid_of(machine.name) for machine in machines),
                integers=integers,
                missing=absent,
                gauges=np.full((len(GAUGES), size), np.nan, np.float32),
            ),
            node={
                "cpu_busy_ratio": 0.25,
                "cpu_cores": 8.0,
                "memory_total_bytes": 8192.0 * MIB,
                "memory_available_bytes": 2048.0 * MIB,
            },
        )
        self.offset += 1
        return Record(
            topic="flatline.frames.v1",
            partition=0,
            offset=self.offset - 1,
            time_ms=EPOCH_MS + self.now_s * 1000,
            key=b"cell",
            value=encode_frame(frame),
        )

    def run(self, minutes: int) -> list[Record]:
        """Return the frames of some minutes."""
        return [record for _ in range(minutes * 60 // self.interval_s) for record in self.step()]
