"""What detection found in a window, as values: a fault, its end, or what explains it.

Detectors yield outcomes. `engine.detection.incidents` applies each outcome before the next one is
determined, so that later detectors see its effect on the incident.
"""

from typing import NamedTuple

import msgspec

from flatline.engine.detection.cell import Incident
from flatline.engine.faults import Kind
from flatline.engine.wire.alert import (
    CpuShape,
    EvidenceItem,
    Resolution,
    SamplePosition,
    Scope,
    Severity,
    Suggestion,
    alert_id,
)

_NOTICE = "notice/"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """A fault of one subject of any scope: its incident opens or continues."""

    scope: Scope
    subject: str
    kind: Kind
    firing: bool
    severity: Severity
    suggestion: Suggestion
    confidence: float
    onset_ms: int
    position: SamplePosition
    sentence: str
    evidence: tuple[EvidenceItem, ...] = ()
    vetoes: tuple[str, ...] = ()
    vms: tuple[str, ...] = ()
    node: str | None = None
    instance: int | None = None
    history_s: float | None = None
    cpu_shape: CpuShape = "unknown"
    incident: str | None = None
    # For a notice: its key in the cell, since its subject may have another incident. Empty for all
    # other findings.
    key: str = ""

    def place(self) -> str:
        """Return the key of the incident in its cell."""
        return self.key or key_of(self.scope, self.subject)

    def alert_id(self) -> str:
        """Return the id of the alert that this finding opens."""
        subject = f"{self.kind}:{self.subject}" if self.key else self.subject
        return alert_id(scope=self.scope, subject=subject, position=self.position)


class Ended(NamedTuple):
    """An incident ends for the reason of its resolution."""

    incident: Incident
    resolution: Resolution
    sentence: str


class Explained(NamedTuple):
    """Something else explains an open incident: it is suppressed.

    `vetoes` names the cause. `explained_by` is the id of the alert of the cause, None for none.
    """

    incident: Incident
    vetoes: tuple[str, ...]
    explained_by: str | None


class Calmed(NamedTuple):
    """An incident goes on but suggests no action: its VM is not visible or is healthy again."""

    incident: Incident


class Continued(NamedTuple):
    """An incident goes on as before; a firing alert is published again each minute."""

    incident: Incident


Outcome = Finding | Ended | Explained | Calmed | Continued


def text_of(uuid: bytes) -> str:
    """Return a VM's UUID in the form of alerts; `uuid.UUID` takes ten times as long."""
    digits = uuid.hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def uuid_of(text: str) -> bytes:
    """Return the UUID of a VM in the form of alerts as bytes.

    Raises
    ------
    ValueError
        The text has other characters than hex digits and hyphens; its length is not checked.
    """
    return bytes.fromhex(text.replace("-", ""))


def key_of(scope: str, subject: str) -> str:
    """Return the key in a cell of a subject's incident; notices have keys of their own.

    `scope` is the scope of the alert. The subject of scope "vm" is the UUID text, else a name.
    """
    return f"{scope}/{subject}"


def notice_key(kind: Kind, subject: str) -> str:
    """Return the key of a notice in its cell."""
    return f"{_NOTICE}{kind}/{subject}"


def is_notice(key: str) -> bool:
    """Return whether an incident's key is that of a notice."""
    return key.startswith(_NOTICE)
