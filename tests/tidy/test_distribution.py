"""The installed packages, their origin, and the statements of the documents about them."""

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.tidy.tree import LINKED, ROOT, files, shown

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DEFAULT = [Requirement(text) for text in PROJECT["project"]["dependencies"]]
EXTRAS = {
    name: [Requirement(text) for text in texts]
    for name, texts in PROJECT["project"]["optional-dependencies"].items()
}
NODE = [Requirement(text) for text in PROJECT["dependency-groups"]["node"]]
LOCKS = ("requirements.lock", "requirements-node.lock")


def pins(lock: str) -> dict[str, set[str]]:
    """Return the pinned versions of each distribution; several where Pythons differ."""
    pinned: dict[str, set[str]] = {}
    for name, version in re.findall(
        r"^([a-z0-9._-]+)==([^\s;]+)", (ROOT / lock).read_text(), re.MULTILINE
    ):
        pinned.setdefault(name, set()).add(version)
    return pinned


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_names_no_place(lock: str) -> None:
    text = (ROOT / lock).read_text()
    assert "://" not in text
    assert " @ " not in text
    assert "--index" not in text


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_holds_a_hash_for_every_pin(lock: str) -> None:
    entries = re.split(r"\n(?=[a-z0-9])", (ROOT / lock).read_text())
    assert len(entries) > 20
    assert not [entry.split()[0] for entry in entries if "--hash=sha256:" not in entry]


@pytest.mark.parametrize(
    ("lock", "wanted"),
    [
        pytest.param("requirements.lock", DEFAULT + EXTRAS["dev"], id="default and dev"),
        pytest.param("requirements-node.lock", NODE, id="node"),
    ],
)
def test_a_lock_fulfils_what_the_project_asks_for(lock: str, wanted: list[Requirement]) -> None:
    pinned = pins(lock)
    unmet = [
        str(requirement)
        for requirement in wanted
        if not all(
            requirement.specifier.contains(version)
            for version in pinned.get(canonicalize_name(requirement.name), {"0"})
        )
    ]
    assert not unmet, "run make lock"


def test_a_node_runs_the_versions_that_were_tested() -> None:
    tested = pins("requirements.lock")
    node = pins("requirements-node.lock")
    assert set(node) - set(tested) == {"libvirt-python"}
    assert {name: versions for name, versions in node.items() if name in tested} == {
        name: tested[name] for name in node if name in tested
    }


def test_a_node_asks_for_nothing_that_the_project_does_not() -> None:
    assert {str(requirement) for requirement in NODE} <= {
        str(requirement) for requirement in DEFAULT + EXTRAS["libvirt"]
    }


def test_a_node_carries_no_model_library() -> None:
    heavy = {"numba", "llvmlite", "river", "scipy", "faust-streaming", "influxdb-client"}
    assert not heavy & set(pins("requirements-node.lock"))


def test_faust_is_pinned_exactly() -> None:
    faust = next(r for r in DEFAULT if r.name == "faust-streaming")
    assert [clause.operator for clause in faust.specifier] == ["=="]


def test_no_other_distribution_owns_our_import_names() -> None:
    owners = packages_distributions()
    strangers = {name: set(owners.get(name, ())) - {"flatline"} for name in ("flatline", "tests")}
    assert not any(strangers.values()), strangers


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built("wheel", ROOT, tmp_path_factory.mktemp("tree"))


def built(target: str, source: Path, folder: Path) -> Path:
    """Return the distribution that hatchling builds in `folder` from a source tree."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(folder)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (found,) = folder.iterdir()
    return found


def test_an_installation_adds_one_package_to_an_environment(wheel: Path) -> None:
    tops = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert tops == {"flatline", f"flatline-{PROJECT['project']['version']}.dist-info"}


def test_a_wheel_from_the_source_distribution_equals_that_from_the_tree(
    wheel: Path, tmp_path: Path
) -> None:
    with tarfile.open(built("sdist", ROOT, tmp_path / "sdist")) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.glob("flatline-*")
    assert built("wheel", source, tmp_path / "again").read_bytes() == wheel.read_bytes()


def test_foreign_packages_of_the_same_names_as_our_folders_do_not_disturb(
    wheel: Path, tmp_path: Path
) -> None:
    for name in LINKED:
        (tmp_path / "foreign" / name).mkdir(parents=True)
        (tmp_path / "foreign" / name / "__init__.py").write_text("raise ImportError('foreign')")
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    code = "import sys, flatline.engine.wiring as found; sys.stdout.write(found.__file__)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        check=False,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": f"{tmp_path / 'foreign'}:{tmp_path / 'installed'}"},
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout).is_relative_to(tmp_path / "installed")


def commands(pattern: str) -> dict[str, str]:
    """Return the commands in the documents' code, with their document."""
    found: dict[str, str] = {}
    for path in files():
        if path.suffix == ".md":
            code = re.findall(r"```.*?```|`[^`\n]+`", path.read_text(), re.DOTALL)
            found |= {match: shown(path) for part in code for match in re.findall(pattern, part)}
    return found


def test_every_make_target_in_the_documents_exists() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    mentioned = commands(r"\bmake ([a-z0-9-]+)")
    assert not {name: place for name, place in mentioned.items() if name not in targets}


def test_every_subcommand_in_the_documents_exists() -> None:
    unknown = {}
    for name, place in commands(r"(?:^|[`\s/])flatline ([a-z]+)\b").items():
        result = subprocess.run(
            [sys.executable, "-P", "-m", "flatline", name, "--help"],
            check=False,
            capture_output=True,
            text=True,
        )
        if result.returncode:
            unknown[name] = place
    assert not unknown


def test_every_target_explains_itself() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = set(re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[0].split())
    explained = set(re.findall(r"^([a-z0-9-]+):.*## \S", makefile, re.MULTILINE))
    assert phony == explained
