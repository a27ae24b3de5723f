"""Rows keep all learned values when they move, for any roster."""

import numpy as np

from flatline.engine.detection.vm_table import BY_ROW, VmTable, follow_roster
from flatline.models.kernels.baseline import NO_PREVIOUS, OUT, SIGNALS


def uuids(count: int, *, first: int = 0) -> list[bytes]:
    return [bytes([index]) * 16 for index in range(first, first + count)]


def learned(roster: list[bytes], rng: np.random.Generator) -> VmTable:
    table = VmTable(b"".join(roster))
    table.vcpu_counts[: len(roster)] = rng.integers(0, 5, len(roster))
    table.vcpu_times = np.zeros(table.vcpu_counts.sum(), np.uint64)
    for name, array in table.to_arrays().items():
        if name != "vcpu_counts":
            array[...] = rng.integers(1, 100, array.shape).astype(array.dtype)
    return table


def state_of(table: VmTable, vm: bytes) -> dict[str, bytes]:
    place = table.indices[vm]
    block, index = divmod(place, 64)

    state = {}
    for name, array in table.to_arrays().items():
        if name == "vcpu_times":
            state[name] = table.times_by_row()[place].tobytes()
            continue
        if name in BY_ROW:
            part = array[place]
        else:
            part = array[block, :, index] if array.ndim == 3 else array[..., place]
        state[name] = part.tobytes()
    return state


def test_each_vm_keeps_its_state_in_another_order(rng: np.random.Generator) -> None:
    before = learned(uuids(100), rng)
    shuffled = [uuids(100)[index] for index in rng.permutation(100)]
    after = follow_roster(before, b"".join(shuffled))
    for vm in shuffled:
        assert state_of(after, vm) == state_of(before, vm)


def test_times_of_several_vms_follow_them_to_another_node(rng: np.random.Generator) -> None:
    source, target = learned(uuids(8), rng), learned(uuids(6, first=10), rng)
    kept = {place: target.times_by_row()[place].tobytes() for place in (0, 2, 3, 5)}
    target.take(np.array([4, 1]), source, np.array([7, 2]))
    times = target.times_by_row()
    assert {place: times[place].tobytes() for place in kept} == kept
    for place, index in ((4, 7), (1, 2)):
        assert times[place].tobytes() == source.times_by_row()[index].tobytes()


def test_a_new_vm_begins_with_nothing(rng: np.random.Generator) -> None:
    after = follow_roster(learned(uuids(3), rng), b"".join(uuids(4)))
    assert state_of(after, uuids(4)[3]) == state_of(VmTable(b"".join(uuids(4))), uuids(4)[3])


def test_a_migrated_vm_brings_its_habits_and_not_its_counters(rng: np.random.Generator) -> None:
    source, target = learned(uuids(2), rng), VmTable(b"".join(uuids(3, first=10)))
    target.adopt(1, source, 0)
    moved = state_of(target, uuids(3, first=10)[1])
    assert moved["baseline"] == state_of(source, uuids(1)[0])["baseline"]
    assert (target.previous[:, 1] == NO_PREVIOUS).all()
    assert (target.kvm[:, 1] == NO_PREVIOUS).all()
    assert len(target.times_by_row()[1]) == len(source.times_by_row()[0])
    assert (target.times_by_row()[1] == NO_PREVIOUS).all()
    assert target.number("migrated", 1) == 1
    assert target.number("run_samples", 1) == 0


def test_arrays_make_the_same_rows_again(rng: np.random.Generator) -> None:
    table = learned(uuids(70), rng)
    again = VmTable.from_arrays(table.roster, table.to_arrays())
    for name, array in table.to_arrays().items():
        np.testing.assert_array_equal(again.to_arrays()[name], array)


def test_results_that_an_earlier_release_stored_are_read_by_their_names(
    rng: np.random.Generator,
) -> None:
    stored = (
        *SIGNALS,
        *(f"z_{name}" for name in SIGNALS),
        *("cpu_cores_expected", "disk_bytes_per_s_expected"),
        *("cpu_cores_error", "disk_bytes_per_s_error"),
        *("cpu_cores_residual", "disk_bytes_per_s_residual"),
        *("cusum_cpu_cores", "cusum_disk_wr_bytes_per_s", "cpu_cores_q95", "worst_z", "gate"),
    )
    roster = b"".join(uuids(3))
    earlier = rng.random((len(stored), 64)).astype(np.float32)
    arrays = VmTable(roster).to_arrays() | {"counted": earlier}
    restored = VmTable.from_arrays(roster, arrays)
    for name, row in OUT.items():
        assert np.array_equal(restored.counted[row], earlier[stored.index(name)]), name
