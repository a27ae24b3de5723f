"""Sites with ordinary trouble, seeded: what engine, forecaster and historian make of it.

Hosts die and come back, VMs are restarted elsewhere, moved, renamed and deleted, collectors are
restarted, frames are swapped, doubled and lost, clocks step. Nothing of it may end a role, and a
state that was restored from a snapshot in the middle goes on bit for bit.

Run `python -m tests.simulation.chaos_sites --sites 500`; a failing seed is played again by
`--first SEED --sites 1`.
"""

import argparse
import random
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import msgspec

from engine.capacity import foretell_state
from engine.capacity import state as history_state
from engine.capacity.fold import FrameFold
from engine.capacity.foretell import Foretelling
from engine.detection.configuration import Configuration
from engine.detection.partition import Partition
from engine.detection.snapshot import digest, restore, take_snapshot
from engine.errors import RecordRejected
from engine.ports import Record
from engine.wire.frame import (
    Event,
    Frame,
    Header,
    InventoryItem,
    PoolSample,
    Role,
    VmRows,
    decode_frame,
    encode_frame,
)
from tests.unit.engine.detection.frames_by_hand import EPOCH_MS, Guest, Place, item

# What takes a quarter of an hour by default takes minutes here, so that a short play sees the end.
_SHORT: Final = Configuration(
    resolved_kept_s=120.0,
    source_kept_s=60.0,
    host_member_s=300.0,
    totals_shared_open_s=300.0,
)
_TICK_S: Final = 2.0


@dataclass
class Host(Place):
    """A node, what its clocks show, and what its frames go through on the way."""

    cell: str = "cell-0"
    up: bool = True
    cuts: bool = False
    wall_shift_ms: int = 0
    told: int = 0
    held: list[bytes] = field(default_factory=list)
    swaps: int = 0
    doubles: float = 0.0
    loses: float = 0.0
    hypervisor: bool = True


@dataclass(frozen=True)
class Later:
    """Something that is to happen at a time of the play."""

    at_s: float
    act: Callable[[], None]


