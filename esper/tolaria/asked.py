"""What a nursery job asks, as a digest, so that an answer is taken for the question it was given to."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.message import Message

from esper.api.common.v1 import training_pb2
from esper.api.kasmina.v1 import nursery_pb2

DIGITS = 16  # hexadecimal, of a job's id


def asked(job: nursery_pb2.Job, course: str = "") -> str:
    """A digest of the job's work, of when it is due, and of the `course` that led to the state it asks about.

    The same for the same question wherever the run's folder and the task's module are, and on every rank: of a
    snapshot its name counts and not its folder, and the task, which is the run's, does not.
    """
    plain = nursery_pb2.Job()
    plain.CopyFrom(job)
    plain.job_id = plain.run_id = ""
    for message in list(_messages(plain)):
        if isinstance(message, training_pb2.SnapshotReference):
            message.path, message.size_bytes = Path(message.path).name, 0
        elif isinstance(message, training_pb2.TaskReference):
            message.Clear()
    data = plain.SerializeToString(deterministic=True)
    return hashlib.sha256(course.encode() + b"\0" + data).hexdigest()[:DIGITS]


def _messages(message: Message) -> Iterator[Message]:
    """A message and all in it."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for each in (value,) if isinstance(value, Message) else value:
                yield from _messages(each)
