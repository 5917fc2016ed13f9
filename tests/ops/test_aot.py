"""Kernels compiled ahead of time, without a GPU: every kernel for every target, its metadata, equal bytes."""

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.requirements import require

ROOT = Path(__file__).parents[2]
MISSING = "" if importlib.util.find_spec("triton") else "triton is not installed: pip install 'esper[triton]'"
NVIDIA = ["sm_80", "sm_90", "sm_100"]
TARGETS = [*NVIDIA, "gfx942"]
WORDS = {"u64": 8, "b64": 8, "u32": 4, "b32": 4, "f32": 4, "f64": 8}  # PTX type -> bytes


@pytest.fixture(scope="module")
def aot():
    require("triton", MISSING)
    import kernels_triton.aot

    return kernels_triton.aot


@pytest.fixture(scope="module")
def specs(aot):
    return {spec.name: spec for listed in aot.ops().values() for spec in listed}


@pytest.fixture(scope="module")
def out(aot, tmp_path_factory) -> Path:
    """Everything, compiled once."""
    folder = tmp_path_factory.mktemp("aot") / "out"
    aot.main(["--targets", ",".join(TARGETS), "--out", str(folder)])
    return folder


def metadata_of(out: Path, target: str) -> dict[str, dict]:
    return {path.stem: json.loads(path.read_text()) for path in sorted((out / target).glob("*.json"))}


def test_every_op_has_specialisations(aot):
    from esper.ops.backends import OPS

    assert set(aot.ops()) == set(OPS.values())


@pytest.mark.parametrize("target", TARGETS)
def test_every_kernel_is_there_with_its_digests(out, specs, target):
    described = metadata_of(out, target)
    assert set(described) == set(specs)
    listed = dict(line.split("  ")[::-1] for line in (out / "SHA256SUMS").read_text().splitlines())
    suffixes = {"cubin", "ptx"} if target in NVIDIA else {"hsaco", "amdgcn"}
    for name, metadata in described.items():
        assert set(metadata["sha256"]) == {f"{name}.{suffix}" for suffix in suffixes}
        for file, digest in metadata["sha256"].items():
            data = (out / target / file).read_bytes()
            assert hashlib.sha256(data).hexdigest() == digest == listed[f"{target}/{file}"]
        assert (
            hashlib.sha256((out / target / f"{name}.json").read_bytes()).hexdigest() == listed[f"{target}/{name}.json"]
        )
        assert metadata["num_warps"] == specs[name].num_warps
        assert metadata["warp_size"] == (32 if target in NVIDIA else 64)
        assert metadata["versions"].keys() == ({"triton", "ptxas"} if target in NVIDIA else {"triton"})
    assert len(listed) == sum(len(list((out / t).iterdir())) for t in TARGETS)


@pytest.mark.parametrize("target", NVIDIA)
def test_parameters_are_those_of_the_ptx(out, target):
    for name, metadata in metadata_of(out, target).items():
        ptx = (out / target / f"{name}.ptx").read_text()
        entry = re.search(rf"\.entry {metadata['kernel']}\((.*?)\)", ptx, re.S)[1]
        found = [(WORDS[kind], bool(pointer)) for kind, pointer in re.findall(r"\.param \.(\w+)( \.ptr)?", entry)]
        told = [(p["bytes"], p["type"].startswith("*") or p["type"] == "null") for p in metadata["parameters"]]
        assert told == found, name
        assert [p["type"] for p in metadata["parameters"]][-2:] == ["null", "null"]
        assert re.search(r"\.target (\w+)", ptx)[1] == metadata["arch"]
        assert re.search(r"\.reqntid (\d+)", ptx)[1] == str(metadata["num_warps"] * 32)


def test_parameters_are_those_of_the_amd_code(out):
    for name, metadata in metadata_of(out, "gfx942").items():
        code = (out / "gfx942" / f"{name}.amdgcn").read_text()
        listed = re.findall(r"\.size: +(\d+)\n +\.value_kind: +(global_buffer|by_value)", code)
        told = [
            (str(p["bytes"]), "global_buffer" if p["type"][0] in "*n" else "by_value") for p in metadata["parameters"]
        ]
        assert told == listed, name


