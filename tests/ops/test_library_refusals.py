"""What the native library says of arguments that no check of Esper's has seen: an error that names them, no crash.

Shapes, dtypes and spans of blend are in test_blend_arguments.py; here are devices, layouts, memory and extremes.
"""

import re

import pytest
import torch
from torch import Tensor

from esper.ops import backends, extension
from tests.requirements import require

from .schemas import defined

SCHEMAS = defined()
LARGEST, LEAST = 2**63 - 1, -(2**63)
HOST, SEED, ALPHAS = torch.zeros(2, 8), torch.ones(2, 8), torch.ones(1)
MAP = torch.zeros(2, 8, 3, 4)


@pytest.fixture(autouse=True)
def loaded() -> None:
    require("cpp", extension.load().missing)


def arguments(schema: str, device: str) -> list[object]:
    """Something for each argument of `schema`, every tensor on `device`."""
    made = {"Tensor": torch.zeros(2, 8), "Tensor[]": [torch.zeros(2, 8)], "int[]": [0, 8], "int": 1, "bool": False}
    made |= {"float": 0.5, "Tensor?": None}
    kinds = [re.sub(r"\(\w!\)", "", text.split()[0]) for text in re.search(r"\((.*)\) ->", schema)[1].split(", ")]
    values = [made[kind] for kind in kinds]
    return [
        v.to(device) if isinstance(v, Tensor) else [t.to(device) for t in v] if k == "Tensor[]" else v
        for k, v in zip(kinds, values, strict=True)
    ]


@pytest.mark.parametrize("op", backends.OPS)
def test_every_op_names_an_argument_on_a_device_it_has_no_code_for(op):
    """An op that is not in csrc/elsewhere.cpp gets torch's message, which names none."""
    first = re.search(r"\(Tensor\S* (\w+)", SCHEMAS[op])[1]
    with torch.no_grad(), pytest.raises(RuntimeError, match=rf"{op}: {first} is on meta; this library has code for"):
        getattr(torch.ops.esper_native, op)(*arguments(SCHEMAS[op], "meta"))


NAMED = {
    "host device": ((HOST.to("meta"), [SEED], ALPHAS, [0, 8], 1, False), "blend: host is on meta"),
    "seed device": ((HOST, [SEED, SEED.to("meta")], torch.ones(2), [0, 8, 0, 8], 1, False), r"seeds\[1\] is on meta"),
    "alphas device": ((HOST, [SEED], ALPHAS.to("meta"), [0, 8], 1, False), "alphas is on meta"),
    "host sparse": ((HOST.to_sparse(), [SEED], ALPHAS, [0, 8], 1, False), "host is sparse"),
    "seed sparse": ((HOST, [SEED.to_sparse()], ALPHAS, [0, 8], 1, False), r"seeds\[0\] is sparse"),
    "alphas sparse": ((HOST, [SEED], ALPHAS.to_sparse(), [0, 8], 1, False), r"alphas is sparse .*use \.to_dense\(\)"),
    "host onednn": ((HOST.to_mkldnn(), [SEED], ALPHAS, [0, 8], 1, False), "host is sparse or of another layout"),
    "host expanded": (
        (torch.zeros(1, 8).expand(2, 8), [SEED], ALPHAS, [0, 8], 1, False),
        r"host \[2, 8\] has stride 0 in dimension 0 where a dense tensor of the op's layout has 1; pass .contiguous()",
    ),
    "host overlapping": (
        (torch.zeros(16).as_strided((2, 8), (4, 1)), [SEED], ALPHAS, [0, 8], 1, False),
        r"host \[2, 8\] has stride 4 in dimension 0",
    ),
    "seed expanded": (
        (HOST, [torch.ones(2, 1).expand(2, 8)], ALPHAS, [0, 8], 1, False),
        r"seeds\[0\] \[2, 8\] has stride 0 in dimension 1",
    ),
    "seed gaps": ((HOST, [torch.ones(2, 16)[:, ::2]], ALPHAS, [0, 8], 1, False), r"seeds\[0\] \[2, 8\] has stride 2"),
    "seed order": (
        (MAP, [MAP.contiguous(memory_format=torch.channels_last)], ALPHAS, [0, 8], 1, False),
        r"seeds\[0\] \[2, 8, 3, 4\] has stride .* pass .contiguous\(\) tensors, or all channels-last",
    ),
    "alphas expanded": (
        (HOST, [SEED, SEED], ALPHAS.expand(2), [0, 8, 0, 8], 1, False),
        r"alphas is \[2\], must be a contiguous \[2\]",
    ),
    "alphas matrix": ((HOST, [SEED], torch.ones(1, 1), [0, 8], 1, False), r"alphas is \[1, 1\]"),
    "complex": ((HOST.cfloat(), [SEED.cfloat()], ALPHAS, [0, 8], 1, False), "host has dtype ComplexFloat"),
    "bool": ((HOST.bool(), [SEED.bool()], ALPHAS, [0, 8], 1, False), "host has dtype Bool"),
    "double beside float": (
        (HOST, [SEED.double()], ALPHAS, [0, 8], 1, False),
        r"seeds\[0\] has dtype Double, must be Float",
    ),
    "largest span": ((HOST, [SEED], ALPHAS, [0, LARGEST], 1, False), rf"slot 0 covers channels \[0, {LARGEST}\)"),
    "least span": ((HOST, [SEED], ALPHAS, [LEAST, 8], 1, False), rf"slot 0 covers channels \[{LEAST}, 8\)"),
    "span from end to end": ((HOST, [SEED], ALPHAS, [LEAST, LARGEST], 1, True), "not inside"),
    "largest dimension": ((HOST, [SEED], ALPHAS, [0, 8], LARGEST, False), f"channel_dim is {LARGEST}"),
    "least dimension": ((HOST, [SEED], ALPHAS, [0, 8], LEAST, False), f"channel_dim is {LEAST}"),
}


