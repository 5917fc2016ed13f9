"""The body: its bytes are its identity, and nothing is read into it that is not there."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from esper.artifact import canonical_json
from esper.artifact.body import (
    MAX_ARTIFACT_BYTES,
    MAX_BODY_BYTES,
    REQUIRED_FILES,
    Body,
    FileEntry,
    ParameterEntry,
    artifact_id,
    canonical_bytes,
    check_file_name,
    read_body,
)
from esper.blueprint.interface import DTYPES, Interface, Kind
from esper.errors import InvalidRequest

from .samples import built

DIGEST = "0" * 64
FILES = {name: FileEntry(DIGEST, 1) for name in REQUIRED_FILES}
BODY = Body(
    blueprint_id="a" * 64,
    interface=Interface(Kind.TOKENS, 8, torch.bfloat16, causal=True),
    target="cpu",
    pipeline="fast",
    forward_flops_per_position=12,
    parameters=(ParameterEntry("w", (2, 3), torch.bfloat16), ParameterEntry("b", (3,), torch.bfloat16)),
    files=FILES,
    toolchain={"torch": "2.13.0"},
)


def changed(path: str, value: object) -> bytes:
    """BODY's bytes with one field set; `value` ... removes it."""
    fields = json.loads(canonical_bytes(BODY))
    *parents, last = path.split(".")
    place = fields
    for parent in parents:
        place = place[int(parent) if isinstance(place, list) else parent]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return canonical_json.write(fields)


interfaces = st.builds(
    lambda kind, channels, dtype, causal: Interface(
        kind, channels, dtype, causal and kind in (Kind.TOKENS, Kind.MAP1D)
    ),
    st.sampled_from(Kind),
    st.integers(1, 1 << 20),
    st.sampled_from(DTYPES),
    st.booleans(),
)
names = st.from_regex(r"[a-z0-9][a-z0-9_.-]{0,20}(/[a-z0-9][a-z0-9_.-]{0,20})?", fullmatch=True).filter(
    lambda name: name not in ("body.json", "attestations.json")
)
files = st.dictionaries(names, st.builds(FileEntry, st.just(DIGEST), st.integers(0, 1 << 20)), max_size=5).filter(
    lambda found: not {name.partition("/")[0] for name in found if "/" in name} & (found.keys() | FILES.keys())
)


@given(interfaces, files, st.dictionaries(st.text("abc", min_size=1), st.text("0.9", min_size=1), max_size=3))
def test_a_body_is_what_its_bytes_say(interface, more, toolchain):
    body = replace(BODY, interface=interface, files={**FILES, **more}, toolchain=toolchain)
    assert read_body(canonical_bytes(body)) == body


def test_a_body_knows_its_counts():
    assert BODY.parameter_count == 9
    assert BODY.size_bytes == 3


def test_bytes_hold_whole_numbers_and_strings_alone():
    def walk(value):
        if isinstance(value, dict):
            return all(map(walk, value.values()))
        return all(map(walk, value)) if isinstance(value, list) else type(value) in (int, str)

    assert walk(json.loads(canonical_bytes(BODY)))


def test_the_id_is_the_digest_of_the_bytes():
    assert built().artifact_id == artifact_id(built().manifest.body)
    assert artifact_id(canonical_bytes(replace(BODY, target="sm_90"))) != artifact_id(canonical_bytes(BODY))


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("format_version", 2, "format_version is 2; this release reads 1"),
        ("format_version", "1", "format_version is a str"),
        ("format_version", ..., "format_version is missing"),
        ("blueprint_id", "A" * 64, "blueprint_id is 'A+'; it must match"),
        ("target", "tpu", "target is 'tpu'; it must be one of cpu"),
        ("pipeline", "slow", "pipeline is 'slow'; it must be one of fast"),
        ("forward_flops_per_position", -1, "is -1; it must be 0 to"),
        ("forward_flops_per_position", 1 << 63, "it must be 0 to"),
        ("interface.kind", "cube", "interface.kind is 'cube'"),
        ("interface.channels", 0, "channels is 0"),
        ("interface.channels", 1 << 21, "interface channels is 2097152"),
        ("interface.causal", 2, "causal is 2"),
        ("interface.extra", 1, "interface.extra is no field"),
        ("parameters.0.shape", [], r"shape is \[\]"),
        ("parameters.0.shape", [0], r"shape is \[0\]"),
        ("parameters.0.shape", ["3"], r"shape is \['3'\]"),
        ("parameters.0.name", "W", "name is 'W'"),
        ("parameters.0.name", "b", "names a parameter twice"),
        ("parameters", ["w"], r"parameters\[0\] is a str"),
        ("parameters", [{"name": f"p{i}", "shape": [1], "element_type": "float32"} for i in range(1025)], "holds 1025"),
        ("files.module.pt2", 3, "module.pt2.digest is missing"),
        ("toolchain.torch", 2, "torch must be a version"),
        ("toolchain.torch", "", "torch must be a version"),
        ("more", "x", "more is no field of this format"),
    ],
)
def test_a_field_that_is_wrong_is_named(path, value, reason):
    if path.startswith("files."):
        fields = json.loads(canonical_bytes(BODY))
        fields["files"][path.removeprefix("files.")] = value
        data = canonical_json.write(fields)
    else:
        data = changed(path, value)
    with pytest.raises(InvalidRequest, match=reason):
        read_body(data)


@pytest.mark.parametrize("name", REQUIRED_FILES)
def test_every_artifact_has_its_three_files(name):
    left = {n: entry for n, entry in FILES.items() if n != name}
    with pytest.raises(InvalidRequest, match=f"{name} is missing; every artifact has one"):
        canonical_bytes(replace(BODY, files=left))


@pytest.mark.parametrize(
    "name",
    [
        *("../x", "a/../b", "/etc/passwd", "a//b", "a/", ".hidden", "a/.hidden", "A", "a b", "a\\b", "a\n", ""),
        *("a/b/c/d/e", "body.json", "attestations.json", "x" * 257, "..", "c:x", "é"),
    ],
)
def test_a_name_that_could_leave_its_folder_or_mislead_is_refused(name):
    with pytest.raises(InvalidRequest, match="file name"):
        check_file_name(name)
    with pytest.raises(InvalidRequest, match="file name"):
        canonical_bytes(replace(BODY, files={**FILES, name: FileEntry(DIGEST, 1)}))


def test_one_name_is_not_a_file_and_a_folder():
    more = {"triton": FileEntry(DIGEST, 1), "triton/a": FileEntry(DIGEST, 1)}
    with pytest.raises(InvalidRequest, match="'triton' is both a file and a folder"):
        canonical_bytes(replace(BODY, files={**FILES, **more}))


def test_too_large_is_refused_by_what_it_says_of_itself():
    half = FileEntry(DIGEST, MAX_ARTIFACT_BYTES // 2 + 1)
    with pytest.raises(InvalidRequest, match="an artifact has at most 4294967296"):
        canonical_bytes(replace(BODY, files={**FILES, "a": half, "b": half}))
    with pytest.raises(InvalidRequest, match="size_bytes is 4294967297"):
        canonical_bytes(replace(BODY, files={**FILES, "a": FileEntry(DIGEST, MAX_ARTIFACT_BYTES + 1)}))
    with pytest.raises(InvalidRequest, match="names 257 files"):
        canonical_bytes(replace(BODY, files={**FILES, **{f"f{i}": FileEntry(DIGEST, 1) for i in range(254)}}))
    with pytest.raises(InvalidRequest, match="at most 1048576 are read"):
        read_body(b"{" + b" " * MAX_BODY_BYTES)
