"""What a message that breaks a rule of its proto is told: the field, the limit, the value."""

import pytest

from esper.api.common.v1 import interface_pb2
from esper.api.kasmina.v1 import execution_pb2
from esper.api.urza.v1 import library_pb2
from esper.errors import InvalidRequest
from esper.rpc.validation import validate

SITE = interface_pb2.Interface(kind=interface_pb2.TENSOR_KIND_MAP2D, channels=8, element_type=1)


def search(**fields):
    return library_pb2.SearchKernelsRequest(**{"interface": SITE, **fields})


@pytest.mark.parametrize(
    ("message", "field", "words"),
    [
        (search(limit=5000), "limit", "must be less than or equal to 1000, got 5000"),
        (search(max_risk=2.5), "max_risk", "got 2.5"),
        (execution_pb2.ListSeedsRequest(run_id="No"), "run_id", ", got 'No'"),
        (execution_pb2.ListSeedsRequest(run_id="x" * 500), "run_id", f", got '{'x' * 64}'... of 500 characters"),
        (execution_pb2.ListSeedsRequest(run_id="run", state=99), "state", "got 99"),
    ],
    ids=str,
)
def test_the_value_is_named_beside_the_limit(message, field, words):
    with pytest.raises(InvalidRequest) as caught:
        validate(message)
    assert words in caught.value.fields[field] and f"{field} {caught.value.fields[field]}" in str(caught.value)


def test_a_value_that_is_none_or_a_message_is_not_written_out():
    with pytest.raises(InvalidRequest) as caught:
        validate(library_pb2.SearchKernelsRequest())
    assert caught.value.fields == {"interface": "value is required"}
