"""The state of the previous build continues; values it did not keep are learned again."""

import lzma
from pathlib import Path

import numpy as np

from flatline.engine.detection.configuration import CONTINUED, Configuration
from flatline.engine.detection.partition import Partition
from flatline.engine.detection.snapshot import digest, restore, take_snapshot
from flatline.engine.stream.snapshot_format import CHUNK_BYTES, Manifest, decode_manifest
from flatline.models.kernels import standstill
from tests.unit.engine.detection.frames_by_hand import Bench, cell

GOLDEN = Path(__file__).parent / "golden"


def old_state() -> tuple[list[bytes], bytes]:
    """Return the chunks of the previous build with two guests, one just dead, and its manifest."""
    body = lzma.decompress((GOLDEN / "snapshot.v1.xz").read_bytes())
    chunks = [body[start : start + CHUNK_BYTES] for start in range(0, len(body), CHUNK_BYTES)]
    return chunks, (GOLDEN / "manifest.v1").read_bytes()


def restored() -> Partition:
    chunks, manifest = old_state()
    return restore(chunks, decode_manifest(manifest), Configuration())


def test_a_snapshot_of_the_build_before_is_continued() -> None:
    assert decode_manifest(old_state()[1]).configuration in CONTINUED
    partition = restored()
    table = partition.cells["cell"].tables["node-0"]
    assert len(table.vcpu_times) == 0
    assert (table.kvm == standstill.NO_TIME).all()
    assert (table.numbers("vcpu_mover")[:2] == standstill.NO_MOVER).all()
    assert np.count_nonzero(table.gaps) > 0
    assert digest(partition) == digest(restored())


def test_what_it_goes_on_to_learn_is_kept() -> None:
    bench, guests = cell(2, interval_s=10.0, configuration=Configuration())
    # The same guests continue with the stored state.
    place = bench.places[0]
    place.sequence, place.mono_ns, bench.now_s = 62, place.mono_ns + 620 * 10**9, 620.0
    bench.partition = restored()
    bench.offset = bench.partition.next_offset
    for guest in guests:
        guest.others = 0.005
    bench.run(300.0)
    table = bench.partition.cells["cell"].tables["node-0"]
    assert table.vcpu_counts[:2].tolist() == [2, 2]
    again = restore(*_snapshot(bench))
    assert digest(again) == digest(bench.partition)


def _snapshot(bench: Bench) -> tuple[list[bytes], Manifest, Configuration]:
    return (*take_snapshot(bench.partition), bench.partition.configuration)
