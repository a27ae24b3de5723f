"""The compiled state update equals its plain twin, sample by sample."""

import numpy as np
import pytest

from flatline.engine.detection import rates
from flatline.engine.detection.configuration import Configuration
from flatline.engine.detection.vm_table import VmTable
from flatline.engine.wire.frame import VmRows
from flatline.engine.wire.metrics import GAUGES, INTEGER_ROW, INTEGERS, VM_STATES
from tests.reference import state_update_twin

VMS = 70
SAMPLES = 160
COUNTERS = ("cpu_time_ns", "block_rd_bytes", "block_wr_bytes", "net_tx_bytes")


def samples(rng):
    """Yield rows of VMs that work, fall silent, stop, disappear and return."""
    integers = np.zeros((len(INTEGERS), VMS), np.uint64)
    moving = np.ones((len(COUNTERS), VMS), np.bool_)
    balloon = rng.integers(1, 9, VMS)
    for _ in range(SAMPLES):
        moving ^= rng.random(moving.shape) < 0.08
        growth = rng.integers(1, 10**9, moving.shape) * moving
        growth[0] = np.where(moving[0], rng.integers(1, 4 * 10**9, VMS), 10**6)
        growth[0, rng.random(VMS) < 0.01] = 10**14  # more than any guest can use
        for row, name in enumerate(COUNTERS):
            integers[INTEGER_ROW[name]] += growth[row].astype(np.uint64)
        integers[INTEGER_ROW["vcpus"]] = 1 + np.arange(VMS) % 5
        stopped = rng.random(VMS) < 0.02
        running, off = VM_STATES.index("running"), VM_STATES.index("paused")
        integers[INTEGER_ROW["state"]] = np.where(stopped, off, running)
        balloon += rng.random(VMS) < 0.4
        integers[INTEGER_ROW["balloon_last_update_s"]] = balloon
        waits_ns = rng.integers(0, 10**9, VMS) * rng.choice([1, 1, 400], VMS)
        integers[INTEGER_ROW["vcpu_delay_ns"]] += waits_ns.astype(np.uint64)
        missing = rng.random((len(INTEGERS), VMS)) < 0.02
        missing[:, rng.random(VMS) < 0.03] = True
        gauges = np.full((len(GAUGES), VMS), np.nan, np.float32)
        gauges[0] = np.where(rng.random(VMS) < 0.8, rng.random(VMS), np.nan)
        yield VmRows(
            uuids=np.arange(VMS, dtype=">u8").repeat(2).tobytes(),
            integers=np.where(missing, 0, integers).astype(np.uint64),
            missing=missing,
            gauges=gauges,
        )


def state_of(rng, dt_s):
    found = VmTable(np.arange(VMS, dtype=">u8").repeat(2).tobytes())
    for number, rows in enumerate(samples(rng)):
        # The first sample of a run has no interval, nor has one after the clock went back.
        step_s = None if number in {0, 50} else dt_s
        rates.fold_rows(
            found,
            rows,
            dt_s=step_s,
            sequence=number,
            event_ms=1000 * number,
            configuration=Configuration(),
        )
        found.hold[...] = rng.random(found.hold.size) < 0.05
        yield {name: array.copy() for name, array in found.to_arrays().items()}


@pytest.mark.parametrize("dt_s", [1.0, 10.0, 300.0])
def test_the_kernel_does_what_its_twin_does(monkeypatch, dt_s) -> None:
    compiled = list(state_of(np.random.default_rng(3), dt_s))
    monkeypatch.setattr(rates, "_update_state", state_update_twin.update_state)
    plain = list(state_of(np.random.default_rng(3), dt_s))
    for number, (ours, theirs) in enumerate(zip(compiled, plain, strict=True)):
        for name, array in ours.items():
            np.testing.assert_allclose(
                array, theirs[name], rtol=2e-5, atol=1e-6, err_msg=f"{name} at {number}"
            )
