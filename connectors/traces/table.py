"""CSV tables of a dataset, plain or gzipped, read in blocks of columns.

A table is UTF-8 text in the format of RFC 4180: any name can be quoted. Every error is reported
with file, line and column, and ends the reading: a partly read dataset must not be judged as
complete.
"""

import csv
import gzip
import zlib
from collections.abc import Iterable, Iterator, Sequence
from io import StringIO
from itertools import chain, islice
from math import nan
from pathlib import Path
from typing import Final, NamedTuple, TextIO

import numpy as np
from numpy.typing import NDArray

from flatline.engine.errors import SettingsError

F64 = NDArray[np.float64]
Names = NDArray[np.bytes_]

# About 10 MB of text: enough for NumPy's parser to be fast, and little beside a fleet's state.
ROWS_PER_BLOCK: Final = 100_000

# The longest name of a VM or host, in characters. A longer name is an error in the file, and would
# not fit into a line of a report or into the file name of a page.
MAX_NAME: Final = 255

# First characters of a file in another encoding, decoded as Latin-1.
_OTHER_MARKS: Final = ("\xff\xfe", "\xfe\xff", "\x00")
_UTF8_MARK: Final = "\xef\xbb\xbf"
# Columns that are never empty.
_TIMES: Final = ("t", "recv_t")


class Block(NamedTuple):
    """Consecutive rows of a table.

    Attributes
    ----------
    names
        Shape (n,): the column of names, as UTF-8 bytes.
    numbers
        Shape (columns, n), in the order of the request. NaN is an empty field, which is missing and
        never zero. A literal NaN becomes infinity, so that it counts as an invalid value.
    first_line
        Line of the first row in its file, from 1.
    """

    names: Names
    numbers: F64
    first_line: int


class _Columns(NamedTuple):
    """Which fields of a row to read, the name first, and the names of all fields in the header."""

    path: Path
    header: list[str]
    wanted: list[int]
    name_bytes: int


def read_blocks(
    path: Path, *, name: str, numbers: Sequence[str], name_bytes: int, rows: int = ROWS_PER_BLOCK
) -> Iterator[Block]:
    """Yield the rows of a large table in blocks.

    Parameters
    ----------
    name, numbers
        The columns to read; others are skipped.
    name_bytes
        Length of the longest valid name; a longer name is truncated and so matches none.
    rows
        Rows in a block.

    Raises
    ------
    SettingsError
        The file cannot be read, is not UTF-8, lacks a column, or has a field that is not a number.
    """
    try:
        with _opened(path) as file:
            header = _header(path, file, (name, *numbers))
            wanted = [header.index(column) for column in (name, *numbers)]
            columns = _Columns(path, header, wanted, name_bytes)
            line = 2
            while lines := list(islice(file, rows)):
                text = "".join(lines)
                _require_utf8(path, lines, text, first_line=line)
                if '"' in text:
                    # The module csv reads the rest. NumPy's parser is twice as fast, but supports
                    # quotes only within a line, and empty fields only where this code fills them.
                    yield from _quoted(columns, lines, file, first_line=line, rows=rows)
                    return
                names, values = _plain(columns, lines, text, first_line=line)
                if len(names):
                    yield Block(names, values, line)
                line += len(lines)
    except (OSError, EOFError, zlib.error, csv.Error) as error:
        raise _unreadable(path, error) from error


