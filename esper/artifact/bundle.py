"""An artifact in memory, and the one order in which it is checked before anything in it is interpreted."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from google.protobuf.message import DecodeError

from esper.api.common.v1.artifact_pb2 import ArtifactManifest, Attestation
from esper.artifact import frame
from esper.artifact.attest import BUILT, PROMOTED, Role, attest
from esper.artifact.attest import verify as verify_attestation
from esper.artifact.body import Body, FileEntry, artifact_id, canonical_bytes, read_body
from esper.artifact.keys import SigningKey, TrustRoots
from esper.errors import Corrupt

_MANIFEST = "manifest"
_FILE = "file/"


@dataclass(frozen=True, slots=True)
class Artifact:
    """Manifest and files as they came; nothing is checked until `verify`."""

    manifest: ArtifactManifest
    files: Mapping[str, bytes]

    @property
    def artifact_id(self) -> str:
        return self.manifest.artifact_id

    @property
    def size_bytes(self) -> int:
        """Bytes of body and files."""
        return len(self.manifest.body) + sum(map(len, self.files.values()))

    def attested(self, attestation: Attestation) -> "Artifact":
        """The same artifact with one statement more; its id stays."""
        manifest = ArtifactManifest()
        manifest.CopyFrom(self.manifest)
        manifest.attestations.append(attestation)
        return replace(self, manifest=manifest)


def bundle(body: Body, files: Mapping[str, bytes]) -> Artifact:
    """An artifact nobody has signed; `body.files` is made from `files`."""
    entries = {name: FileEntry.of(files[name]) for name in sorted(files)}
    spelled = canonical_bytes(replace(body, files=entries))
    return Artifact(ArtifactManifest(artifact_id=artifact_id(spelled), body=spelled), dict(files))


def sign(artifact: Artifact, key: SigningKey, role: Role, statement: Mapping[str, Any]) -> Artifact:
    """`artifact` with `key`'s statement that it did `role`."""
    return artifact.attested(attest(key, role, artifact.artifact_id, statement))


def verify(artifact: Artifact, roots: TrustRoots, require: Iterable[Role] = (BUILT, PROMOTED)) -> Body:
    """Check id, attestations, sizes and digests, in this order, and return the body.

    Raises Corrupt (the id or a file is not what it is said to be, a file is missing or one too many),
    Untrusted (an attestation of a role in `require` is missing or does not verify) and InvalidRequest
    (a body of another format version, or not a body).
    """
    check_id(artifact.manifest)
    for role in require:
        verify_attestation(artifact.manifest.attestations, role, artifact.artifact_id, roots)
    body = read_body(artifact.manifest.body)
    check_files(artifact.artifact_id, body, artifact.files)
    return body


def check_id(manifest: ArtifactManifest) -> None:
    """Raises Corrupt unless the id is the body's sha256."""
    seen = artifact_id(manifest.body)
    if seen != manifest.artifact_id:
        raise Corrupt(
            f"artifact {manifest.artifact_id[:64]!r}: its body of {len(manifest.body)} bytes has digest {seen}"
        )


def check_files(artifact: str, body: Body, files: Mapping[str, bytes]) -> None:
    """Raises Corrupt unless `files` are exactly those `body` names, each with its size and digest."""
    for name in sorted(body.files.keys() - files.keys()):
        raise Corrupt(f"artifact {artifact}: file {name!r} is missing; it must have {len(body.files)} files")
    for name in sorted(files.keys() - body.files.keys()):
        raise Corrupt(f"artifact {artifact}: file {name[:80]!r} is not in the body")
    for name, entry in body.files.items():
        if len(files[name]) != entry.size_bytes:
            raise Corrupt(f"artifact {artifact}: file {name!r} has {len(files[name])} bytes, not {entry.size_bytes}")
        seen = FileEntry.of(files[name]).digest
        if seen != entry.digest:
            raise Corrupt(f"artifact {artifact}: file {name!r} has digest {seen}, not {entry.digest}")


def to_bytes(artifact: Artifact) -> bytes:
    """The artifact as one byte string, for a pipe."""
    files = {f"{_FILE}{name}": data for name, data in artifact.files.items()}
    return frame.pack({_MANIFEST: artifact.manifest.SerializeToString(), **files})


def from_bytes(data: bytes) -> Artifact:
    """What `to_bytes` wrote. Raises Corrupt for anything else; verifies nothing."""
    parts = frame.unpack(data)
    if _MANIFEST not in parts:
        raise Corrupt(f"a frame of {len(data)} bytes holds no artifact: it has no {_MANIFEST!r}")
    try:
        manifest = ArtifactManifest.FromString(parts.pop(_MANIFEST))
    except DecodeError as error:
        raise Corrupt(f"a frame of {len(data)} bytes holds no artifact: its manifest does not parse") from error
    return Artifact(manifest, {name.removeprefix(_FILE): data for name, data in parts.items()})
