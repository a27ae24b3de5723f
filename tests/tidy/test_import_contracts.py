"""Each import contract of pyproject.toml exists, covers its modules, and detects a breach."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.tidy.tree import PRODUCT, ROOT, files, link_packages, module_name

CONTRACTS = {
    contract["id"]: contract
    for contract in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"][
        "contracts"
    ]
}

# Contract, a module of the project, and a module that it must not import. A missing module is
# created; a second breach of one contract is visible only in a chain of imports.
BREACHES = [
    ("layers", "flatline.engine.errors", "flatline.engine.wire"),
    ("layers", "flatline.engine.wire", "flatline.models"),
    ("layers", "flatline.connectors.embedded", "flatline.engine.roles"),
    ("layers", "flatline.engine.detection", "flatline.engine.action"),
    ("layers", "flatline.engine.history", "flatline.engine.forecasting"),
    ("layers", "flatline.engine.forecasting", "flatline.engine.capacity"),
    ("layers", "flatline.engine.stream", "flatline.engine.history"),
    ("independent-connectors", "flatline.connectors.kafka", "flatline.connectors.embedded"),
    ("connectors-decide-nothing", "flatline.connectors.http", "flatline.engine.action"),
    ("pure-decisions", "flatline.engine.action", "time"),
    ("pure-decisions", "flatline.models.kernels", "random"),
    ("models-know-numbers", "flatline.models", "flatline.engine.errors"),
    ("action-knows-no-model", "flatline.engine.action", "flatline.models"),
    ("lean-nodes", "flatline.connectors.libvirt", "numba"),
    ("home-of-libvirt", "flatline.connectors.simulator", "libvirt"),
    ("home-of-kafka", "flatline.engine.roles", "aiokafka"),
    ("home-of-sqlite", "flatline.connectors.kafka", "sqlite3"),
    ("home-of-numba", "flatline.models", "numba"),
    ("home-of-river", "flatline.engine.detection", "river"),
    ("home-of-influxdb", "flatline.connectors.http", "influxdb_client"),
    ("home-of-duckdb", "flatline.connectors.embedded", "duckdb"),
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
    link_packages(project)
    return project


@pytest.fixture
def project(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "project", symlinks=True))


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
    (project / "connectors/libvirt/__init__.py").write_text("import flatline.engine.wire.chain\n")
    (project / "engine/wire/chain.py").write_text("import flatline.models.kernels\n")
    result = lint(project, "lean-nodes")
    assert "flatline.connectors.libvirt -> flatline.engine.wire.chain" in result.stdout
    assert f"{CONTRACTS['lean-nodes']['name']} BROKEN" in result.stdout


def test_every_contract_has_a_planted_breach() -> None:
    assert {contract for contract, _, _ in BREACHES} == set(CONTRACTS)


def layers() -> list[set[str]]:
    return [
        {f"flatline.{module.strip(' ()')}" for module in layer.split("|")}
        for layer in CONTRACTS["layers"]["layers"]
    ]


def engine_children() -> set[str]:
    names = {module_name(path) for path in files() if path.suffix == ".py"}
    parts = (name.split(".") for name in names)
    return {".".join(name[:3]) for name in parts if name[:2] == ["flatline", "engine"] and name[2:]}


def test_every_part_of_the_engine_stands_in_a_layer() -> None:
    assert engine_children() <= set().union(*layers())


def test_everything_that_decides_is_pure_and_hidden_from_connectors() -> None:
    pure = ("flatline.engine.detection", "flatline.engine.capacity")
    deciding = {module for layer in layers() if layer & set(pure) for module in layer}
    deciding &= engine_children()
    assert deciding <= set(CONTRACTS["pure-decisions"]["source_modules"])
    assert deciding <= set(CONTRACTS["connectors-decide-nothing"]["forbidden_modules"])


def test_every_role_that_runs_on_a_node_is_held_lean() -> None:
    on_nodes = {"flatline.engine.roles.collect", "flatline.engine.roles.act"}
    existing = {module_name(path) for path in files() if path.suffix == ".py"}
    assert on_nodes & existing <= set(CONTRACTS["lean-nodes"]["source_modules"])