def read_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield line number and fields of each row of a small table.

    Lines are counted from 1, which is the header. Fields are texts by column, including columns
    that are not in `columns`, which lists those that the table must have.

    Raises
    ------
    SettingsError
        The file cannot be read, is not UTF-8, lacks a column, or a row has more or fewer fields
        than the header.
    """
    try:
        with _opened(path) as file:
            header = _header(path, file, columns)
            lines = file.readlines()
            _require_utf8(path, lines, "".join(lines), first_line=2)
            reader = csv.reader(map(_decoded, lines), strict=True)
            for fields in reader:
                line = reader.line_num + 1
                if not fields:
                    continue
                if len(fields) != len(header):
                    raise _wrong_count(path, header, fields, line=line)
                yield line, dict(zip(header, fields, strict=True))
    except (OSError, EOFError, zlib.error, csv.Error) as error:
        raise _unreadable(path, error) from error


def number(path: Path, line: int, column: str, text: str) -> float:
    """Return one field as a finite number.

    `path`, `line` and `column` are only used in the message.

    Raises
    ------
    SettingsError
        The field is empty, infinite or not a number.
    """
    value = _value(text)
    if not np.isfinite(value):
        raise SettingsError(f"{path}, line {line}: {column} is {text!r}, not a number.")
    return value


def _opened(path: Path) -> TextIO:
    """Open a table with one character per byte: UTF-8 is checked block by block."""
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="latin-1", newline="")
    return path.open(encoding="latin-1", newline="")


def _unreadable(path: Path, error: Exception) -> SettingsError:
    if isinstance(error, EOFError | zlib.error):
        return SettingsError(
            f"{path} cannot be read: the compressed file is truncated or damaged ({error}). Copy "
            "or create it again."
        )
    return SettingsError(f"{path} cannot be read: {error}.")


def _header(path: Path, file: TextIO, columns: Sequence[str]) -> list[str]:
    line = file.readline()
    if line.startswith(_OTHER_MARKS) or "\x00" in line[:4]:
        raise SettingsError(f"{path} cannot be read: it is UTF-16 or not text. Save it as UTF-8.")
    # Spreadsheets write a byte order mark at the start of an export.
    line = line.removeprefix(_UTF8_MARK)
    _require_utf8(path, [line], line, first_line=1)
    header = next(csv.reader([_decoded(line)]), [])
    missing = [column for column in columns if column not in header]
    if missing:
        found = ",".join(header) or "empty"
        hint = " Fields are separated by commas." if header and "," not in line else ""
        raise SettingsError(
            f"{path} has no column {', '.join(missing)}. Its header is {found}.{hint}"
        )
    twice = [column for column in columns if header.count(column) > 1]
    if twice:
        raise SettingsError(
            f"{path}: the header names {', '.join(twice)} more than once. Keep one of them."
        )
    return header


def _decoded(text: str) -> str:
    """Return the UTF-8 text of bytes that were decoded as Latin-1."""
    return text if text.isascii() else text.encode("latin-1").decode()


def _require_utf8(path: Path, lines: list[str], text: str, *, first_line: int) -> None:
    if text.isascii() and "\x00" not in text:
        return
    for index, line in enumerate(lines):
        try:
            wrong = "a NUL byte" if "\x00" in _decoded(line) else ""
        except UnicodeDecodeError as error:
            wrong = f"byte 0x{error.object[error.start]:02x}, which is not UTF-8"
        if wrong:
            raise SettingsError(
                f"{path}, line {first_line + index}: {wrong}. Save the file as UTF-8 (spreadsheets "
                "call it `CSV UTF-8`; `iconv -t UTF-8` converts)."
            )


def _wrong_count(
    path: Path, header: list[str], fields: Sequence[str], *, line: int
) -> SettingsError:
    return SettingsError(
        f"{path}, line {line}: {len(fields)} fields, but the header has {len(header)}."
    )


def _quoted(
    columns: _Columns, begun: list[str], rest: TextIO, *, first_line: int, rows: int
) -> Iterator[Block]:
    """Yield the blocks of a table with quoted fields, which may hold commas and line ends."""
    reader = csv.reader(_checked(columns.path, begun, rest, first_line=first_line), strict=True)
    while True:
        line = first_line + reader.line_num
        try:
            records = list(islice(reader, rows))
        except csv.Error as error:
            raise SettingsError(
                f"{columns.path}, near line {first_line + reader.line_num}: {error}. A quoted "
                "field must end with a quote before a comma or a line end, and quotes in it must "
                "be doubled."
            ) from error
        if not records:
            return
        # Within a block, line numbers are counted by rows, so a line end within quotes shifts them.
        names, values = _values(columns, records, first_line=line)
        if len(names):
            yield Block(names, values, line)


def _checked(path: Path, begun: list[str], rest: TextIO, *, first_line: int) -> Iterator[str]:
    for index, line in enumerate(chain(begun, rest)):
        _require_utf8(path, [line], line, first_line=first_line + index)
        yield line


def _values(
    columns: _Columns, records: Sequence[list[str]], *, first_line: int
) -> tuple[Names, F64]:
    """Return the names and numbers of rows that csv has split."""
    full = [fields for fields in records if fields]
    if not full:
        return np.empty(0, "S1"), np.empty((len(columns.wanted) - 1, 0))
    if any(len(fields) != len(columns.header) for fields in full):
        raise _complaint(columns, records, first_line=first_line)
    fields = list(zip(*full, strict=True))
    values = np.empty((len(columns.wanted) - 1, len(full)))
    for row, column in enumerate(columns.wanted[1:]):
        texts = fields[column]
        try:
            values[row] = [float(text) if text else nan for text in texts]
        except ValueError:
            raise _complaint(columns, records, first_line=first_line) from None
        if any("_" in text for text in texts):
            raise _complaint(columns, records, first_line=first_line)
        unknown = np.flatnonzero(np.isnan(values[row]))
        values[row, [column for column in unknown if texts[column]]] = np.inf
    names = [text.encode("latin-1") for text in fields[columns.wanted[0]]]
    return np.array(names, f"S{columns.name_bytes + 1}"), values


def _plain(columns: _Columns, lines: list[str], text: str, *, first_line: int) -> tuple[Names, F64]:
    """Return the names and numbers of lines without quotes."""
    has_empty = ",," in text or ",\n" in text or ",\r" in text
    # NumPy ignores surplus fields: a row with one too many, e.g. due to a decimal comma, would be
    # read with its values in the wrong columns. An empty line has no comma.
    is_even = {line.count(",") for line in lines} <= {0, len(columns.header) - 1}
    found = _loaded(columns, _filled(text, "nan") if has_empty else lines) if is_even else None
    if found is None or (has_empty and (found["name"] == b"nan").any()):
        # NumPy cannot parse a field as a number, or a name is `nan` and may have been empty.
        return _values(columns, list(csv.reader(lines)), first_line=first_line)
    numbers = np.stack([found[name] for name in (found.dtype.names or ())[1:]])
    if "nan" in text.lower():
        # Read again with zeros in the empty fields: what is still NaN is a literal NaN. If only a
        # VM's name contains `nan`, this merely costs time.
        zeros = _loaded(columns, _filled(text, "0"))
        assert zeros is not None, (
            "a field that is readable with one fill value is readable with the other"
        )
        for row, name in enumerate((zeros.dtype.names or ())[1:]):
            numbers[row, np.isnan(zeros[name])] = np.inf
    return found["name"], numbers


def _filled(text: str, empty: str) -> TextIO:
    """Return lines with `empty` in each empty field."""
    # Twice, since neighbouring fields share a comma.
    text = text.replace(",,", f",{empty},").replace(",,", f",{empty},")
    return StringIO(text.replace(",\n", f",{empty}\n").replace(",\r", f",{empty}\r"), newline="")


def _loaded(columns: _Columns, lines: Iterable[str]) -> NDArray[np.void] | None:
    """Return the requested fields of some lines, None if one is not a number or is missing."""
    numbers = [(f"n{column}", "f8") for column in columns.wanted[1:]]
    kind = np.dtype([("name", f"S{columns.name_bytes + 1}"), *numbers])
    try:
        return np.loadtxt(
            lines, kind, delimiter=",", usecols=columns.wanted, comments=None, ndmin=1
        )
    except ValueError:
        return None


def _complaint(
    columns: _Columns, records: Sequence[list[str]], *, first_line: int
) -> SettingsError:
    """Return the error of a block that could not be read, found row by row."""
    path, header = columns.path, columns.header
    for index, fields in enumerate(records):
        line = first_line + index
        if fields and len(fields) != len(header):
            return _wrong_count(path, header, fields, line=line)
        for column in columns.wanted[1:] if fields else ():
            if not fields[column] or not np.isnan(_value(fields[column])):
                continue
            if fields[column].strip().lower().lstrip("+-") != "nan":
                hint = "leave the field empty if there is no measurement"
                if header[column] in _TIMES:
                    hint = "write seconds since the epoch"
                return SettingsError(
                    f"{path}, line {line}: {header[column]} is {_decoded(fields[column])!r}, not a "
                    f"number: {hint}."
                )
    return SettingsError(f"{path}, lines {first_line} and later: not a table of numbers.")


def _value(text: str) -> float:
    """Return a field as a number; NaN if it is not one, like 1_000, which Python would accept."""
    try:
        return nan if "_" in text else float(text)
    except ValueError:
        return nan
