"""The software of the lab's Kafka: Debian's Java and Maven, and the broker's jars through them."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import subprocess
from pathlib import Path

SOURCE = Path(__file__).resolve().parent
POM = SOURCE / "pom.xml"
# Factor by which the lab waits longer than on a dedicated machine. It only extends upper bounds of
# waits: a test asserts durations itself.
PATIENCE = float(os.environ.get("FLATLINE_LAB_PATIENCE", "1"))


class LabError(Exception):
    """The lab cannot execute a request; the message names the missing part and the remedy."""


def cache_dir() -> Path:
    """Return the folder outside the checkout that holds downloads."""
    return Path(os.environ.get("FLATLINE_CACHE") or Path.home() / ".cache" / "flatline")


@functools.cache
def fetch() -> Path:
    """Return the folder of Kafka's jars, downloaded by Maven if those of this pom are absent.

    Raises
    ------
    LabError
        Java or Maven are absent and cannot be installed, or Maven failed.
    """
    version = hashlib.sha256(POM.read_bytes()).hexdigest()[:12]
    home = cache_dir() / "kafka"
    jars = home / f"jars-{version}"
    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run([str(SOURCE / "packages"), "kafka"])
        if not jars.is_dir():
            work = home / f"jars-{version}.{os.getpid()}"
            run(
                [
                    "mvn",
                    "-q",
                    "-B",
                    "-f",
                    str(POM),
                    f"-Djars={work}",
                    "dependency:copy-dependencies",
                ]
            )
            work.rename(jars)
    return jars


def run(command: list[str], *, cwd: Path | None = None) -> str:
    """Run a command to its end and return its output; LabError when it fails."""
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if result.returncode:
        raise LabError(f"{command[0]} failed: {(result.stdout + result.stderr).strip()[-2000:]}")
    return result.stdout