def test_a_tuple_is_flattened_and_constants_fall_away(out):
    metadata = metadata_of(out, "sm_90")["blend_forward_bf16_2_convex"]
    assert [(p["name"], p["type"], p["divisible_by"]) for p in metadata["parameters"]] == [
        ("host_ptr", "*bf16", 16), ("seed_ptrs.0", "*bf16", 16), ("seed_ptrs.1", "*bf16", 16),
        ("alphas_ptr", "*fp32", 16), ("out_ptr", "*bf16", 16), ("rows", "i32", 1), ("width", "i32", 16),
        ("begins.0", "i32", 16), ("begins.1", "i32", 16), ("ends.0", "i32", 16), ("ends.1", "i32", 16),
        ("global_scratch", "null", 1), ("profile_scratch", "null", 1),
    ]  # fmt: skip
    assert metadata["constants"] == {"SLOTS": 2, "CONVEX": True, "MATH": "fp32", "ROWS": 1, "COLS": 1024}
    assert (metadata["op"], metadata["kernel"], metadata["arch"]) == ("blend", "forward_kernel", "sm_90a")


def code_of_wide_kernels(out, specs, target, suffix) -> dict[str, str]:
    """Of kernels whose speed is the memory's."""
    return {n: (out / target / f"{n}.{suffix}").read_text() for n, spec in specs.items() if spec.vectorised}


WIDE = r"(?:ld|st)\.global\S*\.(?:v4\.b32|v2\.b64)"


@pytest.mark.parametrize("target", NVIDIA)
def test_nvidia_code_moves_16_bytes_at_a_time_through_64_bit_offsets(out, specs, target):
    """The index of an element has 64 bits before it is scaled to bytes: 2**31 elements is a size people have."""
    for name, ptx in code_of_wide_kernels(out, specs, target, "ptx").items():
        assert re.search(WIDE.replace("(?:ld|st)", "ld"), ptx), name
        made = {to: f"{by} {of}" for by, to, of in re.findall(r"^\s+([\w.]+)\s+(%rd\d+), (.*);$", ptx, re.M)}
        for address in re.findall(WIDE + r".*\[ ?(%rd\d+)", ptx):
            steps = [made[address], *(made.get(part, "") for part in re.findall(r"%rd\d+", made[address]))]
            narrow = [step for step in steps if re.match(r"(?:mul|mad)\.wide\.[su]32 %r\d+, [248]\b", step)]
            assert not narrow, f"{name}: an index of elements was counted in 32 bits: {narrow}"


@pytest.mark.parametrize("target", NVIDIA)
def test_every_tensor_of_a_blend_is_moved_16_bytes_at_a_time(out, specs, target):
    for name, ptx in code_of_wide_kernels(out, specs, target, "ptx").items():
        if found := re.fullmatch(r"blend_(forward|backward)_\w+?_(\d)_(convex|residual)(_alphas)?", name):
            slots, convex, alphas = int(found[2]), found[3] == "convex", bool(found[4])
            forward = found[1] == "forward"
            reads = 1 + slots if forward else 1 + (slots + convex if alphas else 0)
            writes = 1 if forward else slots + convex
            assert len(re.findall(r"ld\.global\.v4\.b32", ptx)) >= reads, name
            assert len(re.findall(r"st\.global\.v4\.b32", ptx)) >= writes, name


def test_amd_code_is_vectorised(out, specs):
    for name, code in code_of_wide_kernels(out, specs, "gfx942", "amdgcn").items():
        assert re.search(r"(global|buffer)_load_dwordx[24]", code), name


@pytest.mark.parametrize("target", NVIDIA)
def test_nvidia_code_spills_nothing(out, target):
    tool = Path(importlib.util.find_spec("triton").origin).parent / "backends/nvidia/bin/cuobjdump"
    for cubin in sorted((out / target).glob("*.cubin")):
        said = subprocess.run([tool, "--dump-resource-usage", cubin], capture_output=True, text=True, check=True).stdout
        assert re.search(r" STACK:0 SHARED:\d+ LOCAL:0 ", said), f"{cubin.stem}: {said}"
        assert ".local" not in cubin.with_suffix(".ptx").read_text(), cubin.stem


