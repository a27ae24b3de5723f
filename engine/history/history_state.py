"""Converts the state of the history's fold to bytes and back: arrays and msgpack, no pickle."""

from collections.abc import Sequence
from typing import Final, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from flatline.engine.history.history_fold import FrameFold, Hour, NodeState, Source
from flatline.engine.history.history_rates import COUNTERS
from flatline.engine.history.rollups import STATISTICS, Window
from flatline.engine.history.rows import pool_series, telegraf_series, vm_texts
from flatline.engine.stream.counters import Counters
from flatline.engine.stream.snapshot_format import Manifest, Snapshot, named, packed, unpacked
from flatline.engine.wire import limits
from flatline.engine.wire.frame import UUID_BYTES
from flatline.engine.wire.points import Series
from flatline.engine.wire.runs import Runs
from flatline.engine.wire.stored import restoring
from flatline.models.protocol import fill

# The state of a node without frames for a day is left out of snapshots: after a restart, the node
# begins without state.
_FORGET_MS: Final = 86_400_000


class _Window(msgspec.Struct, frozen=True, array_like=True):
    begin_s: int
    values: bytes


class _NodeState(msgspec.Struct, frozen=True, array_like=True):
    cell: str
    node: str
    part: int
    run: str
    mono_ns: int
    heard_ms: int
    given_out: bool
    uuids: bytes
    before: bytes | None
    instances: bytes
    pools: tuple[str, ...]
    windows: tuple[_Window | None, ...]
    device_sets: bytes = b""


class _State(msgspec.Struct, frozen=True, kw_only=True, rename={"node_states": "lanes"}):
    time_ms: limits.TimeMs
    names: dict[str, str]
    node_states: tuple[_NodeState, ...]
    sources: tuple[tuple[str, str, Source], ...]
    open_hours: tuple[tuple[str, str, int], ...]
    runs: tuple[tuple[str, str, Runs], ...] = ()
    v: Literal[1] = 1


_decoder = msgspec.msgpack.Decoder(_State)


def take_state(fold: FrameFold) -> Snapshot:
    """Return the state as records for the log, without nodes that were silent for a day."""
    indices = [
        node_state
        for node_state in fold.node_states.values()
        if fold.time_ms - node_state.heard_ms <= _FORGET_MS
    ]
    nodes = {(index.cell, index.node) for index in indices}
    state = _State(
        time_ms=fold.time_ms,
        names=dict(sorted(fold.names.items())),
        node_states=tuple(_packed(index) for index in indices),
        sources=tuple((*key, source) for key, source in fold.sources.items() if key in nodes),
        runs=tuple((*key, runs) for key, runs in sorted(fold.runs.items()) if key in nodes),
        open_hours=tuple(sorted((h.family, h.cell, h.begin_s) for h in fold.open_hours)),
    )
    return packed(
        msgspec.msgpack.encode(state),
        next_offset=fold.next_offset,
        time_ms=fold.time_ms,
        packing="zstd",
    )


def restore(chunks: Sequence[bytes], manifest: Manifest) -> FrameFold:
    """Return the restored fold.

    Raises
    ------
    SnapshotDamaged
        Bytes are missing or changed, or are not a state.
    """
    body = unpacked(chunks, manifest)
    with restoring(named(manifest)):
        state = _decoder.decode(body)
        fold = FrameFold()
        fold.next_offset, fold.time_ms = manifest.next_offset, state.time_ms
        fold.names = dict(state.names)
        fold.open_hours = {Hour(*hour) for hour in state.open_hours}
        fold.sources = {(cell, node): source for cell, node, source in state.sources}
        fold.runs = {(cell, node): runs for cell, node, runs in state.runs}
        for packed in state.node_states:
            fold.node_states[packed.cell, packed.node, packed.part] = _node_state(
                packed, fold.names
            )
    return fold


def _packed(node_state: NodeState) -> _NodeState:
    return _NodeState(
        node_state.cell,
        node_state.node,
        node_state.part,
        node_state.run,
        node_state.mono_ns,
        node_state.heard_ms,
        node_state.given_out,
        node_state.uuids,
        node_state.counters.values.tobytes(),
        node_state.counters.instances.tobytes(),
        node_state.pools,
        tuple(
            None
            if group.window is None
            else _Window(group.window.begin_s, group.window.values.tobytes())
            for group in node_state.groups()
        ),
        node_state.counters.device_sets.tobytes(),
    )


def _node_state(packed: _NodeState, names: dict[str, str]) -> NodeState:
    node_state = NodeState(
        packed.cell,
        packed.node,
        packed.part,
        packed.run,
        packed.mono_ns,
        packed.uuids,
        heard_ms=packed.heard_ms,
        given_out=packed.given_out,
        pools=packed.pools,
    )
    size = len(packed.uuids) // UUID_BYTES
    node_state.counters = counters = Counters(COUNTERS, size)
    stored = (packed.before, packed.instances, packed.device_sets)
    arrays = (counters.values, counters.instances, counters.device_sets)
    for name, own, kept in zip(("before", "instances", "device_sets"), arrays, stored, strict=True):
        # A snapshot of an earlier release does not have all three.
        if kept:
            fill(own, np.frombuffer(kept, np.float64).reshape(*own.shape[:-1], -1), name=name)
    if size != len(packed.uuids) / UUID_BYTES:
        raise ValueError(f"the roster of {packed.node} is cut off")
    vms = vm_texts(packed.uuids)
    place = {"cell": packed.cell, "node": packed.node}
    if vms:
        node_state.vms.series = Series(
            {name: [text] * size for name, text in place.items()} | {"vm": vms}
        )
        node_state.telegraf = telegraf_series(vms, cell=packed.cell, node=packed.node, names=names)
    node_state.own.series = Series({name: [text] for name, text in place.items()})
    if packed.pools:
        node_state.storage.series = pool_series(packed.pools, cell=packed.cell, node=packed.node)
    for group, window in zip(node_state.groups(), packed.windows, strict=True):
        if window is not None:
            count = -1 if group.series is None else len(group.series)
            shape = (len(STATISTICS), len(group.fields), count)
            group.window = Window(window.begin_s, _array(window.values).reshape(shape))
    return node_state


def _array(values: bytes) -> NDArray[np.float64]:
    return np.frombuffer(values, np.float64).copy()
