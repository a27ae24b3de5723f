"""Hand-made alert lines."""

import pytest

from flatline.engine.evaluation.lines import AlertLine


@pytest.fixture
def line():
    def make(t, subject="a", kind="panic_spin", suggestion="alert", **fields):
        known = {
            "t": float(t),
            "onset_t": float(t),
            "id": fields.pop("id", f"{subject}/{kind}"),
            "scope": "vm",
            "subject": subject,
            "vms": (),
            "kind": kind,
            "state": "firing",
            "confidence": 0.9,
            "suggested_action": suggestion,
            "vetoes": (),
            "sentence": f"{subject} is thought to have {kind}.",
        }
        return AlertLine(**{**known, **fields})

    return make
