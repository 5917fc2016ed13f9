"""The body: what an artifact is, as canonical JSON. Its sha256 is the artifact's id."""

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

import torch

from esper.artifact import canonical_json
from esper.artifact.fields import Fields
from esper.blueprint.interface import DTYPES, Interface, Kind
from esper.errors import InvalidRequest

FORMAT_VERSION = 1
GRAPH, WEIGHTS, MODULE = "graph.json", "weights.safetensors", "module.pt"
REQUIRED_FILES = (GRAPH, WEIGHTS, MODULE)
EXPORTED = "graph.pt2"  # for people and other tools; nothing here reads it
# Names of the two files that stand beside an artifact's own on disk.
RESERVED_FILES = ("body.json", "attestations.json")

MAX_BODY_BYTES = 1 << 20
MAX_FILES = 256
MAX_ARTIFACT_BYTES = 4 << 30
MAX_PARAMETERS = 1024

TARGETS = ("cpu", "sm_80", "sm_90", "sm_100", "gfx942")
PIPELINES = ("fast", "standard", "aggressive")
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES}
_HEX64 = re.compile(r"[0-9a-f]{64}")
_FILE_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*(/[a-z0-9][a-z0-9_.-]*){0,3}")
_PARAMETER = re.compile(r"[a-z][a-z0-9_]{0,63}")


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file: sha256 of its bytes in hexadecimal, and how many there are."""

    digest: str
    size_bytes: int

    @classmethod
    def of(cls, data: bytes) -> "FileEntry":
        return cls(hashlib.sha256(data).hexdigest(), len(data))


@dataclass(frozen=True, slots=True)
class ParameterEntry:
    """One parameter at the interface, in the order in which compiled forms take it."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Body:
    """What an artifact says about itself. `toolchain` maps names to versions."""

    blueprint_id: str
    interface: Interface
    target: str
    pipeline: str
    forward_flops_per_position: int
    parameters: tuple[ParameterEntry, ...]
    files: Mapping[str, FileEntry]
    toolchain: Mapping[str, str]

    @property
    def parameter_count(self) -> int:
        return sum(math.prod(parameter.shape) for parameter in self.parameters)

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(entry.size_bytes for entry in self.files.values())


def artifact_id(body: bytes) -> str:
    """sha256 of the canonical bytes, 64 hexadecimal digits."""
    return hashlib.sha256(body).hexdigest()


def canonical_bytes(body: Body) -> bytes:
    """The body as it is stored, hashed and signed. Raises InvalidRequest for one that `read_body` would refuse."""
    data = canonical_json.write(
        {
            "blueprint_id": body.blueprint_id,
            "files": {n: {"digest": e.digest, "size_bytes": e.size_bytes} for n, e in body.files.items()},
            "format_version": FORMAT_VERSION,
            "forward_flops_per_position": body.forward_flops_per_position,
            "interface": _write_interface(body.interface),
            "parameters": [
                {"element_type": _name(p.dtype), "name": p.name, "shape": list(p.shape)} for p in body.parameters
            ],
            "pipeline": body.pipeline,
            "target": body.target,
            "toolchain": dict(body.toolchain),
        }
    )
    read_body(data)
    return data


def read_body(data: bytes) -> Body:
    """Parse a body whose digest has been checked.

    Raises InvalidRequest for bytes that are not canonical, another format version, a field that is
    missing, unknown or out of bounds; the message names the field.
    """
    fields = Fields(canonical_json.read(data, "artifact body", MAX_BODY_BYTES), "artifact body")
    version = fields.integer("format_version")
    if version != FORMAT_VERSION:
        raise InvalidRequest(
            f"artifact body: format_version is {version}; this release reads {FORMAT_VERSION}. "
            "Compile the blueprint again, or use the release that wrote it"
        )
    body = Body(
        blueprint_id=fields.matching("blueprint_id", _HEX64),
        interface=_read_interface(fields.object("interface")),
        target=fields.one_of("target", TARGETS),
        pipeline=fields.one_of("pipeline", PIPELINES),
        forward_flops_per_position=fields.integer("forward_flops_per_position"),
        parameters=_read_parameters(fields),
        files=_read_files(fields.object("files")),
        toolchain=_read_toolchain(fields.object("toolchain")),
    )
    fields.end()
    return body


