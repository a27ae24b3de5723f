"""An immutable mapping with cheap changed copies: some states change thousands of times a second.

Copying a dictionary takes time in proportion to its size. Here new entries go into a small
dictionary, which takes precedence over a large one. A change copies only the small dictionary; when
that one has grown to `_FEW` entries, both are merged.
"""

from collections.abc import ItemsView, Iterator, Mapping, ValuesView
from typing import Final, Generic, Self, TypeVar

# About the square root of the number of entries, some ten thousand: with this size, copies of the
# small dictionary cost in total as much as merges.
_FEW: Final = 128

K = TypeVar("K")
V = TypeVar("V")


class Layered(Mapping[K, V], Generic[K, V]):
    """An immutable mapping; `with_entry` returns a changed one. Keys keep their insertion order."""

    __slots__ = ("_few", "_many", "_size")

    def __init__(self, many: Mapping[K, V] | None = None) -> None:
        self._many: dict[K, V] = dict(many or {})
        self._few: dict[K, V] = {}
        self._size = len(self._many)

    def with_entry(self, key: K, value: V) -> Self:
        """Return the mapping with one entry added or replaced."""
        changed = object.__new__(type(self))
        changed._size = self._size + (key not in self)
        if len(self._few) < _FEW:
            changed._many, changed._few = self._many, {**self._few, key: value}
        else:
            changed._many, changed._few = {**self._many, **self._few, key: value}, {}
        return changed

    def without(self, key: K) -> Self:
        """Return the mapping without `key`; if it has that key, all entries are copied."""
        if key not in self:
            return self
        return type(self)({one: value for one, value in self.items() if one != key})

    def __getitem__(self, key: K) -> V:
        return self._few[key] if key in self._few else self._many[key]

    def __iter__(self) -> Iterator[K]:
        return iter({**self._many, **self._few})

    def __len__(self) -> int:
        return self._size

    def __contains__(self, key: object) -> bool:
        return key in self._few or key in self._many

    # The views of `Mapping` would look up each key separately.
    def values(self) -> ValuesView[V]:
        """Return all values."""
        return {**self._many, **self._few}.values()

    def items(self) -> ItemsView[K, V]:
        """Return all entries."""
        return {**self._many, **self._few}.items()


def layered(given: Mapping[K, V]) -> Layered[K, V]:
    """Return a mapping as a `Layered` one."""
    return given if isinstance(given, Layered) else Layered(given)
