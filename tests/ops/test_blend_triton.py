"""blend's Triton kernels in forms that are not compiled ahead of time, and their 64-bit offsets; see test_aot.py."""

import re

import pytest
import torch

from tests.requirements import require

try:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    missing = ""
except ImportError as error:
    missing = f"{error}: pip install 'esper[triton]'"

ALIGNED = [["tt.divisibility", 16]]


@pytest.fixture(scope="module")
def kernels():
    require("triton", missing)
    import kernels_triton.blend

    return kernels_triton.blend


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """No kernel of an earlier run is taken for this one's."""
    if not missing:
        monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path_factory.getbasetemp() / "triton"))


def compile_kernel(kernels, name, target, dtype="fp32", slots=2, *, convex=True, sums=True):
    """`name` as its launcher calls it: pointers and column bounds divisible by 16."""
    kernel, many = getattr(kernels, name), (f"*{dtype}",) * slots
    kinds = {
        "host_ptr": f"*{dtype}", "grad_ptr": f"*{dtype}", "out_ptr": f"*{dtype}", "d_host_ptr": f"*{dtype}",
        "seed_ptrs": many, "d_seed_ptrs": many, "alphas_ptr": "*fp32", "shares_ptr": "*fp32", "d_alphas_ptr": "*fp32",
        "states_ptr": "*u8", "active": "i64",
        "rows": "i32", "width": "i32", "programs": "i32", "begins": ("i32",) * slots, "ends": ("i32",) * slots,
    }  # fmt: skip
    constants = {
        "SLOTS": slots, "CONVEX": convex, "SUMS": sums, "MATH": triton.language.float32, "ROWS": 1, "COLS": 1024,
        "BLOCK": 1024,
    }  # fmt: skip
    signature = {arg: kinds.get(arg, "constexpr") for arg in kernel.arg_names}
    attributes = {}
    for place, arg in enumerate(kernel.arg_names):
        if arg in ("begins", "ends", "seed_ptrs", "d_seed_ptrs"):
            attributes |= {(place, slot): ALIGNED for slot in range(slots)}
        elif arg.endswith("_ptr") or arg == "width":
            attributes[place,] = ALIGNED
    chosen = {arg: constants[arg] for arg, kind in signature.items() if kind == "constexpr"}
    source = ASTSource(fn=kernel, signature=signature, constexprs=chosen, attrs=attributes)
    return triton.compile(source, target=target, options={"num_warps": 4})


@pytest.mark.parametrize("target", [("cuda", 90, 32), ("hip", "gfx942", 64)], ids=str)
@pytest.mark.parametrize("convex", [False, True])
@pytest.mark.parametrize("slots", [1, 3])
def test_every_form_compiles(kernels, target, convex, slots):
    for sums in (False, True):
        compile_kernel(kernels, "backward_kernel", GPUTarget(*target), slots=slots, convex=convex, sums=sums)
    for name in ("forward_kernel", "in_place_kernel"):
        compile_kernel(kernels, name, GPUTarget(*target), "fp64", slots=slots, convex=convex)
    compile_kernel(kernels, "sum_kernel", GPUTarget(*target))


@pytest.mark.parametrize("name", ["forward_kernel", "in_place_kernel"])
def test_rows_and_columns_are_numbered_in_64_bits(kernels, name):
    """Before the product with a stride: 2**31 elements is 8 GB, a size people have."""
    ttir = compile_kernel(kernels, name, GPUTarget("cuda", 90, 32)).asm["ttir"]
    products = re.findall(r"arith\.muli .* : (\S+)", ttir)
    addresses = re.findall(r"tt\.addptr .*, (tensor<\S+)", ttir)
    assert addresses
    assert all("i64" in kind for kind in addresses), addresses
    assert products
    assert all("i64" in kind for kind in products), products


def test_without_a_gpu_the_launcher_is_not_chosen():
    from esper.ops import backends

    require("triton", missing)
    if torch.cuda.is_available():
        assert backends.why_not("triton", "cuda") == ""
    else:
        assert "sees no CUDA device" in backends.why_not("triton", "cuda")
    assert "TRITON_INTERPRET=1" in backends.why_not("triton", "cpu")