@pytest.mark.parametrize("case", NAMED)
def test_blend_names_the_argument(case):
    given, message = NAMED[case]
    with torch.no_grad(), pytest.raises(RuntimeError, match=message):
        torch.ops.esper_native.blend(*given)


BACKWARD = {
    "grad device": ((HOST.to("meta"), None, [SEED], ALPHAS, [0, 8], 1, False), "blend_backward: grad is on meta"),
    "host device": ((HOST, HOST.to("meta"), [SEED], ALPHAS, [0, 8], 1, True), "host is on meta"),
    "seed sparse": ((HOST, None, [SEED.to_sparse()], ALPHAS, [0, 8], 1, False), r"seeds\[0\] is sparse"),
    "grad expanded": (
        (torch.ones(()).expand(2, 8), None, [], ALPHAS, [0, 8], 1, False),
        r"grad \[2, 8\] has stride 0",
    ),
    "grad dtype": ((HOST.int(), None, [], ALPHAS, [0, 8], 1, False), "grad has dtype Int"),
    "host dtype": ((HOST, HOST.double(), [SEED], ALPHAS, [0, 8], 1, True), "host has dtype Double, must be Float"),
    "host order": ((HOST, torch.zeros(8, 2).t(), [SEED], ALPHAS, [0, 8], 1, True), r"host \[2, 8\] has stride"),
    "host unread": ((HOST, HOST, [SEED], ALPHAS, [0, 8], 1, False), "host must be given exactly where it is read"),
    "seeds too few": ((HOST, None, [SEED], torch.ones(2), [0, 8, 0, 8], 1, False), "seeds has 1 entries, spans 4"),
    "alphas shape": ((HOST, None, [], torch.ones(2), [0, 8], 1, False), r"alphas is \[2\]"),
    "spans": ((HOST, None, [], ALPHAS, [0, 9], 1, False), r"slot 0 covers channels \[0, 9\)"),
    "overlap": ((HOST, None, [], torch.ones(2), [0, 5, 4, 8], 1, True), "slots 0 and 1 overlap"),
    "channel_dim": ((HOST, None, [], ALPHAS, [0, 8], -1, False), "channel_dim is -1"),
}


@pytest.mark.parametrize("case", BACKWARD)
def test_blend_backward_names_the_argument(case):
    given, message = BACKWARD[case]
    with torch.no_grad(), pytest.raises(RuntimeError, match=message):
        torch.ops.esper_native.blend_backward(*given)


@pytest.mark.parametrize("op", ["blend", "blend_backward"])
def test_no_gradient_is_dropped_in_grad_mode(op):
    """Whether or not an input asks for one; and a recorded backward says it too."""
    given = arguments(SCHEMAS[op], "cpu")
    for wants in (False, True):
        given[0].requires_grad_(wants)
        with pytest.raises(RuntimeError, match=f"{op}: this library records no autograd graph and grad mode is on"):
            getattr(torch.ops.esper_native, op)(*given)


def test_a_view_that_negates_is_read_as_what_it_shows():
    """Its memory holds the other sign; torch settles that before the library sees it."""
    negated = torch.complex(torch.ones(2, 8), torch.ones(2, 8)).conj().imag
    assert negated.is_neg()
    with torch.no_grad():
        out = torch.ops.esper_native.blend(HOST, [negated], ALPHAS, [0, 8], 1, False)
    assert torch.equal(out, -torch.ones(2, 8))
