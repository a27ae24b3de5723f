"""Other detectors than the engine that may write to the topic of alerts."""

from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID

import msgspec

from flatline.connectors.simulator.fleet import Fleet
from flatline.engine.ports import Headers
from flatline.engine.wire.alert import Alert, encode_alert

# A replay of the frames does not reproduce its alerts.
OTHERS: Final = "storage monitor"


def command_of_others(
    fleet: Fleet, words: Mapping[str, Any], *, now_ms: int
) -> tuple[bytes, Headers]:
    """Return an alert on VM `words["vm"]`, with the other words as its fields, and its headers.

    Its id is the VM's, so that later alerts can update it.
    """
    world, index = fleet.world, words["vm"]
    item = world.topology.item(index)
    node = world.topology.nodes[int(world.guests.node[index])]
    values: dict[str, Any] = {
        "id": f"{index:032x}", "transition": 0, "scope": "vm",
        "subject": str(UUID(bytes=item.vm)), "site": "site", "zone": "z0", "cell": "c0",
        "severity": "error", "confidence": 1.0, "onset_ms": now_ms, "opened_ms": now_ms,
        "decided_ms": now_ms, "data_ms": now_ms, "configuration": OTHERS, "node": node,
        "position": {"node": node, "role": "collector", "run": "others", "sequence": 0},
        "instance": int(world.guests.instance[index]), "tenant": item.tenant,
        "group": item.group, "actionable": item.actionable, "history_s": world.now_ns / 1e9,
        "pools": sorted(set(item.disks.values())), "networks": sorted(item.nics.values()),
    }  # fmt: skip
    reported = {name: value for name, value in words.items() if name != "vm"}
    return encode_alert(msgspec.convert(values | reported, Alert))