class Site:
    """One seeded site: hosts in cells, guests, and the records they leave behind."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        chance = self.chance
        self.interval_s = chance.choice((2.0, 10.0, 10.0, 60.0))
        self.now_s = 0.0
        self.log_shift_ms = 0
        self.records: list[Record] = []
        self.later: list[Later] = []
        self.made = 0
        self.hosts: list[Host] = []
        for cell in range(chance.choice((1, 1, 2))):
            for _ in range(chance.choice((1, 2, 3, 4))):
                self._add_host(f"cell-{cell}")
        for host in self.hosts:
            host.guests += [self._guest() for _ in range(chance.randrange(5))]
        self._troubles: tuple[tuple[float, Callable[[], None]], ...] = (
            (4, self._host_dies),
            (3, self._host_returns),
            (3, self._guest_is_deleted),
            (2, self._guest_is_made),
            (4, self._guest_moves),
            (2, self._move_ends_in_death),
            (2, self._guest_runs_twice),
            (3, self._frames_are_swapped),
            (2, self._frames_are_disturbed),
            (2, self._collector_restarts),
            (2, self._second_collector),
            (2, self._host_is_renamed),
            (2, self._guest_is_renamed),
            (2, self._node_clock_steps),
            (1, self._log_clock_steps),
            (1, self._log_is_away),
            (2, self._cell_is_silent),
            (2, self._guest_reboots),
            (3, self._guest_dies),
            (1, self._guest_works),
            (2, self._somebody_speaks),
            (1, self._hypervisor_is_lost),
            (1, self._host_changes_cell),
        )

    def play(self, seconds: float) -> list[Record]:
        """Let time pass; return all records."""
        next_sample_s = {id(host): self.chance.random() * self.interval_s for host in self.hosts}
        every_s = max(20.0, 2 * self.interval_s)
        next_trouble_s = 5 * self.interval_s
        while self.now_s < seconds:
            self.now_s += _TICK_S
            due = [one for one in self.later if one.at_s <= self.now_s]
            self.later = [one for one in self.later if one.at_s > self.now_s]
            for one in due:
                one.act()
            if self.now_s >= next_trouble_s:
                next_trouble_s = self.now_s + self.chance.expovariate(1 / every_s)
                weights = [weight for weight, _ in self._troubles]
                self.chance.choices(self._troubles, weights)[0][1]()
            for host in self.hosts:
                if self.now_s >= next_sample_s.setdefault(id(host), self.now_s):
                    next_sample_s[id(host)] = self.now_s + self.interval_s
                    self._sample(host)
            self._tick()
        return self.records

    # What happens -------------------------------------------------------------------------

    def _up(self) -> list[Host]:
        return [host for host in self.hosts if host.up]

    def _some_guest(self) -> tuple[Host, Guest] | None:
        places = [(host, guest) for host in self._up() for guest in host.guests]
        return self.chance.choice(places) if places else None

    def _add_host(self, cell: str) -> Host:
        self.made += 1
        host = Host(f"n{self.made}", [], cell=cell, cuts=self.chance.random() < 0.15)
        host.mono_ns = self.chance.randrange(1, 10**15)
        self.hosts.append(host)
        return host

    def _guest(self) -> Guest:
        self.made += 1
        chance = self.chance
        guest = Guest(
            f"vm-{self.made}",
            vcpus=chance.choice((1, 2, 4)),
            pool=f"pool-{chance.randrange(2)}",
            network=f"net-{chance.randrange(2)}",
            balloon_period_s=chance.choice((0, 5)),
            instance=chance.randrange(1, 2**40),
        )
        guest.passes(0.0, 0.0)
        return guest

    def _host_dies(self) -> None:
        up = self._up()
        if not up:
            return
        host = self.chance.choice(up)
        host.up = False
        lost, host.guests = host.guests, []
        if self.chance.random() < 0.8:
            # High availability starts them again on hosts that are up.
            self._in(self.chance.uniform(20, 120), lambda: self._restarted(lost))
        else:
            self._in(self.chance.uniform(20, 600), lambda: self._back(host, lost))

    def _restarted(self, guests: list[Guest]) -> None:
        for guest in guests:
            up = self._up()
            if up and not any(guest in host.guests for host in up):
                self._starts(self.chance.choice(up), guest)

    def _starts(self, host: Host, guest: Guest) -> None:
        guest.instance = self.chance.randrange(1, 2**40)
        guest.counters = dict.fromkeys(guest.counters, 0.0)
        guest.works()
        host.guests.append(guest)
        if self.chance.random() < 0.7:
            self._tell(host, "started", guest)

    def _back(self, host: Host, guests: list[Guest]) -> None:
        host.up = True
        host.run, host.sequence = f"run-{self.chance.randrange(10**9)}", 0
        host.mono_ns = self.chance.randrange(1, 10**12)
        for guest in guests:
            if not any(guest in other.guests for other in self._up()):
                self._starts(host, guest)
        if self.chance.random() < 0.5:
            host.swaps = 1

    def _host_returns(self) -> None:
        down = [host for host in self.hosts if not host.up]
        if down:
            self._back(self.chance.choice(down), [])

    def _guest_is_deleted(self) -> None:
        found = self._some_guest()
        if found is None:
            return
        host, guest = found
        host.guests.remove(guest)
        if self.chance.random() < 0.6:
            self._tell(host, self.chance.choice(("stopped", "shutdown")), guest)

    def _guest_is_made(self) -> None:
        up = self._up()
        if up:
            self._starts(self.chance.choice(up), self._guest())

    def _guest_moves(self, *, dies: bool = False) -> None:
        found = self._some_guest()
        if found is None:
            return
        source, guest = found
        near = [host for host in self._up() if host is not source and host.cell == source.cell]
        far = [host for host in self._up() if host is not source]
        targets = near if near and self.chance.random() < 0.9 else far
        if not targets:
            return
        target = self.chance.choice(targets)
        self._tell(source, "job_started", guest)
        copy = Guest(**{**vars(guest), "state": "paused", "counters": dict(guest.counters)})
        copy.instance = self.chance.randrange(1, 2**40)
        target.guests.append(copy)
        took_s = self.chance.uniform(1, 90)
        if dies:
            self._in(took_s / 2, lambda: self._target_dies(target))
            self._in(took_s, lambda: self._tell(source, "job_ended", guest))
        elif self.chance.random() < 0.8:
            self._in(took_s, lambda: self._moved(source, guest, target, copy))
        else:
            self._in(took_s, lambda: self._stays(source, guest, target, copy))

    def _move_ends_in_death(self) -> None:
        self._guest_moves(dies=True)

    def _target_dies(self, target: Host) -> None:
        target.up = False
        target.guests = []

    def _moved(self, source: Host, guest: Guest, target: Host, copy: Guest) -> None:
        if guest not in source.guests or copy not in target.guests or not target.up:
            return
        copy.state = "running"
        if self.chance.random() < 0.8:
            self._tell(target, "migrated_in", copy)
        leaves_s = self.chance.choice((0.0, 0.0, 30.0))
        self._in(leaves_s, lambda: self._left(source, guest))

    def _left(self, source: Host, guest: Guest) -> None:
        if guest in source.guests:
            source.guests.remove(guest)
            if self.chance.random() < 0.8:
                self._tell(source, "migrated_out", guest)
                self._tell(source, "stopped", guest)

    def _stays(self, source: Host, guest: Guest, target: Host, copy: Guest) -> None:
        if copy in target.guests:
            target.guests.remove(copy)
        self._tell(source, "job_ended", guest)

    def _guest_runs_twice(self) -> None:
        found = self._some_guest()
        others = [host for host in self._up() if found is None or host is not found[0]]
        if found is None or not others:
            return
        twin = Guest(**{**vars(found[1]), "counters": dict(found[1].counters)})
        twin.instance = self.chance.randrange(1, 2**40)
        host = self.chance.choice(others)
        host.guests.append(twin)
        self._in(self.chance.uniform(30, 400), lambda: self._left(host, twin))

    def _frames_are_swapped(self) -> None:
        if self.hosts:
            self.chance.choice(self.hosts).swaps = self.chance.choice((1, 1, 2, 5))

    def _frames_are_disturbed(self) -> None:
        if self.hosts:
            host = self.chance.choice(self.hosts)
            host.doubles, host.loses = self.chance.choice(((0.3, 0.0), (0.0, 0.3), (0.2, 0.2)))
            self._in(self.chance.uniform(30, 200), lambda: self._calm(host))

    def _calm(self, host: Host) -> None:
        host.doubles = host.loses = 0.0

    def _collector_restarts(self) -> None:
        if self.hosts:
            host = self.chance.choice(self.hosts)
            host.run, host.sequence = f"run-{self.chance.randrange(10**9)}", 0
            if self.chance.random() < 0.3:
                host.swaps = 1

    def _second_collector(self) -> None:
        """Let another collector speak for a host for some frames, then the first one again."""
        up = self._up()
        if not up:
            return
        host = self.chance.choice(up)
        other = f"run-{self.chance.randrange(10**9)}"
        for number in range(self.chance.randrange(1, 8)):
            self._in(
                number * self.interval_s + 1.0,
                partial(self._other, host, other, number),
            )

    def _other(self, host: Host, run: str, number: int) -> None:
        if host.up:
            value = self._encoded(host, run=run, sequence=number)
            self._append(host, value[0])

    def _host_is_renamed(self) -> None:
        up = self._up()
        if up:
            self.made += 1
            self.chance.choice(up).name = f"n{self.made}"

    def _host_changes_cell(self) -> None:
        cells = sorted({host.cell for host in self.hosts})
        if self.hosts:
            self.chance.choice(self.hosts).cell = self.chance.choice(cells)

    def _guest_is_renamed(self) -> None:
        found = self._some_guest()
        if found is not None:
            # A name is no identity: the UUID stays that of the guest's first name.
            found[0].gauges["cpu_cores"] = self.chance.choice((8.0, 64.0))
            found[1].pool = f"pool-{self.chance.randrange(3)}"

    def _node_clock_steps(self) -> None:
        if self.hosts:
            steps_ms = (-86_400_000, -3_600_000, -30_000, -1_000, 1_000, 3_600_000, 86_400_000)
            self.chance.choice(self.hosts).wall_shift_ms += self.chance.choice(steps_ms)

    def _log_clock_steps(self) -> None:
        shift_ms = self.chance.choice((-600_000, -3_000, 3_000, 600_000, 3_600_000))
        self.log_shift_ms += shift_ms
        if self.chance.random() < 0.7:
            self._in(self.chance.uniform(5, 60), lambda: self._log_clock_returns(shift_ms))

    def _log_clock_returns(self, shift_ms: int) -> None:
        self.log_shift_ms -= shift_ms

    def _log_is_away(self) -> None:
        self.now_s += self.chance.uniform(5, 400)

    def _cell_is_silent(self) -> None:
        cell = self.chance.choice(self.hosts).cell
        silent = [host for host in self._up() if host.cell == cell]
        guests = {id(host): host.guests for host in silent}
        for host in silent:
            host.up = False
        away_s = self.chance.uniform(20, 400)
        for host in silent:
            self._in(away_s, partial(self._cell_host_back, host, guests[id(host)]))

    def _cell_host_back(self, host: Host, guests: list[Guest]) -> None:
        host.up, host.guests = True, guests
        if self.chance.random() < 0.7:
            host.swaps = 1

    def _guest_reboots(self) -> None:
        found = self._some_guest()
        if found is not None:
            self._tell(found[0], "rebooted", found[1])
            found[1].works()

    def _guest_dies(self) -> None:
        found = self._some_guest()
        if found is not None:
            found[1].panics(cores=self.chance.choice((0.0, 1.0)))
            if self.chance.random() < 0.2:
                self._tell(
                    found[0], self.chance.choice(("panicked", "crashed", "watchdog")), found[1]
                )

    def _guest_works(self) -> None:
        found = self._some_guest()
        if found is not None:
            found[1].works()

    def _somebody_speaks(self) -> None:
        found = self._some_guest()
        if found is None:
            return
        role: Role = self.chance.choice(("owner", "agent"))
        if role == "owner":
            kind, detail = self.chance.choice(
                (("owner_reboot", {}), ("owner_maintenance", {"until_ms": str(EPOCH_MS + 10**9)}))
            )
        else:
            kind = self.chance.choice(("action_sent", "action_returned", "action_unknown"))
            detail = {"incident": "a" * 32, "step": "0", "action": "reset"}
        self.made += 1
        event = Event(
            id=f"e{self.made}",
            kind=kind,
            time_ns=self._ms() * 10**6,
            vm=found[1].uuid,
            detail=detail,
        )
        header = self._header(found[0], role=role, run=f"r{self.made}", sequence=0)
        self._append(
            found[0], encode_frame(Frame(header=header, rows=VmRows.empty(), events=(event,)))
        )

    def _hypervisor_is_lost(self) -> None:
        up = self._up()
        if up:
            host = self.chance.choice(up)
            host.hypervisor = False
            self._in(self.chance.uniform(10, 120), lambda: setattr(host, "hypervisor", True))

    # How it is told -----------------------------------------------------------------------

    def _in(self, seconds: float, act: Callable[[], None]) -> None:
        self.later.append(Later(self.now_s + seconds, act))

    def _tell(self, host: Host, kind: str, guest: Guest) -> None:
        host.tell(kind, guest)

    def _ms(self) -> int:
        return EPOCH_MS + round(self.now_s * 1000)

    def _header(self, host: Host, *, role: Role, run: str, sequence: int) -> Header:
        return Header(
            site="site",
            zone="zone",
            cell=host.cell,
            node=host.name if role == "collector" else f"{role}-{host.name}",
            role=role,
            run=run,
            sequence=sequence,
            event_time_ns=max(0, (self._ms() + host.wall_shift_ms) * 1_000_000),
            mono_ns=host.mono_ns,
            interval_ms=round(self.interval_s * 1000),
        )

    def _encoded(self, host: Host, *, run: str, sequence: int) -> list[bytes]:
        """Return a sample as one frame, or as two where the host's samples are cut up."""
        rows = host.rows() if host.hypervisor else VmRows.empty()
        half = len(rows) // 2
        cut = host.cuts and half > 0
        parts = [rows.select(slice(0, half)), rows.select(slice(half, None))] if cut else [rows]
        inventory: tuple[InventoryItem, ...] = ()
        if sequence % 20 == 0 and host.hypervisor:
            inventory = tuple(item(guest) for guest in host.guests)
        frames = [
            Frame(
                header=self._header(host, role="collector", run=run, sequence=sequence + index),
                rows=part,
                events=tuple(host.events) if index == 0 else (),
                inventory=inventory if index == 0 else (),
                node={
                    "cpu_busy_ratio": host.busy,
                    "hypervisor_reachable": float(host.hypervisor),
                    **host.gauges,
                }
                if index == 0
                else {},
                pools=(PoolSample(name="pool-0", capacity_bytes=10**12, available_bytes=10**11),)
                if index == 0
                else (),
            )
            for index, part in enumerate(parts)
        ]
        host.events.clear()
        return [encode_frame(frame) for frame in frames]

    def _sample(self, host: Host) -> None:
        if not host.up:
            return
        for guest in host.guests:
            guest.passes(self.interval_s, self.now_s)
        host.mono_ns += round(self.interval_s * 1e9)
        values = self._encoded(host, run=host.run, sequence=host.sequence)
        host.sequence += len(values)
        for value in values:
            self._send(host, value)

    def _send(self, host: Host, value: bytes) -> None:
        if host.swaps:
            host.held.append(value)
            if len(host.held) > host.swaps:
                held, host.held, host.swaps = host.held, [], 0
                self.chance.shuffle(held)
                for one in [value, *held[:-1]] if held[-1] is value else held:
                    self._append(host, one)
            return
        if self.chance.random() < host.loses:
            return
        self._append(host, value)
        if self.chance.random() < host.doubles:
            self._append(host, value)

    def _tick(self) -> None:
        header = Header(
            site="site",
            zone="-",
            cell="-",
            node="shell",
            role="shell",
            run="shell",
            sequence=self.made_ticks,
            event_time_ns=self._ms() * 1_000_000,
            mono_ns=self._ms() * 1_000_000,
            interval_ms=1000,
        )
        self.made_ticks += 1
        self._append(None, encode_frame(Frame(header=header, rows=VmRows.empty())))

    made_ticks = 0

    def _append(self, host: Host | None, value: bytes) -> None:
        self.records.append(
            Record(
                topic="flatline.frames.v1",
                partition=0,
                offset=len(self.records),
                time_ms=self._ms() + self.log_shift_ms,
                key=b"tick" if host is None else host.cell.encode(),
                value=value,
            )
        )


