"""Rules of the project for every file that no linter checks."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tidy.tree import LINKED, PRODUCT, ROOT, files, module_name, shown, sources

FILE_LINES = 500
FUNCTION_LINES = 70

# Each pattern is written so that it does not match its own source.
ANYWHERE = {
    r"\b(?:TO" + r"DO|FIX" + r"ME|X" + r"XX)\b": "finish it, or open an issue",
    r"\b(?:pypi|files\.python" + r"hosted)\.org\b": "registries are chosen by the machine",
    r"\brepo\d?\.maven\.(?:apache\.)?org\b": "registries are chosen by the machine",
    r"\b(?:proxy\.golang|registry\.npmjs|deb\.debian|docker)\.(?:org|io)\b": (
        "registries are chosen by the machine"
    ),
    r"(?<![\w.$}])/(?:work|root|home|tmp)/[\w.]": "a path of one machine",
}
IN_PYTHON = {
    r"\bfastmath\s*=\s*True": "it counts no NaN, and NaN is how a missed sample is written",
    r"(?<![.\w])print\(": "output goes through rich or the log",
}
IN_TESTS = {
    r"\btime\.sleep\(": "wait for the thing itself",
    r"\bpytest\.(?:skip|xfail|importorskip)\b": "a test runs or does not exist",
    r"\bmark\.(?:skip|skipif|xfail)\b": "a test runs or does not exist",
}
# Integration tests wait for processes with their own clock, and on a loop of virtual time a sleep
# takes no time.
IN_REAL_TIME = {r"\basyncio\.sleep\((?!0\))": "time arrives as a value, or is virtual"}


def texts() -> Iterator[tuple[Path, str]]:
    for path in files():
        # The locks are generated, and the licence text is fixed.
        if path.suffix == ".lock" or path.name == "LICENSE":
            continue
        try:
            yield path, path.read_text()
        except UnicodeDecodeError:
            continue  # golden bytes and pictures contain no text


def findings(path: Path, text: str, patterns: dict[str, str]) -> list[str]:
    return [
        f"{shown(path)}:{number}: {line.strip()!r}: {reason}"
        for pattern, reason in patterns.items()
        for number, line in enumerate(text.splitlines(), start=1)
        if re.search(pattern, line)
    ]


def words_banned_in(path: Path, text: str) -> dict[str, str]:
    top, *rest = path.relative_to(ROOT).parts
    patterns = dict(ANYWHERE)
    if path.suffix == ".py":
        patterns |= IN_PYTHON
    if top == "tests" and rest[0] != "tidy":
        patterns |= IN_TESTS
        if rest[0] != "integration" and "virtual_time" not in text:
            patterns |= IN_REAL_TIME
    return patterns


def test_no_file_holds_a_banned_word() -> None:
    found = [
        finding
        for path, text in texts()
        if path != Path(__file__)
        for finding in findings(path, text, words_banned_in(path, text))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("where", "line"),
    [
        ("engine/x.py", "# TO" + "DO later"),
        ("deploy/README.md", "see pypi" + ".org"),
        ("deploy/lab/up", "cd /ro" + "ot/flatline"),
        ("models/x.py", "@njit(fastmath" + "=True)"),
        ("engine/x.py", "print" + "(1)"),
        ("tests/unit/x.py", "await asyncio" + ".sleep(1)"),
        ("tests/unit/x.py", "pytest" + ".skip()"),
        ("tests/integration/x.py", "time" + ".sleep(1)"),
    ],
    ids=lambda value: value,
)
def test_a_banned_word_is_noticed(where: str, line: str) -> None:
    path = ROOT / where
    assert findings(path, line, words_banned_in(path, line))


def test_no_file_is_longer_than_can_be_read_in_one_go() -> None:
    too_long = [
        f"{shown(path)}: {lines} lines"
        for path, text in texts()
        if path.suffix in {".py", ".sh", ""} and (lines := text.count("\n")) > FILE_LINES
    ]
    assert not too_long


def test_no_function_is_longer_than_seventy_lines() -> None:
    too_long = [
        f"{shown(path)}:{node.lineno}: {node.name} has {lines} lines"
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := (node.end_lineno or node.lineno) - node.lineno + 1) > FUNCTION_LINES
    ]
    assert not too_long


def test_no_module_has_a_name_that_says_nothing() -> None:
    vague = re.compile(r"(?:^|_)(?:utils?|helpers?|manager|common|misc|base)$")
    assert not [shown(path) for path in sources() if vague.search(path.stem)]


def test_tests_are_no_package() -> None:
    # tests/engine/__init__.py would shadow the product's own `engine`.
    assert not [shown(path) for path in sources("tests") if path.name == "__init__.py"]


def test_packages_re_export_nothing() -> None:
    talkative = [
        shown(path)
        for path in sources(*PRODUCT)
        if path.name == "__init__.py" and len(ast.parse(path.read_text()).body) != 1
    ]
    assert not talkative


def imported_by(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_the_product_is_imported_by_one_name() -> None:
    # A second name would load a second copy of a module, whose classes differ from the first.
    apart = [
        f"{shown(path)}: {name}"
        for path in sources()
        for name in imported_by(path)
        if name.partition(".")[0] in LINKED
    ]
    assert not apart


def test_no_module_is_imported_by_nobody() -> None:
    # Until settings become running roles, dead code cannot be distinguished from code not yet
    # wired.
    if not (ROOT / "engine/wiring.py").exists():
        return
    used = {
        name
        for path in sources(*PRODUCT, "benchmarks")
        for name in imported_by(path)
        if name != module_name(path)
    }
    dead = [
        shown(path)
        for path in sources(*PRODUCT)
        if path.name not in {"__init__.py", "__main__.py"} and module_name(path) not in used
    ]
    assert not dead
