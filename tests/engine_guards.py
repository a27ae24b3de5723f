"""Guards of the engine's own state: no record ends it, and no writer can act for another."""

from typing import Final

from tests.mutant import Mutant

_OWNERS: Final = ("tests/unit/engine/detection/test_ownership.py",)
_LEFT: Final = ("tests/unit/engine/detection/test_leftovers.py",)
_LIMITS: Final = ("tests/unit/engine/wire/test_limits.py",)
_REFOLDING: Final = ("tests/unit/engine/stream/test_refolding.py",)
_DEVICES: Final = ("tests/unit/connectors/libvirt/test_decoding.py",)
_LOG_CLOCK: Final = ("tests/unit/engine/wire/test_log_clock.py",)
_REPLAYED: Final = ("tests/unit/engine/detection/test_replayed.py",)
_BOUNDS: Final = ("tests/unit/engine/detection/test_bounds.py",)
_CLOCKS: Final = ("tests/unit/engine/detection/test_clock_steps.py",)
_LARGE: Final = ("tests/unit/engine/detection/test_large_cell.py",)
_SETS: Final = ("tests/unit/engine/detection/test_device_sets.py",)
_POISON: Final = ("tests/unit/engine/roles/test_poison.py",)

_BELIEVED: Final = ("tests/unit/engine/roles/test_believed_states.py",)
_OWNER_COMMANDS: Final = ("tests/unit/engine/detection/test_owner_commands.py",)
_HEARD: Final = ("tests/unit/engine/detection/test_heard.py",)
_SNAPSHOTS: Final = "engine/stream/snapshot_store.py"
_DAMAGED: Final = (
    "tests/unit/engine/detection/test_snapshot.py",
    "tests/unit/engine/test_damaged_states.py",
)