def configuration_of(seed: int) -> Configuration:
    """Return the constants of a seed: three of four sites let time pass faster."""
    return Configuration() if seed % 4 == 0 else _SHORT


def engine_failures(records: list[Record], seed: int, *, stop_at: int) -> Iterator[str]:
    """Yield how the engine fails at these records, restored from a snapshot at `stop_at`."""
    configuration = configuration_of(seed)
    partition = Partition(configuration)
    restored: Partition | None = None
    for record in records:
        if record.offset == stop_at:
            chunks, manifest = take_snapshot(partition)
            restored = restore(chunks, manifest, configuration)
        outputs = partition.fold(record)
        if restored is not None:
            again = restored.fold(record)
            if [one.value for one in again] != [one.value for one in outputs]:
                yield f"offset {record.offset}: a restored engine says something else"
                return
    if restored is not None and digest(restored) != digest(partition):
        yield "the digest of a restored engine is another one"
    if not partition.counters.balanced(partition.waiting()):
        yield f"records are not accounted for: {msgspec.to_builtins(partition.counters)}"


def forecaster_failures(records: list[Record], *, stop_at: int) -> Iterator[str]:
    """Yield how the forecaster fails at these records, restored in the middle."""
    state, restored = Foretelling(), None
    for record in records:
        if record.offset == stop_at:
            taken = foretell_state.take_state(state)
            restored = foretell_state.restore_state(dict(enumerate(taken.chunks)), taken.manifest)
        state.fold(record)
        if restored is not None:
            restored.fold(record)
    if restored is not None and foretell_state.digest(restored) != foretell_state.digest(state):
        yield "the digest of a restored forecaster is another one"


