"""The status table: complete, and reversible where a class is public."""

import grpc
import pytest
from google.rpc import status_pb2

from esper import errors
from esper.rpc.status import MAX_DETAILS_BYTES, STATUS, classes, from_rpc, status_of, to_rpc


def on_the_wire(status: grpc.Status) -> grpc.aio.AioRpcError:
    trailers = grpc.aio.Metadata(*status.trailing_metadata)
    return grpc.aio.AioRpcError(status.code, grpc.aio.Metadata(), trailers, details=status.details)


def test_every_class_of_the_tree_has_a_row_of_its_own_or_of_an_ancestor_below_the_base():
    for cls in classes():
        if cls is not errors.EsperError:
            ancestors = [c for c in cls.__mro__ if c in STATUS and c is not errors.EsperError]
            assert ancestors, f"{cls.__name__} needs a row in STATUS"


def test_the_table_has_no_row_for_a_class_that_does_not_exist():
    assert set(STATUS) <= set(classes())


@pytest.mark.parametrize("cls", list(classes()), ids=lambda cls: cls.__name__)
def test_a_class_survives_the_wire(cls):
    error = from_rpc(on_the_wire(to_rpc(cls("site a: 3 seen, 2 allowed"))))
    assert type(error) is cls
    assert str(error) == "site a: 3 seen, 2 allowed"


def test_fields_survive_the_wire():
    error = from_rpc(on_the_wire(to_rpc(errors.InvalidBlueprint("bad", {"nodes[0].name": "empty"}))))
    assert isinstance(error, errors.InvalidBlueprint)
    assert error.fields == {"nodes[0].name": "empty"}


def test_a_components_own_subclass_travels_as_its_public_ancestor():
    class PageMissing(errors.NotFound):
        pass

    status = to_rpc(PageMissing("page 3"))
    assert status.code is grpc.StatusCode.NOT_FOUND
    assert type(from_rpc(on_the_wire(status))) is errors.NotFound


@pytest.mark.parametrize(
    ("code", "cls"),
    [
        (grpc.StatusCode.OUT_OF_RANGE, errors.OutOfRange),
        (grpc.StatusCode.ABORTED, errors.Conflict),
        (grpc.StatusCode.PERMISSION_DENIED, errors.Unauthenticated),
        (grpc.StatusCode.INTERNAL, errors.EsperError),
        (grpc.StatusCode.UNKNOWN, errors.EsperError),
        (grpc.StatusCode.UNIMPLEMENTED, errors.EsperError),
        *[(code, cls) for cls, code in STATUS.items() if code is not grpc.StatusCode.INTERNAL],
    ],
)
def test_a_peer_without_our_details_is_read_by_code(code, cls):
    bare = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details="no words")
    error = from_rpc(bare, "127.0.0.1:1/esper.X/Y")
    assert type(error) is cls
    assert "127.0.0.1:1/esper.X/Y" in str(error)
    assert code.name in str(error)


def test_a_reason_that_is_no_error_of_ours_is_read_by_code():
    status = to_rpc(errors.NotFound("x"))
    rich = status_pb2.Status.FromString(status.trailing_metadata[0][1])
    rich.details[0].value = rich.details[0].value.replace(b"NotFound", b"SysExit_")
    trailers = grpc.aio.Metadata(("grpc-status-details-bin", rich.SerializeToString()))
    error = from_rpc(grpc.aio.AioRpcError(status.code, grpc.aio.Metadata(), trailers, details="x"))
    assert type(error) is errors.NotFound


def test_a_status_fits_in_trailers_however_much_is_wrong():
    fields = {f"signals[{i}].site": "é" * 400 for i in range(5000)}
    status = to_rpc(errors.InvalidRequest("x" * 100_000, fields))
    assert len(status.trailing_metadata[0][1]) < MAX_DETAILS_BYTES + 2048
    assert len(status.details.encode()) <= 768
    assert "more" in from_rpc(on_the_wire(status)).fields[""]


def test_a_contract_may_name_another_code_than_the_table():
    status = to_rpc(errors.PreconditionFailed("dropped"), grpc.StatusCode.OUT_OF_RANGE)
    assert status.code is grpc.StatusCode.OUT_OF_RANGE
    assert isinstance(from_rpc(on_the_wire(status)), errors.PreconditionFailed)


def test_conflict_is_not_a_code_that_invites_retries():
    assert status_of(errors.Conflict("x")) is grpc.StatusCode.ALREADY_EXISTS
