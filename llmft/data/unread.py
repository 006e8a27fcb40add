"""Which columns and keys of records a data set's `row` never looks at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from typing import Any

from llmft.api import Row

WATCHED = 1000
"""Records of a split that are watched; what none of them needs is not needed."""


class Unread:
    """The columns and keys of the watched records, and those that were read."""

    def __init__(self) -> None:
        self.present: Counter[str] = Counter()
        self._read: set[str] = set()
        self._left = WATCHED

    def watched(self, record: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a record that remembers what is read of it, or the record after the first ones."""
        if self._left <= 0 or type(record) is not dict:
            return record
        self._left -= 1
        return _Watched(record, "", self._read)

    def count(self, record: Mapping[str, Any], row: Row) -> None:
        """Count the keys of a record that became a row; what the row keeps whole is read."""
        if isinstance(record, _Watched):
            self.present.update(set(record.paths()))
            _read_what_is_kept([getattr(row, field.name) for field in fields(row)])

    @property
    def columns(self) -> dict[str, int]:
        """Return what nobody read, and in how many of the watched records it is.

        Keys of messages and other values inside are written as `messages[].weight`. A column that
        nobody read is named without its keys.
        """
        unread = {path: n for path, n in self.present.items() if path not in self._read}
        return {
            path: n for path, n in sorted(unread.items())
            if not any(path.startswith((f"{outer}.", f"{outer}[]")) for outer in unread)
        }  # fmt: skip


class _Watched(dict[str, Any]):
    """A record, or a mapping in it, that notes which keys are looked up.

    Going over the names alone reads nothing; going over the values reads them all.
    """

    def __init__(
        self,
        record: Mapping[str, Any] | Iterable[tuple[str, Any]] = (),
        path: str = "",
        read: set[str] | None = None,
    ) -> None:
        self._path, self._noted = path, set[str]() if read is None else read
        plain = dict(record)
        super().__init__({k: _inside(v, self._of(k), self._noted) for k, v in plain.items()})

    def _of(self, key: str) -> str:
        return f"{self._path}.{key}" if self._path else str(key)

    def paths(self) -> Iterator[str]:
        """Yield the path of each key, inside values too."""
        for key in dict.keys(self):
            yield self._of(key)
            yield from _paths_in(dict.__getitem__(self, key))

    def __getitem__(self, key: str) -> Any:
        self._noted.add(self._of(key))
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self._noted.add(self._of(key))
        return super().get(key, default)

    def __iter__(self) -> Iterator[str]:  # so that {**record} looks each key up
        return super().__iter__()

    def items(self) -> Any:
        self._read_all()
        return super().items()

    def values(self) -> Any:
        self._read_all()
        return super().values()

    def copy(self) -> dict[str, Any]:
        self._read_all()
        return dict(super().items())

    def _read_all(self) -> None:
        self._noted.update(self.paths())


def _inside(value: Any, path: str, read: set[str]) -> Any:
    if type(value) is dict:
        return _Watched(value, path, read)
    if type(value) is list and any(type(item) is dict for item in value):
        return [_inside(item, f"{path}[]", read) for item in value]
    return value


def _paths_in(value: Any) -> Iterator[str]:
    if isinstance(value, _Watched):
        yield from value.paths()
    elif type(value) is list:
        for item in value:
            yield from _paths_in(item)


def _read_what_is_kept(values: Iterable[Any]) -> None:
    for value in values:
        if isinstance(value, _Watched):
            value.values()
        elif isinstance(value, Mapping):
            _read_what_is_kept(value.values())
        elif isinstance(value, list | tuple):
            _read_what_is_kept(value)
