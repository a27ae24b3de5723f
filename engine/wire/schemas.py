"""JSON Schema of every record type, generated from the struct that defines it."""

from typing import Any, Final

import msgspec

from flatline.engine.wire.alert import Alert
from flatline.engine.wire.control import Control
from flatline.engine.wire.forecast import Forecasts
from flatline.engine.wire.frame import FrameValue
from flatline.engine.wire.journal import JournalEntry
from flatline.engine.wire.order import Entry
from flatline.engine.wire.rejected import Rejected
from flatline.engine.wire.score import Scores

CONTRACTS: Final[dict[str, Any]] = {
    "frame": FrameValue,
    "alert": Alert,
    "order": Entry,
    "journal": JournalEntry,
    "control": Control,
    "score": Scores,
    "forecast": Forecasts,
    "rejected": Rejected,
}


def schema(name: str) -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of one record type; `name` is a key of `CONTRACTS`.

    Raises
    ------
    KeyError
        There is no such record type.
    """
    document = msgspec.json.schema(CONTRACTS[name])
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **document}
