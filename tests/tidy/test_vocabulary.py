"""Comments, docstrings, messages and documents are in plain English, without coined words."""

import ast
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tidy.tree import PRODUCT, files, shown, sources

# Mannered or ambiguous: each has a plain word that says who does what.
BANNED = re.compile(
    r"\b(whoever|lest|anew|for ever|weather|such a one|(?:is|are|was|were) told|tells? of)\b", re.I
)
# In code a role is named. Documents quote messages, which may speak of persons.
BANNED_IN_CODE = re.compile(rf"{BANNED.pattern}|\b(nobody|somebody|foret(?:ells?|old))\b", re.I)
# People read messages without the code: they hold no internal term that has a standard name.
BANNED_IN_MESSAGES = re.compile(
    rf"{BANNED_IN_CODE.pattern}"
    r"|\b(anybody|tells?|told|speaks? for|mend(?:s|ed)?|glances?|rungs?|the look|well again"
    r"|trying again|passed over|taken back)\b",
    re.I,
)
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Yield each comment and docstring with its line, without the names that it quotes."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, _DOCUMENTED) and (text := ast.get_docstring(node, clean=False)):
            yield node.body[0].lineno, re.sub(r"`[^`]*`", "", text)
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type == tokenize.COMMENT:
                yield token.start[0], re.sub(r"`[^`]*`", "", token.string)


def messages(path: Path) -> Iterator[tuple[int, str]]:
    """Yield each string of several words with its line, without docstrings and placeholders."""
    tree = ast.parse(path.read_text())
    bare = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in bare:
            text = re.sub(r"`[^`]*`|\{[^{}]*\}", "", node.value)
            # A name or a key is one word; a pattern or a query is no sentence.
            if " " in text.strip():
                yield node.lineno, text


def found_in_messages(path: Path) -> list[str]:
    return [
        f"{path.name}:{line}: {match[0]}"
        for line, text in messages(path)
        for match in BANNED_IN_MESSAGES.finditer(text)
    ]


def found_in_code(path: Path) -> list[str]:
    return [
        f"{path.name}:{line}: {match[0]}"
        for line, text in prose(path)
        for match in BANNED_IN_CODE.finditer(text)
    ]


def test_comments_and_docstrings_use_no_banned_word() -> None:
    assert not [found for path in sources() for found in found_in_code(path)]


def test_messages_use_no_banned_word() -> None:
    assert not [found for path in sources(*PRODUCT, "deploy") for found in found_in_messages(path)]


def test_documents_use_no_banned_word() -> None:
    found = [
        f"{shown(path)}:{line}: {match[0]}"
        for path in files()
        if path.suffix == ".md"
        for line, text in enumerate(path.read_text().split("\n"), 1)
        # A line that begins with > is a message of the code.
        if not text.startswith(">")
        for match in BANNED.finditer(re.sub(r"`[^`]*`", "", text))
    ]
    assert not found


@pytest.mark.parametrize(
    "source",
    ["# Whoever writes wins.\n", '"""What nobody reads."""\n', "x = 1  # It is told at once.\n"],
)
def test_a_banned_word_is_found(source: str, tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text(source)
    assert len(found_in_code(path)) == 1


@pytest.mark.parametrize(
    "source",
    [
        'x = "The VM is well again."\n',
        'x = f"{x} was told in time"\n',
        'x = {"a": "the look began"}\n',
    ],
)
def test_a_banned_word_in_a_message_is_found(source: str, tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text(source)
    assert len(found_in_messages(path)) == 1


def test_a_name_in_backquotes_is_no_prose(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text("# `weather` is an option.\n")
    assert not found_in_code(path)
