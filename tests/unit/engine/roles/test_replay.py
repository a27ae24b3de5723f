import msgspec
import pytest

from flatline.connectors.simulator.plan import Incident, WorldPlan
from flatline.engine.action.catalogue import parse_policy, read_shipped
from flatline.engine.detection.replayed import run_records
from flatline.engine.ports import RecordedFrame
from flatline.engine.roles.replay import Replayer
from flatline.engine.wire.frame import decode_frame
from tests.simulation.site_records import Site

PLAN = WorldPlan(
    seed=3,
    cells=1,
    nodes_per_cell=2,
    vms_per_node=8,
    incidents=(Incident(kind="panic_spin", at_s=300, vms=(2,)),),
)


class Recorded:
    """A simulated site as a recording."""

    def __init__(self, plan=PLAN, *, seconds=420, interval_s=2.0, whole=False):
        self.name = "simulated"
        self.interval_s = interval_s
        self.names = {}
        self.records = list(Site(plan, interval_s).run(seconds))
        self._whole = whole

    def recorded_frames(self):
        for record in self.records:
            frame = None if self._whole else decode_frame(record.value)
            yield RecordedFrame(record.time_ms, frame, 0, record.value if self._whole else b"")

    def figures(self):
        return {}


@pytest.fixture(scope="module")
def recorded():
    return Recorded()


def replayed(recording, **policies):
    replayer = Replayer(recording, policies=policies or {"demo": shipped("demo")})
    return replayer, list(replayer.run())


def shipped(name):
    return parse_policy(read_shipped(name), source=name)


def test_the_engine_that_replays_is_the_one_that_reads_the_log(recorded) -> None:
    replayer, lines = replayed(recorded)
    engine = run_records(recorded.records)
    assert replayer.digest() == engine.digest
    reported = dict.fromkeys(
        (alert.id, alert.kind, alert.state, alert.suggested_action) for alert in engine.alerts
    )
    assert [(x.id, x.kind, x.state, x.suggested_action) for x in lines] == list(reported)


def test_frames_and_their_bytes_lead_to_the_same(recorded) -> None:
    whole, lines = replayed(Recorded(whole=True))
    made, as_frames = replayed(recorded)
    assert whole.digest() == made.digest()
    assert [line.id for line in lines] == [line.id for line in as_frames]


def test_an_incident_gets_one_order_that_is_not_attempted(recorded) -> None:
    replayer, lines = replayed(recorded)
    [order] = replayer.planned["demo"].orders
    [reason] = {line.id for line in lines if line.suggested_action == "reboot"}
    assert (order.incident, order.action, order.step) == (reason, "reset", 0)
    [entry] = replayer.planned["demo"].state.history
    assert entry.result is not None
    assert entry.result.outcome == "not_attempted"


def test_lines_are_transitions_and_not_what_is_published_again(recorded) -> None:
    _, lines = replayed(recorded)
    texts = [msgspec.json.encode(line) for line in lines]
    assert len(texts) == len(set(texts))
    changes = [(line.id, line.state, line.kind, line.suggested_action) for line in lines]
    assert len(changes) == len(set(changes))


def test_policies_are_compared_over_the_same_alerts(recorded) -> None:
    replayer, _ = replayed(recorded, ours=shipped("demo"), other=shipped("default"))
    assert len(replayer.planned["ours"].orders) == 1
    assert replayer.planned["other"].orders == []
    assert replayer.planned["other"].held["newborn"] == 1


def test_a_cell_whose_minute_is_no_record_of_a_log_is_replayed() -> None:
    plan = WorldPlan(seed=3, cells=1, nodes_per_cell=12, vms_per_node=1_000)
    replayer, _ = replayed(Recorded(plan, seconds=150, interval_s=30.0))
    assert replayer.vm_samples == 4 * plan.vms
    (planned,) = replayer.planned.values()
    assert {load.vm_count for load in planned.state.loads.values()} == {plan.vms}
