"""Hostile values, drawn from the type that a reader expects: seeded, for any record.

Each field gets a value that its reader accepts, at the limits, and sometimes one that it must
reject. Fields that are added to a record later are covered without a change here.
"""

import random
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

import msgspec
from msgspec import inspect

# Share of values that the reader must reject.
_WRONG: Final = 0.02
_TEXTS: Final = (
    "", "0", "9" * 400, "\x00", "[/red]", "../" * 20, "名", "-1", "1e309", "nan", "\u202e", "=1+1",
    "null", "c0", "n0", "6e1a2b3c-0000-4000-8000-000000000001", "a" * 32, "panic_spin",
)  # fmt: skip
_WRONGS: Final[tuple[object, ...]] = (
    None,
    -1,
    2**63,
    1e300,
    "text",
    [],
    {},
    [None],
    True,
    b"\x00" * 7,
)


class Hostile:
    """Draws values for a type, by the type's own limits.

    Parameters
    ----------
    chance
        Source of the draws.
    is_json
        JSON has no bytes.
    """

    def __init__(self, chance: random.Random, *, is_json: bool) -> None:
        self._chance = chance
        self._wrong = [one for one in _WRONGS if not (is_json and isinstance(one, bytes))]

    def record(self, good: Mapping[str, Any], kind: type[msgspec.Struct]) -> dict[str, Any]:
        """Return a good record's fields with some of them, or all, hostile."""
        fields = _fields_of(kind)
        share = self._chance.choice((0.05, 0.2, 0.5, 1.0))
        changed = dict(good)
        for field in fields:
            if field.encode_name != "v" and self._chance.random() < share:
                changed[field.encode_name] = self.value(field.type)
        return changed

    def value(self, kind: inspect.Type) -> object:
        """Return a hostile value of a type."""
        if self._chance.random() < _WRONG:
            return self._chance.choice(self._wrong)
        match kind:
            case inspect.IntType() | inspect.FloatType():
                return self._number(kind)
            case inspect.StrType():
                return self._text(kind)
            case inspect.BytesType():
                size = self._chance.choice((kind.min_length or 0, kind.max_length or 16, 16, 160))
                return self._chance.randbytes(min(size, 4_096))
            case inspect.BoolType():
                return self._chance.random() < 0.5
            case inspect.LiteralType():
                return self._chance.choice(kind.values)
            case inspect.UnionType():
                return self.value(self._chance.choice(kind.types))
            case _:
                return self._several(kind)

    def _several(self, kind: inspect.Type) -> object:
        """Return a value composed of others; None for a type with only one."""
        match kind:
            case inspect.VarTupleType() | inspect.ListType():
                return [self.value(kind.item_type) for _ in range(self._count(kind.min_length))]
            case inspect.TupleType():
                return [self.value(one) for one in kind.item_types]
            case inspect.DictType():
                keys = [str(self.value(kind.key_type)) for _ in range(self._count(0))]
                return {key: self.value(kind.value_type) for key in keys}
            case inspect.StructType():
                return {field.encode_name: self.value(field.type) for field in kind.fields}
            case _:
                return None

    def _count(self, least: int | None) -> int:
        return max(least or 0, self._chance.choice((0, 1, 1, 2, 3, 40)))

    def _number(self, kind: inspect.IntType | inspect.FloatType) -> int | float:
        least = -(2**63) if kind.ge is None else kind.ge
        most = 2**63 - 1 if kind.le is None else kind.le
        middle = most // 2 if isinstance(kind, inspect.IntType) else most / 2
        drawn = self._chance.choice((least, most, least + 1, middle, 0, 1, 2, 1_790_000_000_000))
        if isinstance(kind, inspect.FloatType):
            return float(min(max(drawn, least), most))
        return int(min(max(drawn, least), most))

    def _text(self, kind: inspect.StrType) -> str:
        text = self._chance.choice(_TEXTS)
        if kind.pattern is not None:
            return self._chance.choice(("-", "c0", "n0", "x" * 128, "a.b:c@d+e"))
        if len(text) < (kind.min_length or 0):
            return "x" * (kind.min_length or 0)
        return text[: kind.max_length]


@lru_cache
def _fields_of(kind: type[msgspec.Struct]) -> tuple[inspect.Field, ...]:
    found = inspect.type_info(kind)
    assert isinstance(found, inspect.StructType), "records are structs"
    return found.fields
