"""CSV tables of a dataset, plain or gzipped, read in blocks of columns.

Whatever is wrong is told with file, line and column: a dataset that is read in part would be
judged as a whole.
"""

import csv
import gzip
import zlib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Final, TextIO

import numpy as np
from numpy.typing import NDArray

from engine.errors import SettingsError

F64 = NDArray[np.float64]
Names = NDArray[np.bytes_]

# Some 10 MB of text: large enough for NumPy's parser, small beside the state of a fleet.
ROWS_PER_BLOCK: Final = 100_000


class Block:
    """Neighbouring rows of a table.

    Attributes
    ----------
    names
        Shape (n,): the column of names, as bytes.
    numbers
        Shape (columns, n), in the order asked for; NaN is an empty field: missing, never zero.
        A NaN that stands there is infinite: as little a measurement, but not left out.
    first_line
        Line of the first row in its file, from 1.
    """

    __slots__ = ("first_line", "names", "numbers")

    def __init__(self, *, names: Names, numbers: F64, first_line: int) -> None:
        self.names = names
        self.numbers = numbers
        self.first_line = first_line

    def __len__(self) -> int:
        return len(self.names)


def read_blocks(
    path: Path, *, name: str, numbers: Sequence[str], name_bytes: int, rows: int = ROWS_PER_BLOCK
) -> Iterator[Block]:
    """Yield the rows of a table that is too large for a row at a time.

    Parameters
    ----------
    name, numbers
        The columns wanted; further ones are passed over.
    name_bytes
        The longest name that can be known; a longer one is cut and thereby unknown.
    rows
        Rows in a block.

    Raises
    ------
    SettingsError
        The file cannot be read, lacks a column, or holds what is no number.
    """
    try:
        with _opened(path) as file:
            header = _header(path, file, (name, *numbers))
            wanted = [header.index(column) for column in (name, *numbers)]
            kind = np.dtype([("name", f"S{name_bytes + 1}"), *((n, "f8") for n in numbers)])
            line = 2
            while lines := list(islice(file, rows)):
                table = _parsed(path, lines, kind, wanted, header, first_line=line)
                if len(table):
                    yield Block(
                        names=table["name"],
                        numbers=np.stack([table[column] for column in numbers]),
                        first_line=line,
                    )
                line += len(lines)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: {error}.") from error


def read_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield line number and fields of each row of a small table.

    Raises
    ------
    SettingsError
        The file cannot be read, lacks a column, or a row has fewer fields than the header.
    """
    try:
        with _opened(path) as file:
            header = _header(path, file, columns)
            reader = csv.reader(file)
            for fields in reader:
                line = reader.line_num + 1
                if not fields:
                    continue
                if len(fields) != len(header):
                    raise SettingsError(
                        f"{path}, line {line}: {len(fields)} fields where the header names "
                        f"{len(header)}."
                    )
                yield line, dict(zip(header, fields, strict=True))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise SettingsError(f"{path} cannot be read: {error}.") from error


def number(path: Path, line: int, column: str, text: str) -> float:
    """Return one field as a number, or raise `SettingsError`."""
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise SettingsError(f"{path}, line {line}: {column} is {text!r}, not a number.")
    return value


def _opened(path: Path) -> TextIO:
    # Spreadsheets put a byte order mark before what they export.
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _header(path: Path, file: TextIO, columns: Sequence[str]) -> list[str]:
    header = next(csv.reader([file.readline()]), [])
    missing = [column for column in columns if column not in header]
    if missing:
        found = ",".join(header) or "empty"
        raise SettingsError(f"{path} has no column {', '.join(missing)}; its header is {found}.")
    return header


def _parsed(
    path: Path,
    lines: list[str],
    kind: np.dtype[np.void],
    wanted: list[int],
    header: list[str],
    *,
    first_line: int,
) -> NDArray[np.void]:
    table = _loaded(path, lines, kind, wanted, header, empty="nan", first_line=first_line)
    if "nan" in "".join(lines).lower():
        # One that stands there is what stays NaN where empty fields are zero. The name of a VM
        # that looks like one costs time and nothing else.
        filled = _loaded(path, lines, kind, wanted, header, empty="0", first_line=first_line)
        for column in (kind.names or ())[1:]:
            table[column][np.isnan(filled[column])] = np.inf
    return table


def _loaded(
    path: Path,
    lines: list[str],
    kind: np.dtype[np.void],
    wanted: list[int],
    header: list[str],
    *,
    empty: str,
    first_line: int,
) -> NDArray[np.void]:
    """Return the fields of some lines, with `empty` for one in which nothing stands."""
    text = "".join(lines)
    if ",," in text or ",\n" in text or ",\r" in text:
        # An empty field is missing. Twice, since neighbours share a comma.
        text = text.replace(",,", f",{empty},").replace(",,", f",{empty},")
        text = text.replace(",\n", f",{empty}\n").replace(",\r", f",{empty}\r")
        lines = text.splitlines()
    try:
        return np.loadtxt(
            lines, kind, delimiter=",", usecols=wanted, comments=None, quotechar='"', ndmin=1
        )
    except ValueError:
        raise _complaint(path, lines, wanted, header, first_line=first_line) from None


def _complaint(
    path: Path, lines: list[str], wanted: list[int], header: list[str], *, first_line: int
) -> SettingsError:
    """Return what is wrong in a block that NumPy refused, found a row at a time."""
    for index, fields in enumerate(csv.reader(lines)):
        line = first_line + index
        if fields and len(fields) != len(header):
            return SettingsError(
                f"{path}, line {line}: {len(fields)} fields where the header names {len(header)}."
            )
        for place in wanted[1:] if fields else ():
            try:
                float(fields[place])
            except ValueError:
                return SettingsError(
                    f"{path}, line {line}: {header[place]} is {fields[place]!r}, not a number; "
                    "leave the field empty where nothing was measured."
                )
    return SettingsError(f"{path}, lines {first_line} on: not a table of numbers.")
