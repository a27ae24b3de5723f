"""The limits per VM and node, counted a second time from the node's own ledger.

A log restored from a backup lacks orders that the node's ledger still holds. If the log is
complete, these rules refuse nothing that the rules of the log admit.
"""

from typing import Final

from flatline.engine.action.actions import DISRUPTIVE
from flatline.engine.action.admit import SENTENCES, Admission
from flatline.engine.action.catalogue import Limits
from flatline.engine.action.ledger import Ledger, Spent, spent
from flatline.engine.action.request_context import DAY_MS, Said
from flatline.engine.wire.order import MAX_LIFETIME_MS, Order

_TEN_MINUTES_MS: Final = 600_000
# How long after its order's append a step may be accepted. The log counts from the append, the
# ledger from the acceptance. All periods are shortened by this, so that these rules are not
# stricter than `log_rules`.
_SLACK_MS: Final = MAX_LIFETIME_MS


def within_limits(
    ledger: Ledger, order: Order, limits: Limits, *, now_ms: int, dry_run: bool
) -> Admission:
    """Return whether the steps counted in the ledger allow `order` to be carried out now.

    Only steps with the same `dry_run` are counted, without that of `order`. `now_ms` is the wall
    clock of the agent.
    """
    if order.action not in DISRUPTIVE:
        return Admission(True, "admitted", SENTENCES["admitted"])
    key = (order.incident, order.step)
    others = [one for one in spent(ledger, dry_run=dry_run) if one.entry.key != key]
    said = _vm(others, order, limits, now_ms) or _node(others, order, limits, now_ms)
    if said is None:
        return Admission(True, "admitted", SENTENCES["admitted"])
    return Admission(False, said[0], SENTENCES[said[0]].format(**said[1]))


def _vm(others: list[Spent], order: Order, limits: Limits, now_ms: int) -> Said | None:
    mine = [one for one in others if one.entry.vm == order.vm]
    day = [one for one in mine if one.accepted_ms > now_ms - DAY_MS + _SLACK_MS]
    if len(day) >= limits.vm_per_24h:
        return "vm_day", {"count": len(day), "limit": limits.vm_per_24h}
    # If the call of the incident's last step returned, a back-off separates its steps instead of
    # this spacing.
    same = [one for one in mine if one.entry.incident == order.incident]
    follows = bool(same) and same[-1].state == "returned"
    counted = [one for one in mine if not (follows and one in same)]
    last_ms = max((one.accepted_ms for one in counted), default=None)
    if last_ms is not None and now_ms < last_ms + 1000 * limits.vm_spacing_s - _SLACK_MS:
        return "vm_spacing", {"ago_s": (now_ms - last_ms) / 1000, "limit_s": limits.vm_spacing_s}
    return None


def _node(others: list[Spent], order: Order, limits: Limits, now_ms: int) -> Said | None:
    recent = [o for o in others if o.accepted_ms > now_ms - _TEN_MINUTES_MS + _SLACK_MS]
    limit = limits.node_per_10min
    if len(recent) >= limit:
        return "node_budget", {"node": order.node, "count": len(recent), "limit": limit}
    return None
