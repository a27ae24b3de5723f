"""The call of an order, after all checks."""

import asyncio
from typing import Any, cast

import pytest

from flatline.engine.errors import ActionRefused
from flatline.engine.ports import Actuator, Evidence
from flatline.engine.preflight_data import Permit
from flatline.engine.roles.calling import call
from tests.unit.engine.action.samples import order

NO_CALL: Any = None


@pytest.mark.parametrize(
    "changes",
    [
        {"action": "migrate"},
        {"action": "move_disk", "target": "hdd"},
        {"action": "move_disk", "disk": "vda"},
    ],
    ids=["no node", "no disk", "no pool"],
)
def test_a_move_without_its_target_or_disk_is_refused_before_the_call(
    changes: dict[str, str],
) -> None:
    permit = Permit(instance=7, within_s=1.0, last_check=lambda _sample: None)
    with pytest.raises(ActionRefused, match="does not name the target or the disk"):
        asyncio.run(
            call(
                cast(Actuator, NO_CALL),
                cast(Evidence, NO_CALL),
                order(**changes),
                left_s=100.0,
                permit=permit,
            )
        )
