"""The one table between Esper's errors and gRPC statuses, and both ways across it.

A status carries google.rpc details: ErrorInfo (reason = the error's class, domain =
"esper") and, for InvalidRequest, BadRequest with one violation per field. A client
gets the class back from the reason, or from the code where a peer sends none.
"""

from collections.abc import Iterable, Iterator
from typing import cast

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from esper import errors

DOMAIN = "esper"

STATUS: dict[type[errors.EsperError], grpc.StatusCode] = {
    errors.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    # Not ABORTED, which tells generic clients to try the whole transaction again: a conflict is for the caller to read.
    errors.Conflict: grpc.StatusCode.ALREADY_EXISTS,
    errors.OutOfRange: grpc.StatusCode.OUT_OF_RANGE,
    errors.PreconditionFailed: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Corrupt: grpc.StatusCode.DATA_LOSS,
    errors.Exhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.KernelFault: grpc.StatusCode.INTERNAL,
    # The base itself is only raised by `from_rpc`, for a peer's bug that is passed on.
    errors.EsperError: grpc.StatusCode.INTERNAL,
}

# Codes that a peer without our ErrorInfo may send. A code that is absent is a bug of the peer: the base class.
_CLASSES: dict[grpc.StatusCode, type[errors.EsperError]] = {
    **{code: cls for cls, code in STATUS.items() if code is not grpc.StatusCode.INTERNAL},
    grpc.StatusCode.ABORTED: errors.Conflict,
    grpc.StatusCode.PERMISSION_DENIED: errors.Unauthenticated,
    # A peer cancels calls when it stops. Our own cancellation is asyncio.CancelledError and never comes here.
    grpc.StatusCode.CANCELLED: errors.Unavailable,
}

# A status travels twice in HTTP/2 trailers, of which a client accepts 8 KiB by default.
MAX_MESSAGE_BYTES = 768
MAX_DETAILS_BYTES = 2048


def status_of(error: errors.EsperError) -> grpc.StatusCode:
    """The code of the nearest ancestor in STATUS."""
    return next(STATUS[cls] for cls in type(error).__mro__ if cls in STATUS)


def to_rpc(error: errors.EsperError, code: grpc.StatusCode | None = None) -> grpc.Status:
    """`error` as a status with details; `code` where a contract names another one than the table.

    Long messages and field lists are cut to what fits in trailers.
    """
    status = status_pb2.Status(code=_number(code or status_of(error)), message=_cut(str(error), MAX_MESSAGE_BYTES))
    _attach(status, error_details_pb2.ErrorInfo(reason=_public_class(error).__name__, domain=DOMAIN))
    if isinstance(error, errors.InvalidRequest) and error.fields:
        _attach(status, _bad_request(error.fields))
    return rpc_status.to_status(status)


def bug_to_rpc(bug: BaseException) -> grpc.Status:
    """An unexpected exception as a status: its class and nothing of its text, which may hold secrets."""
    return to_rpc(errors.EsperError(f"internal error: {type(bug).__name__}; the server's log has the traceback"))


def from_rpc(error: grpc.aio.AioRpcError, call: str = "") -> errors.EsperError:
    """The typed error a status stands for. `call` names the peer and method in messages that lack our words."""
    words = error.details() or ""
    status = _details(error)
    reason = _reason(status)
    if reason is None:
        cls = _CLASSES.get(error.code(), errors.EsperError)
        return cls(f"{call or 'call'}: {error.code().name}: {words}")
    if issubclass(reason, errors.InvalidRequest):
        return reason(words, _fields(status))
    return reason(words)


def classes(root: type[errors.EsperError] = errors.EsperError) -> Iterator[type[errors.EsperError]]:
    """`root` and everything below it in esper/errors.py; a component's own subclasses do not travel."""
    if root.__module__ == errors.__name__:
        yield root
    for cls in root.__subclasses__():
        yield from classes(cls)


def _public_class(error: errors.EsperError) -> type[errors.EsperError]:
    return next(cls for cls in type(error).__mro__ if cls.__module__ == errors.__name__)


def _bad_request(fields: dict[str, str]) -> error_details_pb2.BadRequest:
    request = error_details_pb2.BadRequest()
    room = MAX_DETAILS_BYTES
    for count, (path, words) in enumerate(fields.items()):
        path, words = _cut(path, 256), _cut(words, 256)
        room -= len(path.encode()) + len(words.encode()) + 8
        if room < 0:
            request.field_violations.add(field="", description=f"and {len(fields) - count} more")
            break
        request.field_violations.add(field=path, description=words)
    return request


def _details(error: grpc.aio.AioRpcError) -> status_pb2.Status:
    trailers = cast(Iterable[tuple[str, bytes]], error.trailing_metadata() or ())
    for key, value in trailers:
        if key == "grpc-status-details-bin":
            return status_pb2.Status.FromString(value)
    return status_pb2.Status()


def _reason(status: status_pb2.Status) -> type[errors.EsperError] | None:
    info = error_details_pb2.ErrorInfo()
    for detail in status.details:
        if detail.Unpack(info) and info.domain == DOMAIN:
            return next((cls for cls in classes() if cls.__name__ == info.reason), None)
    return None


def _fields(status: status_pb2.Status) -> dict[str, str]:
    request = error_details_pb2.BadRequest()
    for detail in status.details:
        if detail.Unpack(request):
            return {violation.field: violation.description for violation in request.field_violations}
    return {}


def _attach(status: status_pb2.Status, detail: object) -> None:
    packed = any_pb2.Any()
    packed.Pack(detail)  # type: ignore[arg-type]  # google.rpc has no stubs
    status.details.append(packed)


def _number(code: grpc.StatusCode) -> int:
    number: int = code.value[0]
    return number


def _cut(text: str, size_bytes: int) -> str:
    raw = text.encode()
    return text if len(raw) <= size_bytes else raw[: size_bytes - 3].decode(errors="ignore") + "…"
