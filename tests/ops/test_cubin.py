"""Loading and launching kernels compiled ahead of time: what is refused, and how values are packed. No GPU here."""

import importlib.util
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from esper.errors import Corrupt, InvalidRequest, NotFound, Unavailable
from esper.ops import cubin, extension
from tests.requirements import require

KERNEL = "blend_forward_bf16_2_convex"
PARAMETERS = [
    {"name": "x_ptr", "type": "*bf16", "bytes": 8, "divisible_by": 16},
    {"name": "y_ptrs.0", "type": "*fp32", "bytes": 8, "divisible_by": 1},
    {"name": "y_ptrs.1", "type": "*fp32", "bytes": 8, "divisible_by": 1},
    {"name": "width", "type": "i32", "bytes": 4, "divisible_by": 16},
    {"name": "mask", "type": "i64", "bytes": 8, "divisible_by": 1},
    {"name": "decay", "type": "fp32", "bytes": 4, "divisible_by": 1},
    {"name": "global_scratch", "type": "null", "bytes": 8, "divisible_by": 1},
]
LAYOUT = "*bf16/16,*fp32,*fp32,i32/16,i64,fp32,null"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> Path:
    """One kernel for three targets."""
    require("triton", "" if importlib.util.find_spec("triton") else "not installed: pip install 'esper[triton]'")
    from kernels_triton import aot

    folder = tmp_path_factory.mktemp("cubin")
    aot.main(["--targets", "sm_80,sm_90,sm_100,gfx942", "--out", str(folder), "--kernels", KERNEL])
    return folder


