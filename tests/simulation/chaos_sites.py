"""Seeded sites with ordinary faults, played by `tests.simulation.chaos`.

Hosts die and return, VMs are restarted elsewhere, migrated, renamed and deleted, collectors are
restarted, frames are reordered, duplicated and lost, clocks step.
"""

import random
from collections.abc import Callable
from functools import partial
from typing import Final

from flatline.engine.ports import Record
from flatline.engine.wire.frame import (
    Event,
    Frame,
    Role,
    VmRows,
    encode_frame,
)
from tests.simulation.chaos_frames import Host, Later, Telling
from tests.unit.engine.detection.frames_by_hand import EPOCH_MS, Guest

_TICK_S: Final = 2.0


class Site(Telling):
    """One seeded site: hosts in cells, guests, and the records of their frames."""

    def __init__(self, seed: int) -> None:
        chance = random.Random(seed)
        super().__init__(chance, interval_s=chance.choice((2.0, 10.0, 10.0, 60.0)))
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
        """Advance time; return all records."""
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

    # Events -------------------------------------------------------------------------------

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
            # High availability restarts them on hosts that are up.
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
        """Let another collector report for a host for some frames, then the first one again."""
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

    def _in(self, seconds: float, act: Callable[[], None]) -> None:
        self.later.append(Later(self.now_s + seconds, act))
