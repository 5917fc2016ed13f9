"""Kernels: all or nothing on the way in, verified on the way out, promoted by the evaluator only."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from esper.api.common.v1.artifact_pb2 import ArtifactManifest, Attestation
from esper.api.common.v1.resource_pb2 import TARGET_SM_90
from esper.api.urza.v1 import library_pb2 as pb
from esper.errors import Conflict, Corrupt, Exhausted, InvalidRequest, NotFound, PreconditionFailed, Untrusted
from esper.urza.blobs import key_of, quarantine_key_of
from esper.urza.intake import Piece, cut
from esper.urza.library import CentralLibrary

from .fakes import (
    EVALUATION,
    FORGE,
    STRANGER,
    add_blueprint,
    add_kernel,
    artifact,
    files_of,
    graph,
    identify,
    interface,
    promotion,
    sha256,
    sign,
)

ABSENT = "f" * 64
PROMOTED = Attestation.ROLE_PROMOTED


async def upload(
    library: CentralLibrary, manifest: ArtifactManifest, files: dict[str, bytes], request_id: str = ""
) -> pb.CreateKernelResponse:
    return await library.create_kernel(pb.KernelManifest(artifact=manifest, request_id=request_id), files)


async def get(library: CentralLibrary, artifact_id: str) -> pb.Kernel:
    return (await library.get_kernel(pb.GetKernelRequest(artifact_id=artifact_id))).kernel


async def download(library: CentralLibrary, artifact_id: str) -> tuple[ArtifactManifest, dict[str, bytes]]:
    return await library.download_kernel(pb.DownloadKernelRequest(artifact_id=artifact_id))


async def move(library: CentralLibrary, artifact_id: str, status: int, **fields: object) -> pb.Kernel:
    request = pb.SetKernelStatusRequest(artifact_id=artifact_id, status=status, reason="because", **fields)
    return (await library.set_kernel_status(request)).kernel


async def assert_absent(library: CentralLibrary, manifest: ArtifactManifest) -> None:
    with pytest.raises(NotFound, match=manifest.artifact_id):
        await get(library, manifest.artifact_id)


async def test_a_body_can_be_read_without_counting_a_use(library: CentralLibrary) -> None:
    manifest = artifact(await add_blueprint(library))
    await upload(library, manifest, files_of())
    plain = await library.get_kernel(pb.GetKernelRequest(artifact_id=manifest.artifact_id))
    assert not plain.HasField("manifest")
    whole = await library.get_kernel(pb.GetKernelRequest(artifact_id=manifest.artifact_id, with_manifest=True))
    assert whole.kernel == plain.kernel
    assert whole.manifest.body == manifest.body
    assert whole.header.revision == plain.header.revision


async def test_a_kernel_goes_in_and_comes_out(library: CentralLibrary) -> None:
    blueprint_id = await add_blueprint(library)
    manifest = artifact(blueprint_id, parameter_count=77)
    reply = await upload(library, manifest, files_of())
    assert (reply.existed, reply.header.revision) == (False, 2)
    kernel = await get(library, manifest.artifact_id)
    assert kernel == reply.kernel
    assert kernel.status == pb.KERNEL_STATUS_PENDING_BENCHMARKING
    assert (kernel.parameter_count, kernel.pipeline, kernel.title) == (77, "fast", "blueprint 0")
    assert kernel.size_bytes == sum(len(data) for data in files_of().values())
    assert await download(library, manifest.artifact_id) == (manifest, files_of())


async def test_a_kernel_that_is_here_is_returned_as_it_is(library: CentralLibrary) -> None:
    artifact_id = await add_kernel(library)
    await move(library, artifact_id, pb.KERNEL_STATUS_REJECTED)
    again = await upload(library, artifact(identify(graph())), files_of())
    assert (again.existed, again.header.revision) == (True, 3)
    assert again.kernel.status == pb.KERNEL_STATUS_REJECTED


async def test_one_request_id_one_reply_and_the_files_are_not_read_again(library: CentralLibrary) -> None:
    blueprint_id = await add_blueprint(library)
    manifest = pb.KernelManifest(artifact=artifact(blueprint_id), request_id="r1")
    first = await library.create_kernel(manifest, files_of())

    async def unread() -> AsyncIterator[Piece]:
        raise AssertionError("a repeated request must leave its files unread")
        yield

    assert await library.receive_kernel(manifest, unread()) == first
    other = artifact(blueprint_id, parameter_count=5)
    with pytest.raises(Conflict, match="'r1'"):
        await upload(library, other, files_of(), request_id="r1")
    await assert_absent(library, other)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda files: files.pop("empty"), "file 'empty' was not sent"),
        (lambda files: files.update(extra=b"x"), "file 'extra' is not in the body"),
        (lambda files: files.update({"graph.json": b'{"shared":2}'}), "file 'graph.json' blob"),
        (lambda files: files.update({"graph.json": b"{}"}), "file 'graph.json' blob"),
        (lambda files: files.update(empty=b"x"), "file 'empty' blob"),
        (lambda files: files.clear(), "missing of 3: empty, graph.json, weights.safetensors"),
    ],
)
async def test_files_that_do_not_fit_the_body_leave_nothing_visible(
    library: CentralLibrary, spoil: object, words: str
) -> None:
    manifest, files = artifact(await add_blueprint(library)), files_of()
    spoil(files)
    with pytest.raises(InvalidRequest, match=words) as caught:
        await upload(library, manifest, files)
    assert any(path.startswith("files[") for path in caught.value.fields)
    await assert_absent(library, manifest)
    assert (await upload(library, manifest, files_of())).header.revision == 2


@pytest.mark.parametrize(
    "stream",
    [
        [Piece("empty", b"", True), Piece("empty", b"", True)],
        [Piece("graph.json", b'{"sha', False), Piece("empty", b"", True)],
        [Piece("graph.json", b'{"sha', False)],
    ],
    ids=["twice", "interleaved", "cut short"],
)
async def test_a_stream_that_breaks_the_grammar_is_refused(library: CentralLibrary, stream: list[Piece]) -> None:
    manifest = artifact(await add_blueprint(library))

    async def pieces() -> AsyncIterator[Piece]:
        for piece in stream:
            yield piece

    with pytest.raises(InvalidRequest, match=r"sent twice|ended before its last piece"):
        await library.receive_kernel(pb.KernelManifest(artifact=manifest), pieces())
    await assert_absent(library, manifest)


async def test_an_id_that_is_not_the_bodys_digest_is_refused(library: CentralLibrary) -> None:
    manifest = artifact(await add_blueprint(library))
    manifest.artifact_id = ABSENT
    with pytest.raises(InvalidRequest, match="another digest"):
        await upload(library, manifest, files_of())


@pytest.mark.parametrize("key", [STRANGER, EVALUATION, None], ids=["unknown", "wrong role's", "unsigned"])
async def test_without_a_known_forges_signature_no_byte_is_stored(
    library: CentralLibrary, tmp_path: Path, key: str | None
) -> None:
    manifest = artifact(await add_blueprint(library), key=key or FORGE)
    if key is None:
        manifest.ClearField("attestations")
    with pytest.raises(Untrusted, match="ROLE_BUILT"):
        await upload(library, manifest, files_of())
    await assert_absent(library, manifest)
    assert not (tmp_path / "blobs").exists()


async def test_a_signature_for_another_artifact_is_refused(library: CentralLibrary) -> None:
    blueprint_id = await add_blueprint(library)
    manifest = artifact(blueprint_id)
    manifest.attestations[0].CopyFrom(artifact(blueprint_id, parameter_count=9).attestations[0])
    with pytest.raises(Untrusted):
        await upload(library, manifest, files_of())


async def test_its_blueprint_must_be_here_first(library: CentralLibrary, tmp_path: Path) -> None:
    manifest = artifact(ABSENT)
    with pytest.raises(PreconditionFailed, match=f"blueprints/{ABSENT}"):
        await upload(library, manifest, files_of())
    assert not (tmp_path / "blobs").exists()


async def test_a_kernel_no_column_can_hold_is_refused(library: CentralLibrary) -> None:
    manifest = artifact(await add_blueprint(library), parameter_count=2**63)
    with pytest.raises(InvalidRequest, match="parameter_count is 9223372036854775808, at most"):
        await upload(library, manifest, files_of())
    await assert_absent(library, manifest)


async def test_a_promotion_that_came_with_the_upload_is_not_kept(library: CentralLibrary) -> None:
    manifest = artifact(await add_blueprint(library))
    manifest.attestations.append(sign(EVALUATION, PROMOTED, manifest.artifact_id))
    reply = await upload(library, manifest, files_of())
    assert reply.kernel.status == pb.KERNEL_STATUS_PENDING_BENCHMARKING
    stored, _ = await download(library, manifest.artifact_id)
    assert [one.role for one in stored.attestations] == [Attestation.ROLE_BUILT]


# ---- reading back ---------------------------------------------------------------------------------------------


def blob(tmp_path: Path, number: int = 0, name: str = "weights.safetensors") -> tuple[str, Path]:
    digest = sha256(files_of(number)[name])
    return digest, tmp_path / "blobs" / key_of(digest)


async def test_a_flipped_byte_quarantines_the_kernel_and_the_blob(library: CentralLibrary, tmp_path: Path) -> None:
    artifact_id = await add_kernel(library)
    digest, path = blob(tmp_path)
    data = bytearray(path.read_bytes())
    data[7] ^= 1
    path.write_bytes(data)
    with pytest.raises(Corrupt, match=f"{artifact_id}, file weights.safetensors"):
        await download(library, artifact_id)
    kernel = await get(library, artifact_id)
    assert kernel.status == pb.KERNEL_STATUS_QUARANTINED
    assert digest in kernel.status_reason
    assert (tmp_path / "blobs" / quarantine_key_of(digest)).read_bytes() == bytes(data)
    with pytest.raises(PreconditionFailed, match="is QUARANTINED"):
        await download(library, artifact_id)
    assert (await library.verify_ledger()).revision == 3


async def test_a_lost_file_quarantines_the_kernel(library: CentralLibrary, tmp_path: Path) -> None:
    artifact_id = await add_kernel(library)
    blob(tmp_path)[1].unlink()
    with pytest.raises(Corrupt, match="no such blob"):
        await download(library, artifact_id)
    assert (await get(library, artifact_id)).status == pb.KERNEL_STATUS_QUARANTINED


async def test_a_quarantined_kernel_is_mended_by_an_upload_and_a_new_evaluation(
    library: CentralLibrary, tmp_path: Path
) -> None:
    artifact_id = await add_kernel(library)
    await library.set_kernel_status(promotion(artifact_id))
    blob(tmp_path)[1].write_bytes(b"rotten")
    with pytest.raises(Corrupt):
        await download(library, artifact_id)
    assert (await upload(library, artifact(identify(graph())), files_of())).existed
    await move(library, artifact_id, pb.KERNEL_STATUS_PENDING_BENCHMARKING)
    with pytest.raises(Untrusted, match="promoted it before it was withdrawn"):
        await library.set_kernel_status(promotion(artifact_id))
    await library.set_kernel_status(promotion(artifact_id, b'{"report":"new"}'))
    assert (await download(library, artifact_id))[1] == files_of()


async def test_a_missing_kernel_is_not_found(library: CentralLibrary) -> None:
    with pytest.raises(NotFound, match=f"kernels/{ABSENT}"):
        await download(library, ABSENT)


# ---- status ---------------------------------------------------------------------------------------------------


async def test_promotion_writes_what_the_evaluation_found(library: CentralLibrary) -> None:
    artifact_id = await add_kernel(library)
    request = promotion(
        artifact_id, tags=["fast", "small", "fast"], forward_us_p50=12.5, peak_bytes=4096, report_name="reports/r"
    )
    kernel = (await library.set_kernel_status(request)).kernel
    assert kernel.tags == ["fast", "small"]
    assert (kernel.forward_us_p50, kernel.peak_bytes, kernel.report_name) == (12.5, 4096, "reports/r")
    manifest, _ = await download(library, artifact_id)
    assert [one.role for one in manifest.attestations] == [Attestation.ROLE_BUILT, PROMOTED]
    superseded = await move(library, artifact_id, pb.KERNEL_STATUS_SUPERSEDED)
    assert (superseded.tags, superseded.forward_us_p50) == (["fast", "small"], 12.5), "what is not sent stays"


async def test_a_validated_kernel_can_be_evaluated_again(library: CentralLibrary) -> None:
    artifact_id = await add_kernel(library)
    await library.set_kernel_status(promotion(artifact_id, tags=["old"]))
    again = await library.set_kernel_status(promotion(artifact_id, tags=["new"]))
    assert again.kernel.tags == ["new"]
    assert len((await download(library, artifact_id))[0].attestations) == 2, "an equal statement is kept once"


@pytest.mark.parametrize(
    "attestation",
    [
        lambda artifact_id: None,
        lambda artifact_id: sign(FORGE, Attestation.ROLE_BUILT, artifact_id),
        lambda artifact_id: sign(STRANGER, PROMOTED, artifact_id),
        lambda artifact_id: sign(FORGE, PROMOTED, artifact_id),
        lambda artifact_id: sign(EVALUATION, PROMOTED, ABSENT),
        lambda artifact_id: Attestation(role=PROMOTED),
    ],
    ids=["none", "built", "unknown key", "forge's key", "another artifact", "empty"],
)
async def test_validated_needs_the_evaluators_word(library: CentralLibrary, attestation: object) -> None:
    artifact_id = await add_kernel(library)
    with pytest.raises(Untrusted):
        await library.set_kernel_status(promotion(artifact_id, attestation=attestation(artifact_id)))
    assert (await get(library, artifact_id)).status == pb.KERNEL_STATUS_PENDING_BENCHMARKING
    assert (await library.verify_ledger()).revision == 2


async def test_a_promotion_goes_with_validated_only(library: CentralLibrary) -> None:
    artifact_id = await add_kernel(library)
    with pytest.raises(InvalidRequest, match="goes with VALIDATED"):
        await library.set_kernel_status(promotion(artifact_id, status=pb.KERNEL_STATUS_REJECTED))


async def test_a_second_forges_statement_is_added_when_it_verifies(library: CentralLibrary) -> None:
    artifact_id = await add_kernel(library)
    second = sign(FORGE, Attestation.ROLE_BUILT, artifact_id, b'{"again":true}')
    await move(library, artifact_id, pb.KERNEL_STATUS_ARCHIVED, attestation=second)
    assert len((await download(library, artifact_id))[0].attestations) == 2
    forged = sign(STRANGER, Attestation.ROLE_BUILT, artifact_id)
    with pytest.raises(Untrusted):
        await move(library, artifact_id, pb.KERNEL_STATUS_PENDING_BENCHMARKING, attestation=forged)


async def test_statements_are_bounded(library: CentralLibrary) -> None:
    artifact_id = await add_kernel(library)
    for number in range(63):
        await library.set_kernel_status(promotion(artifact_id, str(number).encode()))
    with pytest.raises(Exhausted, match="64 attestations, the most"):
        await library.set_kernel_status(promotion(artifact_id, b"one more"))


async def test_an_illegal_move_changes_nothing(library: CentralLibrary) -> None:
    artifact_id = await add_kernel(library)
    with pytest.raises(PreconditionFailed, match="PENDING_BENCHMARKING and cannot become SUPERSEDED"):
        await move(library, artifact_id, pb.KERNEL_STATUS_SUPERSEDED)
    with pytest.raises(NotFound, match=ABSENT):
        await move(library, ABSENT, pb.KERNEL_STATUS_ARCHIVED)
    assert (await library.verify_ledger()).revision == 2


# ---- search ---------------------------------------------------------------------------------------------------


async def test_search_finds_validated_kernels_for_exactly_this_interface(library: CentralLibrary) -> None:
    ids = [await add_kernel(library, number) for number in range(3)]
    elsewhere = await add_kernel(library, 3, site=interface(channels=16))
    for number, artifact_id in enumerate([*ids[:2], elsewhere]):
        await library.set_kernel_status(promotion(artifact_id, forward_us_p50=10.0 + number, tags=[f"tag {number}"]))
    reply = await library.search_kernels(pb.SearchKernelsRequest(interface=interface()))
    assert [match.kernel.artifact_id for match in reply.matches] == ids[:2]
    assert reply.matches[0].score > reply.matches[1].score
    assert "1.1x the fastest" in reply.matches[1].reason
    assert reply.header.revision == 11

    async def found(**fields: object) -> list[str]:
        request = pb.SearchKernelsRequest(**({"interface": interface()} | fields))
        return [match.kernel.artifact_id for match in (await library.search_kernels(request)).matches]

    assert await found(preferred_tags=["tag 1"]) == [ids[1], ids[0]]
    assert await found(required_tags=["tag 1"]) == [ids[1]]
    assert await found(excluded_tags=["tag 1"]) == [ids[0]]
    assert await found(limit=1) == [ids[0]]
    assert await found(max_forward_us=10.5) == [ids[0]]
    assert await found(status=pb.KERNEL_STATUS_PENDING_BENCHMARKING) == [ids[2]]
    assert await found(target=TARGET_SM_90) == []
    assert await found(blueprint_id=identify(graph(1))) == [ids[1]]
    assert await found(interface=interface(causal=True)) == []


async def test_search_needs_an_interface(library: CentralLibrary) -> None:
    for request in (pb.SearchKernelsRequest(), pb.SearchKernelsRequest(interface=interface(channels=0))):
        with pytest.raises(InvalidRequest, match="interface"):
            await library.search_kernels(request)
    with pytest.raises(InvalidRequest, match="at most 1000"):
        await library.search_kernels(pb.SearchKernelsRequest(interface=interface(), limit=1001))


async def test_files_at_hand_are_cut_like_an_upload() -> None:
    big = b"x" * (2 << 20) + b"y"
    cuts = [(piece.file, len(piece.data), piece.last) async for piece in cut({"big": big, "empty": b"", "one": b"1"})]
    mib = 1 << 20
    assert cuts == [("big", mib, False), ("big", mib, False), ("big", 1, True), ("empty", 0, True), ("one", 1, True)]
