"""What the library asks of esper.artifact: ids, signatures and bodies, against one set of trust roots."""

from esper.api.common.v1.artifact_pb2 import ArtifactManifest, Attestation
from esper.api.common.v1.resource_pb2 import Target
from esper.artifact import attest, bundle
from esper.artifact.body import read_body
from esper.artifact.keys import TrustRoots
from esper.blueprint.codec import write_interface
from esper.urza.codec import FileEntry, KernelBody, read_interface


class TrustedArtifacts:
    """An `ArtifactVerifier` that believes the keys of `roots`."""

    def __init__(self, roots: TrustRoots) -> None:
        self._roots = roots

    def check_id(self, manifest: ArtifactManifest) -> None:
        bundle.check_id(manifest)

    def check_attested(self, manifest: ArtifactManifest, role: Attestation.Role.ValueType) -> None:
        attest.verify(manifest.attestations, role, manifest.artifact_id, self._roots)

    def read_body(self, manifest: ArtifactManifest) -> KernelBody:
        body = read_body(manifest.body)
        return KernelBody(
            blueprint_id=body.blueprint_id,
            interface=read_interface(write_interface(body.interface)),
            target=Target.Value(f"TARGET_{body.target.upper()}"),
            pipeline=body.pipeline,
            parameter_count=body.parameter_count,
            forward_flops_per_position=body.forward_flops_per_position,
            files={name: FileEntry(entry.digest, entry.size_bytes) for name, entry in body.files.items()},
        )
