"""What every op must do on a CUDA device, whatever it computes. `python -m bench.gpu` runs it under memcheck too."""

import pytest
import torch

from esper.ops import backends
from tests.ops.conftest import poisoned_memory  # noqa: F401  used by every test here
from tests.ops.op_samples import SAMPLES, arguments, dtypes_of, results
from tests.requirements import require

pytestmark = pytest.mark.gpu

KNOWN = [(op, form) for op in backends.OPS for form in SAMPLES[op]]
TYPED = [(op, form, dtype) for op, form in KNOWN for dtype in dtypes_of(op)]


def named(value: object) -> str | None:
    return str(value).removeprefix("torch.") or "only"


@pytest.fixture(params=["cuda", "triton"])
def backend(request):
    require("gpu", "" if torch.cuda.is_available() else "torch sees no CUDA device: run `make gpu` where there is one")
    require(request.param, backends.why_not(request.param, "cuda"))
    with backends.forced(request.param):
        yield request.param


@pytest.mark.parametrize(("op", "form", "dtype"), TYPED, ids=named)
def test_two_runs_are_bit_equal_and_write_every_element(backend, op, form, dtype):
    first, again = (results(op, arguments(op, form, dtype, device="cuda")) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert all(t.isfinite().all() for t in first)


@pytest.mark.parametrize(("op", "form"), KNOWN, ids=named)
def test_opcheck(backend, op, form):
    torch.library.opcheck(getattr(torch.ops.esper, op).default, arguments(op, form, torch.float32, device="cuda"))
