"""The pause between two attempts, for every loop and adapter that tries again."""

from flatline.engine.stream.backoff import Backoff


def test_a_pause_doubles_with_each_failure_up_to_the_longest() -> None:
    backoff = Backoff(0.5, 3.0)
    assert [backoff.failed() for _ in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_a_success_resets_the_pause() -> None:
    backoff = Backoff(0.5, 3.0)
    assert not backoff.has_failed
    backoff.failed()
    backoff.failed()
    assert backoff.has_failed
    backoff.worked()
    assert not backoff.has_failed
    assert backoff.failed() == 0.5


def test_a_receiver_may_ask_for_a_longer_pause_but_for_none_below_the_shortest() -> None:
    backoff = Backoff(1.0, 30.0)
    assert backoff.failed(600.0) == 600.0
    assert backoff.failed(0.0) == 1.0
    # An answer with a request is a failure as well.
    assert backoff.failed() == 4.0
