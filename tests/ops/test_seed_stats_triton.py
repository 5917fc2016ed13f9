"""What seed_stats' Triton kernels compile to in calls beyond those of tests/ops/test_aot.py."""

import re

import pytest

from tests.requirements import require

from .test_blend_triton import missing, own_cache  # noqa: F401  own_cache is a fixture

if not missing:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

ALIGNED = [["tt.divisibility", 16]]


@pytest.fixture(scope="module")
def kernels():
    require("triton", missing)
    import kernels_triton.seed_stats

    return kernels_triton.seed_stats


def compile_kernel(kernels, name, target, dtype="fp32", ones=()):
    """`name` as its launcher calls it: pointers, widths and first columns divisible by 16; `ones` are 1, a constant."""
    kernel = getattr(kernels, name)
    kinds = {
        "values_ptr": f"*{dtype}", "stats_ptr": "*fp32", "parts_ptr": "*fp64", "bins_ptr": "*i64", "alive_ptr": "*i8",
        "rows": "i32", "width": "i32", "begin": "i32", "narrow": "i32", "unit": "i32", "tiles": "i32",
        "programs": "i32", "channels": "i32", "decay": "fp32",
    }  # fmt: skip
    math = triton.language.float64 if dtype == "fp64" else triton.language.float32
    wide = name == "count_kernel"
    constants = {"MATH": math, "ROWS": 1 if wide else 32, "COLS": kernels.TILE, "BLOCK": kernels.JOIN}
    constants |= dict.fromkeys(ones, 1)
    signature = {arg: "constexpr" if arg in ones else kinds.get(arg, "constexpr") for arg in kernel.arg_names}
    aligned = [arg.endswith("_ptr") or arg in ("width", "begin", "narrow") for arg in kernel.arg_names]
    attributes = {
        (place,): ALIGNED for place, there in enumerate(aligned) if there and kernel.arg_names[place] not in ones
    }
    chosen = {arg: constants[arg] for arg, kind in signature.items() if kind == "constexpr"}
    source = ASTSource(fn=kernel, signature=signature, constexprs=chosen, attrs=attributes)
    return triton.compile(source, target=target, options={"num_warps": 4})


@pytest.mark.parametrize("arch", [80, 90, 100])
def test_the_second_pass_and_float64_compile(kernels, arch):
    compile_kernel(kernels, "join_kernel", GPUTarget("cuda", arch, 32))
    compile_kernel(kernels, "count_kernel", GPUTarget("cuda", arch, 32), "fp64")


@pytest.mark.parametrize("target", [("cuda", 90, 32), ("hip", "gfx942", 64)], ids=str)
def test_sizes_of_1_which_triton_makes_constants_compile(kernels, target):
    sizes = ("rows", "width", "narrow", "unit", "tiles")
    for ones in (("rows",), ("unit",), sizes):
        compile_kernel(kernels, "count_kernel", GPUTarget(*target), ones=ones)
    compile_kernel(kernels, "join_kernel", GPUTarget(*target), ones=("programs", "channels"))


def test_rows_and_columns_are_numbered_in_64_bits(kernels):
    """Before the product with a stride: 2**31 elements is 8 GB, a size people have."""
    ttir = compile_kernel(kernels, "count_kernel", GPUTarget("cuda", 90, 32)).asm["ttir"]
    addresses = re.findall(r"tt\.addptr .*, (tensor<\d+x2048x\S+)", ttir)
    assert addresses
    assert all("i64" in kind for kind in addresses), addresses
