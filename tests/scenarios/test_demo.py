"""The demo gives the same story for the same seed, and fails when the story is not true.

Runs in virtual time; the tests of its parts are beside the parts.
"""

import logging
from collections.abc import Iterator

import pytest
import structlog

from flatline.engine.action.catalogue import parse_policy, read_shipped
from flatline.engine.cli import demo, demo_scene
from flatline.engine.cli.demo import run_demo
from flatline.engine.wiring import Authority

pytestmark = pytest.mark.slow

# Without an observer: as fast as the machine can.
UNPACED = 1e9


@pytest.fixture(autouse=True)
def _logs_as_before() -> Iterator[None]:
    handlers, level = logging.getLogger().handlers[:], logging.getLogger().level
    yield
    structlog.reset_defaults()
    logging.getLogger().handlers[:] = handlers
    logging.getLogger().setLevel(level)


def story_of(capsys: pytest.CaptureFixture[str], *, seed: int, speed: float) -> tuple[int, str]:
    code = run_demo(seed=seed, speed=speed, plain=True)
    story = capsys.readouterr().out
    return code, story.replace(f"{speed:g} times", "N times")


def test_everything_the_demo_claims_comes_true_and_a_seed_gives_one_story(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, story = story_of(capsys, seed=1, speed=UNPACED)
    assert code == 0
    assert story.count("│ yes │") == 5
    for words in ("panic", "verified", "one incident of the pool", "0 orders", "runs on c3-n1"):
        assert words in story
    assert story_of(capsys, seed=1, speed=1e6) == (0, story)


def test_a_flatline_that_only_watches_fails_the_demo(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed = demo._authority(1)
    policy = parse_policy(read_shipped("demo").replace('"auto"', '"observe"'), source="this test")
    watching = Authority(policy, allowed.key, allowed.trusted)
    monkeypatch.setattr(demo, "_authority", lambda _: watching)
    monkeypatch.setattr(demo, "DEADLINE_S", demo_scene.WARM_UP_S + 150)
    code, story = story_of(capsys, seed=1, speed=UNPACED)
    assert code == 1
    assert "dry run" in story
    assert "│ no  │ c0-n0-web0003 panics, is reset and verified" in story
    assert story.count("│ no  │") == 2
