"""Read an object of canonical JSON field by field: each once, of its type, within its bounds, none left over."""

import re
from typing import Any

from esper.errors import InvalidRequest

_MAX_COUNT = (1 << 63) - 1


class Fields:
    """An object being read: each field once, and nothing left over."""

    def __init__(self, values: dict[str, Any], where: str) -> None:
        self._values = dict(values)
        self.where = where

    def take(self, name: str, kind: type) -> Any:
        if name not in self._values:
            raise self.refuse(name, "is missing")
        value = self._values.pop(name)
        if type(value) is not kind:
            raise self.refuse(name, f"is a {type(value).__name__}; it must be a {kind.__name__}")
        return value

    def integer(self, name: str, low: int = 0, high: int = _MAX_COUNT) -> int:
        value: int = self.take(name, int)
        if not low <= value <= high:
            raise self.refuse(name, f"is {value}; it must be {low} to {high}")
        return value

    def matching(self, name: str, pattern: re.Pattern[str]) -> str:
        value: str = self.take(name, str)
        if not pattern.fullmatch(value):
            raise self.refuse(name, f"is {value[:80]!r}; it must match {pattern.pattern}")
        return value

    def one_of(self, name: str, words: tuple[str, ...]) -> str:
        value: str = self.take(name, str)
        if value not in words:
            raise self.refuse(name, f"is {value[:80]!r}; it must be one of {', '.join(words)}")
        return value

    def object(self, name: str) -> "Fields":
        return Fields(self.take(name, dict), f"{self.where}.{name}")

    def items(self) -> list[tuple[str, Any]]:
        values, self._values = self._values, {}
        return list(values.items())

    def end(self) -> None:
        if self._values:
            raise self.refuse(min(self._values), "is no field of this format")

    def refuse(self, name: str, why: str) -> InvalidRequest:
        return InvalidRequest(f"{self.where}.{name[:80]} {why}", {f"{self.where}.{name[:80]}": why})
