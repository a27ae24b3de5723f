"""Settings of the whole suite: seeds, and the requirements of integration tests."""

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

from deploy.lab.kafka_jars import cache_dir
from flatline.engine.kernel_cache import kept_kernels, users_folder

# The same examples on every run, so that a failure can be reproduced. No deadline, because the time
# of one example on a shared machine is not significant.
settings.register_profile("seeded", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("seeded")


def _program(name: str) -> Callable[[], bool]:
    # libvirtd is in sbin, which is not on every user's path.
    places = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    return lambda: shutil.which(name, path=places) is not None


def _influxd_or(name: str) -> Callable[[], bool]:
    return lambda: any((cache_dir() / "influxdb").glob("influxd-v*")) or _program(name)()


# Requirements of the tests of each marker, and how to check them.
NEEDS: dict[str, dict[str, Callable[[], bool]]] = {
    "kafka": {"java": _program("java"), "mvn": _program("mvn")},
    # The server is built once, from its source; the binary in the cache needs none of these.
    "influxdb": {"go": _influxd_or("go"), "cargo": _influxd_or("cargo")},
    "libvirt": {
        "libvirtd": _program("libvirtd"),
        "qemu-system-x86_64": _program("qemu-system-x86_64"),
        "libvirt-python": lambda: importlib.util.find_spec("libvirt") is not None,
        "root's rights": lambda: os.geteuid() == 0,
    },
}
# Optional requirements that CI need not have: where absent, tests are skipped and named.
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
MAY_BE_ABSENT: dict[str, dict[str, Callable[[], bool]]] = {
    "data": {"the recorded datasets in ../shared/data": DATA.is_dir},
}
REMEDY = "`make lab` installs it; libvirt's tests run as root: `sudo -E make test`"
# The key under which a worker of xdist reports to the controller which tests it left out.
_LEFT_OUT = "left_out"
NOT_RUN = pytest.StashKey[dict[str, int]]()


@pytest.fixture(scope="session", autouse=True)
def _kept_kernels() -> Iterator[None]:
    """Load kernels that an earlier run of the same sources compiled, and store new ones."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "alone")
    folder = os.environ.get("TEST_KERNELS_FOLDER") or users_folder().with_name("test-kernels")
    with ExitStack() as stack:
        # The folder only saves time.
        with suppress(OSError):
            stack.enter_context(kept_kernels(Path(folder) / worker))
        yield


@pytest.fixture
def rng() -> np.random.Generator:
    """Return a generator that draws the same numbers in every run."""
    return np.random.default_rng(20_260_801)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip, and name, tests that this machine cannot run; in CI refuse to start instead.

    Raises
    ------
    pytest.UsageError
        In CI, where every test is required, when a requirement of a collected test is missing.
    """
    missing = {
        marker: [name for name, present in needs.items() if not present()]
        for marker, needs in (NEEDS | MAY_BE_ABSENT).items()
    }
    left_out: dict[str, int] = {}
    required = 0
    runnable: list[pytest.Item] = []
    deselected: list[pytest.Item] = []
    for item in items:
        reasons = [m for m in missing if item.get_closest_marker(m) and missing[m]]
        if not reasons:
            runnable.append(item)
            continue
        deselected.append(item)
        required += any(marker in NEEDS for marker in reasons)
        for marker in reasons:
            sentence = f"{marker}: without {', '.join(missing[marker])}"
            left_out[sentence] = left_out.get(sentence, 0) + 1
    if required and os.environ.get("CI"):
        raise pytest.UsageError(f"CI must run every test, but {'; '.join(left_out)}: {REMEDY}")
    config.stash[NOT_RUN] = left_out
    if hasattr(config, "workeroutput"):
        config.workeroutput[_LEFT_OUT] = left_out
    if deselected:
        config.hook.pytest_deselected(items=deselected)
        items[:] = runnable


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Store which tests a worker of xdist left out; all workers collect the same tests."""
    output = getattr(node, "workeroutput", {})
    if _LEFT_OUT in output:
        node.config.stash[NOT_RUN] = output[_LEFT_OUT]


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Report skipped tests, and the command that installs their requirements."""
    left_out = config.stash.get(NOT_RUN, {})
    if left_out:
        terminalreporter.section("not run on this machine")
    for sentence, count in left_out.items():
        remedy = "" if sentence.partition(":")[0] in MAY_BE_ABSENT else f": {REMEDY}"
        terminalreporter.line(f"{count} tests of {sentence}{remedy}")
