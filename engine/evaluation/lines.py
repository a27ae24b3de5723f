"""Define the lines that a replay writes and an evaluation reads."""

import msgspec


class AlertLine(msgspec.Struct, frozen=True, kw_only=True):
    """One transition of one alert; times in s since the epoch.

    `t` is the event time of the record with which the engine decided. `vms` are the affected VMs if
    the scope is wider than one VM.
    """

    t: float
    onset_t: float
    id: str
    scope: str
    subject: str
    vms: tuple[str, ...]
    kind: str
    state: str
    confidence: float
    suggested_action: str
    vetoes: tuple[str, ...]
    sentence: str


class OrderLine(msgspec.Struct, frozen=True, kw_only=True):
    """One order that the planner would have appended to the log."""

    t: float
    vm: str
    action: str
    incident: str
    step: int
    sentence: str


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """Properties and results of a replay.

    Attributes
    ----------
    dataset
        Path as given.
    vm_days
        For how long VMs were seen, in VM-days. `vm_days_by_day` has one sum for each day of the
        recording, `vm_days_by_vm` the time of each VM by its name in the recording.
    fired
        Number of alerts that ever fired; each alert id counts once, as in an evaluation.
    alerts, orders, held
        Number of alert transitions by kind and state, of orders by action, and of refused orders by
        rule. An alert whose kind or suggestion changes counts again in `alerts`.
    compared
        Orders and refusals under the other policy, and the incidents in which both policies differ.
    wall_s, vm_samples_per_s, times_real
        The only figures that differ from run to run.
    """

    dataset: str
    interval_s: float
    began_s: float
    vm_days: float
    vm_days_by_day: tuple[float, ...]
    vm_days_by_vm: dict[str, float]
    vm_samples: int
    frames: int
    rows: dict[str, int]
    fired: int
    alerts: dict[str, dict[str, int]]
    orders: dict[str, int]
    held: dict[str, int]
    policy: str
    policy_hash: str
    configuration: str
    digest: str
    wall_s: float
    vm_samples_per_s: float
    times_real: float
    compared: dict[str, object] | None = None
