"""Texts of a guest's owner are shown as plain text: any text, not a list of tricks."""

import csv
import html
import io
import json
import unicodedata
from html.parser import HTMLParser
from pathlib import PurePosixPath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flatline.engine.plain_text import (
    MASK,
    csv_field,
    file_name,
    in_csv,
    in_html,
    in_json,
    lines,
    masked_url,
    one_line,
    without_secrets,
)

ANY = st.text(
    st.one_of(
        st.characters(),
        st.sampled_from("\x1b\x07\r\n\t\x9b\u2028\u202e\u200b=+-@'\",<>&[]/.\\\ud800"),
    ),
    max_size=40,
)
ENCODABLE = ANY.map(lambda text: text.encode(errors="replace").decode())


def is_hidden(character: str) -> bool:
    return unicodedata.category(character) in {"Cc", "Zl", "Zp", "Cs"}


@given(ANY)
@example("\x1b]0;owned\x07")
@example("a\nb\u2028c\x85d\u202ee\x9b")
@example("\ud800")
def test_one_line_is_one_line_that_utf8_can_say_and_says_plain_text_as_it_is(text: str) -> None:
    shown = one_line(text)
    assert not any(map(is_hidden, shown))
    shown.encode()
    if text.isprintable() and text.isascii():
        assert shown == text


@given(ENCODABLE)
def test_lines_keeps_line_ends_and_nothing_else(text: str) -> None:
    assert lines(text).split("\n") == [one_line(part) for part in text.split("\n")]


@pytest.mark.parametrize("character", ["\u202e", "\u2066", "\u200b", "\ufeff", "\u00ad", "\x9b"])
def test_what_cannot_be_seen_is_shown(character: str) -> None:
    assert one_line(f"a{character}b").isascii()


@given(ENCODABLE)
@example("=1+1")
@example(" \t-2")
@example("\uff0b1")
@example('@a,"b"')
def test_no_field_of_a_csv_table_is_a_formula_and_each_stays_one_field(text: str) -> None:
    [[first, second]] = csv.reader(io.StringIO(f"{csv_field(text)},end\n"), strict=True)
    assert (first, second) == (in_csv(text), "end")
    assert not unicodedata.normalize("NFKC", first).lstrip().startswith(("=", "+", "-", "@"))


class Seen(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, list[tuple[str, str | None]]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, attrs))

    def handle_data(self, data: str) -> None:
        self.text += data


@given(ENCODABLE)
@example("<script>alert(1)</script>")
@example("' onload='x")
@example('" onload="x')
@example("&lt;")
def test_html_shows_the_text_and_has_no_element_of_it(text: str) -> None:
    seen = Seen()
    seen.feed(f"<p title='{in_html(text)}'>{in_html(text)}</p>")
    seen.close()
    [(tag, [(name, value)])] = seen.tags
    assert (tag, name, value) == ("p", "title", one_line(text))
    assert seen.text == one_line(text) == html.unescape(in_html(text))


@given(st.recursive(ENCODABLE, lambda inner: st.lists(inner, max_size=3), max_leaves=4))
def test_json_says_the_same_and_moves_no_cursor(value: object) -> None:
    document = in_json(json.dumps(value, ensure_ascii=False, indent=1))
    assert json.loads(document) == value
    assert not any(is_hidden(character) for character in document if character != "\n")


@given(ANY)
@example("../../etc/passwd")
@example("..")
@example("")
@example("-rf")
@example(".hidden")
@example("a\0b/c\\d")
def test_a_file_name_stays_in_its_folder(text: str) -> None:
    name = file_name(text)
    path = PurePosixPath("/folder") / name
    assert path.parent == PurePosixPath("/folder")
    assert path.name == name
    assert name.isascii()
    assert name.isprintable()
    assert not set(name) & set("/\\ \0")
    assert 0 < len(name) <= 113
    assert not name.startswith((".", "-"))


@given(ANY, ANY)
def test_texts_that_differ_get_files_that_differ(one: str, other: str) -> None:
    assert (file_name(one) == file_name(other)) == (one == other)


def test_long_names_that_begin_alike_get_files_that_differ() -> None:
    assert len({file_name("x" * 300 + str(k)) for k in range(50)}) == 50


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://localhost:8086", "http://localhost:8086"),
        ("https://hooks.example/services/T0/B0/secret", "https://hooks.example/***"),
        ("https://user:secret@host:80/", "https://***@host:80/"),
        ("https://user:se@cret@host?token=secret#secret", "https://***@host/***"),
        ("http://[::1]:9/secret", "http://[::1]:9/***"),
        ("secret", MASK),
        ("http:///secret", f"http://{MASK}"),
        ("https://user:12/secret@host/", f"https://{MASK}"),
    ],
)
def test_a_url_is_shown_without_what_may_be_secret(url: str, shown: str) -> None:
    assert masked_url(url).rstrip("/") == shown.rstrip("/")
    assert "secret" not in masked_url(url)


@given(ANY, ANY)
def test_user_and_path_never_show(secret: str, path: str) -> None:
    shown = masked_url(f"https://u:s3cr3t{secret}@host/s3cr3t{path}")
    assert "s3cr3t" not in shown


def test_secrets_are_masked_wherever_they_stand() -> None:
    assert without_secrets("a b a", "a", None, "") == "*** b ***"