ENGINE_MUTANTS: Final = (
    Mutant(
        "an owner's old word is one of now", "engine/detection/partition.py",
        "stale_command(frame, appended_ms=record.time_ms) or refusal_of(", "refusal_of(",
        _OWNER_COMMANDS,
    ),
    Mutant(
        "an owner's word is old by the time that is believed", "engine/detection/partition.py",
        "appended_ms=record.time_ms)", "appended_ms=self.time_ms)", _OWNER_COMMANDS,
    ),
    Mutant(
        "an owner's word that is dated ahead is one of now", "engine/detection/sources.py",
        "        if abs(age_ms) > OWNER_FRESH_MS:\n", "        if age_ms > OWNER_FRESH_MS:\n",
        _OWNER_COMMANDS,
    ),
    Mutant(
        "a word that was overtaken ends a maintenance", "engine/detection/lifecycle.py",
        "    if event_ms < vm.maintenance_ms:\n", "    if False:\n", _OWNER_COMMANDS,
    ),
    Mutant(
        "an answer is dated as its agent likes", "engine/detection/lifecycle.py",
        "    return min(event.time_ns // 1_000_000, arrived_ms + ahead_ms)\n",
        "    return event.time_ns // 1_000_000\n", _HEARD,
    ),
    Mutant(
        "a node whose clock is ahead hears no answer", "engine/detection/lifecycle.py",
        "    ahead_ms = 0 if home is None else max(0, -home.lag_ms)\n", "    ahead_ms = 0\n",
        _HEARD,
    ),
    Mutant(
        "any agent hears any guest", "engine/detection/lifecycle.py",
        "            if not may_hear(cell, vm, header.node, time_ms=time_ms):\n",
        "            if False:\n", _HEARD,
    ),
    Mutant(
        "a node that a VM left long ago hears it", "engine/detection/ownership.py",
        "        or (moves and name == vm.former)\n", "        or name == vm.former\n", _HEARD,
    ),
    Mutant(
        "a state is believed from every writer", _SNAPSHOTS,
        "                if keys is not None:\n", "                if False:\n", _BELIEVED,
    ),
    Mutant(
        "the engine is given no keys for its snapshots", "engine/wiring.py",
        "                state_keys=StateKeys(key, authority.trusted, upgrading),\n", "",
        ("tests/unit/engine/test_wiring.py",),
    ),
    Mutant(
        "the forecaster is given no keys for its state", "engine/wiring_planning.py",
        "                state_keys=keys,\n", "", ("tests/unit/engine/test_wiring.py",),
    ),
    Mutant(
        "the historian is given no keys for its state", "engine/wiring_history.py",
        "                state_keys=keys,\n", "", ("tests/unit/engine/test_wiring.py",),
    ),
    Mutant(
        "a state counts in every partition and group", _SNAPSHOTS,
        '"\\x00".join((topic.name, str(partition), group, "")).encode()', 'b""', _BELIEVED,
    ),
    Mutant(
        "a state is believed for ever", "engine/roles/state_keys.py",
        "        check_life(name, trusted=trusted, time_ms=record.time_ms)\n", "", _BELIEVED,
    ),
    Mutant(
        "a state may be ahead of the log", _SNAPSHOTS,
        "    if found > end:\n", "    if False:\n", _BELIEVED,
    ),
    Mutant(
        "an old state that is written again is the newest", _SNAPSHOTS,
        "key=lambda placed: placed[0], reverse=True", "key=lambda placed: 0.0", _BELIEVED,
    ),
    Mutant(
        "the last writer of a chunk decides", _SNAPSHOTS,
        "setdefault(_generation(record), {}).setdefault(int(index), record.value)",
        "setdefault(_generation(record), {})[int(index)] = record.value", _BELIEVED,
    ),
    Mutant(
        "an array of a state is put where it does not fit", "models/protocol.py",
        "    if (own.shape, own.dtype) != (kept.shape, kept.dtype):\n", "    if False:\n",
        _DAMAGED,
    ),
    Mutant(
        "an error of restoring ends the role", "engine/wire/stored.py",
        "    except Exception as error:\n", "    except ZeroDivisionError as error:\n", _DAMAGED,
    ),
    Mutant(
        "vCPU times are looked for behind their end", "engine/detection/vm_table.py",
        "        if min(counts) < 0 or sum(counts) != len(table.vcpu_times):\n",
        "        if False:\n",
        _DAMAGED,
    ),
    Mutant(
        "a forecast that waits names any place", "models/forecaster.py",
        "                if not ((named >= 0) & (named < count)).all():\n",
        "                if False:\n", _DAMAGED,
    ),
    Mutant(
        "a running copy takes a VM over", "engine/detection/ownership.py",
        "    return here and (vm.left_by_command or not there)\n", "    return here\n", _OWNERS,
    ),
    Mutant(
        "any node may speak for any VM", "engine/detection/ownership.py",
        "    return owner is None or owner.name == name or is_absent(vm, owner)\n",
        "    return True\n", _OWNERS,
    ),
    Mutant(
        "any agent may mark any VM", "engine/detection/ownership.py",
        "    return name == vm.former or may_speak(cell, vm, name)\n", "    return True\n", _OWNERS,
    ),
    Mutant(
        "a VM that runs twice may be ordered", "engine/detection/evidence.py",
        '        cautious.append("runs_twice")\n', "        pass\n", _OWNERS,
    ),
    Mutant(
        "the newest collector of a node is heard for ever", "engine/wire/runs.py",
        "        if not was_rival and not lives:\n", "        if not was_rival:\n", _OWNERS,
    ),
    Mutant(
        "a second collector is heard while the first reports", "engine/wire/runs.py",
        "        if was_rival and not has_ended:\n", "        if False:\n", _OWNERS,
    ),
    Mutant(
        "a record that raises is tried for ever", "engine/stream/refolding.py",
        "if count >= _ATTEMPTS)", "if count < 0)", _REFOLDING,
    ),
    Mutant(
        "a state that an error left half changed goes on", "engine/stream/refolding.py",
        "                state = await self._recovered(record)\n", "                pass\n",
        _REFOLDING,
    ),
    Mutant(
        "a cell that cannot be judged ends the engine", "engine/detection/partition.py",
        "                if culprit not in self._given_up:\n", "                if True:\n",
        _REFOLDING,
    ),
    Mutant(
        "numbers of any size are read from texts", "engine/wire/limits.py",
        " and len(text) <= len(str(MAX_COUNT))", "", _LIMITS,
    ),
    Mutant(
        "a sequence may be of any size", "engine/wire/frame.py",
        "    sequence: limits.Count\n", "    sequence: int\n", _LIMITS,
    ),
    Mutant(
        "a VM may stand twice among the rows", "engine/wire/frame.py",
        "    if not _is_roster(wire.uuids):\n", "    if False:\n", _LIMITS,
    ),
    Mutant(
        "a VM that went stays in the list of its dead node", "engine/detection/cell.py",
        "            if not table.indices.keys().isdisjoint(vms):\n", "            if False:\n",
        _LEFT,
    ),
    Mutant(
        "a silent node is told for ever", "engine/detection/departures.py",
        "        if away_s >= configuration.forget_empty_s and away_s >= _patience_s(\n",
        "        if away_s < 0 and away_s >= _patience_s(\n", _LEFT,
    ),
    Mutant(
        "a repeat keeps its node in sight", "engine/detection/partition.py",
        "        if len(source.waiting) > before:\n            note_mark",
        "        if True:\n            note_mark", _REPLAYED,
    ),
    Mutant(
        "a device that leaves its counters out is left out of the sum",
        "connectors/libvirt/decoding.py",
        "            if name in withheld:\n", "            if False:\n", _DEVICES,
    ),
    Mutant(
        "the log's clock never goes back", "engine/wire/log_clock.py",
        "        if -_SLACK_MS <= ahead_ms <= limit_ms:\n", "        if ahead_ms <= limit_ms:\n",
        _LOG_CLOCK,
    ),
    Mutant(
        "every append time is believed at once", "engine/wire/log_clock.py",
        "        if not agrees and self.apart_ms < _BELIEVED_AFTER_MS:\n", "        if False:\n",
        _LOG_CLOCK,
    ),
    Mutant(
        "a node's clock that steps makes its frames old", "engine/detection/fold.py",
        "        node.lag_ms -= step_ms\n", "", _CLOCKS,
    ),
    Mutant(
        "a clock that steps is told to nobody", "engine/detection/ownership.py",
        "    return is_recent and abs(node.step_ms) >= _STEP_REPORTED_MS\n", "    return False\n",
        _CLOCKS,
    ),
    Mutant(
        "a VM that runs twice is told to nobody", "engine/detection/ownership.py",
        "            yield _twice(cell, vm, time_ms=time_ms)\n",
        "            pass\n", _OWNERS,
    ),
    Mutant(
        "a second collector is told to nobody", "engine/detection/ownership.py",
        "            yield _several(cell, node)\n", "            pass\n", _OWNERS,
    ),
    Mutant(
        "a record that is skipped is told to nobody", "engine/detection/partition.py",
        "            said += self._report_skipped(cell, position, detail)\n", "            pass\n",
        _REFOLDING,
    ),
    Mutant(
        "the minute of a large cell is one record", "engine/detection/minutes.py",
        "        if parts[-1] and vms + size > PART_VMS:\n", "        if False:\n", _LARGE,
    ),
    Mutant(
        "another set of devices is life", "engine/detection/rates.py",
        "    if other.any():\n", "    if False:\n", _SETS,
    ),
    Mutant(
        "an alert at which the planner fails ends it", "engine/roles/plan.py",
        "        except FoldFailed as failure:\n            instruments.POISON",
        "        except ZeroDivisionError as failure:\n            instruments.POISON", _POISON,
    ),
    Mutant(
        "an order that an agent cannot read lets others run", "engine/roles/reading.py",
        "            self.controls = with_command(self.controls, record.key, hold)\n",
        "            pass\n", _POISON,
    ),
    Mutant(
        "a subject that its owner forgets goes on", "engine/detection/lifecycle.py",
        "        cell.forgets.append(", "        [].append(", _LEFT,
    ),
    Mutant(
        "frames of a run that ended are folded once more", "engine/detection/sources.py",
        "        is_old = is_replayed(event_ms, last_ms=last_ms, now_ms=time_ms)\n",
        "        is_old = False\n", _REPLAYED,
    ),
    Mutant(
        "old frames of a writer that nobody knows are folded", "engine/detection/sources.py",
        "        is_old, than = event_ms < time_ms - _OLDEST_MS,", "        is_old, than = False,",
        _REPLAYED,
    ),
    Mutant(
        "a run is forgotten while its frames look new", "engine/detection/sources.py",
        "        and source.event_ms < marks.get(_writer(key), 0) - REPLAYED_MS\n", "", _REPLAYED,
    ),
    Mutant(
        "a restored engine believes old frames", "engine/detection/snapshot.py",
        "        partition.marks = value.marks\n", "", _REPLAYED,
    ),
    Mutant(
        "forecasts and history are made of old frames", "engine/wire/runs.py",
        "        if self.is_replay(header.run, event_ms=event_ms, time_ms=now_ms):\n",
        "        if False:\n", _REPLAYED,
    ),
    Mutant(
        "a cell takes in any number of VMs", "engine/detection/bounds.py",
        "    if len(vms) + added > MAX_VMS:\n", "    if False:\n", _BOUNDS,
    ),
    Mutant(
        "a node takes all of its cell's room", "engine/detection/bounds.py",
        "    if mine + added > MAX_VMS_OF_NODE:\n", "    if False:\n", _BOUNDS,
    ),
    Mutant(
        "a writer begins any number of runs", "engine/detection/sources.py",
        "    if runs >= MAX_RUNS:\n", "    if False:\n", _BOUNDS,
    ),
)  # fmt: skip
