"""Every error that Flatline raises on purpose.

::

    FlatlineError
    ├── SettingsError            a setting, policy or command line that cannot be used
    ├── RecordRejected           bytes from the log that are not a Flatline record
    ├── CommandRefused           a control record that planners and agents do not accept
    ├── FoldFailed               a record that could not be folded into a state
    ├── LogError
    │   ├── LogUnreachable       no answer; a retry may succeed
    │   ├── LogRefused           refused by the log: credentials, rights, missing topic
    │   │   └── RecordTooLarge     the log will never accept this record, but it accepts others
    │   ├── LogProducerBroken    this producer can never append again; build a new one
    │   └── GroupTaken           another process already reads for this consumer group
    ├── HypervisorError
    │   ├── HypervisorUnreachable
    │   ├── HypervisorStuck      too many calls wait for an answer; the process must restart
    │   ├── VmNotFound           the hypervisor answered that it does not know the VM
    │   ├── ActionRefused          the hypervisor refused an action, so nothing was done
    │   │   └── ActionUnsent       the call was not sent in time; a later one may succeed
    │   └── EvidenceUnsaved      no evidence of a VM could be saved before an action
    ├── HistoryError
    │   ├── HistoryUnreachable   no answer or a temporary refusal; a retry may succeed
    │   └── HistoryRefused       refused: token, bucket or rights; a person must fix it
    ├── NotifierError
    │   ├── NotifierUnreachable  a notice was not accepted; it is sent again
    │   └── NotifierRefused      this notice will never be accepted; it is skipped
    └── StateError
        ├── SnapshotDamaged      a snapshot whose bytes do not match its manifest
        ├── SnapshotTooNew       a snapshot written by a later release
        ├── StateUnwritable      a folder or file that must be durable cannot be written
        ├── KeyDamaged           a private key of this installation is not a valid key
        └── AlreadyRunning       a role that may run only once was started again

Messages state the failure, its place and the remedy. The top-level handler prints the
message of a `FlatlineError` and exits with `exit_code`.
"""


class FlatlineError(Exception):
    """Root of the tree; `exit_code` is the exit code of the command when it is not handled."""

    exit_code = 1


class SettingsError(FlatlineError):
    """A setting, policy file or command line cannot be used."""

    exit_code = 2


class RecordRejected(FlatlineError):
    """Bytes from the log are not a Flatline record.

    Parameters
    ----------
    reason
        One of `REJECTION_REASONS`. The set is fixed, because the reason is a label of a metric.
    detail
        The exact fault, for people who read the `rejected` topic.
    """

    def __init__(self, reason: str, detail: str) -> None:
        if reason not in REJECTION_REASONS:
            raise ValueError(f"{reason!r} is not a rejection reason: {sorted(REJECTION_REASONS)}")
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class CommandRefused(FlatlineError):
    """A control record is not accepted, so it has no effect."""


class FoldFailed(FlatlineError):
    """Folding a record into a state raised an exception, so the state may be partly changed.

    Parameters
    ----------
    culprit
        The part to leave out when the record is folded again: `record` for the whole record, or the
        state's own name for a part of the record or of the state.
    cause
        The exception that was raised.
    """

    def __init__(self, culprit: str, cause: Exception) -> None:
        super().__init__(f"{type(cause).__name__}: {cause}")
        self.culprit = culprit
        self.cause = cause


REJECTION_REASONS = frozenset(
    {
        "malformed",
        "truncated",
        "oversized",
        "unknown_version",
        "bad_value",
        "bad_signature",
        "bad_mac",
        "expired_key",
        "late",
        "replayed",
        "stale",
        "unstorable",
        "poison",
        "too_many",
    }
)


class LogError(FlatlineError):
    """The log did not do the operation."""

    exit_code = 3


class LogUnreachable(LogError):
    """The log gave no answer; the caller retries with back-off."""


class LogRefused(LogError):
    """The log refused: credentials, rights or a missing topic. A retry will not succeed."""


class RecordTooLarge(LogRefused):
    """The log will never accept a record of this size; it is split or dropped, not sent again."""


class LogProducerBroken(LogError):
    """The producer can never append again; the caller closes it and builds a new one."""


class GroupTaken(LogError):
    """Another process already reads for this consumer group on the embedded log."""


class HypervisorError(FlatlineError):
    """The hypervisor did not do the operation."""

    exit_code = 4


class HypervisorUnreachable(HypervisorError):
    """The hypervisor gave no answer in time. The operation may or may not have happened."""


class HypervisorStuck(HypervisorError):
    """Too many calls to the hypervisor wait for an answer; this process must be replaced."""


class VmNotFound(HypervisorError):
    """The hypervisor answered that it does not know this VM."""


class ActionRefused(HypervisorError):
    """The hypervisor refused an action, so nothing was done to the VM."""


class ActionUnsent(ActionRefused):
    """The call was not sent in time, for a temporary reason; a later one may succeed."""


class EvidenceUnsaved(HypervisorError):
    """No evidence of a VM could be saved; the action on the VM is executed nevertheless."""


class HistoryError(FlatlineError):
    """The store of the history did not do the operation."""

    exit_code = 6


class HistoryUnreachable(HistoryError):
    """The store gave no answer, or a temporary refusal.

    Parameters
    ----------
    retry_after_s
        The pause that it asked for; None where it stated none.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class HistoryRefused(HistoryError):
    """The store refused: token, rights or a missing bucket. A person must correct the cause."""


class NotifierError(FlatlineError):
    """The receiver did not accept a notice."""


class NotifierUnreachable(NotifierError):
    """A notice was not accepted, for a reason that may be temporary.

    Parameters
    ----------
    retry_after_s
        The pause that the receiver asked for; None where it stated none.
    has_answered
        Whether the receiver answered. If it did, it may accept other notices.
    """

    def __init__(
        self, message: str, *, retry_after_s: float | None = None, has_answered: bool = False
    ) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.has_answered = has_answered


class NotifierRefused(NotifierError):
    """The receiver will never accept this notice; a retry will not succeed."""


class StateError(FlatlineError):
    """A durable file or folder is damaged, unwritable or in use."""

    exit_code = 5


class SnapshotDamaged(StateError):
    """A snapshot's bytes do not match its manifest; the reader uses an older snapshot."""


class SnapshotTooNew(StateError):
    """A snapshot was written by a later release; start that release, or discard the snapshot."""


class StateUnwritable(StateError):
    """A folder or file that must be durable cannot be written."""


class KeyDamaged(StateError):
    """A private key of this installation is not a valid key."""


class AlreadyRunning(StateError):
    """A second process of a role that may exist only once was started."""
