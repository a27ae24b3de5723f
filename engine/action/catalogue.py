"""The policy file: modes, limits and the escalation policy for each kind of fault.

A policy may be stricter than the hard limits in `BOUNDS`, but never laxer. Every order contains the
`hash` of the planner's policy, so that an agent can check that it uses the same policy.
"""

import math
import tomllib
from collections.abc import Iterable
from difflib import get_close_matches
from functools import cached_property
from hashlib import blake2b
from importlib import resources
from typing import Final, Literal, NamedTuple, get_args, get_origin

import msgspec

from flatline.engine.action.actions import ACTIONS, DISRUPTIVE
from flatline.engine.errors import SettingsError
from flatline.engine.faults import Kind, Step
from flatline.engine.wire.control import Mode
from flatline.engine.wire.order import MAX_LIFETIME_MS, Action

Purpose = Literal["production", "demo", "lab"]

SHIPPED: Final = ("default", "demo", "lab")

# The kinds of fault for which a policy may have steps: those with steps in the default policy. A
# fault of more than one VM has none.
KINDS: Final = tuple(kind.value for kind in Kind if kind.fault.escalation.steps)

# A step has failed if the engine still reports the alert as firing within this time before the
# step's deadline. The engine publishes a firing alert again every 60 s; the rest is for two missed
# windows.
VERDICT_WINDOW_MS: Final = 90_000


class Modes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The mode of an action: set for tenant and action, else for the action, else `default`."""

    default: Mode = "observe"
    actions: dict[Action, Mode] = {}
    tenants: dict[str, dict[Action, Mode]] = {}


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits on the number and rate of actions, and on the certainty that they require.

    Attributes
    ----------
    site_per_10min, site_least, site_ratio
        A site of n VMs may have `min(site_per_10min, max(site_least, site_ratio * n))` disruptive
        orders in 10 min. `cell_*` limit each cell by the same formula.
    backoff_s
        Waits before the second, third and fourth step of one incident.
    grace_limit_s
        The longest wait for a VM that has recovered by itself before.
    newborn_s
        The history that a VM must have before any disruptive action.
    interval_s
        The site's sampling interval. At the time of a call, the newest sample behind the order may
        be `max(120, 1.5 * interval_s)` s old.
    look_gap_s
        The time between the two samples of the agent's preflight check.
    new_log_observe_s
        How long an agent only observes on a log that it does not know.
    target_load_max_ratio, target_margin_ratio
        With the VM on it, the target of a migration may have at most a load of
        `target_load_max_ratio`, and at least `target_margin_ratio` less than the source now.
    """

    site_per_10min: int = 20
    site_least: int = 2
    site_ratio: float = 0.005
    cell_per_10min: int = 20
    cell_least: int = 1
    cell_ratio: float = 0.01
    node_per_10min: int = 2
    vm_per_24h: int = 3
    vm_spacing_s: int = 1800
    backoff_s: tuple[int, int, int] = (600, 1800, 7200)
    grace_limit_s: int = 600
    newborn_s: int = 86_400
    interval_s: float = 10.0
    look_gap_s: float = 4.0
    order_lifetime_s: int = 60
    new_log_observe_s: int = 86_400
    target_load_max_ratio: float = 0.7
    target_margin_ratio: float = 0.15

    @property
    def data_age_ms(self) -> int:
        """The largest age of the newest sample behind an order when the agent acts."""
        return math.ceil(1000 * max(120.0, 1.5 * self.interval_s))

    def site_budget(self, vms: int) -> int:
        """Return how many disruptive orders a site of `vms` VMs may have in 10 min."""
        return min(self.site_per_10min, max(self.site_least, math.floor(self.site_ratio * vms)))

    def cell_budget(self, vms: int) -> int:
        """Return how many disruptive orders a cell of `vms` VMs may have in 10 min."""
        return min(self.cell_per_10min, max(self.cell_least, math.floor(self.cell_ratio * vms)))

    def backoff_ms(self, step: int) -> int:
        """Return the wait before the next step of an incident that has had `step` (≥ 1) steps."""
        return 1000 * self.backoff_s[min(step, len(self.backoff_s)) - 1]


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, dict=True):
    """A complete, validated policy file.

    `ladders` contains the steps for each kind of fault. `pools` contains, for each storage pool,
    the pools to which its disks may be moved, the best first.
    """

    version: Literal[1]
    name: str
    purpose: Purpose = "production"
    modes: Modes = Modes()
    limits: Limits = Limits()
    ladders: dict[str, tuple[Step, ...]] = {}
    pools: dict[str, tuple[str, ...]] = {}

    @cached_property
    def hash(self) -> str:
        """The hash of the content, regardless of layout, comments and key order: 32 hex digits."""
        return blake2b(msgspec.json.encode(self, order="sorted"), digest_size=16).hexdigest()

    def mode(self, *, tenant: str | None, action: Action) -> Mode:
        """Return the mode of `action` on a VM of `tenant`; `observe` if the tenant is unknown."""
        if tenant is None:
            return "observe"
        of_tenant = self.modes.tenants.get(tenant, {})
        return of_tenant.get(action, self.modes.actions.get(action, self.modes.default))


