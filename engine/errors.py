"""Every error that Flatline raises on purpose.

::

    FlatlineError
    ├── SettingsError            a setting, policy or command line that cannot be used
    ├── RecordRejected           bytes from the log that are not a record of ours
    ├── WordRefused              a person's word that planners and agents do not believe
    ├── FoldFailed               a record that could not be folded into a state
    ├── LogError
    │   ├── LogUnreachable       no answer; waiting and trying again may help
    │   ├── LogRefused           the log answered no: credentials, rights, missing topic
    │   ├── RecordTooLarge       the log will never take this one record; others it does
    │   ├── LogProducerBroken    this producer can never append again; build a new one
    │   └── GroupTaken           another process already reads for this consumer group
    ├── HypervisorError
    │   ├── HypervisorUnreachable
    │   ├── HypervisorStuck      so many calls wait that only a new process gets answers
    │   ├── VmNotFound           the hypervisor answered that it does not know the VM
    │   ├── VerbRefused          the hypervisor answered no to a verb, so nothing was done
    │   │   └── VerbUnsent       it was not asked in time; asked later, it may do it
    │   └── EvidenceUnsaved      nothing of a VM could be kept before it was acted on
    ├── HistoryError
    │   ├── HistoryUnreachable   no answer, or not now; trying again will help
    │   └── HistoryRefused       it answered no: token, bucket or rights; a person is needed
    ├── NotifierError
    │   ├── NotifierUnreachable  a notice was not taken over; it is sent again
    │   └── NotifierRefused      this notice will never be taken over; it is passed over
    └── StateError
        ├── SnapshotDamaged      a snapshot whose bytes do not match its manifest
        ├── SnapshotTooNew       a snapshot written by a later release
        ├── StateUnwritable      a folder or file that must be durable cannot be written
        ├── KeyDamaged           a private key of this installation is no key
        └── AlreadyRunning       a second process of a role that may exist once

Messages name what failed, where, and what to do about it. Whoever catches a
`FlatlineError` at the top prints its message and exits with `exit_code`.
"""


class FlatlineError(Exception):
    """Root of the tree; `exit_code` is what the command ends with when nobody handles it."""

    exit_code = 1


class SettingsError(FlatlineError):
    """A setting, policy file or command line cannot be used."""

    exit_code = 2


class RecordRejected(FlatlineError):
    """Bytes from the log are not a record of ours.

    Parameters
    ----------
    reason
        One of `REJECTION_REASONS`; it labels the counter, so the set is closed.
    detail
        What exactly is wrong, for the person who reads the `rejected` topic.
    """

    def __init__(self, reason: str, detail: str) -> None:
        if reason not in REJECTION_REASONS:
            raise ValueError(f"{reason!r} is not a rejection reason: {sorted(REJECTION_REASONS)}")
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class WordRefused(FlatlineError):
    """A person's word does not count, so what it was to change stays as it was."""


class FoldFailed(FlatlineError):
    """Folding a record raised, so that the state may be half changed.

    Parameters
    ----------
    culprit
        What is to be left out when the record is folded again: `record`, or a part of it or of
        the state by a name that the state gave it.
    cause
        What was raised.
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
    """The log did not do what was asked."""

    exit_code = 3


class LogUnreachable(LogError):
    """The log gave no answer; the caller waits with back-off and tries again."""


class LogRefused(LogError):
    """The log answered no: credentials, rights or a missing topic. Trying again will not help."""


class RecordTooLarge(LogRefused):
    """The log will never take a record of this size; it is split or given up, not sent again."""


class LogProducerBroken(LogError):
    """The producer can never append again; the caller closes it and builds a new one."""


class GroupTaken(LogError):
    """Another process already reads for this consumer group on the embedded log."""


class HypervisorError(FlatlineError):
    """The hypervisor did not do what was asked."""

    exit_code = 4


class HypervisorUnreachable(HypervisorError):
    """The hypervisor gave no answer in time. What was asked may or may not have happened."""


class HypervisorStuck(HypervisorError):
    """So many calls wait for an answer that only a new process gets one; it is to end."""


class VmNotFound(HypervisorError):
    """The hypervisor answered that it does not know this VM."""


class VerbRefused(HypervisorError):
    """The hypervisor answered no to a verb, so nothing was done to the VM."""


class VerbUnsent(VerbRefused):
    """The verb was not sent in time, for a reason that passes; nothing speaks against the next."""


class EvidenceUnsaved(HypervisorError):
    """Nothing of a VM could be kept; what was to be done to it does not depend on that."""


class HistoryError(FlatlineError):
    """The store of the history did not do what was asked."""

    exit_code = 6


class HistoryUnreachable(HistoryError):
    """The store gave no answer, or said that it cannot now.

    Parameters
    ----------
    retry_after_s
        How long it asked to be left alone; None where it did not say.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class HistoryRefused(HistoryError):
    """The store answered no to everything: token, rights, bucket. It helps only to mend that."""


class NotifierError(FlatlineError):
    """Who is to tell people did not take a notice over."""


class NotifierUnreachable(NotifierError):
    """A notice was not taken over, which may pass.

    Parameters
    ----------
    retry_after_s
        How long the receiver asked to be left alone; None where it did not say.
    has_answered
        Whether the receiver answered: another notice may then be taken all the same.
    """

    def __init__(
        self, message: str, *, retry_after_s: float | None = None, has_answered: bool = False
    ) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.has_answered = has_answered


class NotifierRefused(NotifierError):
    """The receiver will never take this notice, whatever is waited for."""


class StateError(FlatlineError):
    """Something that must be durable is damaged, unwritable or in use."""

    exit_code = 5


class SnapshotDamaged(StateError):
    """A snapshot's bytes do not match its manifest; the older one is to be used."""


class SnapshotTooNew(StateError):
    """A snapshot was written by a later release; start that release, or discard the snapshot."""


class StateUnwritable(StateError):
    """A folder or file that must be durable cannot be written."""


class KeyDamaged(StateError):
    """A private key of this installation cannot be read as one."""


class AlreadyRunning(StateError):
    """A second process of a role that may exist only once was started."""