def check_file_name(name: str) -> str:
    """`name`, if an artifact's file may have it: no way out of its folder, nothing a file system could misread."""
    if not _FILE_NAME.fullmatch(name) or len(name) > 256:
        raise InvalidRequest(f"file name {name[:80]!r} is not allowed; it must match {_FILE_NAME.pattern}, up to 256")
    if name in RESERVED_FILES:
        raise InvalidRequest(f"file name {name!r} is reserved for the artifact's own records")
    return name


def _read_interface(fields: Fields) -> Interface:
    kind = fields.one_of("kind", tuple(kind.value for kind in Kind))
    dtype = fields.one_of("element_type", tuple(_DTYPES))
    channels, causal = fields.integer("channels", 1), fields.integer("causal", 0, 1)
    fields.end()
    return Interface(Kind(kind), channels, _DTYPES[dtype], bool(causal))


def _write_interface(interface: Interface) -> dict[str, str | int]:
    return {
        "causal": int(interface.causal),
        "channels": interface.channels,
        "element_type": _name(interface.dtype),
        "kind": interface.kind.value,
    }


def _read_parameters(fields: Fields) -> tuple[ParameterEntry, ...]:
    listed = fields.take("parameters", list)
    if len(listed) > MAX_PARAMETERS:
        raise fields.refuse("parameters", f"holds {len(listed)}; at most {MAX_PARAMETERS}")
    found = []
    for i, value in enumerate(listed):
        where = f"{fields.where}.parameters[{i}]"
        if type(value) is not dict:
            raise InvalidRequest(f"{where} is a {type(value).__name__}; it must be an object")
        one = Fields(value, where)
        dtype = _DTYPES[one.one_of("element_type", tuple(_DTYPES))]
        shape = one.take("shape", list)
        if not 1 <= len(shape) <= 8 or any(type(size) is not int or not 1 <= size < 1 << 31 for size in shape):
            raise one.refuse("shape", f"is {shape[:9]}; it must be 1 to 8 sizes of at least 1")
        found.append(ParameterEntry(one.matching("name", _PARAMETER), tuple(shape), dtype))
        one.end()
    if len({parameter.name for parameter in found}) != len(found):
        raise fields.refuse("parameters", "names a parameter twice")
    return tuple(found)


def _read_files(fields: Fields) -> dict[str, FileEntry]:
    files = {}
    for name, value in fields.items():
        check_file_name(name)
        one = Fields(value if type(value) is dict else {}, f"{fields.where}.{name}")
        digest = one.matching("digest", _HEX64)
        files[name] = FileEntry(digest, one.integer("size_bytes", 0, MAX_ARTIFACT_BYTES))
        one.end()
    if len(files) > MAX_FILES:
        raise InvalidRequest(f"{fields.where} names {len(files)} files; at most {MAX_FILES}")
    folders = {str(parent) for name in files for parent in PurePosixPath(name).parents}
    if folders & files.keys():
        raise InvalidRequest(f"{fields.where}: {min(folders & files.keys())!r} is both a file and a folder")
    for name in REQUIRED_FILES:
        if name not in files:
            raise fields.refuse(name, "is missing; every artifact has one")
    total = sum(entry.size_bytes for entry in files.values())
    if total > MAX_ARTIFACT_BYTES:
        raise InvalidRequest(f"{fields.where} holds {total} bytes; an artifact has at most {MAX_ARTIFACT_BYTES}")
    return files


def _read_toolchain(fields: Fields) -> dict[str, str]:
    versions = dict(fields.items())
    for name, version in versions.items():
        if type(version) is not str or not 1 <= len(version) <= 128 or len(name) > 64 or len(versions) > 64:
            raise fields.refuse(name, "must be a version of 1 to 128 characters, one of at most 64")
    return versions


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
