"""How to add a fault kind: `swap_storm`, a guest that reads and writes as one that swaps does.

Each edit is what a contributor writes. `test_fault_kind.py` makes them in a copy of the tree and
runs what they add.
"""

from typing import Final

from tests.examples.edit import Edit

_ROW: Final = """\
    SWAP_STORM = "swap_storm", Fault(
        family="slow", scopes=_VM, meaning="too little memory", severity="warning",
        suggestion="alert", recovery="signal", signal="swaps", recovered="it no longer swaps",
        escalation=_TELL, is_scored=True,
    )
"""
_SIGNAL: Final = '''\
@inlined
def _swaps(means: F64, count: int) -> float:
    """Return 1 if a guest has read and written like one that swaps, in each of the last means."""
    for back in range(_SWAP_BUCKETS):
        reads, writes = _mean_at(means, READ, count, back), _mean_at(means, WRITE, count, back)
        if not (reads >= _SWAP_BYTES and writes >= _SWAP_BYTES):
            return 0.0
    return 1.0


'''
_FINDER: Final = """\
def _swaps(one: _Suspect) -> Finding:
    return _finding(
        one,
        Kind.SWAP_STORM,
        "has read and written for 15 minutes as a guest does that swaps.",
        EvidenceItem(signal="swaps", text="it reads and writes at once, without a pause"),
    )


"""
_TEST: Final = '''\
"""A guest that swaps is reported once, and is well when it no longer does."""

from benchmarks.corpus import SimulatedRecording
from connectors.simulator.plan import Incident, WorldPlan
from engine.evaluation.judging import judge
from engine.evaluation.scores import score
from engine.roles.replay import Replayer


def test_a_guest_that_swaps_is_reported_until_it_no_longer_does() -> None:
    storm = Incident(kind="swap_storm", at_s=3600.0, vms=(2,), duration_s=2400.0)
    plan = WorldPlan(
        seed=5, cells=1, nodes_per_cell=1, vms_per_node=4, incidents=(storm,),
        pinned=dict.fromkeys(range(4), "web"),
    )  # fmt: skip
    recording = SimulatedRecording(plan, interval_s=60.0, seconds=7800.0)
    lines = list(Replayer(recording, policies={}).run())
    reported = [line for line in lines if line.kind == "swap_storm"]
    assert {line.subject for line in reported} == {recording.site.world.topology.names[2]}
    assert [reported[0].state, reported[-1].state] == ["firing", "resolved"]
    assert reported[0].sentence.endswith("Probable cause: too little memory.")
    assert reported[-1].sentence.endswith(": it no longer swaps.")
    scores = score(judge(lines, recording.truth(), interval_s=60.0), interval_s=60.0, vm_days=0.4)
    assert scores.kinds["swap_storm"].f1 == 1.0
'''

EDITS: Final = (
    # The row: everything that other modules ask about the kind.
    Edit(
        "engine/faults.py",
        "    VM_SILENCE = ",
        f"{_ROW}    VM_SILENCE = ",
    ),
    # Its escalation policy, as `python -m deploy.default_policy` writes it.
    Edit(
        "engine/action/policies/default.toml",
        'cpu_runaway = [{ action = "notify" }]\n',
        'cpu_runaway = [{ action = "notify" }]\nswap_storm = [{ action = "notify" }]\n',
    ),
    # The signal, computed with each mean of five minutes.
    Edit(
        "models/kernels/trends.py",
        "# Constants that affect decisions:",
        "# A guest that swaps reads and writes at least this much at once; a backup only reads.\n"
        "_SWAP_BYTES: Final = 4e6\n"
        "_SWAP_BUCKETS: Final = 3\n"
        "# Constants that affect decisions:",
    ),
    Edit("models/kernels/trends.py", "@inlined\ndef _close(", f"{_SIGNAL}@inlined\ndef _close("),
    Edit("models/kernels/trends.py", '    "write_share",\n', '    "write_share", "swaps",\n'),
    Edit("models/kernels/trends.py", "    _O_WRITE_SHARE,\n", "    _O_WRITE_SHARE, _O_SWAPS,\n"),
    Edit(
        "models/kernels/trends.py",
        "    *(_FLOOD_BYTES, _FLOOD_RATIO, _FLOOD_CPU_SHARE),\n",
        "    *(_FLOOD_BYTES, _FLOOD_RATIO, _FLOOD_CPU_SHARE, _SWAP_BYTES, _SWAP_BUCKETS),\n",
    ),
    Edit(
        "models/kernels/trends.py",
        "    out[_O_FLOOD] = state[_FLOOD]\n",
        "    out[_O_FLOOD] = state[_FLOOD]\n    out[_O_SWAPS] = _swaps(means, count)\n",
    ),
    # The flag that selects a VM with this signal, and the same in the slow twin of the kernel.
    Edit(
        "models/kernels/screening.py",
        "BITS: Final = 14\n",
        "# It reads and writes as a guest that swaps.\nSWAPS = 14\nBITS: Final = 15\n",
    ),
    Edit(
        "models/kernels/screening.py",
        '_SLOWED_HOURS = trends.OUT["slowed_hours"]\n',
        '_SLOWED_HOURS, _SWAPPING = trends.OUT["slowed_hours"], trends.OUT["swaps"]\n',
    ),
    Edit(
        "models/kernels/screening.py",
        "    return found | _bit(SLOWED,",
        "    found |= _bit(SWAPS, shows[index, _SWAPPING] > 0.0)\n    return found | _bit(SLOWED,",
    ),
    Edit(
        "tests/reference/screening_twin.py",
        "        screening.FELL_DISK:",
        '        screening.SWAPS: shows[:, _SHOWS["swaps"]] > 0,\n        screening.FELL_DISK:',
    ),
    # The finding.
    Edit(
        "engine/detection/slow.py",
        "# What finds a fault of a VM with a flag;",
        f"{_FINDER}# What finds a fault of a VM with a flag;",
    ),
    Edit(
        "engine/detection/slow.py",
        "    screening.SLOWED: _degraded,\n",
        "    screening.SLOWED: _degraded,\n    screening.SWAPS: _swaps,\n",
    ),
    # How the simulator plays it, and the test that finds it there.
    Edit(
        "connectors/simulator/faults.py",
        '        "cpu_runaway": Played(',
        '        "swap_storm": Played(\n'
        "            modifier(extra_reads=60.0, extra_writes=60.0), usual_s=3600.0\n"
        "        ),\n"
        '        "cpu_runaway": Played(',
    ),
    Edit("tests/simulation/test_swap_storm.py", "", _TEST),
    # What operators read.
    Edit("CHANGELOG.md", "memory leak, CPU runaway,", "memory leak, swap storm, CPU runaway,"),
)
