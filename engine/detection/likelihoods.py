"""Compute the evidence for and against a fault of one VM now, by signal, for charts."""

from flatline.engine.detection.cell import Cell
from flatline.engine.detection.configuration import Configuration
from flatline.engine.detection.evidence import cpu_item, picture, silence_item
from flatline.engine.detection.witnesses import witness_items


def likelihoods(cell: Cell, vm: bytes, configuration: Configuration) -> dict[str, float]:
    """Return nats by signal, their sum as `dead`, and `disk_silence` outside the sum.

    Empty where the VM has no row. Values are those of an alert's evidence, also without an alert.
    """
    located = cell.locate(vm)
    if located is None:
        return {}
    node, table, index = located
    seen = picture(node, table, index, cell.vms[vm], configuration)
    items = [
        silence_item(seen, configuration),
        cpu_item(seen, configuration),
        *witness_items(seen, configuration),
    ]
    nats = {item.signal: item.nats or 0.0 for item in items}
    return {**nats, "dead": sum(nats.values()), "disk_silence": seen.disk_nats}


def limits(configuration: Configuration) -> dict[str, float]:
    """Return the score thresholds in nats by their effect."""
    return {
        "alert": configuration.alert_nats,
        "order, one core": configuration.order_nats("one_core"),
        "order": configuration.order_nats("all_cores"),
    }
