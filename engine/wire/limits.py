"""Limits of every number, length and count in a record, each with its reason.

The limits are part of the field types, so the decoder rejects values beyond them (`bad_value`) and
the published JSON Schema states them for other programs. Code that reads decoded records can rely
on them: sums fit 64 bits, dates fit the calendar, and names fit the labels of metrics.
"""

from typing import Annotated, Final

from msgspec import Meta

# Snapshots, SQLite and InfluxDB hold 64-bit signed integers. Code adds to and subtracts from
# sequences, so there is some margin.
MAX_COUNT: Final = 2**62
# 1 January 2200, in s: it fits 64 bits in ns and all calendars in ms.
MAX_TIME_S: Final = 7_258_118_400
# Names of Flatline's own objects (site, zone, cell, node, run) become parts of keys, paths and
# labels. So they consist of letters, digits and a few marks, as the settings require; "-" means
# that there is no name.
MAX_NAME: Final = 128
NAME_PATTERN: Final = r"^(-|\w[\w.:@+-]*)(?!\n)$"
# Names from guests, owners and hypervisors are arbitrary text. libvirt's are below 256.
MAX_TEXT: Final = 1_024
# A sentence may quote errors and names; more than this is a fault of the writer.
MAX_SENTENCE: Final = 65_536
# Words are names of kinds and signals (the longest kind, `duplicate_collector`, has 19 characters),
# and hex ids of 32 characters.
MAX_WORD: Final = 64
# A collector puts 512 events or items in a frame; readers accept more from other writers.
MAX_LISTED: Final = 4_096
# libvirt's limit for disks of one domain is near 700; network cards are fewer.
MAX_DEVICES: Final = 1_024
# A node has a few dozen pools and gauges at most.
MAX_POOLS: Final = 1_024
MAX_GAUGES: Final = 256
MAX_DETAILS: Final = 64
# QEMU allows 4,096 vCPUs in one VM.
MAX_VCPUS: Final = 65_536
# A binary exabyte, above any memory, disk or pool of one node.
MAX_BYTES: Final = 2**60
# A year: longer than any reporting period of a balloon and any step of a forecast.
MAX_PERIOD_S: Final = 31_536_000
# Largest sampling interval: an hour; settings allow 5 min at most.
MAX_INTERVAL_MS: Final = 3_600_000
# Excludes infinity and NaN, which are not measurements. No measured value is near this.
MAX_FIGURE: Final = 1e300

Count = Annotated[int, Meta(ge=0, le=MAX_COUNT)]
TimeMs = Annotated[int, Meta(ge=0, le=MAX_TIME_S * 1_000)]
TimeNs = Annotated[int, Meta(ge=0, le=MAX_TIME_S * 1_000_000_000)]
MonoNs = Annotated[int, Meta(ge=0, le=MAX_COUNT)]
IntervalMs = Annotated[int, Meta(ge=1, le=MAX_INTERVAL_MS)]
PeriodS = Annotated[int, Meta(ge=0, le=MAX_PERIOD_S)]
Bytes = Annotated[int, Meta(ge=0, le=MAX_BYTES)]
Vcpus = Annotated[int, Meta(ge=0, le=MAX_VCPUS)]
Figure = Annotated[float, Meta(ge=-MAX_FIGURE, le=MAX_FIGURE)]
Seconds = Annotated[float, Meta(ge=0, le=MAX_FIGURE)]

Name = Annotated[str, Meta(min_length=1, max_length=MAX_NAME, pattern=NAME_PATTERN)]
Text = Annotated[str, Meta(max_length=MAX_TEXT)]
Word = Annotated[str, Meta(max_length=MAX_WORD)]
Sentence = Annotated[str, Meta(max_length=MAX_SENTENCE)]
# A VM's UUID: 16 bytes; hypervisors assign arbitrary ones.
Uuid = Annotated[bytes, Meta(min_length=16, max_length=16)]

Details = Annotated[dict[Word, Text], Meta(max_length=MAX_DETAILS)]
Devices = Annotated[dict[Text, Text], Meta(max_length=MAX_DEVICES)]
Gauges = Annotated[dict[Word, Figure], Meta(max_length=MAX_GAUGES)]
# Names of the columns of a record: at least one.
Words = Annotated[tuple[Word, ...], Meta(min_length=1, max_length=MAX_DETAILS)]
Periods = Annotated[tuple[PeriodS, ...], Meta(min_length=1, max_length=MAX_DETAILS)]
Texts = Annotated[tuple[Text, ...], Meta(max_length=MAX_LISTED)]


def clipped(text: str, most: int = MAX_TEXT) -> str:
    """Return a text of at most `most` characters; a longer one is cut and ends with an ellipsis."""
    return text if len(text) <= most else text[: most - 1] + "…"


def small_int(text: str) -> int | None:
    """Return the number that a text of digits represents, None where invalid or too large.

    Python refuses to read thousands of digits, and a snapshot cannot hold more than 64 bits.
    """
    is_number = text.isascii() and text.isdecimal() and len(text) <= len(str(MAX_COUNT))
    number = int(text) if is_number else MAX_COUNT + 1
    return number if number <= MAX_COUNT else None
