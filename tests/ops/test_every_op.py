"""What every operator must do, whatever it computes. Ops are those of backends.OPS, arguments are in op_samples.py."""

import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from esper.ops import backends

from .op_samples import COPIES, LARGE, SAMPLES, arguments, dtypes_of, results, tensors_in

BACKENDS = ["reference", "cpp"]
KNOWN = [(op, form) for op in backends.OPS for form in SAMPLES.get(op, ())]
TYPED = [(op, form, dtype) for op, form in KNOWN for dtype in dtypes_of(op)]


def named(value: object) -> str | None:
    return str(value).removeprefix("torch.") or "only"


def test_every_operator_has_a_sample_and_a_row_in_the_table_of_ops():
    registered = {name.removeprefix("esper::") for name in torch._C._dispatch_get_all_op_names() if "esper::" in name}
    assert {name.partition(".")[0] for name in registered} == set(backends.OPS)
    assert set(backends.OPS) <= set(SAMPLES)


@pytest.fixture
def quiet_torch() -> Iterator[None]:
    torch._dynamo.reset()
    with warnings.catch_warnings():
        # raised inside torch by its own tools
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torch\.")
        yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("quiet_torch")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("op", "form"), KNOWN, ids=named)
def test_opcheck(using, op, form, backend):
    """In half precision; each op's own tests do it in float32, with gradients."""
    dtype = torch.bfloat16 if torch.bfloat16 in dtypes_of(op) else torch.float32
    with using(backend):
        torch.library.opcheck(getattr(torch.ops.esper, op).default, arguments(op, form, dtype))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("op", "form", "dtype"), TYPED, ids=named)
def test_two_runs_are_bit_equal_and_write_every_element(using, op, form, dtype, backend):
    """What an op allocates is full of NaN here, and no right result of these arguments is."""
    with using(backend):
        first, again = (results(op, arguments(op, form, dtype)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert all(t.isfinite().all() for t in first)


@pytest.fixture
def threads() -> Iterator[None]:
    kept = torch.get_num_threads()
    yield
    torch.set_num_threads(kept)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(("op", "form", "dtype"), TYPED, ids=named)
def test_results_do_not_depend_on_the_number_of_threads(using, op, form, dtype):
    found: list[list[Tensor]] = []
    with using("cpp"):
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(results(op, arguments(op, form, dtype, rows=LARGE)))
    assert all(torch.equal(a, b) for more in found[1:] for a, b in zip(found[0], more, strict=True))


def repeated(value: object) -> object:
    """Every row the first one, without memory of its own: stride 0."""
    if isinstance(value, Tensor):
        return value[:1].expand(value.shape)
    return [repeated(entry) for entry in value] if isinstance(value, list) else value


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("op", "form"), [(op, form) for op, form in KNOWN if op in COPIES], ids=named)
def test_a_tensor_of_stride_0_is_read_like_its_copy(using, op, form, backend):
    given = arguments(op, form, torch.float32)
    expanded = tuple(repeated(value) if place in COPIES[op] else value for place, value in enumerate(given))
    assert any(0 in t.stride() for t in tensors_in(expanded))
    fresh = arguments(op, form, torch.float32)
    copied = [
        [t.contiguous() for t in tensors_in(value)] if isinstance(value, list) and place in COPIES[op]
        else value.contiguous() if place in COPIES[op] and value is not None
        else fresh[place]
        for place, value in enumerate(expanded)
    ]  # fmt: skip
    with using(backend):
        got, want = results(op, expanded), results(op, tuple(copied))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
