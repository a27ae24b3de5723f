"""The escalation policies of the shipped default policy are those of the rows of faults."""

from deploy.default_policy import FILE, rendered
from flatline.engine.action.catalogue import parse_policy, read_shipped
from flatline.engine.faults import Kind


def test_the_ladders_of_the_default_policy_are_as_generated():
    assert FILE.read_text() == rendered(FILE.read_text()), "run python -m deploy.default_policy"


def test_a_generated_escalation_policy_has_the_steps_of_its_row():
    shipped = parse_policy(read_shipped("default"), source="default")
    rows = {kind: kind.fault.escalation.steps for kind in Kind if kind.fault.escalation.steps}
    assert shipped.ladders == rows
