"""Names are standard terms, and the name of a module says which one is meant."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tidy.test_vocabulary import prose
from tests.tidy.tree import PRODUCT, shown, sources

# Words of our own making; the glossary of ARCHITECTURE.md has the standard term for each.
HOME_MADE = frozenset(
    (
        *("lane", "lanes", "glance", "vitals", "weather", "overtaken", "hole", "holes", "rung"),
        *("verb", "verbs", "told", "tells", "foretell", "foretold", "foretelling", "estate"),
        *("survey", "latch", "latches", "doubt", "doubts", "surroundings", "mended"),
    )
)
# As the name of a module these say nothing about what it holds.
UNCLEAR = HOME_MADE | frozenset(
    (
        *("course", "intake", "look", "looks", "mark", "marks", "word", "words", "watch"),
        *("question", "questions", "shared", "slots", "totals", "gaps", "kept", "everything"),
    )
)
# A sample gap is the standard term.
ALLOWED_MODULES = frozenset({"sample_gaps"})


def words_of(name: str) -> set[str]:
    """Return the words of a name in snake case or camel case, in lower case."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z0-9]+", name)}


def definitions(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name


def test_names_of_modules_are_unique_within_engine() -> None:
    counts = Counter(path.stem for path in sources("engine") if not path.stem.startswith("__"))
    assert not [name for name, count in counts.items() if count > 1]


def test_no_module_has_a_home_made_name() -> None:
    found = [
        shown(path)
        for path in sources(*PRODUCT)
        if path.stem not in ALLOWED_MODULES and words_of(path.stem) & UNCLEAR
    ]
    assert not found


def test_no_class_or_function_has_a_home_made_name() -> None:
    found = [
        f"{shown(path)}: {name}"
        for path in sources(*PRODUCT)
        for name in definitions(path)
        if words_of(name) & HOME_MADE
    ]
    assert not found


def test_comments_and_docstrings_use_the_standard_terms() -> None:
    pattern = re.compile(r"\b(?:lanes?|glances?|rungs?|foretell\w*|foretold|estates?)\b", re.I)
    found = [
        f"{shown(path)}:{line}: {match[0]}"
        for path in sources(*PRODUCT)
        for line, text in prose(path)
        for match in pattern.finditer(text)
    ]
    assert not found


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("times_by_lane", {"times", "by", "lane"}),
        ("LibvirtVerbs", {"libvirt", "verbs"}),
        ("VMTable", {"vm", "table"}),
    ],
)
def test_words_of_a_name_are_found(name: str, words: set[str]) -> None:
    assert words_of(name) == words
