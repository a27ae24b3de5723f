"""The health of a process: which parts make progress, which wait, and for what.

Each role reports here; `connectors.http` answers `/livez` and `/readyz` from it. A part that waits
is alive and not ready. A part that does not report for a minute is stuck, and a restart of the
process is the remedy.
"""

from dataclasses import dataclass
from typing import Final, Protocol

import structlog

# A loop of a role reports at least once a second, or when a wait of its own ends. The longest such
# wait is a back-off of 30 s. A loop without a report for twice that time is stuck, not slow.
STUCK_AFTER_S: Final = 60.0

_log = structlog.get_logger()


class _Monotonic(Protocol):
    def mono_ns(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether all parts are healthy, and one sentence for each part that is not."""

    ok: bool
    sentences: tuple[str, ...] = ()


@dataclass(slots=True)
class _Part:
    heard_ns: int
    since_ns: int
    sentence: str = ""  # why it waits; empty if it makes progress
    reported: bool = False  # whether the wait was logged


class Health:
    """The registry to which the parts of one process report, and which its probes read.

    Reports come from the event loop; verdicts may be read from any thread.

    Parameters
    ----------
    clock
        Provides monotonic time in ns.
    stuck_after_s
        Time without a report after which a part counts as stuck.
    """

    def __init__(self, clock: _Monotonic, *, stuck_after_s: float = STUCK_AFTER_S) -> None:
        self._clock = clock
        self._stuck_after_s = stuck_after_s
        self._parts: dict[str, _Part] = {}
        self._prefix = ""

    def of(self, name: str) -> "Health":
        """Return a view that prefixes the names of its parts with `name`."""
        view = Health(self._clock, stuck_after_s=self._stuck_after_s)
        view._parts, view._prefix = self._parts, f"{self._prefix}{name}: "
        return view

    def expect(self, what: str) -> None:
        """Note that `what` is about to start: until it reports, the process is not ready."""
        since_ns = self._clock.mono_ns()
        self._parts[self._prefix + what] = _Part(since_ns, since_ns, "It has not started yet.")

    def progress(self, what: str) -> None:
        """Note that `what` makes progress; logged if it had to wait."""
        now_ns = self._clock.mono_ns()
        before = self._parts.get(self._prefix + what)
        self._parts[self._prefix + what] = _Part(now_ns, now_ns)
        if before is not None and before.reported:
            waited_s = (now_ns - before.since_ns) / 1e9
            _log.info(f"{self._prefix}{what} continues.", waited_s=round(waited_s, 1))

    def waiting(self, what: str, sentence: str) -> None:
        """Note that `what` waits, and why; a new reason is logged, a repeated one is not."""
        now_ns = self._clock.mono_ns()
        before = self._parts.get(self._prefix + what)
        since_ns = before.since_ns if before is not None and before.sentence else now_ns
        if before is None or before.sentence != sentence:
            _log.warning(f"{self._prefix}{what} is waiting: {sentence}")
        self._parts[self._prefix + what] = _Part(now_ns, since_ns, sentence, reported=True)

    def done(self, what: str) -> None:
        """Note that `what` has ended on purpose and does not report any more."""
        self._parts.pop(self._prefix + what, None)

    def ready(self) -> Verdict:
        """Return whether at least one part reports and none of them waits or is stuck."""
        parts = dict(self._parts)
        if not parts:
            return Verdict(ok=False, sentences=("No part has started yet.",))
        waiting = tuple(
            f"{what} is waiting: {part.sentence}"
            for what, part in sorted(parts.items())
            if part.sentence
        )
        stuck = self.live().sentences
        return Verdict(ok=not (waiting or stuck), sentences=waiting + stuck)

    def live(self) -> Verdict:
        """Return whether every known part has reported within the last `stuck_after_s` seconds."""
        now_ns = self._clock.mono_ns()
        stuck = tuple(
            f"{what} has not reported for {(now_ns - part.heard_ns) / 1e9:.0f} s."
            for what, part in sorted(dict(self._parts).items())
            if now_ns - part.heard_ns > self._stuck_after_s * 1e9
        )
        return Verdict(ok=not stuck, sentences=stuck)


def as_sentence(error: BaseException) -> str:
    """Return an error's message as a sentence that ends with a full stop."""
    return f"{str(error).rstrip('.')}."
