"""A tenth of the attacks of `make simulate` on the orders, the journal and the targets."""

from tests.simulation.hostile import aim, attack, tamper


def test_no_forged_altered_replayed_or_expired_order_is_executed_and_all_are_reported() -> None:
    assert attack(1_000) == (0, 1_000)


def test_every_edit_deletion_and_cut_of_the_journal_is_found() -> None:
    assert tamper(200) == 200


def test_nothing_that_does_not_name_one_running_vm_is_a_target() -> None:
    assert aim(50_000) == 0
