"""Envelopes as the bytes of one bus message, and back. The same for every bus."""

import hashlib
from collections.abc import Sequence

from google.protobuf.message import DecodeError

from esper import errors
from esper.api.oona.v1 import bus_pb2
from esper.oona import envelope as envelopes_module
from esper.oona.port import MAX_BATCH, Envelope
from esper.oona.subjects import Subject, find

# The same for every bus, so that a move to another refuses nothing: the broker's 8 MiB less room for headers.
MAX_BYTES = 8 * 1024 * 1024 - 4096


def check_group(name: str, envelopes: Sequence[Envelope]) -> str:
    """The run of `envelopes`, if they may be published on `name` together."""
    if not 1 <= len(envelopes) <= MAX_BATCH:
        raise errors.InvalidRequest(f"a batch on {name} has {len(envelopes)} envelopes, 1 to {MAX_BATCH} are allowed")
    for envelope in envelopes:
        envelopes_module.check(name, envelope)
    runs = sorted({envelope.run_id for envelope in envelopes})
    if len(runs) > 1:
        raise errors.InvalidRequest(f"a batch on {name} is of one run; this one is of {', '.join(map(repr, runs))}")
    return runs[0]


def encode(subject: Subject, envelopes: Sequence[Envelope], limit_bytes: int = MAX_BYTES) -> bytes:
    """One bus message. Raises Exhausted when it is larger than `limit_bytes`."""
    message = bus_pb2.EnvelopeBatch(envelopes=envelopes) if subject.batched else envelopes[0]
    data = message.SerializeToString()
    if len(data) > limit_bytes:
        raise errors.Exhausted(
            f"envelope {envelopes[0].id!r} on {subject.name}: the bus message is {len(data)} bytes, at most "
            f"{limit_bytes} are allowed; send the bytes to the library and their digest on the bus"
        )
    return data


def decode(name: str, data: bytes) -> list[Envelope]:
    """The envelopes of one bus message. Raises InvalidRequest for anything else."""
    try:
        if find(name).batched:
            found = list(bus_pb2.EnvelopeBatch.FromString(data).envelopes)
        else:
            found = [bus_pb2.Envelope.FromString(data)]
    except DecodeError as error:
        raise errors.InvalidRequest(f"a message of {len(data)} bytes on {name} holds no envelope") from error
    check_group(name, found)
    return found


def message_id(envelopes: Sequence[Envelope]) -> str:
    """What makes a bus message one: the envelope's id, or the digest of a batch's ids."""
    if len(envelopes) == 1:
        return envelopes[0].id
    digest = hashlib.sha256("\n".join(envelope.id for envelope in envelopes).encode())
    return f"batch/{digest.hexdigest()}"
