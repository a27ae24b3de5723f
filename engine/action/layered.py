"""A mapping that is a value and yet cheap to change: a state of thousands is changed a second.

A copy of a dictionary takes as long as it is large. Here few entries lie over many, and only the
few are copied; when they are no longer few both become one.
"""

from collections.abc import ItemsView, Iterator, Mapping, ValuesView
from typing import Final, Generic, Self, TypeVar

# A root of some ten thousand, where copying the few and merging all cost the same.
_FEW: Final = 128

K = TypeVar("K")
V = TypeVar("V")


class Layered(Mapping[K, V], Generic[K, V]):
    """A mapping of which `with_entry` gives another one; in the order in which keys came first."""

    __slots__ = ("_few", "_many", "_size")

    def __init__(self, many: Mapping[K, V] | None = None) -> None:
        self._many: dict[K, V] = dict(many or {})
        self._few: dict[K, V] = {}
        self._size = len(self._many)

    def with_entry(self, key: K, value: V) -> Self:
        """Return the mapping with one entry more, or another value of a key."""
        changed = object.__new__(type(self))
        changed._size = self._size + (key not in self)
        if len(self._few) < _FEW:
            changed._many, changed._few = self._many, {**self._few, key: value}
        else:
            changed._many, changed._few = {**self._many, **self._few, key: value}, {}
        return changed

    def without(self, key: K) -> Self:
        """Return the mapping without a key; it is copied where it has it."""
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

    # The views of `Mapping` ask for each key by itself.
    def values(self) -> ValuesView[V]:
        """Return all values."""
        return {**self._many, **self._few}.values()

    def items(self) -> ItemsView[K, V]:
        """Return all entries."""
        return {**self._many, **self._few}.items()


def layered(given: Mapping[K, V]) -> Layered[K, V]:
    """Return a mapping as one that is cheap to change."""
    return given if isinstance(given, Layered) else Layered(given)
