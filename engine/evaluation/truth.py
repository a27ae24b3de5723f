"""Parse the ground truth of a dataset, `PREFIX_events.csv`; only the evaluation reads it.

The file has one row per VM and event. Rows of an event that affected several VMs become one
occurrence: the VMs of a silent host, a fleet whose counters stood still, a noisy neighbour with its
victims. The rows of one occurrence may start up to two hours apart.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from flatline.engine.errors import SettingsError
from flatline.engine.faults import Kind, of_family
from flatline.engine.seconds import not_seconds

# The kinds of faults that are classified.
KINDS: Final = tuple(kind.value for kind in Kind if kind.fault.is_scored)
PANICS: Final = of_family("death")
COLUMNS: Final = (
    "vm", "host", "t_start", "t_end", "kind", "class", "expected_action", "note",
)  # fmt: skip
_TOGETHER_S: Final = 7_200.0
# A panic counts as detectable if the guest did I/O in at least this share of the time before it,
# because a guest without I/O cannot be seen to stop. The research on the datasets computes recall
# by the same rule.
_ACTIVE_SHARE: Final = 0.5
# Kinds that affect a resource that VMs share, with the scopes of their alerts; all other kinds
# affect VMs. The last two are confounders.
SCOPES: Final[Mapping[str, frozenset[str]]] = {
    **{kind.value: kind.fault.scopes for kind in Kind if "vm" not in kind.fault.scopes},
    "boot_storm": frozenset({"host"}),
    "fleet_io_silence": frozenset({"fleet", "cell"}),
}
_BY_FLEET: Final = frozenset({"fleet_io_silence"})


@dataclass(frozen=True, slots=True)
class Occurrence:
    """One fault or confounder.

    Attributes
    ----------
    vms, host
        The affected VMs and host; for a noisy neighbour only the aggressor.
    victims
        VMs that suffered without being at fault. An alert on a victim is neither right nor wrong;
        an action on it is wrong.
    expected
        The right action: reboot, migrate, alert, host_alert, fleet_alert or none.
    detectable
        Whether the data can show it; False for a panic of a guest that was idle.
    shape
        For a panic: `one core`, `all cores` or `halt`; empty for other kinds.
    """

    kind: str
    is_fault: bool
    expected: str
    host: str
    vms: frozenset[str]
    start_s: float
    end_s: float
    detectable: bool = True
    shape: str = ""
    note: str = ""
    victims: frozenset[str] = field(default_factory=frozenset)
    starts: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_wide(self) -> bool:
        """Whether it affected something that VMs share, and not the VMs themselves.

        False for a noisy neighbour, which is an occurrence of the aggressor's VM.
        """
        return self.kind in SCOPES

    @property
    def is_fleet(self) -> bool:
        """Whether it affected the whole fleet."""
        return self.kind in _BY_FLEET


def parse_truth(
    rows: Iterable[tuple[int, Mapping[str, str]]], *, source: str, vcpus: Mapping[str, int]
) -> list[Occurrence]:
    """Return the occurrences sorted by beginning.

    Parameters
    ----------
    rows
        Line number and fields by `COLUMNS`.
    source
        Name of the file, for error messages.
    vcpus
        Number of vCPUs by VM, where known. In a VM with one vCPU, one busy core is all cores.

    Raises
    ------
    SettingsError
        A time is no number or out of range, `pre_active` in a note is no number, or a class is
        neither fault nor confounder.
    """
    single: list[Occurrence] = []
    for line, row in rows:
        if row["class"] not in {"fault", "confounder"}:
            raise SettingsError(
                f"{source}, line {line}: class is {row['class']!r}, must be fault or confounder."
            )
        single.append(_one(row, source=source, line=line, vcpus=vcpus))
    wide = [one for one in single if one.is_wide or one.kind == Kind.NOISY_NEIGHBOUR]
    alone = [one for one in single if not (one.is_wide or one.kind == Kind.NOISY_NEIGHBOUR)]
    return sorted([*alone, *_joined(wide)], key=lambda one: (one.start_s, one.kind, one.host))


def notes_of(note: str) -> dict[str, str]:
    """Return the `name=value` parts of a note, which are separated by `;`, by name.

    Other parts are left out.
    """
    return dict(part.split("=", 1) for part in note.split(";") if "=" in part)


def _one(row: Mapping[str, str], *, source: str, line: int, vcpus: Mapping[str, int]) -> Occurrence:
    try:
        start_s, end_s = float(row["t_start"]), float(row["t_end"])
    except ValueError:
        raise SettingsError(f"{source}, line {line}: t_start or t_end is not a number.") from None
    for column, time_s in (("t_start", start_s), ("t_end", end_s)):
        if wrong := not_seconds(time_s):
            raise SettingsError(f"{source}, line {line}: {column} is {time_s}, {wrong}.")
    notes = notes_of(row["note"])
    kind = row["kind"]
    active = notes.get("pre_active", notes.get("pre_active_min", "1"))
    try:
        detectable = kind not in PANICS or float(active) >= _ACTIVE_SHARE
    except ValueError:
        raise SettingsError(f"{source}, line {line}: pre_active is {active!r}.") from None
    return Occurrence(
        kind=kind,
        is_fault=row["class"] == "fault",
        expected=row["expected_action"],
        host=row["host"],
        vms=frozenset({row["vm"]}),
        start_s=start_s,
        end_s=max(start_s, end_s),
        detectable=detectable,
        shape=_shape(kind, notes, vcpus.get(row["vm"], 0)),
        note=row["note"],
        starts={row["vm"]: start_s},
    )


def _shape(kind: str, notes: Mapping[str, str], vcpus: int) -> str:
    if kind == Kind.PANIC_HALT:
        return "halt"
    if kind != Kind.PANIC_SPIN:
        return ""
    busy = notes.get("busy_cores", "1")
    return "one core" if busy == "1" and vcpus != 1 else "all cores"


def _joined(rows: list[Occurrence]) -> list[Occurrence]:
    """Return one occurrence for each event, merged from the event's rows."""
    found: list[list[Occurrence]] = []
    for one in sorted(rows, key=lambda one: (one.kind, one.start_s)):
        for group in reversed(found):
            if _belongs(one, group):
                group.append(one)
                break
        else:
            found.append([one])
    return [_merged(group) for group in found]


def _belongs(one: Occurrence, group: list[Occurrence]) -> bool:
    first = group[0]
    if one.kind != first.kind or (one.host != first.host and not one.is_fleet):
        return False
    # An occurrence affects a VM only once, so a second row of the same VM is another event.
    if any(one.vms & other.vms for other in group):
        return False
    return one.start_s - first.start_s <= _TOGETHER_S


def _merged(group: list[Occurrence]) -> Occurrence:
    first = group[0]
    # In the rows of a noisy neighbour, only that of the aggressor has an action other than `none`.
    guilty = [one for one in group if first.kind != Kind.NOISY_NEIGHBOUR or one.expected != "none"]
    guilty = guilty or group
    members = frozenset[str]().union(*(one.vms for one in guilty))
    everyone = frozenset[str]().union(*(one.vms for one in group))
    return Occurrence(
        kind=first.kind,
        is_fault=first.is_fault,
        expected=guilty[0].expected,
        host="" if first.is_fleet else first.host,
        vms=members,
        start_s=min(one.start_s for one in guilty),
        end_s=max(one.end_s for one in guilty),
        note=guilty[0].note,
        victims=everyone - members,
        starts={vm: start_s for one in group for vm, start_s in one.starts.items()},
    )
