"""The compiled library as a file: what it needs, what it holds, and that it loads where there is no Python."""

import importlib.util
import re
import shutil
from pathlib import Path

import pytest

from esper.ops import extension
from tests.requirements import require

from .toolchain import beside_libtorch, output_of


@pytest.fixture(scope="module")
def library() -> Path:
    require("cpp", extension.load().missing)
    return extension.LIBRARY


def test_it_needs_no_python_symbol(library):
    symbols = re.findall(r"\bU (\w+)", output_of("nm", "-D", library))
    assert symbols
    assert [name for name in symbols if name.startswith(("Py", "_Py"))] == []


def test_it_needs_no_cuda_library(library):
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", output_of("readelf", "-d", library))
    assert "libtorch_cpu.so" in needed
    assert [name for name in needed if "cuda" in name or "python" in name or "cublas" in name] == []


def test_it_asks_torch_only_for_what_2_10_has(library):
    """Built for a later torch it would need these, and would not load on an earlier one."""
    symbols = set(re.findall(r"\bU (torch_\w+|aoti_\w+)", output_of("nm", "-D", library)))
    assert symbols
    assert not symbols & {"torch_exception_get_what", "torch_exception_get_what_without_backtrace"}
    assert extension.load().abi_target == "2.10"


def test_it_exports_one_name(library):
    """The ops register themselves; anything else exported could collide with another library."""
    exported = set(re.findall(r"\b[a-zA-Z] (\w+)", output_of("nm", "-D", "--defined-only", library)))
    assert exported == {"esper_build_info"}


def test_it_names_no_folder_of_the_machine_that_built_it(library):
    strings = re.findall(rb"[\x20-\x7e]{6,}", library.read_bytes())
    assert [s for s in strings if s.startswith(b"/") and s.endswith((b".h", b".cpp", b".cu"))] == []


def test_a_c_program_loads_it_beside_libtorch_and_blends(library, tmp_path):
    assert beside_libtorch(library, tmp_path) == "6 12 18 24\n"


def test_a_missing_library_says_how_to_build_it(tmp_path):
    state = extension.load_from(tmp_path / "libesper_native.so")
    assert state.path is None
    assert "build it with `pip install --no-build-isolation -e .`" in state.missing


def test_a_library_that_does_not_load_says_why(tmp_path):
    broken = tmp_path / "libesper_native.so"
    broken.write_bytes(b"not a library" * 100)
    state = extension.load_from(broken)
    assert state.path is None
    assert "does not load on torch" in state.missing
    assert "invalid ELF header" in state.missing


def test_a_library_of_other_sources_is_not_used_and_named(library, monkeypatch):
    monkeypatch.setattr(extension, "OPS", (*extension.OPS, "blend_of_tomorrow"))
    state = extension.load_from(library)
    assert state.path is None
    assert state.missing.startswith(f"{library} is of other sources and has no blend_of_tomorrow: build it with")


def test_it_holds_every_op_that_is_called(library):
    schemas = (extension.LIBRARY.parents[2] / "csrc/schemas.cpp").read_text()
    assert set(extension.OPS) == set(re.findall(r"\"(\w+)\(", schemas))


@pytest.fixture(scope="module")
def cuobjdump(library) -> str:
    """NVIDIA's disassembler, of the toolkit or of triton's wheel."""
    require("cuda code", "" if extension.load().cuda_archs else "the library has none: build with ESPER_BUILD_CUDA=1")
    if on_path := shutil.which("cuobjdump"):
        return on_path
    spec = importlib.util.find_spec("triton")
    in_wheel = Path(spec.submodule_search_locations[0]) / "backends/nvidia/bin/cuobjdump" if spec else None
    require(
        "cuobjdump", "" if in_wheel and in_wheel.exists() else "not installed: pip install 'esper[triton]' brings it"
    )
    return str(in_wheel)


def test_cuda_kernels_move_16_bytes_at_a_time_through_64_bit_addresses(library, cuobjdump):
    code_of = re.compile(r"Function : (\S*(?:forward|backward|in_place)_kernel\S*)(.*?)(?=Function :|\Z)", re.S)
    kernels = dict(code_of.findall(output_of(cuobjdump, "-sass", "-arch", "sm_90", library)))
    assert len(kernels) == 4 * 2 * (2 + 4 + 2)  # dtypes, pack sizes, forms
    for name, code in kernels.items():
        packed = "Li1ELb" not in name
        assert bool(re.search(r"\bLDG\.E\.128", code)) == packed, name
        assert bool(re.search(r"\bSTG\.E\.128", code)) == packed, name
        addresses = re.findall(r"\b(?:LDG|STG)\.E\S* .*?\[(R\d+\S*?)[\]+]", code)
        assert addresses
        assert all(".64" in address for address in addresses), name
        assert not re.search(r"\b(LDL|STL|LD|ST)\.", code), f"{name} spills, or does not know its addresses are global"


def test_seed_stats_reads_16_bytes_at_a_time_through_64_bit_addresses(library, cuobjdump):
    code_of = re.compile(r"Function : (\S*(?:count|join)_kernel\S*)(.*?)(?=Function :|\Z)", re.S)
    kernels = dict(code_of.findall(output_of(cuobjdump, "-sass", "-arch", "sm_90", library)))
    assert len(kernels) == 4 * 2 + 1  # dtypes, pack sizes; the second pass
    for name, code in kernels.items():
        packed = "count_kernel" in name and "Li1E" not in name
        assert bool(re.search(r"\bLDG\.E\.128", code)) == packed, name
        addresses = re.findall(r"\b(?:LDG|STG)\.E\S* .*?\[(R\d+\S*?)[\]+]", code)
        assert addresses
        assert all(".64" in address for address in addresses), name
        assert not re.search(r"\b(LDL|STL|LD|ST)\.", code), f"{name} spills, or does not know its addresses are global"


def test_the_kernel_of_a_table_has_64_bit_addresses_and_waits_before_the_step_is_written(library, cuobjdump):
    code_of = re.compile(r"Function : (\S*advance_kernel\S*)(.*?)(?=Function :|\Z)", re.S)
    ((_, code),) = code_of.findall(output_of(cuobjdump, "-sass", "-arch", "sm_90", library))
    addresses = re.findall(r"\b(?:LDG|STG)\.E\S* .*?\[(R\d+\S*?)[\]+]", code)
    assert addresses
    assert all(".64" in address for address in addresses)
    assert not re.search(r"\b(LDL|STL|LD|ST)\.", code)
    assert code.index("LDG.E") < code.index("BAR.SYNC") < code.index("STG.E")


def test_cuda_code_is_there_for_every_architecture_it_names(library, cuobjdump):
    code, source = output_of(cuobjdump, "-lelf", library), output_of(cuobjdump, "-lptx", library)
    *archs, last = extension.load().cuda_archs.split("_")
    assert last == "PTX"
    for arch in archs:
        assert f"sm_{arch.replace('.', '')}" in code
    assert f"sm_{archs[-1].replace('.', '')}" in source
