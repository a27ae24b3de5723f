"""A simulated site: time, the schedule, and the one place where the ground truth advances."""

import heapq
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flatline.connectors.simulator.guests import Condition, Guests
from flatline.connectors.simulator.meters import Indices, Meters
from flatline.connectors.simulator.panel import Panel
from flatline.connectors.simulator.plan import WorldPlan
from flatline.connectors.simulator.rates import Draws, Given, Rates, Strain
from flatline.connectors.simulator.topology import Topology
from flatline.connectors.simulator.truth import ActionCall, Truth
from flatline.connectors.simulator.workloads import SECONDS_PER_DAY, Course, Habits
from flatline.engine.ports import Clock
from flatline.engine.wire.frame import Event

NS_PER_S: Final = 1_000_000_000
_NS_PER_MS: Final = 1_000_000

# Each node numbers the VMs that it starts, from its own first number. So a number is unique to one
# run of a VM.
_INSTANCES_PER_NODE: Final = 1 << 20

# Independent random streams, so that more draws from one do not change the others.
_INDICES, _HABITS, _STEPS, _NODES, SIGHT, SHARES = range(6)

# Number of values in an array of predicted steps. With more, the arrays would exceed the cache.
# With fewer, an operation on them would take as long.
_VALUES_AHEAD: Final = 2048

Action = Callable[[], None]
# Effect of a test on an action: None permits it, else see `connectors.simulator.actuator`.
Interference = Callable[[ActionCall], str | None]


class Roster(NamedTuple):
    """The VMs of a node, by ascending UUID, in three forms."""

    vms: Indices
    indices: NDArray[np.intp]
    uuids: bytes


@dataclass(slots=True)
class Migration:
    """A live migration; `outcome` is running, done, aborted or failed."""

    index: int
    source: int
    target: int
    by: str
    outcome: str = "running"


@dataclass(slots=True)
class DiskMove:
    """A disk that is copied to another pool; `outcome` is running, done or given_up."""

    index: int
    outcome: str = "running"


