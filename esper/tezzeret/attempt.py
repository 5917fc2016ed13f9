"""Give an order to a worker, and again to another one if the first dies or overruns."""

import logging

from esper.api.tezzeret.v1 import forge_pb2 as pb
from esper.artifact.bundle import Artifact, check_id
from esper.blueprint.codec import write_interface
from esper.errors import Corrupt, DeadlineExceeded, KernelFault, Unavailable
from esper.tezzeret import codec
from esper.tezzeret.codec import Order
from esper.tezzeret.job import KIND
from esper.tezzeret.port import Pool

log = logging.getLogger(__name__)


async def attempt(pool: Pool, order: Order, attempts: int) -> tuple[pb.CompilationRecord, Artifact | None]:
    """The worker's record and unsigned artifact; None with a failure in the record.

    A worker that raised has met a bug, which another one would meet again: that is a failure at once.
    Of one that died or overran nothing is known, so such a record has no toolchain (`answered`).
    """
    payload = codec.write_order(order)
    failure: Exception = Unavailable("no attempt was made")
    for number in range(1, attempts + 1):
        try:
            record, artifact = codec.read_reply(await pool.run(KIND, payload, order.limit_s))
            if artifact is not None:
                check_id(artifact.manifest)
            return record, artifact
        except (Unavailable, DeadlineExceeded) as error:
            log.warning("attempt %d of %d at %s failed: %s", number, attempts, order.blueprint_id, error)
            failure = type(error)(f"{error} ({number} of {attempts} attempts)")
        except (KernelFault, Corrupt) as error:
            failure = error
            break
    return unanswered(order, failure), None


def answered(record: pb.CompilationRecord) -> bool:
    """Whether a worker wrote this record."""
    return bool(record.toolchain)


def unanswered(order: Order, failure: Exception) -> pb.CompilationRecord:
    """The record of an order no worker answered."""
    record = codec.new_record(order.blueprint_id, write_interface(order.interface), codec.number(order.pipeline))
    record.failure.CopyFrom(codec.write_failure(failure))
    return record