@pytest.fixture(scope="module")
def probe(tmp_path_factory):
    require("c++", "" if shutil.which("c++") else "c++ is not installed: make deps-debian")
    program = tmp_path_factory.mktemp("probe") / "probe"
    source = Path(__file__).with_name("cubin_probe.cpp")
    subprocess.run(["c++", "-std=c++17", "-Wall", "-Werror", source, "-o", program], check=True)

    def said(*words: object) -> str:
        command = [str(word) for word in (program, *words)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    return said


@pytest.mark.parametrize("sm", [80, 90, 100])
def test_an_image_tells_its_architecture(probe, compiled, sm):
    assert probe("image", compiled / f"sm_{sm}/{KERNEL}.cubin", "forward_kernel") == str(sm)


def test_what_is_no_cubin_is_named(probe, compiled, tmp_path):
    whole = (compiled / f"sm_90/{KERNEL}.cubin").read_bytes()
    assert (
        probe("image", compiled / f"sm_90/{KERNEL}.cubin", "forward_kerne") == "it holds no kernel named forward_kerne"
    )
    assert "code for an AMD GPU" in probe("image", compiled / f"gfx942/{KERNEL}.hsaco", "forward_kernel")
    wrong = {
        "it has 63 bytes, an ELF header alone has 64": whole[:63],
        "does not begin like a 64-bit little-endian ELF file": b"\0" * 64 + whole,
        "it is an ELF file for machine 62": whole[:18] + struct.pack("<H", 62) + whole[20:],
        "cut short or corrupt": whole[:-1],
    }
    for message, image in wrong.items():
        (tmp_path / "image").write_bytes(image)
        assert message in probe("image", tmp_path / "image", "forward_kernel")


def test_no_image_that_was_cut_short_passes(probe, compiled, tmp_path):
    whole = (compiled / f"sm_80/{KERNEL}.cubin").read_bytes()
    for length in range(0, len(whole), len(whole) // 16):
        (tmp_path / "image").write_bytes(whole[:length])
        assert not probe("image", tmp_path / "image", "forward_kernel").isdigit(), length


@pytest.mark.parametrize(
    ("image", "device", "runs"),
    [(80, (8, 0), True), (80, (8, 9), True), (80, (9, 0), False), (90, (8, 0), False), (90, (9, 0), True),
     (89, (8, 6), False), (100, (10, 0), True), (100, (12, 0), False)],
)  # fmt: skip
def test_code_runs_on_its_own_major_version(probe, image, device, runs):
    said = probe("arch", image, *device)
    assert said == ("" if runs else said)
    if not runs:
        assert f"it is for sm_{image}, the device is sm_{device[0]}{device[1]}; compile it for the device" in said


def test_values_are_packed_as_the_kernel_reads_them(probe):
    given = ["t:4096:bf16", "t:20:fp32", "t:24:fp32", "i:-32", "i:-5", "f:0.1"]
    wanted = [
        struct.pack("<Q", 4096), struct.pack("<Q", 20), struct.pack("<Q", 24), struct.pack("<i", -32),
        struct.pack("<q", -5), struct.pack("<f", 0.1), bytes(8),
    ]  # fmt: skip
    assert probe("pack", LAYOUT, *given) == " ".join(part.hex() for part in wanted)
    assert probe("pack", "fp64", "f:0.1") == struct.pack("<d", 0.1).hex()


@pytest.mark.parametrize(
    ("layout", "values", "message"),
    [
        ("*bf16/16", ["t:4100:bf16"], "tensors[0] begins 4 bytes past a multiple of 16; the kernel was compiled for"),
        ("*bf16/16", ["t:4096:fp32"], "tensors[0] has elements of type fp32, the kernel takes bf16"),
        ("*bf16", [], "tensors has 0 entries, the kernel takes 1"),
        ("*bf16", ["t:0:bf16", "t:0:bf16"], "tensors has 2 entries, the kernel takes 1"),
        ("i32,i64", ["i:1"], "integers has 1 entries, the kernel takes 2"),
        ("fp32", [], "floats has 0 entries, the kernel takes 1"),
        ("i32", ["i:2147483648"], "integers[0] is 2147483648, which does not fit the kernel's 32-bit parameter"),
        ("i64,i32/16", ["i:1", "i:24"], "integers[1] is 24; the kernel was compiled for multiples of 16"),
        ("i64/16", ["i:-8"], "integers[0] is -8; the kernel was compiled for multiples of 16"),
        ("i32,i31", [], 'parameter 1 is "i31"; known are *<element type>, i32, i64'),
        ("i32/8", [], 'parameter 0 is "i32/8"; known are'),
        ("fp32/16", [], 'parameter 0 is "fp32/16"; known are'),
        ("i32,", [], 'parameter 1 is ""; known are'),
    ],
)
def test_values_that_do_not_fit_are_refused_by_name(probe, layout, values, message):
    assert message in probe("pack", layout, *values)


@pytest.fixture
def ops():
    require("cpp", extension.load().missing)
    return torch.ops.esper_native


def image_of(path: Path) -> torch.Tensor:
    return torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)


def test_the_library_refuses_before_it_asks_for_a_driver(ops, compiled):
    image, layout = image_of(compiled / f"sm_90/{KERNEL}.cubin"), "*bf16/16"
    wrong = {
        "image is Float [2] on cpu; it must be the cubin's bytes": (torch.zeros(2), "forward_kernel", layout, 4, 0, 0),
        "image is no cubin that can be used: it is code for an AMD GPU": (
            image_of(compiled / f"gfx942/{KERNEL}.hsaco"), "forward_kernel", layout, 4, 0, 0),
        "cut short or corrupt": (image[:5000], "forward_kernel", layout, 4, 0, 0),
        "it holds no kernel named other": (image, "other", layout, 4, 0, 0),
        'layout: parameter 0 is "i31"': (image, "forward_kernel", "i31", 4, 0, 0),
        "num_warps is 33, must be in [1, 32]": (image, "forward_kernel", layout, 33, 0, 0),
        "shared_bytes is -1, must be in [0, 2^30)": (image, "forward_kernel", layout, 4, -1, 0),
    }  # fmt: skip
    for message, arguments in wrong.items():
        with pytest.raises(RuntimeError) as refused:
            ops.load_cubin(*arguments)
        assert message in str(refused.value)


def test_without_a_driver_the_remedy_is_named(ops, compiled):
    if torch.cuda.is_available():
        pytest.skip("a GPU is here: tests/gpu/test_cubin_gpu.py loads and launches")
    with pytest.raises(RuntimeError, match=r"no CUDA driver here \(libcuda.so.1: .*\): install NVIDIA's driver"):
        ops.load_cubin(image_of(compiled / f"sm_90/{KERNEL}.cubin"), "forward_kernel", "*bf16/16", 4, 0, 0)
    with pytest.raises(Unavailable, match="sees no CUDA device; see nvidia-smi"):
        cubin.load(compiled, KERNEL, torch.device("cuda"))


FIVE = "*fp32,*fp32,i32,null,null"  # what the stand-in for the driver says its kernel takes
LOADS = {
    "fits": ("sm_90", FIVE, 47 * 1024, 0),
    "large": ("sm_90", FIVE, 48 * 1024, 0),
    "too large": ("sm_90", FIVE, 227 * 1024, 0),
    "other architecture": ("sm_80", FIVE, 0, 0),
    "other device": ("sm_90", FIVE, 0, 1),
    "too few": ("sm_90", "*fp32,*fp32,i32,null", 0, 0),
    "too many": ("sm_90", FIVE + ",null", 0, 0),
    "too wide": ("sm_90", "*fp32,*fp32,i64,null,null", 0, 0),
}
LOADING = """
import json, sys, torch
torch.ops.load_library(sys.argv[1])
for name, (path, layout, shared_bytes, device) in json.loads(sys.argv[2]).items():
    print("==", name, flush=True)
    image = torch.frombuffer(bytearray(open(path, "rb").read()), dtype=torch.uint8)
    try:
        print("handle", torch.ops.esper_native.load_cubin(image, "forward_kernel", layout, 4, shared_bytes, device))
    except RuntimeError as error:
        print(error, flush=True)
"""


@pytest.fixture(scope="module")
def loads(compiled, tmp_path_factory) -> dict[str, list[str]]:
    """What each of LOADS says, and does to a stand-in for the driver. One process: importing torch takes 2 s."""
    require("cpp", extension.load().missing)
    require("cc", "" if shutil.which("cc") else "cc is not installed: make deps-debian")
    folder = tmp_path_factory.mktemp("driver")
    source = Path(__file__).with_name("driver_double.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-Wall", "-Werror", source, "-o", folder / "libcuda.so.1"], check=True)
    asked = {name: (str(compiled / f"{load[0]}/{KERNEL}.cubin"), *load[1:]) for name, load in LOADS.items()}
    command = [sys.executable, "-c", LOADING, str(extension.LIBRARY), json.dumps(asked)]
    environment = os.environ | {"LD_LIBRARY_PATH": str(folder)}
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    parts = [part.splitlines() for part in said.split("== ")[1:]]
    return {name: lines for name, *lines in parts}


