"""Python values <-> JSON that gives them back as they were: tuples, counters and keys that are not text included."""

from collections import Counter
from typing import Any

from esper.errors import PreconditionFailed

_TUPLE, _COUNTER, _DICT = "$tuple", "$counter", "$dict"


def write_plain(value: Any, owner: str) -> Any:
    """`value` in what JSON knows. Raises PreconditionFailed, naming `owner`, for anything that is more than data."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [write_plain(item, owner) for item in value]
    if isinstance(value, tuple):
        return {_TUPLE: [write_plain(item, owner) for item in value]}
    if isinstance(value, dict):
        return _write_dict(value, owner)
    raise PreconditionFailed(
        f"the state of {owner} holds a {type(value).__name__}, which cannot be written to a snapshot; "
        "keep numbers, text, lists, tuples and dicts in it"
    )


def read_plain(value: Any) -> Any:
    """What `write_plain` was given."""
    if isinstance(value, list):
        return [read_plain(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {_TUPLE}:
        return tuple(read_plain(value[_TUPLE]))
    if value.keys() == {_COUNTER}:
        return Counter(dict(read_plain(value[_COUNTER])))
    if value.keys() == {_DICT}:
        return dict(read_plain(value[_DICT]))
    return {key: read_plain(item) for key, item in value.items()}


def _write_dict(value: dict[Any, Any], owner: str) -> dict[str, Any]:
    plain = all(isinstance(key, str) and not key.startswith("$") for key in value)
    if plain and not isinstance(value, Counter):
        return {key: write_plain(item, owner) for key, item in value.items()}
    pairs = [[write_plain(key, owner), write_plain(item, owner)] for key, item in value.items()]
    return {_COUNTER if isinstance(value, Counter) else _DICT: pairs}
