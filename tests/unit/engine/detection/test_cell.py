import numpy as np
import pytest

from flatline.engine.detection.cell import Cell, Node
from flatline.engine.detection.forest import new_forest


@pytest.mark.parametrize("seed", range(20))
def test_live_nodes_are_known_one_by_one_as_by_looking_at_all(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cell = Cell("c", site="s", zone="z", forest=new_forest())
    for _ in range(300):
        deed = rng.choice(["come", "pace", "silence", "ask"], p=[0.2, 0.5, 0.1, 0.2])
        if deed == "come" or not cell.nodes:
            key = f"n{len(cell.nodes)}"
            node = cell.nodes[key] = Node(
                name=key, key=key, interval_ms=int(rng.choice([500, 1_000]))
            )
            cell.samples_every(node, node.interval_ms)
        elif deed == "pace":
            node = cell.nodes[f"n{rng.integers(len(cell.nodes))}"]
            interval_ms = int(rng.choice([500, 1_000, 2_000, 10_000]))
            cell.samples_every(node, interval_ms)
            node.interval_ms = interval_ms
        elif deed == "silence":
            for node in cell.nodes.values():
                node.silent = bool(rng.random() < 0.3)
            cell.nodes_changed()
        live = {key: node.interval_ms for key, node in cell.nodes.items() if not node.silent}
        assert cell.interval_ms() == max(live.values(), default=1_000)
        cell.reported = set(live)
        assert cell.all_reported()
        if live:
            cell.reported.remove(str(rng.choice(sorted(live))))
            assert not cell.all_reported()
