"""JSON with one spelling per value: what is hashed and signed.

Keys sorted, no white space, UTF-8, escapes only where JSON demands them; objects,
arrays, strings and whole numbers, nothing else. Reading accepts that spelling alone.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from esper.errors import InvalidRequest

Value = Mapping[str, Any] | Sequence[Any] | str | int


def write(value: Value) -> bytes:
    """The bytes of `value`. Raises InvalidRequest for a type the format does not have."""
    _check(value, "value")
    try:
        return _spell(value)
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"a string is not Unicode text: {error}") from error


def read(data: bytes, what: str, max_bytes: int) -> dict[str, Any]:
    """The object that `data` spells. Raises InvalidRequest, naming `what` and the first thing that is wrong."""
    if len(data) > max_bytes:
        raise InvalidRequest(f"{what} has {len(data)} bytes; at most {max_bytes} are read")
    try:
        value = json.loads(data.decode(), parse_float=_no_float, parse_constant=_no_float)
        _check(value, what)
        same = _spell(value) == data
    except (ValueError, RecursionError) as error:  # a UnicodeDecodeError is a ValueError
        raise InvalidRequest(f"{what} is not canonical JSON: {error or type(error).__name__}") from error
    if not isinstance(value, dict):
        raise InvalidRequest(f"{what} is a JSON {type(value).__name__}; it must be an object")
    if not same:
        raise InvalidRequest(
            f"{what} is JSON, but not in canonical form: keys sorted and unique, no white space, no needless escapes"
        )
    return value


def _spell(value: Value) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _no_float(text: str) -> NoReturn:
    raise ValueError(f"{text} is no whole number")


def _check(value: object, where: str) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise InvalidRequest(f"{where}: key {key!r} is no string")
            _check(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            _check(item, f"{where}[{i}]")
    elif type(value) not in (str, int):
        raise InvalidRequest(f"{where} is {value!r}; canonical JSON holds objects, arrays, strings and whole numbers")
