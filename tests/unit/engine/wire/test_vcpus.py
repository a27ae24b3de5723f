"""vCPU times are decoded exactly, use only the bytes they need, or are rejected."""

import msgspec
import numpy as np
import pytest

from flatline.engine.errors import RecordRejected
from flatline.engine.wire.frame import Frame, VmRows, decode_frame, encode_frame
from flatline.engine.wire.vcpus import (
    MAX_FRAME_VCPUS,
    MAX_VM_VCPUS,
    QUANTUM_NS,
    VcpuRows,
    pack_vcpus,
    unpack_vcpus,
)
from flatline.models.codecs.columns import widen
from tests.unit.engine.wire import samples


def rows(size, **reported):
    plain = samples.rows(size)
    return VmRows(
        uuids=plain.uuids,
        integers=plain.integers,
        missing=plain.missing,
        gauges=plain.gauges,
        vcpus=samples.vcpu_rows(size, **reported),
    )


def there_and_back(sent, **how):
    return decode_frame(encode_frame(Frame(header=samples.header(), rows=sent)), **how).rows


@pytest.mark.parametrize("size", [1, 7, 200])
@pytest.mark.parametrize("share", [0.0, 0.2], ids=["whole", "missing"])
@pytest.mark.parametrize("how", [{}, {"widen": widen}], ids=["node", "engine"])
def test_times_come_back_as_they_were(size, share, how):
    sent = rows(size, missing_share=share)
    assert there_and_back(sent, **how) == sent


def test_a_vm_of_more_than_255_vcpus_comes_back_as_it_was():
    sent = rows(5, most=MAX_VM_VCPUS + 1)
    assert sent.vcpus.counts.max() > 255
    assert there_and_back(sent) == sent


def test_a_frame_without_times_is_as_long_as_before_and_says_that_they_are_unknown():
    plain = samples.rows(7)
    value = encode_frame(Frame(header=samples.header(), rows=plain))
    assert b"vcpu_times" not in value
    assert b"vcpu_counts" not in value
    assert decode_frame(value).rows.vcpus is None


def test_missing_time_is_never_decoded_as_a_measured_zero():
    sent = rows(50, missing_share=0.3)
    assert np.array_equal(there_and_back(sent).vcpus.missing, sent.vcpus.missing)


def test_times_follow_their_vms_when_rows_are_split():
    whole = rows(10)
    bounds = whole.vcpus.bounds()
    part = whole.select(slice(4, 9))
    assert np.array_equal(part.vcpus.counts, whole.vcpus.counts[4:9])
    assert np.array_equal(part.vcpus.times_ns, whole.vcpus.times_ns[bounds[4] : bounds[9]])
    assert np.array_equal(part.vcpus.absent(), whole.vcpus.absent()[bounds[4] : bounds[9]])
    assert there_and_back(part) == part
    assert whole.select(slice(3, 3)).vcpus is None


def test_whole_quanta_cost_no_more_bytes_than_they_need():
    counts = np.full(100, 2, np.uint16)
    ticks = np.random.default_rng(1).integers(0, 2**24, 200).astype(np.uint64)
    _, table = pack_vcpus(
        VcpuRows(counts=counts, times_ns=ticks * np.uint64(QUANTUM_NS), missing=None)
    )
    assert len(table.data) == 3 * len(ticks)


def rejected(counts, times, size):
    with pytest.raises(RecordRejected) as caught:
        unpack_vcpus(counts, times, size)
    return caught.value.reason


def test_counts_that_cannot_be_are_refused_before_a_time_is_unpacked():
    counts, times = pack_vcpus(samples.vcpu_rows(6))
    assert rejected(counts[:-1], times, 6) == "malformed"
    assert rejected(np.full(6, MAX_VM_VCPUS + 1, "<u2").tobytes(), times, 6) == "oversized"
    size = MAX_FRAME_VCPUS // MAX_VM_VCPUS + 1
    assert rejected(np.full(size, MAX_VM_VCPUS, "<u2").tobytes(), times, size) == "oversized"


def test_times_that_do_not_fit_their_counts_are_refused():
    counts, times = pack_vcpus(samples.vcpu_rows(6))
    more = bytes([counts[0] + 1]) + counts[1:]
    assert rejected(more, times, 6) == "truncated"
    short = msgspec.structs.replace(times, missing=times.missing[:-1])
    assert rejected(counts, short, 6) == "malformed"


@pytest.mark.parametrize(("vms", "each"), [(1, MAX_VM_VCPUS + 1), (MAX_FRAME_VCPUS // 16 + 1, 16)])
def test_more_than_a_frame_may_hold_is_refused_by_the_writer(vms, each):
    counts = np.full(vms, each, np.uint16)
    times_ns = np.ones(vms * each, np.uint64)
    with pytest.raises(ValueError, match="split the frame"):
        pack_vcpus(VcpuRows(counts=counts, times_ns=times_ns, missing=None))
