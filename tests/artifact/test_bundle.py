"""Verification: every way in which an artifact can be other than what was signed, and that nothing is read before."""

from dataclasses import replace

import pytest

from esper.api.common.v1.artifact_pb2 import ArtifactManifest
from esper.artifact import bundle as bundle_module
from esper.artifact.attest import BUILT, PROMOTED, attest
from esper.artifact.body import REQUIRED_FILES, artifact_id, read_body
from esper.artifact.bundle import Artifact, bundle, from_bytes, sign, to_bytes, verify
from esper.errors import Corrupt, InvalidRequest, Untrusted

from .samples import EVALUATION, FORGE, ROOTS, STRANGER, built, flipped, promoted


def with_file(name: str, data: bytes) -> Artifact:
    return replace(promoted(), files={**promoted().files, name: data})


def with_manifest(**changes: object) -> Artifact:
    manifest = ArtifactManifest()
    manifest.CopyFrom(promoted().manifest)
    for name, value in changes.items():
        if isinstance(value, list):
            manifest.ClearField(name)
            getattr(manifest, name).extend(value)
        else:
            setattr(manifest, name, value)
    return replace(promoted(), manifest=manifest)


def test_what_forge_and_evaluation_signed_is_accepted():
    body = verify(promoted(), ROOTS)
    assert body.blueprint_id == read_body(built().manifest.body).blueprint_id
    assert sorted(body.files) == sorted(REQUIRED_FILES)


def test_only_the_roles_that_are_asked_for_are_needed():
    verify(built(), ROOTS, require=(BUILT,))
    verify(built(), ROOTS, require=())
    with pytest.raises(Untrusted, match='no "promoted" attestation'):
        verify(built(), ROOTS)


def test_another_statement_never_changes_the_id():
    more = sign(promoted(), STRANGER, BUILT, {"x": "y"})
    assert more.artifact_id == built().artifact_id
    assert len(built().manifest.attestations) == 1  # the first one is as it was
    verify(more, ROOTS)


@pytest.mark.parametrize("name", REQUIRED_FILES)
def test_a_flipped_bit_in_any_file_is_corrupt(name):
    data = promoted().files[name]
    for at in {0, 1, len(data) // 2, len(data) - 1}:
        with pytest.raises(Corrupt, match=f"file '{name}' has digest"):
            verify(with_file(name, flipped(data, at)), ROOTS)


@pytest.mark.parametrize("name", REQUIRED_FILES)
def test_a_file_cut_short_grown_or_missing_is_corrupt(name):
    data = promoted().files[name]
    for wrong in (data[:-1], data + b"\0", b""):
        with pytest.raises(Corrupt, match=f"file '{name}' has {len(wrong)} bytes, not {len(data)}"):
            verify(with_file(name, wrong), ROOTS)
    left = {n: d for n, d in promoted().files.items() if n != name}
    with pytest.raises(Corrupt, match=f"file '{name}' is missing"):
        verify(replace(promoted(), files=left), ROOTS)


def test_a_file_too_many_is_corrupt():
    for name in ("extra.bin", "../escape", "triton/x"):
        with pytest.raises(Corrupt, match="is not in the body"):
            verify(with_file(name, b"x"), ROOTS)


def test_two_files_in_each_others_places_are_corrupt():
    files = dict(promoted().files)
    files["graph.json"], files["module.pt"] = files["module.pt"], files["graph.json"]
    with pytest.raises(Corrupt):
        verify(replace(promoted(), files=files), ROOTS)


def test_a_flipped_bit_in_the_body_is_corrupt():
    body = promoted().manifest.body
    for at in range(0, len(body), 7):
        with pytest.raises(Corrupt, match=r"its body of .* bytes has digest"):
            verify(with_manifest(body=flipped(body, at)), ROOTS)


def test_a_changed_body_with_its_own_id_has_nobodys_signature():
    body = promoted().manifest.body.replace(b'"fast"', b'"slow"')
    with pytest.raises(Untrusted, match="does not fit this artifact"):
        verify(with_manifest(body=body, artifact_id=artifact_id(body)), ROOTS)


def test_a_flipped_bit_in_a_signature_or_key_id_is_untrusted():
    for index in (0, 1):
        for field in ("signature", "statement"):
            changed = with_manifest()
            one = changed.manifest.attestations[index]
            setattr(one, field, flipped(getattr(one, field), 3))
            with pytest.raises(Untrusted):
                verify(changed, ROOTS)
        changed = with_manifest()
        changed.manifest.attestations[index].key_id = STRANGER.key_id
        with pytest.raises(Untrusted, match="is no trusted"):
            verify(changed, ROOTS)


def test_a_promotion_moved_from_another_artifact_is_untrusted():
    other = promoted("low_rank")
    moved = [built().manifest.attestations[0], other.manifest.attestations[1]]
    with pytest.raises(Untrusted, match='no "promoted" attestation to rely on: the signature by'):
        verify(with_manifest(attestations=moved), ROOTS)


def test_strangers_and_wrong_roles_promote_nothing():
    with pytest.raises(Untrusted, match="is no trusted evaluation key"):
        verify(sign(built(), STRANGER, PROMOTED, {}), ROOTS)
    with pytest.raises(Untrusted, match="is no trusted evaluation key"):
        verify(sign(built(), FORGE, PROMOTED, {}), ROOTS)
    unbuilt = with_manifest(attestations=[attest(EVALUATION, PROMOTED, built().artifact_id, {})])
    with pytest.raises(Untrusted, match='no "built" attestation'):
        verify(unbuilt, ROOTS)


def test_another_format_version_is_refused_by_name():
    body = promoted().manifest.body.replace(b'"format_version":1', b'"format_version":7')
    made = Artifact(ArtifactManifest(artifact_id=artifact_id(body), body=body), promoted().files)
    signed = sign(sign(made, FORGE, BUILT, {}), EVALUATION, PROMOTED, {})
    with pytest.raises(InvalidRequest, match="format_version is 7; this release reads 1"):
        verify(signed, ROOTS)


def test_nothing_is_interpreted_before_it_is_trusted(monkeypatch):
    def must_not_run(data: bytes) -> object:
        raise AssertionError("the body was read before its digest and signatures were checked")

    monkeypatch.setattr(bundle_module, "read_body", must_not_run)
    for wrong in (with_manifest(body=b"junk"), sign(built(), STRANGER, PROMOTED, {}), with_manifest(attestations=[])):
        with pytest.raises((Corrupt, Untrusted)):
            verify(wrong, ROOTS)


def test_a_file_with_a_name_that_leaves_its_folder_is_never_bundled():
    with pytest.raises(InvalidRequest, match=r"file name '\.\./x' is not allowed"):
        bundle(read_body(built().manifest.body), {**built().files, "../x": b""})


def test_an_artifact_travels_as_bytes():
    there = from_bytes(to_bytes(promoted()))
    assert there == promoted()
    verify(there, ROOTS)
    for wrong in (b"", to_bytes(promoted())[:-1], to_bytes(promoted())[1:]):
        with pytest.raises(Corrupt):
            from_bytes(wrong)
