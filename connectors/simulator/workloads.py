"""Normal behaviour of guests: per-VM habits drawn from a table of workloads.

A habit has a level, an hour-of-day season, noise with an autocorrelation of about a minute, and for
some workloads a cycle: a batch computes without any I/O, writes its results and rests; a cron guest
is silent between its bursts; a bursty one switches between working and resting at random.
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flatline.connectors.simulator.plan import WORKLOADS

Floats = NDArray[np.float64]
Range = tuple[float, float]

SECONDS_PER_DAY: Final = 86_400
_NOISE_MEMORY_S: Final = 60.0
# The guest's page cache writes back every 5 s (vm.dirty_writeback_centisecs).
_FLUSH_PERIOD_S: Final = 5.0


class Profile(NamedTuple):
    """Ranges from which one workload's VMs are drawn, evenly on a logarithmic scale.

    Rates are per second at activity 1; `level` is a share of all vCPUs. `floor` is the share of
    writes and transmissions that continue while the work rests.
    """

    level: Range
    idle_cores: Range
    reads: Range
    writes: Range
    flushes: Range
    sends: Range
    read_kib: Range
    write_kib: Range
    send_bytes: Range
    cycle_s: Range
    work_share: Range
    result_share: Range
    floor: float
    season: float
    noise: float
    flushed_later: float


PROFILES: Final = {
    "web": Profile(
        (0.10, 0.35), (0.01, 0.03), (0.3, 4), (3, 15), (0.3, 1), (60, 400),
        (8, 32), (4, 16), (300, 1200), (1, 2), (1, 1), (1, 1), 0.05, 0.5, 0.30, 0.6,
    ),
    "database": Profile(
        (0.10, 0.40), (0.02, 0.06), (15, 120), (20, 90), (4, 20), (40, 250),
        (8, 32), (8, 32), (200, 900), (1, 2), (1, 1), (1, 1), 0.10, 0.4, 0.25, 0.2,
    ),
    "batch": Profile(
        (1.0, 1.0), (0.005, 0.02), (5, 30), (60, 250), (1, 5), (5, 60),
        (64, 128), (64, 256), (300, 1400), (1200, 5400), (0.25, 0.5), (0.03, 0.08),
        0.005, 0.0, 0.15, 0.3,
    ),
    "cron": Profile(
        (0.2, 0.8), (0.001, 0.004), (5, 40), (5, 40), (0.5, 2), (2, 40),
        (8, 64), (4, 32), (100, 800), (600, 3600), (0.01, 0.04), (1, 1), 0.0, 0.0, 0.3, 0.5,
    ),
    "idle": Profile(
        (0.002, 0.01), (0.002, 0.01), (0.001, 0.01), (0.05, 0.4), (0.01, 0.05), (0.05, 0.5),
        (4, 16), (4, 8), (80, 200), (1, 2), (1, 1), (1, 1), 0.5, 0.1, 0.3, 0.9,
    ),
    "bursty": Profile(
        (0.3, 0.9), (0.01, 0.03), (2, 30), (10, 60), (1, 5), (20, 200),
        (16, 64), (8, 64), (200, 1200), (120, 400), (0.15, 0.4), (1, 1), 0.03, 0.3, 0.4, 0.5,
    ),
}  # fmt: skip

_BATCH, _CRON, _BURSTY = (WORKLOADS.index(name) for name in ("batch", "cron", "bursty"))

# Behaviour that an incident may force on a guest.
FREE, COMPUTING, WRITING, RESTED, SILENT = range(5)


class Course(NamedTuple):
    """Behaviour of all guests in several steps if no incident affects it; shape (steps, N)."""

    swing: Floats  # activity as a multiple of the VM's usual level: daily season times noise
    working: NDArray[np.bool_]
    writing: NDArray[np.bool_]  # a batch job writes its results
    flush: Floats  # see `Activity.flush`


class Activity(NamedTuple):
    """Activity of all guests with unlimited resources; shape (steps, N), or (N,) for one step."""

    cpu_share: Floats  # of all vCPUs
    work: Floats  # reads, writes and transmissions relative to the habit
    floor: Floats  # writes and transmissions that continue at rest, same scale
    flush: Floats  # number of steps whose cached writes reach the disk


class Habits:
    """Every VM's parameters, shape (N,) each, drawn once; and the state of their noise."""

    def __init__(
        self, workload: NDArray[np.int64], rng: np.random.Generator, *, step_s: float
    ) -> None:
        table = [PROFILES[name] for name in WORKLOADS]
        draw = _Drawer(table, workload, rng)
        self.workload = workload
        self.level = draw("level")
        self.idle_cores = draw("idle_cores")
        self.reads = draw("reads")
        self.writes = draw("writes")
        self.flushes = draw("flushes")
        self.sends = draw("sends")
        self.receives = self.sends * rng.uniform(0.6, 1.4, workload.size)
        self.read_bytes = draw("read_kib") * 1024
        self.write_bytes = draw("write_kib") * 1024
        self.send_bytes = draw("send_bytes")
        self.cycle_s = draw("cycle_s")
        self.work_share = draw("work_share")
        self.result_share = draw("result_share")
        self.offset_s = rng.random(workload.size) * self.cycle_s
        self.floor = draw.fixed("floor")
        self.season = draw.fixed("season") * rng.uniform(0.6, 1.4, workload.size)
        self.peak_hour = rng.normal(14.0, 2.0, workload.size)
        self.noise = draw.fixed("noise")
        self.flushed_later = draw.fixed("flushed_later")
        self.user_share = rng.uniform(0.75, 0.95, workload.size)
        self._step_s = step_s
        self._memory = float(np.exp(-step_s / _NOISE_MEMORY_S))
        self._noise = rng.standard_normal(workload.size)
        self._busy = rng.random(workload.size) < self.work_share

    def course(
        self,
        *,
        times_s: Floats,
        days_s: Floats,
        normal: Floats,
        chance: NDArray[np.float32],
    ) -> Course:
        """Return the course of the steps from `times_s`, which must follow those of the last call.

        Parameters
        ----------
        times_s
            Shape (steps,), seconds since the world began, for cycles.
        days_s
            Shape (steps,), seconds since midnight, for the season.
        normal, chance
            Shape (steps, N), standard normal and uniform draws.
        """
        noise, busy = self._walk(normal, chance)
        hours = days_s[:, None] / 3600.0
        season = 1.0 + self.season * np.cos((hours - self.peak_hour) * (2 * np.pi / 24))
        swing = season * np.exp(self.noise * noise - 0.5 * self.noise**2)
        since_s = times_s[:, None] + self.offset_s
        phase = since_s % self.cycle_s / self.cycle_s
        cyclic = (self.workload == _BATCH) | (self.workload == _CRON)
        working = ~cyclic | (phase < self.work_share)
        working &= (self.workload != _BURSTY) | busy
        results = (phase >= self.work_share) & (phase < self.work_share + self.result_share)
        edge = since_s % _FLUSH_PERIOD_S < self._step_s
        later = self.flushed_later * (edge * max(1.0, _FLUSH_PERIOD_S / self._step_s))
        return Course(
            swing=swing,
            working=working,
            writing=results & (self.workload == _BATCH),
            flush=(1.0 - self.flushed_later) + later,
        )

    def activity(
        self, course: Course, *, forced: NDArray[np.uint8], chance: NDArray[np.float32]
    ) -> Activity:
        """Return the activity of guests in these steps.

        Parameters
        ----------
        forced
            Shape (N,), one of `FREE`, `COMPUTING`, `WRITING`, `RESTED`; `SILENT` rests without any
            I/O.
        chance
            Shape (steps, N), the uniform draws from which the course was made.
        """
        swing, free = course.swing, forced == FREE
        computing = (free & course.working & (self.workload == _BATCH)) | (forced == COMPUTING)
        writing = (free & course.writing) | (forced == WRITING)
        working = course.working & free & ~computing
        cpu_share = np.where(working, self.level * swing, 0.0)
        cpu_share[writing] = 0.3
        # A computing guest keeps all its vCPUs busy, except for a few per mille for its timer.
        cpu_share[computing] = 0.997 - 0.01 * chance[computing]
        return Activity(
            cpu_share=np.minimum(cpu_share, 1.0),
            work=np.where(working | writing, swing, 0.0),
            floor=np.where(computing | (forced == SILENT), 0.0, self.floor),
            flush=course.flush,
        )

    def _walk(
        self, normal: Floats, chance: NDArray[np.float32]
    ) -> tuple[Floats, NDArray[np.bool_]]:
        """Return the noise and the busy guests of each step, which depend on the previous step."""
        noise = np.sqrt(1 - self._memory * self._memory) * normal
        # A bursty guest stays in a state for an exponentially distributed time, so the probability
        # to leave it in one step is the step over the mean.
        step_s = self._step_s
        leaves_work = step_s / np.maximum(self.cycle_s * self.work_share, step_s)
        leaves_rest = step_s / np.maximum(self.cycle_s * (1 - self.work_share), step_s)
        busy = np.empty(normal.shape, np.bool_)
        for step in range(len(normal)):
            noise[step] += self._memory * self._noise
            leaves = chance[step] < np.where(self._busy, leaves_work, leaves_rest)
            np.not_equal(self._busy, leaves, out=busy[step])
            self._noise, self._busy = noise[step], busy[step]
        return noise, busy


class _Drawer:
    """Draws one parameter for every VM from its workload's range."""

    def __init__(
        self, table: list[Profile], workload: NDArray[np.int64], rng: np.random.Generator
    ) -> None:
        self._table = table
        self._workload = workload
        self._rng = rng

    def __call__(self, name: str) -> Floats:
        bounds = np.log(np.array([getattr(profile, name) for profile in self._table]))
        low, high = bounds[self._workload].T
        drawn: Floats = np.exp(self._rng.uniform(low, high))
        return drawn

    def fixed(self, name: str) -> Floats:
        values: Floats = np.array([getattr(profile, name) for profile in self._table])
        return values[self._workload]
