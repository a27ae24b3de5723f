"""Saves the forecaster's state as chunks of bytes (arrays in msgpack), and restores it exactly."""

from collections.abc import Sequence
from hashlib import sha256
from typing import Literal

import msgspec
import numpy as np

from flatline.engine.forecasting.demand import Demand
from flatline.engine.forecasting.partition_forecasts import Node, PartitionForecasts
from flatline.engine.stream.snapshot_format import Manifest, Snapshot, named, packed, unpacked
from flatline.engine.wire import limits
from flatline.engine.wire.log_clock import LogClock
from flatline.engine.wire.runs import Runs
from flatline.engine.wire.stored import Array, array_of, restoring, stored
from flatline.models.forecaster import Forecaster
from flatline.models.protocol import fill


class NodeValue(msgspec.Struct, frozen=True, kw_only=True):
    """The state of one node."""

    key: tuple[str, str]
    site: str
    zone: str
    name: str
    heard: int
    roster: bytes
    run: str
    sequence: int
    mono_ns: int
    demand: dict[str, Array]
    forecaster: dict[str, Array]


class StateValue(msgspec.Struct, frozen=True, kw_only=True):
    """All state that the next forecast depends on."""

    time_ms: limits.TimeMs
    number: limits.Count
    nodes: list[NodeValue]
    departed: list[tuple[bytes, int, Array]]
    profiles: list[tuple[str, str, Array]]
    counts: dict[str, int]
    runs: list[tuple[str, str, Runs]] = []
    clock: LogClock | None = None
    v: Literal[2] = 2


_encoder = msgspec.msgpack.Encoder(order="sorted")
_decoder = msgspec.msgpack.Decoder(StateValue)


def take_state(state: PartitionForecasts) -> Snapshot:
    """Return the state as records for the log."""
    return packed(
        _encoder.encode(_value(state)),
        next_offset=state.next_offset,
        time_ms=state.time_ms,
        packing="zstd",
    )


def digest(state: PartitionForecasts) -> str:
    """Return the sha256, in hex, of all state that the next forecast depends on."""
    return sha256(_encoder.encode(_value(state))).hexdigest()


def restore_state(chunks: Sequence[bytes], manifest: Manifest) -> PartitionForecasts:
    """Return the restored state; its forecasts are bit for bit those of the saved state.

    Raises
    ------
    SnapshotDamaged
        Bytes are missing or changed, or do not encode a state of this format.
    """
    body = unpacked(chunks, manifest)
    with restoring(named(manifest)):
        return _restored(manifest.next_offset, _decoder.decode(body))


def _restored(next_offset: int, value: StateValue) -> PartitionForecasts:
    state = PartitionForecasts()
    state.next_offset = next_offset
    state.time_ms, state.number, state.counts = value.time_ms, value.number, value.counts
    state.nodes = {node.key: _node(node) for node in value.nodes}
    # An earlier release had no log clock and accepted every append time.
    state.clock = value.clock or LogClock(value.time_ms, value.time_ms)
    state.runs = {(cell, node): runs for cell, node, runs in value.runs}
    state.departed = {
        vm: (number, np.array(array_of(rows), np.float32)) for vm, number, rows in value.departed
    }
    state.profiles = {
        (metric, kind): np.array(array_of(profile), np.float32)
        for metric, kind, profile in value.profiles
    }
    return state


def _value(state: PartitionForecasts) -> StateValue:
    return StateValue(
        time_ms=state.time_ms,
        number=state.number,
        nodes=[_node_value(key, state.nodes[key]) for key in sorted(state.nodes)],
        departed=[
            (vm, number, stored(rows)) for vm, (number, rows) in sorted(state.departed.items())
        ],
        profiles=[
            (metric, kind, stored(profile))
            for (metric, kind), profile in sorted(state.profiles.items())
        ],
        counts=state.counts,
        clock=state.clock,
        runs=[(*key, runs) for key, runs in sorted(state.runs.items())],
    )


def _node_value(key: tuple[str, str], node: Node) -> NodeValue:
    demand = node.demand
    return NodeValue(
        key=key,
        site=node.site,
        zone=node.zone,
        name=node.name,
        heard=node.heard,
        roster=demand.roster,
        run=demand.run,
        sequence=demand.sequence,
        mono_ns=demand.mono_ns,
        demand={name: stored(array) for name, array in demand.arrays().items()},
        forecaster={name: stored(array) for name, array in node.forecaster.to_arrays().items()},
    )


def _node(value: NodeValue) -> Node:
    node = Node(site=value.site, zone=value.zone, cell=value.key[0], name=value.name)
    node.heard = value.heard
    demand = Demand(value.roster)
    demand.run, demand.sequence, demand.mono_ns = value.run, value.sequence, value.mono_ns
    for name, own in demand.arrays().items():
        if name in value.demand:  # an earlier release did not keep all of them
            fill(own, array_of(value.demand[name]), name=name)
    node.demand = demand
    node.forecaster = Forecaster.from_arrays(
        {name: array_of(array) for name, array in value.forecaster.items()}
    )
    if len(node.forecaster) != demand.sums.size:
        raise ValueError(
            f"{value.name} has {len(node.forecaster)} series instead of {demand.sums.size}"
        )
    return node
