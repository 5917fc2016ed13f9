"""Kernels compiled ahead of time, launched from their bytes on a CUDA device."""

import subprocess
import sys

import pytest
import torch

from esper.ops import blend_reference, cubin, extension
from tests.requirements import require

pytestmark = pytest.mark.gpu

ROWS, WIDTH = 64, 4_096
SPANS = (0, WIDTH // 2, WIDTH // 2, WIDTH)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
NAME = "blend_forward_fp32_2_convex"
KNOWN = {(8, 0): "sm_80", (9, 0): "sm_90", (10, 0): "sm_100"}


@pytest.fixture(scope="module")
def device() -> torch.device:
    require("gpu", "" if torch.cuda.is_available() else "torch sees no CUDA device: run `make gpu` where there is one")
    require("cpp", extension.load().missing)
    capability = torch.cuda.get_device_capability()
    known = capability in KNOWN
    require("a GPU that is compiled for", "" if known else f"capability {capability} is none of {sorted(KNOWN)}")
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture(scope="module")
def compiled(device, tmp_path_factory):
    """Compiled by another process, as a user's would be."""
    folder = tmp_path_factory.mktemp("cubin")
    command = [sys.executable, "-m", "kernels_triton.aot", "--out", folder, "--kernels", "blend_forward_*"]
    subprocess.run(command, check=True)
    return folder


def inputs(device, dtype=torch.float32, rows=ROWS, width=WIDTH):
    torch.manual_seed(0)
    host = torch.randn(rows, width, device=device).to(dtype)
    seeds = tuple(torch.randn(rows, width // 2, device=device).to(dtype) for _ in range(2))
    return host, seeds, torch.tensor([0.25, 0.75], device=device)


def grid_of(kernel, rows=ROWS, width=WIDTH):
    constants = kernel.metadata["constants"]
    return (-(-rows // constants["ROWS"]) * -(-width // constants["COLS"]), 1, 1)


def launch(kernel, host, seeds, alphas, out, **changed):
    sizes = {"rows": ROWS, "width": WIDTH, "begins": SPANS[::2], "ends": SPANS[1::2]} | changed
    kernel.launch(grid_of(kernel), host_ptr=host, seed_ptrs=seeds, alphas_ptr=alphas, out_ptr=out, **sizes)


@pytest.mark.parametrize("form", ["residual", "convex"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_blend_from_a_cubin_is_the_references(compiled, device, dtype, form):
    host, seeds, alphas = inputs(device, DTYPES[dtype])
    out = torch.full_like(host, float("nan"))
    launch(cubin.load(compiled, f"blend_forward_{dtype}_2_{form}", device), host, seeds, alphas, out)
    wide = [seed.double() for seed in seeds]
    wanted = blend_reference(host.double(), wide, alphas.double(), list(SPANS), 1, form == "convex")
    torch.testing.assert_close(out, wanted.to(host.dtype))


def test_it_needs_no_triton(compiled, device, tmp_path):
    """Every import of triton fails in this process."""
    program = f"""
import sys
sys.modules["triton"] = None
from pathlib import Path
import torch
from esper.ops import cubin
kernel = cubin.load(Path({str(compiled)!r}), "blend_forward_fp32_1_residual", torch.device("cuda"))
host, seed, out = (torch.full((1, 2048), value, device="cuda") for value in (1.0, 2.0, 0.0))
kernel.launch((2, 1, 1), host_ptr=host, seed_ptrs=(seed,), alphas_ptr=torch.full((1,), 0.5, device="cuda"),
              out_ptr=out, rows=1, width=2048, begins=(0,), ends=(2048,))
assert out.eq(2.0).all(), out
print("launched")
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout == "launched\n", run.stderr


def test_a_graph_captures_a_launch(compiled, device):
    host, seeds, alphas = inputs(device)
    kernel, out = cubin.load(compiled, NAME, device), torch.empty_like(host)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch(kernel, host, seeds, alphas, out)
    for value in (0.25, 1.0):
        alphas.fill_(value)
        graph.replay()
        torch.testing.assert_close(out, blend_reference(host, list(seeds), alphas, list(SPANS), 1, True))


def test_the_current_stream_is_used(compiled, device):
    """Work queued before the launch on the same stream is seen by it."""
    host, seeds, alphas = inputs(device)
    kernel, out = cubin.load(compiled, NAME, device), torch.empty_like(host)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(100_000_000)
        for tensor in (host, *seeds):
            tensor.fill_(3.0)
        launch(kernel, host, seeds, alphas, out)
    torch.cuda.synchronize()
    assert out.eq(3.0).all()


def load_raw(compiled, target, *, layout=None, shared_bytes=0, device=0):
    metadata, image = cubin.read(compiled, target, NAME)
    return torch.ops.esper_native.load_cubin(
        torch.frombuffer(bytearray(image), dtype=torch.uint8), metadata["kernel"],
        layout or cubin.layout(metadata["parameters"]), metadata["num_warps"], shared_bytes, device,
    )  # fmt: skip


def test_another_architectures_cubin_is_refused(compiled, device):
    here = KNOWN[torch.cuda.get_device_capability(device)]
    for other in set(KNOWN.values()) - {here}:
        with pytest.raises(RuntimeError, match=f"it is for {other}, the device is {here}; compile it for the device"):
            load_raw(compiled, other, device=device.index)


def test_a_layout_that_is_not_the_kernels_is_refused(compiled, device):
    here = KNOWN[torch.cuda.get_device_capability(device)]
    whole = cubin.layout(cubin.read(compiled, here, NAME)[0]["parameters"])
    wrong = {
        "layout has 14 parameters, the kernel 13": whole + ",null",
        "layout has 12 parameters, the kernel more": whole.removesuffix(",null"),
        "layout: parameter 5 is i64 of 8 bytes, the kernel's has 4": whole.replace("i32,", "i64,", 1),
    }
    for message, layout in wrong.items():
        with pytest.raises(RuntimeError, match=message):
            load_raw(compiled, here, layout=layout, device=device.index)


def test_more_shared_memory_than_48_kb_is_asked_for(compiled, device):
    here = KNOWN[torch.cuda.get_device_capability(device)]
    kernel = cubin.load(compiled, NAME, device)
    large = cubin.Kernel(
        handle=load_raw(compiled, here, shared_bytes=100 * 1024, device=device.index), metadata=kernel.metadata
    )
    host, seeds, alphas = inputs(device)
    out = torch.empty_like(host)
    launch(large, host, seeds, alphas, out)
    torch.testing.assert_close(out, blend_reference(host, list(seeds), alphas, list(SPANS), 1, True))
    with pytest.raises(RuntimeError, match=r"shared_bytes: the kernel needs \d+ bytes of shared memory, the device"):
        load_raw(compiled, here, shared_bytes=1 << 20, device=device.index)


def test_what_the_kernel_was_not_compiled_for_is_refused(compiled, device):
    kernel = cubin.load(compiled, NAME, device)
    host, seeds, alphas = inputs(device)
    out, room = torch.empty_like(host), torch.empty(ROWS * WIDTH + 1, device=device)
    wrong = {
        r"tensors\[0\] begins 4 bytes past a multiple of 16": {"host": room[1:]},
        r"tensors\[4\] has elements of type bf16, the kernel takes fp32": {"out": out.bfloat16()},
        r"integers\[1\] is 4088; the kernel was compiled for multiples of 16": {"width": 4_088},
        r"integers\[0\] is 2147483648, which does not fit": {"rows": 1 << 31},
        r"tensors\[3\] is on cpu; the kernel runs on a CUDA device": {"alphas": alphas.cpu()},
    }
    for message, change in wrong.items():
        given = {"host": host, "seeds": seeds, "alphas": alphas, "out": out} | change
        with pytest.raises(RuntimeError, match=message):
            launch(kernel, **given)


def test_a_tensor_on_another_device_is_refused(compiled, device):
    require("two GPUs", "" if torch.cuda.device_count() > 1 else "one is here")
    kernel = cubin.load(compiled, NAME, torch.device("cuda", 0))
    with pytest.raises(RuntimeError, match="is on cuda:1, the kernel was loaded on cuda:0"):
        host, seeds, alphas = inputs(torch.device("cuda", 1))
        launch(kernel, host, seeds, alphas, torch.empty_like(host))