def historian_failures(records: list[Record], *, stop_at: int) -> Iterator[str]:
    """Yield how the historian's fold fails at these records, restored in the middle."""
    fold, restored = FrameFold(), None
    for record in records:
        if record.offset == stop_at:
            taken = history_state.take_state(fold)
            restored = history_state.restore(dict(enumerate(taken.chunks)), taken.manifest)
        try:
            frame = decode_frame(record.value)
        except RecordRejected:
            continue
        fold.fold(frame, time_ms=record.time_ms)
        if restored is not None:
            restored.fold(frame, time_ms=record.time_ms)
    if restored is not None:
        ends = [history_state.take_state(one).chunks for one in (fold, restored)]
        if ends[0] != ends[1]:
            yield "the state of a restored historian is another one"


def failures(seed: int, *, seconds: float = 1_800.0) -> list[str]:
    """Play a seed's site; return what failed, nothing where all held."""
    records = Site(seed).play(seconds)
    stop_at = random.Random(seed + 1).randrange(len(records))
    plays: tuple[tuple[str, Callable[[], Iterator[str]]], ...] = (
        ("engine", lambda: engine_failures(records, seed, stop_at=stop_at)),
        ("forecaster", lambda: forecaster_failures(records, stop_at=stop_at)),
        ("historian", lambda: historian_failures(records, stop_at=stop_at)),
    )
    found: list[str] = []
    for role, play in plays:
        try:
            found += [f"{role}: {text}" for text in play()]
        except Exception as error:  # noqa: BLE001 - any escape at all is a death
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{last.filename.rpartition('/')[2]}:{last.lineno}"
            found.append(f"{role} died: {type(error).__name__}: {error} at {where}")
    return found


def main() -> None:
    """Play as many sites as asked for; end with 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", type=int, default=500)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=1_800.0)
    asked = parser.parse_args()
    began_s, bad = time.perf_counter(), 0
    for seed in range(asked.first, asked.first + asked.sites):
        found = failures(seed, seconds=asked.seconds)
        bad += bool(found)
        for text in found:
            sys.stdout.write(f"seed {seed}: {text}\n")
    took_s = time.perf_counter() - began_s
    sys.stdout.write(f"{asked.sites} sites, {bad} failed, {took_s:.0f} s\n")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