class World:
    """The complete state of the site. Its adapters show a part; tests may read all of it.

    Methods take and return VMs and nodes as their index in the plan, from 0, unless stated
    otherwise.

    Parameters
    ----------
    plan
        Shape and incidents of the site.
    clock
        The clock that the world follows at each access of an adapter; world time 0 is its current
        reading. None: time advances only by `advance`.

    Attributes
    ----------
    now_ns
        World time, ns since it began.
    truth
        The ground truth.
    interference
        Hook for tests that need actions to lie, hang or fail; None permits all.
    """

    def __init__(self, plan: WorldPlan, clock: Clock | None = None) -> None:
        self.plan = plan
        self.now_ns = 0
        self.truth = Truth()
        self.interference: Interference | None = None
        self._clock = clock
        self._origin_ns = 0 if clock is None else clock.mono_ns()
        self.epoch_ns = plan.epoch_s * NS_PER_S if clock is None else clock.now_ms() * _NS_PER_MS
        self._step_ns = round(plan.step_s * NS_PER_S)
        self._next_step_ns = 0
        self._agenda: list[tuple[int, int, Action]] = []
        self._planned = 0
        # Steps are drawn and predicted in blocks, up to the next scheduled action: an array
        # operation on a few thousand values costs little more than one on a few.
        self._drawn: Draws
        self._course: Course
        self._step = self._steps_drawn = self._foreseen_until = 0
        self._foreseen_from = 0
        self._given: Given
        self._panel: Panel | None = None
        # Gradual changes, run at the start of each step. They may depend only on the world time,
        # because predictions run them for later times.
        self.slow_changes: dict[object, Action] = {}
        self.migrations: dict[int, Migration] = {}
        self.disk_moves: dict[int, DiskMove] = {}

        self.topology = Topology(plan, self.stream(_INDICES))
        habits_rng = self.stream(_HABITS)
        self.habits = Habits(self.topology.workload, habits_rng, step_s=plan.step_s)
        self.guests = Guests(self.topology, habits_rng)
        self.meters = Meters(plan.vms, vcpus=int(self.topology.vcpus.max()), step_ns=self._step_ns)
        self.rates = Rates(self.topology, self.habits, self.guests, self.meters, step_s=plan.step_s)
        self._steps_rng = self.stream(_STEPS)

        nodes = len(self.topology.nodes)
        nodes_rng = self.stream(_NODES)
        self.unreachable = np.zeros(nodes, np.bool_)
        self.clock_offset_ns = np.round(
            nodes_rng.normal(0.0, plan.telemetry.clock_offset_s * NS_PER_S, nodes)
        ).astype(np.int64)
        # Nodes were switched on at different times; only differences of readings matter.
        self.mono_origin_ns = nodes_rng.integers(NS_PER_S, 30 * SECONDS_PER_DAY * NS_PER_S, nodes)
        self.events: list[list[Event]] = [[] for _ in range(nodes)]
        self._starts = np.bincount(self.topology.home, minlength=nodes)
        first_numbers = 1 + np.arange(plan.vms) % plan.vms_per_node
        self.guests.instance[:] = self.topology.home * _INSTANCES_PER_NODE + first_numbers
        # Until a VM migrates, a node's VMs are consecutive, and a slice is cheap.
        self._rosters = [
            self._roster_of(slice(first, first + plan.vms_per_node))
            for first in range(0, plan.vms, plan.vms_per_node)
        ]
        if plan.cold_start:
            self.guests.condition[:] = Condition.OFF
        self._begin_step()
        self.meters.age(
            nodes_rng.uniform(1.0, 20.0, plan.vms)
            * SECONDS_PER_DAY
            * (self.guests.condition != Condition.OFF)
        )
        # The first step made all running guests report. Each has its own time for the next report.
        self.guests.report_due_s = nodes_rng.random(plan.vms) * max(1, plan.balloon_period_s)
        self._next_step_ns = self._step_ns

    def stream(self, *name: int) -> np.random.Generator:
        """Return a separate random generator for one purpose, which `name` identifies.

        Each call starts the sequence again, which depends only on the plan's seed and `name`.
        """
        return np.random.Generator(np.random.SFC64([self.plan.seed, *name]))

    def advance(self, to_ns: int) -> None:
        """Advance the world to `to_ns` of world time; earlier times change nothing."""
        while True:
            due_ns = self._agenda[0][0] if self._agenda else to_ns + 1
            if min(due_ns, self._next_step_ns) > to_ns:
                break
            if self._next_step_ns <= due_ns:
                self.now_ns = self._next_step_ns
                self._next_step_ns += self._step_ns
                self._begin_step()
            else:
                self.now_ns, _, action = heapq.heappop(self._agenda)
                action()
                self.changed()
        self.now_ns = max(self.now_ns, to_ns)

    def sync(self) -> None:
        """Advance the world to its clock's time; without a clock nothing changes."""
        if self._clock is not None:
            self.advance(self._clock.mono_ns() - self._origin_ns)

    def at(self, when_ns: int, action: Action) -> None:
        """Schedule `action` at a world time; a time in the past means now."""
        self._planned += 1
        heapq.heappush(self._agenda, (max(when_ns, self.now_ns), self._planned, action))

    def after(self, delay_s: float, action: Action) -> None:
        """Schedule `action` in `delay_s` seconds from now."""
        self.at(self.now_ns + round(delay_s * NS_PER_S), action)

    @contextmanager
    def changing(self, vms: Sequence[int] | NDArray[np.intp]) -> Iterator[None]:
        """Change guests in the block: counters are brought up to date before, rates set after."""
        indices = np.asarray(vms, np.intp)
        self.meters.settle(indices, self.now_ns)
        yield
        self.rates.pace(indices)
        self.changed()

    def panel(self) -> Panel:
        """Return the hypervisors' values other than counters, as of now."""
        if self._panel is None:
            origin_s = (self.epoch_ns + self.clock_offset_ns) / NS_PER_S
            self._panel = Panel(
                self.topology, self.guests, self.rates, self.meters, origin_s=origin_s
            )
        return self._panel

    def changed(self) -> None:
        """Invalidate the panel and the predicted steps after a change of guests, nodes or pools."""
        self._panel = None
        self._foreseen_until = self._step + 1

    def roster(self, node: int) -> Roster:
        """Return the VMs that the node's hypervisor knows now."""
        return self._rosters[node]

    def without(self, roster: Roster, hidden: NDArray[np.bool_]) -> Roster:
        """Return a roster without the VMs that are `hidden`, shape (n,)."""
        return self._roster_of(roster.indices[~hidden]) if hidden.any() else roster

    def place(self, index: int, node: int) -> None:
        """Move a VM to another node's roster, in the order of the plan."""
        left = int(self.guests.node[index])
        self.guests.node[index] = node
        for changed in (left, node):
            self._rosters[changed] = self._roster_of(np.flatnonzero(self.guests.node == changed))

    def next_instance(self, node: int) -> int:
        """Return the number of the next run of a VM on a node."""
        self._starts[node] += 1
        return int(node * _INSTANCES_PER_NODE + self._starts[node])

    def wall_ns(self, node: int) -> int:
        """Return the node's wall clock, ns since the Unix epoch."""
        return int(self.epoch_ns + self.now_ns + self.clock_offset_ns[node])

    def mono_ns(self, node: int) -> int:
        """Return the node's monotonic clock in ns."""
        return int(self.now_ns + self.mono_origin_ns[node])

    def emit(self, node: int, kind: str, index: int | None = None, **detail: str) -> None:
        """Send an event to the listeners of a node; it is lost while the node is unreachable.

        Parameters
        ----------
        kind
            One of `engine.wire.metrics.EVENT_KINDS`.
        index
            The VM concerned; None for an event of the node.
        """
        if self.unreachable[node]:
            return
        heard = self.events[node]
        heard.append(
            Event(
                id=f"{self.topology.nodes[node]}/{len(heard)}",
                kind=kind,
                time_ns=self.wall_ns(node),
                vm=None if index is None else self.topology.uuids[index],
                detail=detail,
            )
        )

    def vm(self, name: int | bytes) -> int:
        """Return the index of a VM that is given by its index or by its UUID.

        Raises
        ------
        KeyError
            No VM has this UUID.
        """
        return self.topology.index_of[name] if isinstance(name, bytes) else name

    def _roster_of(self, vms: Indices) -> Roster:
        uuids = self.topology.uuids
        indices = np.arange(vms.start, vms.stop) if isinstance(vms, slice) else vms
        return Roster(vms, indices, b"".join([uuids[index] for index in indices]))

    def _begin_step(self) -> None:
        """Bring the counters up to date at a step's end, then start the next step as predicted."""
        guests, step_s = self.guests, self.plan.step_s
        self.meters.settle(slice(None), self.now_ns)
        guests.leak(step_s)
        for change in list(self.slow_changes.values()):
            change()
        self._step += 1
        if self._step >= self._steps_drawn:
            self._draw_steps()
        if self._step >= self._foreseen_until:
            self._foresee()
        self.rates.begin(self._given, self._step - self._foreseen_from)
        guests.faults += step_s * (0.02 + 300.0 * guests.thrashes())
        if self.plan.balloon_period_s:
            guests.report_memory(
                self.now_ns / NS_PER_S,
                period_s=self.plan.balloon_period_s,
                activity=self.rates.cpu_share,
            )
        self._panel = None

    def _draw_steps(self) -> None:
        """Draw the random numbers of the next steps, and the guests' undisturbed behaviour."""
        steps = max(1, _VALUES_AHEAD // self.plan.vms)
        self._drawn = Draws.draw(
            self._steps_rng,
            steps=steps,
            size=self.plan.vms,
            networks=len(self.topology.networks),
            step_s=self.plan.step_s,
        )
        times_s = np.array([(self.now_ns + n * self._step_ns) / NS_PER_S for n in range(steps)])
        self._course = self.habits.course(
            times_s=times_s,
            days_s=(self.epoch_ns / NS_PER_S + times_s) % SECONDS_PER_DAY,
            normal=self._drawn.normal,
            chance=self._drawn.chance,
        )
        self._step, self._steps_drawn, self._foreseen_until = 0, steps, 0

    def _foresee(self) -> None:
        """Predict this step and all steps that begin before the next scheduled action."""
        until = self._steps_drawn
        if self._agenda:
            before = (self._agenda[0][0] - self.now_ns) // self._step_ns + 1
            until = min(until, self._step + max(1, before))
        ahead = slice(self._step, until)
        draws = Draws._make(part[ahead] for part in self._drawn)
        activity = self.habits.activity(
            Course._make(part[ahead] for part in self._course),
            forced=self.guests.forced,
            chance=draws.chance,
        )
        self._given = self.rates.foresee(activity, draws, self._strain(until - self._step))
        self._foreseen_from, self._foreseen_until = self._step, until

    def _strain(self, steps: int) -> Strain:
        """Return the effects of leaks and gradual changes on guests and nodes in each step."""
        guests, rates, now_ns = self.guests, self.rates, self.now_ns
        changes = list(self.slow_changes.values())
        slowness = np.empty((steps, self.plan.vms))
        squeeze = np.empty((steps, rates.squeeze.size))
        thrashes = np.empty(slowness.shape, np.bool_)
        leaked_kib = guests.leaked_kib.copy()
        for step in range(steps):
            if step:
                guests.leak(self.plan.step_s)
                self.now_ns += self._step_ns
                for change in changes:
                    change()
            slowness[step], squeeze[step] = guests.slowness, rates.squeeze
            thrashes[step] = guests.thrashes()
        guests.leaked_kib = leaked_kib
        self.now_ns = now_ns
        for change in changes:
            change()
        return Strain(slowness, thrashes, squeeze)
