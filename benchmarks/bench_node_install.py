"""Size of a node install and the modules that its two roles load: no kernels, models or Faust."""

import json
import statistics
import subprocess
import tempfile
from pathlib import Path

from benchmarks.report import report
from deploy.lab.node_install import install_node

ROUNDS = 5
# Packages that must not be on a hypervisor: compilers, models, and readers for the engine only.
UNWANTED = ("numba", "llvmlite", "river", "faust", "models", "pandas", "scipy")
_ON_NODES = ("engine.cli.app", "connectors.libvirt.node", "connectors.kafka.log")
# Imports of each command before its loop begins (`engine.cli.app`).
ROLES = {
    "collect": ("engine.cli.process", "engine.wiring", "engine.roles.collect", *_ON_NODES),
    "act": (
        *("engine.cli.process", "engine.wiring", "engine.roles.act", *_ON_NODES),
        "connectors.libvirt.actuator",
    ),
}
_LOADED = """
import json, sys, time
before = time.perf_counter()
import {modules}
took = time.perf_counter() - before
json.dump({{"modules": sorted(sys.modules), "import_s": took}}, sys.stdout)
"""
_INSTALLED = """
import importlib.metadata, sys
sys.stdout.write(str(len(list(importlib.metadata.distributions()))))
"""


def ask(python: Path, code: str) -> str:
    """Return the output of a fresh process of this interpreter, with only its own packages."""
    command = [str(python), "-I", "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def size_bytes(folder: Path) -> int:
    """Return the size of the files below `folder`, including compiled files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if not path.is_symlink())


def main() -> None:
    """Measure and report."""
    rows: list[dict[str, str | int | float | bool | None]] = []
    with tempfile.TemporaryDirectory() as folder:
        python = install_node(Path(folder))
        for role, needed in ROLES.items():
            modules = ", ".join(f"flatline.{module}" for module in needed)
            answers = [
                json.loads(ask(python, _LOADED.format(modules=modules))) for _ in range(ROUNDS)
            ]
            loaded = answers[-1]["modules"]
            found = sorted(
                set(UNWANTED) & {name.removeprefix("flatline.").split(".")[0] for name in loaded}
            )
            rows.append(
                {
                    "role": role,
                    "modules": len(loaded),
                    "import_s": statistics.median(answer["import_s"] for answer in answers),
                    "unwanted": ", ".join(found) or "none",
                    "distributions": int(ask(python, _INSTALLED)),
                    "installed_mb": size_bytes(python.parent.parent / "lib") / 1e6,
                }
            )
    report(
        "node_install",
        claim="A node install: the wheel without dependencies and the node's lock; neither role"
        f" loads {', '.join(UNWANTED[:5])}",
        rows=rows,
        goals_met=all(row["unwanted"] == "none" for row in rows),
    )


if __name__ == "__main__":
    main()
