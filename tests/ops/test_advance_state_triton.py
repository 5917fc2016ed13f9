"""advance_state's Triton kernel compiled ahead of time, without a GPU: 64-bit, an exact quotient, nothing spilled."""

import re

import pytest

from tests.requirements import require

try:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    missing = ""
except ImportError as error:
    missing = f"{error}: pip install 'esper[triton]'"


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    """No kernel of an earlier run is taken for this one's."""
    require("triton", missing)
    kept, triton.knobs.cache.dir = triton.knobs.cache.dir, str(tmp_path_factory.mktemp("triton"))
    yield
    triton.knobs.cache.dir = kept


def compiled_for(target):
    from kernels_triton.advance_state import advance_kernel

    kinds = {
        "alphas_ptr": "*fp32", "ages_ptr": "*i64", "step_ptr": "*i64", "states_ptr": "*u8", "ramp_begins_ptr": "*i64",
        "ramp_steps_ptr": "*i64", "seeds": "i32", "ramping": "i64", "counting": "i64", "BLOCK": "constexpr",
    }  # fmt: skip
    source = ASTSource(fn=advance_kernel, signature=kinds, constexprs={"BLOCK": 1024})
    return triton.compile(source, target=target, options={"num_warps": 4})


@pytest.mark.parametrize("arch", [80, 90, 100])
def test_nvidia_code_divides_exactly_and_waits_before_it_writes_the_step(arch):
    compiled = compiled_for(GPUTarget("cuda", arch, 32))
    ptx = compiled.asm["ptx"]
    assert "div.rn.f64" in ptx
    assert "div.full" not in ptx
    assert "cvt.rn.f32.f64" in ptx
    assert not re.search(r"\.local", ptx)
    read, barrier, written = (re.search(pattern, ptx) for pattern in (r"ld\.global", r"bar\.sync", r"st\.global"))
    assert read.start() < barrier.start() < written.start()
    addresses = re.findall(r"tt\.addptr .*, (tensor<\S+)", compiled.asm["ttir"])
    assert addresses
    assert all("i64" in kind for kind in addresses), addresses


def test_amd_code_compiles_and_spills_nothing():
    amdgcn = compiled_for(GPUTarget("hip", "gfx942", 64)).asm["amdgcn"]
    assert "s_barrier" in amdgcn
    assert re.search(r"\.vgpr_spill_count:\s+0\b", amdgcn)
