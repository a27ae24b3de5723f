"""Warnings about data that were not used, for the commands that read a dataset or recording."""

from collections.abc import Mapping
from typing import Final

from flatline.engine.cli.options import say
from flatline.engine.errors import SettingsError

# Some percent of late and repeated rows are normal in a recording; below this share the results do
# not represent the dataset.
_USED_SHARE: Final = 0.9
_WHY: Final = (
    ("repeated", "repeat a VM and time of an earlier row. Check whether the times are rounded."),
    (
        "late",
        (
            "arrived too late after their sampling time. Check whether the dataset was uploaded in "
            "batches."
        ),
    ),
    ("invalid", "have no usable rate or counter. Check whether they are negative or empty."),
)
_NO_FRAME: Final = (
    ("records_unreadable", "are not frames that this release can read, and were left out."),
    ("records_unbelieved", "were rejected when they were written, and were left out."),
)


def data_warnings(figures: Mapping[str, int]) -> list[str]:
    """Return one sentence for each reason why a result may not represent the whole dataset.

    Parameters
    ----------
    figures
        As in `engine.ports.Recording.figures`. A recorded log has records instead of rows.
    """
    read, used = figures.get("rows_read", 0), figures.get("rows_used", 0)
    found = []
    if read and used < _USED_SHARE * read:
        found.append(f"Only {used:,} of {read:,} rows were used ({used / read:.0%}).")
        for name, why in _WHY:
            if count := figures.get(f"rows_{name}", 0):
                found.append(f"{count:,} rows {why}")
    for name, why in _NO_FRAME:
        if count := figures.get(name, 0):
            found.append(f"{count:,} of {figures['records_read']:,} records {why}")
    for name, count in figures.items():
        if name.startswith("unusable_"):
            column = name.removeprefix("unusable_")
            found.append(
                f"{column}: each of its {count:,} values is negative, not finite, or larger than "
                "any VM can have, so the column was not used."
            )
    return found


def require_rows(figures: Mapping[str, int]) -> None:
    """Print warnings about data that were not used; refuse a dataset without any usable row.

    Raises
    ------
    SettingsError
        Rows were read, but none was used.
    """
    for sentence in data_warnings(figures):
        say(sentence, stderr=True)
    if figures.get("rows_read", 0) and not figures.get("rows_used", 0):
        raise SettingsError("No row of the dataset could be used, so the result means nothing.")