class Bound(NamedTuple):
    """The hard limits of one field; `tried_*` apply if the purpose is demo or lab."""

    field: str
    low: float
    high: float
    tried_low: float
    tried_high: float
    why: str


_FOREVER: Final = 366 * 86_400.0

BOUNDS: Final = (
    Bound("site_per_10min", 0, 20, 0, 20, "one faulty detector must not affect many VMs"),
    Bound("site_least", 0, 2, 0, 2, "one faulty detector must not affect many VMs"),
    Bound("site_ratio", 0, 0.005, 0, 0.005, "one faulty detector must not affect many VMs"),
    Bound("cell_per_10min", 0, 20, 0, 20, "a cell shares storage and network, and their faults"),
    Bound("cell_least", 0, 1, 0, 2, "a cell shares storage and network, and their faults"),
    Bound("cell_ratio", 0, 0.01, 0, 0.01, "a cell shares storage and network, and their faults"),
    Bound("node_per_10min", 0, 2, 0, 2, "a node that needs more orders is itself the fault"),
    Bound("vm_per_24h", 0, 3, 0, 3, "more orders do not repair such a VM"),
    Bound("vm_spacing_s", 1800, _FOREVER, 1800, _FOREVER, "a VM needs time to recover visibly"),
    Bound("grace_limit_s", 0, 3600, 0, 3600, "a dead VM must not wait without limit"),
    Bound("newborn_s", 86_400, _FOREVER, 0, _FOREVER, "normal behaviour is unknown before a day"),
    Bound("interval_s", 1, 300, 1, 300, "slower sampling shows dead VMs too late"),
    Bound("look_gap_s", 4, 8, 4, 8, "a shorter gap proves nothing, a longer one exceeds 10 s"),
    Bound("order_lifetime_s", 15, MAX_LIFETIME_MS / 1000, 15, MAX_LIFETIME_MS / 1000,
          "a shorter age leaves no time for the preflight check, a longer one acts on stale data"),
    Bound("new_log_observe_s", 86_400, _FOREVER, 0, _FOREVER,
          "orders that were given on another log cannot be counted"),
    Bound("target_load_max_ratio", 0, 0.9, 0, 0.9, "a full node would slow the VM down"),
    Bound("target_margin_ratio", 0.05, 1, 0.05, 1, "without a margin VMs move to and fro"),
)  # fmt: skip

# The shortest and longest deadline of a step. The short one leaves time to observe the effect
# (`VERDICT_WINDOW_MS`); with the long one a person still learns of a failure within the hour.
_DEADLINE_S: Final = (180, 3600)
_BACKOFF_S: Final = (600, 1800, 7200)
_DISRUPTIVE_STEPS: Final = 3


def read_shipped(name: str) -> str:
    """Return the text of a policy that comes with Flatline: one of `SHIPPED`.

    Any other name raises `FileNotFoundError`.
    """
    policies = resources.files("flatline.engine.action").joinpath("policies")
    return policies.joinpath(f"{name}.toml").read_text()


def parse_policy(text: str, *, source: str) -> Policy:
    """Return the policy in a TOML text.

    Parameters
    ----------
    text
        The whole file.
    source
        The origin of the text, for messages.

    Raises
    ------
    SettingsError
        The text is not TOML, a key or kind of fault is unknown (the message suggests the nearest
        name), a word is not allowed, or a value exceeds a hard limit (the message states its
        reason).
    """
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{source} is not TOML: {error}.") from error
    _check_names(raw, Policy, where="", source=source)
    try:
        policy = msgspec.convert(raw, Policy)
    except msgspec.ValidationError as error:
        raise SettingsError(f"{source}: {error}.") from error
    for kind in policy.ladders:
        if kind not in KINDS:
            raise SettingsError(
                f"{source}: ladders: no VM alert is of kind {kind}; {_nearest(kind, KINDS)}"
            )
    for sentence in beyond(policy):
        raise SettingsError(f"{source}: {sentence}")
    return policy


