"""The circuit breaker (storm breaker): many faults in one place at once have a common cause.

A place is a cell, a pool or a network. A pause record of the place stops all actions there, by
every planner and agent. The pause ends when a person withdraws it, or 30 minutes after its last
renewal.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from flatline.engine.action.layered import Layered, layered
from flatline.engine.faults import Kind
from flatline.engine.wire.alert import Alert
from flatline.engine.wire.control import Control

_WINDOW_MS: Final = 300_000
_PRUNE_MS: Final = 60_000
_CALM_MS: Final = 1_800_000
# While the storm lasts, the pause is renewed when it is this old.
_RENEW_MS: Final = 300_000
_LEAST_VMS: Final = 3
_SHARE: Final = 0.2

AUTHOR: Final = "storm breaker"
# With this source the breaker's pause has its own key, so it never replaces a person's pause.
SOURCE: Final = "breaker"

SENTENCES: Final = {
    "storm": "{count} VMs of {scope} {name} had faults within 5 minutes; the limit is {bar}",
}

PlaceScope = Literal["cell", "pool", "network"]
Place = tuple[PlaceScope, str]


@dataclass(frozen=True, slots=True)
class Trouble:
    """When each VM of a place was last reported in trouble, ms by UUID text.

    Old entries are dropped periodically (`pruned_ms`): a scan of all VMs with each alert would take
    time in proportion to the square of their number.
    """

    seen_ms: Mapping[str, int]
    newest_ms: int = 0
    pruned_ms: int = 0


def places_of(alert: Alert) -> Iterable[Place]:
    """Return the places (scope and name) whose VMs `alert` concerns."""
    yield "cell", alert.cell
    if alert.scope in ("pool", "network"):
        yield ("pool" if alert.scope == "pool" else "network"), alert.subject
    for pool in alert.pools:
        yield "pool", pool
    for network in alert.networks:
        yield "network", network


def troubled(trouble: Trouble | None, alert: Alert) -> Trouble:
    """Return the trouble of a place after `alert`; `trouble` None is a place without any so far.

    Suppressed alerts count, since a suppressed alert does not mean a healthy VM. Pending alerts do
    not: a single unusual sample is no fault yet. Alerts about a host do not, since its VMs have
    alerts of their own. The exception is a silent host, all VMs of which are silent.
    """
    seen = layered(trouble.seen_ms if trouble else {})
    if alert.state in ("firing", "suppressed"):
        vms = (alert.subject,) if alert.scope == "vm" else alert.vms
        counts = alert.scope != "host" or alert.kind == Kind.HOST_SILENCE
        for vm in vms if counts else ():
            seen = seen.with_entry(vm, max(seen.get(vm, 0), alert.decided_ms))
    newest_ms = max(alert.decided_ms, trouble.newest_ms if trouble else 0)
    pruned_ms = trouble.pruned_ms if trouble else newest_ms
    if newest_ms - pruned_ms >= _PRUNE_MS:
        seen = Layered({vm: ms for vm, ms in seen.items() if ms > newest_ms - _WINDOW_MS})
        pruned_ms = newest_ms
    return Trouble(seen, newest_ms, pruned_ms)


def storm_pause(
    trouble: Trouble,
    *,
    site: str,
    place: Place,
    vm_count: int,
    controls: Mapping[bytes, Control],
    now_ms: int,
) -> Control | None:
    """Return the pause record to append now, None if there is no storm or a pause is in force.

    Parameters
    ----------
    trouble
        The VMs of the place that had faults.
    site, place
        The site, and the place in it.
    vm_count
        How many VMs the place has. 0 means unknown: three VMs with faults are then a storm.
    controls
        The control records in force. A person's pause of the place has another key and plays no
        role here. After a person has withdrawn the breaker's pause, only later faults count.
    now_ms
        Wall clock.
    """
    scope, name = place
    pause = Control(
        kind="pause",
        scope=scope,
        subject=name,
        active=True,
        by=AUTHOR,
        reason="",
        time_ms=now_ms,
        until_ms=now_ms + _CALM_MS,
        source=SOURCE,
    )
    standing = controls.get(pause.key())
    cleared_ms = 0
    if standing is not None and not standing.active:
        cleared_ms = standing.time_ms
    elif standing is not None and _is_enough(standing, now_ms=now_ms):
        return None
    # The window ends at the newest alert if that is later: the clock of this planner may be behind.
    since_ms = max(now_ms - _WINDOW_MS, trouble.newest_ms - _WINDOW_MS, cleared_ms)
    count = sum(ms > since_ms for ms in trouble.seen_ms.values())
    bar = max(_LEAST_VMS, math.ceil(vm_count * _SHARE))
    if count < bar:
        return None
    full = f"{site}/{name}" if scope == "cell" else name
    reason = SENTENCES["storm"].format(count=count, scope=scope, name=full, bar=bar)
    return msgspec.structs.replace(pause, reason=reason)


def _is_enough(pause: Control, *, now_ms: int) -> bool:
    """Return whether `pause` is in force and need not be renewed yet."""
    left_ms = _CALM_MS if pause.until_ms is None else pause.until_ms - now_ms
    return pause.active and left_ms > _CALM_MS - _RENEW_MS
