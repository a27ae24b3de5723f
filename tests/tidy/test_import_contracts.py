"""Each import contract of pyproject.toml exists, covers its modules, and detects a breach."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.tidy.tree import PRODUCT, ROOT, files, module_name

CONTRACTS = {
    contract["id"]: contract
    for contract in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"][
        "contracts"
    ]
}

# Contract, a module of the project, and a module that it must not import. A missing module is
# created; a second breach of one contract is visible only in a chain of imports.
BREACHES = [
    ("layers", "engine.errors", "engine.wire"),
    ("layers", "engine.wire", "models"),
    ("layers", "connectors.embedded", "engine.roles"),
    ("layers", "engine.detection", "engine.action"),
    ("layers", "engine.history", "engine.forecasting"),
    ("layers", "engine.forecasting", "engine.capacity"),
    ("layers", "engine.stream", "engine.history"),
    ("independent-connectors", "connectors.kafka", "connectors.embedded"),
    ("connectors-decide-nothing", "connectors.http", "engine.action"),
    ("pure-decisions", "engine.action", "time"),
    ("pure-decisions", "models.kernels", "random"),
    ("models-know-numbers", "models", "engine.errors"),
    ("action-knows-no-model", "engine.action", "models"),
    ("lean-nodes", "connectors.libvirt", "numba"),
    ("home-of-libvirt", "connectors.simulator", "libvirt"),
    ("home-of-kafka", "engine.roles", "aiokafka"),
    ("home-of-sqlite", "connectors.kafka", "sqlite3"),
    ("home-of-numba", "models", "numba"),
    ("home-of-river", "engine.detection", "river"),
    ("home-of-influxdb", "connectors.http", "influxdb_client"),
    ("home-of-duckdb", "connectors.embedded", "duckdb"),
]


def lint(project: Path, *contracts: str) -> subprocess.CompletedProcess[str]:
    limits = [argument for contract in contracts for argument in ("--contract", contract)]
    return subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-logo", "--no-cache", *limits],
        cwd=project,
        check=False,
        capture_output=True,
        text=True,
        env={"COLUMNS": "200", "NO_COLOR": "1"},
    )


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = tmp_path_factory.mktemp("pristine")
    for source in files():
        path = source.relative_to(ROOT)
        if path.parts[0] in PRODUCT or path.name == "pyproject.toml":
            (project / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, project / path)
    return project


@pytest.fixture
def project(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "project"))


def test_the_tree_as_it_is_keeps_every_contract(project: Path) -> None:
    result = lint(project)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("contract", "importer", "imported"),
    BREACHES,
    ids=[f"{contract}-{importer}-imports-{imported}" for contract, importer, imported in BREACHES],
)
def test_a_planted_breach_is_caught(
    project: Path, *, contract: str, importer: str, imported: str
) -> None:
    place = project / importer.replace(".", "/")
    module = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    with module.open("a") as file:
        file.write(f"\nimport {imported}\n")

    result = lint(project, contract)

    assert result.returncode == 1, result.stdout
    assert f"{CONTRACTS[contract]['name']} BROKEN" in result.stdout
    assert re.search(rf"{re.escape(importer)} -> {re.escape(imported)}\b", result.stdout)


def test_a_chain_of_harmless_imports_to_a_model_is_caught(project: Path) -> None:
    (project / "connectors/libvirt/__init__.py").write_text("import engine.wire.chain\n")
    (project / "engine/wire/chain.py").write_text("import models.kernels\n")
    result = lint(project, "lean-nodes")
    assert "connectors.libvirt -> engine.wire.chain" in result.stdout
    assert f"{CONTRACTS['lean-nodes']['name']} BROKEN" in result.stdout


def test_every_contract_has_a_planted_breach() -> None:
    assert {contract for contract, _, _ in BREACHES} == set(CONTRACTS)


def layers() -> list[set[str]]:
    return [
        {module.strip(" ()") for module in layer.split("|")}
        for layer in CONTRACTS["layers"]["layers"]
    ]


def engine_children() -> set[str]:
    names = {module_name(path) for path in files() if path.suffix == ".py"}
    return {".".join(name.split(".")[:2]) for name in names if name.startswith("engine.")}


def test_every_part_of_the_engine_stands_in_a_layer() -> None:
    assert engine_children() <= set().union(*layers())


def test_everything_that_decides_is_pure_and_hidden_from_connectors() -> None:
    pure = ("engine.detection", "engine.capacity")
    deciding = {module for layer in layers() if layer & set(pure) for module in layer}
    deciding &= engine_children()
    assert deciding <= set(CONTRACTS["pure-decisions"]["source_modules"])
    assert deciding <= set(CONTRACTS["connectors-decide-nothing"]["forbidden_modules"])


def test_every_role_that_runs_on_a_node_is_held_lean() -> None:
    on_nodes = {"engine.roles.collect", "engine.roles.act"}
    existing = {module_name(path) for path in files() if path.suffix == ".py"}
    assert on_nodes & existing <= set(CONTRACTS["lean-nodes"]["source_modules"])
