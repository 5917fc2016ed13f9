"""advance_state: every implementation against the host's own formula, bit for bit, and what is refused."""

import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from torch._subclasses.fake_tensor import FakeTensorMode

from esper.errors import InvalidRequest, ShapeMismatch
from esper.ops import advance_state, advance_state_reference, state_mask

from .conftest import INTERPRETED
from .state_cases import NAMES, Table, assert_same, expected, make, tables

KERNELS = ["triton"] if INTERPRETED else ["cpp"]  # see test_blend.py
BACKENDS = KERNELS if INTERPRETED else ["auto", "reference", "cpp"]


@pytest.mark.parametrize("backend", BACKENDS)
@given(table=tables())
@settings(max_examples=60 if INTERPRETED else 200)
def test_a_step_is_the_hosts_own_formula_bit_for_bit(using, backend, table):
    want = expected(table)
    with using(backend):
        table.advance()
    assert_same(table, want)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seeds", [0, 1, 1023, 1024, 1025, 3000])
def test_a_table_of_any_size_takes_several_steps(using, backend, seeds):
    table = make(seeds)
    want = table.clone()
    with using(backend):
        for _ in range(3):
            table.advance()
            want = expected(want)
    assert_same(table, want)


def test_the_reference_is_the_formula():
    nan, states = float("nan"), torch.tensor([5, 5, 5, 6, 1, 5], dtype=torch.uint8)
    alphas, ages, step = torch.full((6,), nan), torch.zeros(6, dtype=torch.int64), torch.tensor([9])
    begins, lengths = torch.tensor([8, 10, 2, 8, 8, 8]), torch.tensor([4, 0, 4, 4, 4, -1])
    advance_state_reference(alphas, ages, step, states, begins, lengths, 1 << 5, 1 << 5 | 1 << 6)
    assert step.item() == 10
    assert [str(a) for a in alphas.tolist()] == ["0.5", "1.0", "1.0", "nan", "nan", "nan"]
    assert ages.tolist() == [1, 1, 1, 1, 0, 1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_columns_of_one_buffer_are_a_table(using, backend):
    """Neighbours in memory do not share it."""
    table, buffer = make(7), torch.zeros(3, 7, dtype=torch.int64)
    table = replace(table, ages=buffer[0], ramp_begins=buffer[1], ramp_steps=buffer[2])
    want = expected(table)
    with using(backend):
        table.advance()
    assert_same(table, want)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_backward_that_kept_the_alphas_of_an_earlier_step_raises(using, backend):
    table, x = make(3), torch.ones(3, requires_grad=True)
    out = x * table.alphas
    with using(backend):
        table.advance()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.mark.parametrize("backend", ["reference", "cpp"])
@pytest.mark.parametrize("seeds", [0, 5])
def test_opcheck(using, backend, seeds):
    with using(backend), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torch\.")
        torch.library.opcheck(torch.ops.esper.advance_state.default, make(seeds).flat())


def test_a_compiled_step_is_one_graph_and_equals_the_eager_one():
    table = make(20)
    want = expected(expected(table))
    torch.compiler.reset()
    compiled = torch.compile(lambda *columns: advance_state(*columns, ramping=1 << 5, counting=0b1111100000),
                             backend="aot_eager", fullgraph=True)  # fmt: skip
    with torch.compiler.set_stance("default"):
        compiled(*table.tensors)
    with torch.compiler.set_stance("fail_on_recompile"):
        compiled(*table.tensors)
    torch.compiler.reset()
    assert_same(table, want)


def test_nothing_reads_a_value():
    """Fake tensors have none: an .item() would raise."""
    with FakeTensorMode():
        make(4).advance()


def test_vmap_is_refused():
    table = make(4)
    with pytest.raises(InvalidRequest, match="a model has one step, and vmap would take it once per example"):
        torch.vmap(lambda ages: advance_state(*replace(table, ages=ages).tensors, ramping=0, counting=0))(
            torch.zeros(2, 4, dtype=torch.int64)
        )


def changed(**columns) -> Table:
    return replace(make(4), **columns)


TABLE = make(4)
INT, MASK, SHARED = torch.int64, 1 << 63, "shares memory with"
REFUSED = {
    "alphas dtype": (changed(alphas=torch.zeros(4).double()), InvalidRequest, "alphas", "float64; .* torch.float32"),
    "ages dtype": (changed(ages=torch.zeros(4).int()), InvalidRequest, "ages", "dtype torch.int32; .* torch.int64"),
    "step dtype": (changed(step=torch.zeros(1)), InvalidRequest, "step", "dtype torch.float32"),
    "states dtype": (changed(states=torch.zeros(4)), InvalidRequest, "states", "dtype torch.float32; .* torch.uint8"),
    "begins dtype": (changed(ramp_begins=torch.zeros(4)), InvalidRequest, "ramp_begins", "dtype torch.float32"),
    "steps dtype": (changed(ramp_steps=torch.zeros(4)), InvalidRequest, "ramp_steps", "dtype torch.float32"),
    "alphas shape": (changed(alphas=torch.zeros(2, 2)), ShapeMismatch, "alphas", r"\[2, 2\]"),
    "ages shape": (changed(ages=torch.zeros(3, dtype=INT)), ShapeMismatch, "ages", r"\[3\]"),
    "step shape": (changed(step=torch.tensor(3)), ShapeMismatch, "step", r"is \[\]"),
    "states shape": (changed(states=torch.zeros(5).byte()), ShapeMismatch, "states", r"\[5\]"),
    "device": (changed(ages=torch.zeros(4, dtype=INT, device="meta")), InvalidRequest, "ages", "on meta, alphas"),
    "gaps": (changed(ages=torch.zeros(8, dtype=INT)[::2]), InvalidRequest, "ages", "stride 2; .* contiguous"),
    "negative mask": (changed(ramping=-1), InvalidRequest, "ramping", "is -1; it must be 0 to"),
    "mask too large": (changed(counting=MASK), InvalidRequest, "counting", f"is {MASK}"),
    "ages in begins": (changed(ramp_begins=TABLE.ages, ages=TABLE.ages), InvalidRequest, "ages", f"{SHARED} ramp"),
    "step in ages": (changed(ages=TABLE.ages, step=TABLE.ages[3:]), InvalidRequest, "ages", f"{SHARED} step"),
    "a gradient": (changed(alphas=torch.zeros(4, requires_grad=True)), InvalidRequest, "alphas", "requires a gradient"),
}  # fmt: skip


ENTRIES = [
    (entry, backend, r) for entry in ("function", "operator") for backend in ("reference", "cpp") for r in REFUSED
]
TOO_LARGE = [("operator", backend, "mask too large") for backend in ("reference", "cpp")]  # torch's: an int has 64 bits


@pytest.mark.parametrize(("entry", "backend", "refused"), [entry for entry in ENTRIES if entry not in TOO_LARGE])
def test_a_wrong_argument_is_named_and_nothing_is_written(using, entry, backend, refused):
    table, error, name, message = REFUSED[refused]
    step = table.step.clone()
    with using(backend), pytest.raises(error, match=message) as caught:
        table.advance() if entry == "function" else torch.ops.esper.advance_state(*table.flat())
    assert str(caught.value).startswith(f"advance_state: {name} ")
    assert list(caught.value.fields) == [name]
    assert torch.equal(table.step, step)


NATIVE = {
    "alphas dtype": "alphas has dtype Double, must be Float",
    "ages dtype": "ages has dtype Int, must be Long",
    "step dtype": "step has dtype Float, must be Long",
    "states dtype": "states has dtype Float, must be Byte",
    "alphas shape": r"alphas is \[2, 2\], must be \[S\]",
    "ages shape": r"ages is \[3\], must be a contiguous \[4\]",
    "step shape": r"step is \[\], must be a contiguous \[1\]",
    "gaps": r"ages is \[4\], must be a contiguous \[4\]",
    "negative mask": "ramping is -1",
    "ages in begins": "ages shares memory with ramp_begins",
    "step in ages": "ages shares memory with step",
}


@pytest.mark.parametrize("refused", NATIVE)
def test_the_library_refuses_by_name_and_does_not_crash(using, refused):
    """Anybody may call the library without Esper's checks."""
    table = REFUSED[refused][0]
    step = table.step.clone()
    with using("cpp"), pytest.raises(RuntimeError, match=NATIVE[refused]):
        torch.ops.esper_native.advance_state(*table.flat())
    assert torch.equal(table.step, step)


def test_every_column_can_be_refused():
    assert {name for _, _, name, _ in REFUSED.values()} >= set(NAMES)


def test_a_mask_has_a_bit_for_each_state():
    assert state_mask([]) == 0
    assert state_mask([1, 5, 62]) == 1 << 1 | 1 << 5 | 1 << 62
    for state in (-1, 63):
        with pytest.raises(InvalidRequest, match=f"state {state} has no bit in a mask"):
            state_mask([state])