def beyond(policy: Policy) -> list[str]:
    """Return one sentence for each value of `policy` that exceeds a hard limit."""
    sentences = []
    tried = policy.purpose != "production"
    for bound in BOUNDS:
        value = getattr(policy.limits, bound.field)
        low = bound.tried_low if tried else bound.low
        high = bound.tried_high if tried else bound.high
        if not low <= value <= high:
            sentences.append(
                f"limits.{bound.field} is {value:g}. A policy with purpose {policy.purpose} allows "
                f"{low:g} to {high:g}: {bound.why}."
            )
    for given, least in zip(policy.limits.backoff_s, _BACKOFF_S, strict=True):
        if given < least:
            sentences.append(
                f"limits.backoff_s is {list(policy.limits.backoff_s)}. Each value must be at least "
                f"that of {list(_BACKOFF_S)}: a failed step must not be followed too soon."
            )
            break
    for kind, steps in policy.ladders.items():
        sentences.extend(_beyond_last_step(kind, steps))
    return sentences


def _beyond_last_step(kind: str, steps: tuple[Step, ...]) -> list[str]:
    low, high = _DEADLINE_S
    sentences = []
    for step in steps:
        if not low <= step.deadline_s <= high:
            sentences.append(
                f"ladders.{kind}: deadline_s is {step.deadline_s}, must be {low} to {high}: the "
                "engine needs time to observe the effect, and a person must be notified within the "
                "hour."
            )
        if not 0 < step.stable_s < step.deadline_s:
            sentences.append(
                f"ladders.{kind}: stable_s is {step.stable_s}, must be 1 to deadline_s: recovery "
                "counts only if the VM was observed after the action."
            )
        if not 0 <= step.grace_s <= high:
            sentences.append(
                f"ladders.{kind}: grace_s is {step.grace_s}, must be 0 to {high}: a dead VM must "
                "not wait without limit."
            )
    disruptive = [step.action for step in steps if step.action in DISRUPTIVE]
    if len(disruptive) > _DISRUPTIVE_STEPS:
        sentences.append(
            f"ladders.{kind} has {len(disruptive)} disruptive steps. At most {_DISRUPTIVE_STEPS} "
            "are allowed: after them a person must act."
        )
    harms = [ACTIONS[action].harm for action in disruptive]
    if harms != sorted(harms):
        sentences.append(
            f"ladders.{kind} has the order {' to '.join(disruptive)}: the milder step must come "
            f"first ({', '.join(DISRUPTIVE)})."
        )
    if any(step.action == "quarantine" for step in steps[:-1]):
        sentences.append(f"ladders.{kind}: quarantine must be the last step.")
    return sentences


def _check_names(raw: object, shape: object, *, where: str, source: str) -> None:
    """Raise `SettingsError` for an unknown key, naming a similar one, or for an illegal word."""
    choices = get_args(shape) if get_origin(shape) is Literal else ()
    allowed = [choice for choice in choices if isinstance(choice, str)]
    if allowed and isinstance(raw, str) and raw not in allowed:
        raise SettingsError(f"{source}: {where[:-1]}: {raw!r} is not one of {', '.join(allowed)}.")
    if get_origin(shape) is dict and isinstance(raw, dict):
        for name, value in raw.items():
            _check_names(name, get_args(shape)[0], where=where, source=source)
            _check_names(value, get_args(shape)[1], where=f"{where}{name}.", source=source)
    elif get_origin(shape) is tuple and isinstance(raw, list):
        for value in raw:
            _check_names(value, get_args(shape)[0], where=where, source=source)
    elif isinstance(shape, type) and issubclass(shape, msgspec.Struct) and isinstance(raw, dict):
        fields = {field.name: field.type for field in msgspec.structs.fields(shape)}
        for name, value in raw.items():
            if name not in fields:
                raise SettingsError(
                    f"{source}: unknown key {where}{name}; {_nearest(name, fields)}"
                )
            _check_names(value, fields[name], where=f"{where}{name}.", source=source)


def _nearest(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}."
