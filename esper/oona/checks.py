"""What every bus refuses of its arguments, in the same words."""

from datetime import datetime

from esper import errors
from esper.errors import OutOfRange
from esper.oona.subjects import Subject


def check_position(name: str, after: int, from_time: datetime | None, first: int, last: int) -> None:
    """Refuse a position outside what a stream keeps, `first` to `last`."""
    if after and from_time is not None:
        raise errors.InvalidRequest(f"subscription to {name}: after_sequence and from_time exclude each other")
    if from_time is not None and from_time.tzinfo is None:
        raise errors.InvalidRequest(f"subscription to {name}: from_time {from_time} has no time zone")
    if after < 0:
        raise errors.InvalidRequest(f"subscription to {name}: after_sequence {after} is negative")
    if after > last:
        raise OutOfRange(
            f"{name}: position {after} is ahead of the stream, which ends at {last}; it is of another store. "
            "Begin again with after_sequence 0"
        )
    if after and after + 1 < first:
        raise OutOfRange(
            f"{name}: position {after} was dropped by retention, the oldest kept is {first}. "
            "Go on with after_sequence 0, if the gap is acceptable"
        )


def check_work(subject: Subject, group: str) -> None:
    """Refuse work groups where they make no sense."""
    if subject.batched:
        raise errors.InvalidRequest(
            f"{subject.name} is telemetry, in batches; subscribe to it instead of working on it"
        )
    if not group or not group.replace("-", "").replace("_", "").isalnum() or not group.isascii() or len(group) > 32:
        raise errors.InvalidRequest(f"work group {group!r} must be 1 to 32 letters, digits, '-' or '_'")
