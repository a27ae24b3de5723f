"""Define the lines that a replay writes and an evaluation reads."""

import msgspec


class AlertLine(msgspec.Struct, frozen=True, kw_only=True):
    """One transition of one alert; times in s since the epoch.

    `t` is the event time of the record that decided, `vms` the members of a wider scope.
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
    """One order as it would have been appended."""

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
        Time for which VMs were seen; `vm_days_by_day` from the first day of the recording on,
        `vm_days_by_vm` by the VM's own id.
    fired
        Number of alerts that ever fired, by id, as an evaluation counts them.
    alerts, orders, held
        Transitions by kind and state, orders by action, and orders that a rule held back. An
        alert whose kind or suggestion changes fires again in these.
    compared
        The same for the other policy, and the incidents in which the two differ.
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
