"""The sentence of each verdict of the preflight check, by its rule."""

from typing import Final

SENTENCES: Final = {
    "agreed": "The preflight check passed: {seen}; witnesses: {witnesses}.",
    "too_few": "Refused: the preflight check took {count} samples within {gap_s:.1f} s; two "
    "samples at least {need_s:g} s apart are required.",
    "too_old": "Refused: the preflight check began {age_s:.1f} s ago; the limit is {limit_s:g} s.",
    "other_vm": "Refused: the hypervisor returned another VM than the one in the order.",
    "monitor": "Refused: the QEMU monitor of the VM does not answer, so its state is unknown.",
    "other_owner": "Refused: the definition of the VM names {seen}, the order names {ordered}.",
    "other_run": "Refused: this is run {seen} of the VM, the order is for run {ordered}.",
    "opted_out": "Refused: the definition of the VM forbids actions.",
    "job": "Refused: a job is active on the VM.",
    "state": "Refused: the VM is {seen}; the {action} requires {needed}.",
    "booted": "Refused: the VM was reset or rebooted during the preflight check.",
    "alive": "Refused: the VM is alive: {counter} increased by {moved} during the preflight check.",
    "alive_since": "Refused: the VM is alive: {counter} increased by {moved} after the verdict.",
    "balloon_since": "Refused: the VM is alive: its balloon reported {after_s:.0f} s after the "
    "verdict.",
    "unseen_disk": "Refused: the disk writes of the VM are not visible, so it may be alive.",
    "uncounted": "Refused: the I/O of its {device} is not counted, so the VM may be alive.",
    "half_seen": "Refused: {counter} was present in one sample only, so the VM may be alive.",
    "went_back": "Refused: {counter} decreased during the check, so the VM may have restarted.",
    "balloon": "Refused: the VM is alive: its balloon driver reported during the preflight check.",
    "shape_unseen": "Refused: the time of each vCPU is unknown now, or was at the verdict.",
    "shape": "Refused: the vCPUs are {seen} now, but were {ordered} at the verdict.",
    "vcpu_moves": "Refused: vCPU {number} ran {gained_ms:.3f} ms during the preflight check; in a "
    "dead guest it runs at most {limit_ms:g} ms.",
    "sign_of_life": "Refused: the VM is alive: it answered {what} during the preflight check.",
    "newborn_untold": "Refused: the VM has {history} of history, {limit_s:g} s are required, and "
    "no device or hypervisor of this node reported a crash.",
    "no_witness": "Refused: silence is the only evidence that the VM is dead. {lacking}",
    "no_request": "Refused: no disk request of the VM completed during the preflight check. A "
    "QEMU process with blocked I/O cannot complete a migration or a disk move.",
    "no_look": "Refused: no preflight check is defined for {action}.",
}