def test_a_kernel_is_loaded_in_the_devices_context(loads):
    assert loads["fits"] == ["push", "load ELF", "function forward_kernel", "pop", "handle 0"]


def test_shared_memory_past_48_kb_is_asked_for(loads):
    """The kernel's own, 1 KB here, counts."""
    assert loads["large"] == ["push", "load ELF", "function forward_kernel", "set 8 49152", "pop", "handle 1"]


@pytest.mark.parametrize(
    ("load", "message"),
    [
        (
            "too large",
            "shared_bytes: the kernel needs 233472 bytes of shared memory, the device has 232448 for a block",
        ),
        ("too few", "layout has 4 parameters, the kernel more"),
        ("too many", "layout has 6 parameters, the kernel 5"),
        ("too wide", "layout: parameter 2 is i64 of 8 bytes, the kernel's has 4"),
    ],
)
def test_a_kernel_that_is_not_as_told_is_refused_and_unloaded(loads, load, message):
    *done, said = loads[load]
    assert message in said
    assert done == ["push", "load ELF", "function forward_kernel", "unload", "pop"]


@pytest.mark.parametrize(
    ("load", "message"),
    [
        ("other architecture", "image does not run on cuda:0: it is for sm_80, the device is sm_90; compile it for"),
        ("other device", "device is 1; this machine has 1 CUDA devices"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_loaded(loads, load, message):
    (said,) = loads[load]
    assert message in said


def test_a_launch_refuses_before_it_asks_for_a_driver(ops):
    wrong = {
        "tensors[0] is on cpu; the kernel runs on a CUDA device": (0, [torch.zeros(1)] * 2, [], [], [1, 1, 1]),
        "grid has 2 entries, must have 3": (0, [], [], [], [1, 1]),
        "grid[1] is 65536, must be in [1, 65535]": (0, [], [], [], [1, 65536, 1]),
        "grid[0] is 0, must be in [1, 2147483647]": (0, [], [], [], [0, 1, 1]),
        "handle is -1; load_cubin has returned": (-1, [], [1], [0.5], [1, 1, 1]),
    }
    for message, arguments in wrong.items():
        with torch.no_grad(), pytest.raises(RuntimeError) as refused:
            ops.launch_cubin(*arguments)
        assert message in str(refused.value)
    with pytest.raises(RuntimeError, match="no autograd graph is recorded and grad mode is on"):
        ops.launch_cubin(0, [], [], [], [1, 1, 1])


def test_the_target_is_the_latest_that_the_device_runs():
    there = {"sm_80": "sm_80", "sm_86": "sm_86", "sm_90": "sm_90a", "sm_100": "sm_100a"}
    assert cubin.choose(there, (8, 0)) == ("sm_80", "")
    assert cubin.choose(there, (8, 9)) == ("sm_86", "")
    assert cubin.choose(there, (9, 0)) == ("sm_90", "")
    assert cubin.choose(there, (10, 0)) == ("sm_100", "")
    for capability in [(7, 5), (10, 3), (12, 0)]:  # code with a letter runs on its own minor version alone
        target, reason = cubin.choose(there, capability)
        assert target is None
        name = "sm_{}{}".format(*capability)
        assert reason.startswith(f"compiled for sm_80, sm_86, sm_90, sm_100; the device is {name}.")


def test_metadata_and_code_are_read_once_their_digests_are_right(compiled, tmp_path):
    metadata, image = cubin.read(compiled, "sm_90", KERNEL)
    assert metadata["arch"] == "sm_90a"
    assert image == (compiled / f"sm_90/{KERNEL}.cubin").read_bytes()
    assert cubin.targets(compiled, KERNEL) == {"sm_80": "sm_80", "sm_90": "sm_90a", "sm_100": "sm_100a"}
    for file in (f"sm_90/{KERNEL}.cubin", f"sm_90/{KERNEL}.json"):
        folder = tmp_path / Path(file).suffix[1:]
        shutil.copytree(compiled, folder)
        changed = bytearray((folder / file).read_bytes())
        changed[-2] ^= 1
        (folder / file).write_bytes(changed)
        with pytest.raises(Corrupt, match=rf"{file} has SHA-256 \w+, SHA256SUMS says \w+: compile it again"):
            cubin.read(folder, "sm_90", KERNEL)


def test_what_is_not_there_is_named(compiled, tmp_path):
    with pytest.raises(NotFound, match="holds no kernel other: write it with python -m kernels_triton"):
        cubin.targets(compiled, "other")
    with pytest.raises(NotFound, match="SHA256SUMS does not list it: compile it again"):
        cubin.read(compiled, "sm_120", KERNEL)
    with pytest.raises(NotFound, match="SHA256SUMS is not there"):
        cubin.read(tmp_path, "sm_90", KERNEL)


def test_arguments_are_taken_by_name_in_the_kernels_order():
    x, y, z = (torch.zeros(1) for _ in range(3))
    tensors, integers, floats = cubin.split(
        PARAMETERS, {"decay": 1, "mask": 7, "width": 32, "y_ptrs": (y, z), "x_ptr": x}
    )
    assert [id(t) for t in tensors] == [id(x), id(y), id(z)]
    assert (integers, floats) == ([32, 7], [1.0])
    assert cubin.layout(PARAMETERS) == LAYOUT


def test_arguments_that_are_not_the_kernels_are_refused():
    x = torch.zeros(1)
    right = {"decay": 0.5, "mask": 7, "width": 32, "y_ptrs": (x, x), "x_ptr": x}
    wrong = [
        ({"y_ptrs": (x,)}, r"the kernel takes x_ptr, y_ptrs.0, y_ptrs.1, width, mask, decay"),
        ({"other": 1}, "arguments are decay, mask, width, y_ptrs.0, y_ptrs.1, x_ptr, other; the kernel takes"),
        ({"width": 32.0}, r"width is a float \(32.0\); the kernel takes i32 there"),
        ({"width": True}, r"width is a bool \(True\); the kernel takes i32 there"),
        ({"x_ptr": 5}, r"x_ptr is a int \(5\); the kernel takes \*bf16 there"),
        ({"mask": x}, "mask is a Tensor; the kernel takes i64 there"),
        ({"decay": "0.5"}, r"decay is a str \('0.5'\); the kernel takes fp32 there"),
    ]
    for change, message in wrong:
        with pytest.raises(InvalidRequest, match=message):
            cubin.split(PARAMETERS, right | change)


def test_a_launch_under_grad_is_refused_where_a_gradient_would_be_lost():
    kernel = cubin.Kernel(handle=0, metadata={"name": "k", "parameters": PARAMETERS[:1]})
    with pytest.raises(InvalidRequest, match="k: a tensor requires grad, and a launch records none"):
        kernel.launch((1, 1, 1), x_ptr=torch.zeros(1, requires_grad=True))


def test_metadata_is_plain_json(compiled):
    text = (compiled / f"sm_90/{KERNEL}.json").read_text()
    assert json.loads(text)["parameters"][0] == PARAMETERS[0] | {"name": "host_ptr"}