def test_amd_code_spills_nothing(out):
    for code in sorted((out / "gfx942").glob("*.amdgcn")):
        assert re.findall(r"\.[sv]gpr_spill_count: +(\d+)", code.read_text()) == ["0", "0"], code.stem


def test_code_holds_no_line_information(out):
    for path in (p for p in out.rglob("*.*") if p.suffix != ".json"):
        data = path.read_bytes()
        assert b"kernels_triton" not in data, path
        assert b".debug_line" not in data, path


@pytest.fixture
def run(aot, tmp_path) -> Callable[[str, str, str], bytes]:
    """Compiles kernels from a copy of the sources: run(checkout, out, pattern) -> every path and its bytes."""

    def compile_copy(checkout: str, out: str, pattern: str) -> dict[str, bytes]:
        shutil.copytree(ROOT / "kernels_triton", tmp_path / checkout / "kernels_triton")
        command = [sys.executable, "-m", "kernels_triton.aot", "--out", tmp_path / out, "--kernels", pattern]
        environment = os.environ | {"PYTHONPATH": "", "TRITON_DISABLE_LINE_INFO": "0"}
        subprocess.run(command, cwd=tmp_path / checkout, env=environment, check=True, capture_output=True)
        return {str(p.relative_to(tmp_path / out)): p.read_bytes() for p in (tmp_path / out).rglob("*.*")}

    return compile_copy


@pytest.mark.parametrize("pattern", ["blend_forward_bf16_2_convex", pytest.param("*", marks=pytest.mark.slow)])
def test_bytes_are_equal_from_two_checkouts_into_two_directories(run, pattern):
    first, second = run("one", "out", pattern), run("a/longer/path/two", "another", pattern)
    assert len(first) >= 12
    assert {path for path in first if first[path] != second.get(path)} == set()
    assert set(first) == set(second)


def refusal(aot, capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        aot.main(list(arguments))
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_an_unknown_target_is_refused_naming_the_known(aot, tmp_path, capsys):
    said = refusal(aot, capsys, "--targets", "sm_90,sm_91", "--out", str(tmp_path))
    assert "unknown target 'sm_91'; known: sm_80, sm_90, sm_100, gfx942" in said


def test_a_directory_with_other_files_is_refused(aot, tmp_path, capsys):
    (tmp_path / "notes.txt").touch()
    assert "holds 1 files of no earlier run (notes.txt, ...)" in refusal(aot, capsys, "--out", str(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_a_file_is_no_directory(aot, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert "is a file; --out takes a directory" in refusal(aot, capsys, "--out", str(tmp_path / "file"))


def test_a_pattern_that_nothing_is_named_like_is_refused(aot, tmp_path, capsys):
    said = refusal(aot, capsys, "--out", str(tmp_path), "--kernels", "nothing_*")
    assert "no specialisation is named like 'nothing_*'" in said


def test_an_earlier_runs_files_are_replaced(aot, tmp_path):
    aot.write(tmp_path, {"sm_80/a.ptx": b"a", "sm_80/b.ptx": b"b"})
    assert aot.why_not_into(tmp_path) == ""
    aot.write(tmp_path, {"sm_80/b.ptx": b"c"})
    assert [p.name for p in (tmp_path / "sm_80").iterdir()] == ["b.ptx"]
    assert aot.listed(tmp_path) == ["sm_80/b.ptx"]
    (tmp_path / "sm_80/c.ptx").touch()
    assert "holds 1 files of no earlier run (sm_80/c.ptx" in aot.why_not_into(tmp_path)


def test_a_specialisation_that_does_not_fit_its_kernel_is_refused(specs):
    import dataclasses

    from kernels_triton.compilation import compile_for

    whole = specs["blend_sum_fp32"]
    wrong = {
        "signature and constants name": {"constants": {}},
        "aligned names ['rows']": {"aligned": ("rows",)},
        "types ['i9'] are none that launchers pass": {"signature": whole.signature | {"programs": "i9"}},
    }
    for message, change in wrong.items():
        with pytest.raises(ValueError, match=re.escape(message)):
            compile_for(dataclasses.replace(whole, **change), "sm_90")
