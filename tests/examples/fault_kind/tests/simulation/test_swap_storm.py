"""A guest that swaps is reported once, and is well when it no longer does."""

from benchmarks.corpus import SimulatedRecording
from flatline.connectors.simulator.plan import Incident, WorldPlan
from flatline.engine.evaluation.judging import judge
from flatline.engine.evaluation.scores import score
from flatline.engine.roles.replay import Replayer


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
