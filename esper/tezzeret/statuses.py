"""Which blueprint statuses the forge sets, and from where; every other move is somebody else's."""

import logging

from esper.api.urza.v1 import library_pb2 as pb
from esper.errors import PreconditionFailed
from esper.tezzeret.port import Library

log = logging.getLogger(__name__)

UNVALIDATED, COMPILING = pb.BLUEPRINT_STATUS_UNVALIDATED, pb.BLUEPRINT_STATUS_COMPILING
INVALID = pb.BLUEPRINT_STATUS_INVALID
_FROM: dict[int, tuple[int, ...]] = {
    COMPILING: (UNVALIDATED, INVALID),
    INVALID: (UNVALIDATED, COMPILING),
    UNVALIDATED: (COMPILING,),
}
_MAX_REASON = 2048


async def blueprint(library: Library, blueprint_id: str) -> pb.Blueprint:
    """Raises NotFound."""
    return (await library.get_blueprint(pb.GetBlueprintRequest(blueprint_id=blueprint_id))).blueprint


async def mark(library: Library, blueprint_id: str, status: pb.BlueprintStatus.ValueType, reason: str) -> bool:
    """Set `status` if the blueprint stands where the forge may do so; False: it stands elsewhere, and stays."""
    if (await blueprint(library, blueprint_id)).status not in _FROM[status]:
        return False
    request = pb.SetBlueprintStatusRequest(blueprint_id=blueprint_id, status=status, reason=reason[:_MAX_REASON])
    try:
        await library.set_blueprint_status(request)
    except PreconditionFailed as error:  # somebody else moved it between the two calls, and their word stands
        log.info("blueprints/%s was not marked: %s", blueprint_id, error)
        return False
    return True
