"""Escaping of foreign text, with one function for each kind of output.

Names of VMs, tenants and pools, metadata, definitions and consoles are written by guests' owners.
Wherever they are printed, logged, written or stored, they must not move a cursor, forge a line,
start a formula, leave a folder or become markup. This module also masks the secrets in URLs.
"""

import html
import re
from hashlib import blake2b
from typing import Final

# Control characters (C0, DEL, C1), line and paragraph separators, characters that change the text
# direction or are invisible, and halves of surrogate pairs, which UTF-8 cannot encode.
_HIDDEN: Final = (
    "\x00-\x1f\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f\ud800-\udfff"
)
_CONTROL: Final = re.compile(f"[{_HIDDEN}]")
_CONTROL_BUT_LINE: Final = re.compile(f"(?!\n)[{_HIDDEN}]")
# Characters that start a formula in spreadsheets, some also after spaces, and their full-width
# forms on East Asian keyboards.
_FORMULA: Final = re.compile(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20]")
_NO_FILE: Final = re.compile(r"[^A-Za-z0-9._-]+")

# A file system allows names of 255 bytes; a suffix of the caller must still fit.
_FILE_NAME_CHARS: Final = 100
_DIGEST_BYTES: Final = 6

_URL: Final = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<where>[^/?#]*)(?P<rest>.*)", re.DOTALL
)
_HOST: Final = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")
MASK: Final = "***"


def one_line(text: str) -> str:
    r"""Return text with each control or invisible character replaced by its escape (`\x1b`).

    For terminals, log lines and sentences of the journal.
    """
    return text if _is_plain(text) else _CONTROL.sub(_escaped, text)


def lines(text: str) -> str:
    """Return text as `one_line` does, but keep line ends: for texts of Flatline itself."""
    return text if _is_plain(text) else _CONTROL_BUT_LINE.sub(_escaped, text)


def in_csv(text: str) -> str:
    """Return text for a field of a CSV table that no spreadsheet interprets as a formula.

    A formula gets a leading apostrophe, as OWASP recommends. The caller does the quoting.
    """
    plain = one_line(text)
    return f"'{plain}" if _FORMULA.match(plain) else plain


def csv_field(text: str) -> str:
    """Return text as one field of a CSV table that is written without the csv module."""
    plain = in_csv(text).replace('"', '""')
    return f'"{plain}"' if "," in plain or '"' in plain else plain


def in_html(text: str) -> str:
    """Return text for an HTML element or a quoted attribute."""
    return html.escape(one_line(text))


def in_json(document: str) -> str:
    r"""Return a JSON document in which control and invisible characters are escaped as `\uXXXX`.

    The meaning is unchanged: outside strings JSON has no such characters except line ends, which
    are kept.
    """
    return document if _is_plain(document) else _CONTROL_BUT_LINE.sub(_json_escaped, document)


def file_name(text: str) -> str:
    """Return a file name that stays in its folder, for any text; different texts stay different.

    ASCII letters, digits, `.`, `_` and `-`; at most 113 characters. It is never hidden and never
    looks like an option of a command.
    """
    plain = _NO_FILE.sub("_", text).lstrip(".-")[:_FILE_NAME_CHARS] or "unnamed"
    if plain == text:
        return plain
    digest = blake2b(text.encode(errors="surrogatepass"), digest_size=_DIGEST_BYTES).hexdigest()
    return f"{plain}-{digest}"


def masked_url(url: str) -> str:
    """Return a URL without possible secrets: user, password, path and query.

    Chats and pagers put their token into the path; scheme and host identify the receiver. Of a text
    that is not a URL only `MASK` remains.
    """
    found = _URL.fullmatch(url)
    if found is None:
        return MASK
    user, _, host = found["where"].rpartition("@")
    # An `@` after the first slash may be the end of a password that contains a slash; then the host
    # cannot be told apart.
    if not _HOST.fullmatch(host) or "@" in found["rest"]:
        return f"{found['scheme']}://{MASK}"
    rest = f"/{MASK}" if found["rest"].strip("/") else ""
    return f"{found['scheme']}://{MASK + '@' if user else ''}{host}{rest}"


def without_secrets(text: str, *secrets: str | None) -> str:
    """Return text with each occurrence of the secrets masked; None and "" are ignored."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, MASK)
    return text


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable()


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _json_escaped(found: re.Match[str]) -> str:
    pairs = found[0].encode("utf-16-be", errors="surrogatepass")
    return "".join(f"\\u{int.from_bytes(pairs[at : at + 2]):04x}" for at in range(0, len(pairs), 2))
