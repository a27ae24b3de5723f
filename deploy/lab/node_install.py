"""Install a node's packages as a node does: from a short hashed lock and the wheel only.

Needs libvirt's headers (``deploy/lab/packages libvirt``) and a registry, or uv's cache of one.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from deploy.lab.kafka_jars import run

ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / "requirements-node.lock"
# As in the Makefile: only the named interpreter, and the machine's own certificate authorities.
_WITH = ("env", "UV_PYTHON_DOWNLOADS=never", "UV_SYSTEM_CERTS=true")


def install_node(folder: Path) -> Path:
    """Create a venv in `folder` with only a node's Flatline, and return its interpreter.

    Raises
    ------
    LabError
        The wheel did not build or a distribution did not install; the message names it.
    """
    wheels = folder / "wheels"
    run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(wheels)], cwd=ROOT)
    venv = folder / "venv"
    run([sys.executable, "-m", "venv", "--without-pip", str(venv)])
    python = venv / "bin" / "python"
    (wheel,) = wheels.glob("*.whl")
    for words in (["--require-hashes", "-r", str(LOCK)], ["--no-deps", str(wheel)]):
        run([*_WITH, *_installer(python), *words])
    return python


def _installer(python: Path) -> list[str]:
    """Return uv where it runs (a shim on PATH may refuse to), else the machine's pip."""
    beside = Path(sys.executable).with_name("uv")
    for uv in filter(None, (shutil.which("uv"), str(beside) if beside.exists() else None)):
        if subprocess.run([uv, "--version"], capture_output=True, check=False).returncode == 0:
            return [uv, "pip", "install", "--quiet", "--python", str(python)]
    # The project's own venv has no pip; the interpreter that made it has.
    own = str(Path(sys.base_prefix) / "bin" / "python3")
    return [own, "-m", "pip", "--quiet", "--python", str(python), "install"]
