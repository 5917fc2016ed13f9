"""Whatever sequence of writes comes: legal statuses only, one revision per change, a sound ledger."""

import asyncio
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from esper.api.urza.v1 import library_pb2 as pb
from esper.errors import PreconditionFailed
from esper.urza.library import CentralLibrary
from esper.urza.statuses import BLUEPRINT, KERNEL

from .fakes import add_blueprint, add_kernel, graph, identify, open_library, promotion

MOVES = st.lists(
    st.tuples(
        st.sampled_from(["blueprint", "kernel"]),
        st.sampled_from(sorted({*BLUEPRINT.moves, *KERNEL.moves})),
    ),
    max_size=12,
)


@settings(max_examples=25, deadline=None)
@given(moves=MOVES)
def test_only_legal_moves_are_made_and_each_is_one_revision(moves: list[tuple[str, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(_walk(Path(folder), moves))


async def _walk(folder: Path, moves: list[tuple[str, int]]) -> None:
    library = await open_library(folder)
    artifact_id = await add_kernel(library)
    changes, kernel, blueprint = 2, pb.KERNEL_STATUS_PENDING_BENCHMARKING, pb.BLUEPRINT_STATUS_UNVALIDATED
    for number, (thing, to) in enumerate(moves):
        if thing == "kernel":
            made = await _move_kernel(library, artifact_id, to, number)
            assert made == (to in KERNEL.moves[kernel])
            kernel = to if made else kernel
        elif to in BLUEPRINT.moves:
            made = await _move_blueprint(library, to)
            promoted = to != pb.BLUEPRINT_STATUS_VALIDATED or kernel == pb.KERNEL_STATUS_VALIDATED
            assert made == (to in BLUEPRINT.moves[blueprint] and promoted)
            blueprint = to if made else blueprint
        else:
            made = False
        changes += made
    assert (await library.get_kernel(pb.GetKernelRequest(artifact_id=artifact_id))).kernel.status == kernel
    assert (await library.verify_ledger()).revision == changes
    await library.close()


async def _move_kernel(library: CentralLibrary, artifact_id: str, to: int, number: int) -> bool:
    request = promotion(artifact_id, str(number).encode(), status=to)
    if to != pb.KERNEL_STATUS_VALIDATED:
        request.ClearField("attestation")
    try:
        await library.set_kernel_status(request)
    except PreconditionFailed:
        return False
    return True


async def _move_blueprint(library: CentralLibrary, to: int) -> bool:
    request = pb.SetBlueprintStatusRequest(blueprint_id=identify(graph()), status=to, reason="r")
    try:
        await library.set_blueprint_status(request)
    except PreconditionFailed:
        return False
    return True


async def test_eight_writers_of_twenty_keep_one_chain(tmp_path: Path) -> None:
    libraries = [await open_library(tmp_path) for _ in range(2)]

    async def write(writer: int) -> None:
        library = libraries[writer % 2]
        for number in range(20):
            await add_blueprint(library, writer * 100 + number, request_id=f"{writer}/{number}")

    await asyncio.gather(*(write(writer) for writer in range(8)))
    assert (await libraries[0].verify_ledger()).revision == 160
    for library in libraries:
        await library.close()


async def test_one_request_sent_many_times_at_once_acts_once(library: CentralLibrary) -> None:
    request = pb.CreateBlueprintRequest(request_id="r", graph=graph(), title="t", author="a")
    replies = await asyncio.gather(*(library.create_blueprint(request) for _ in range(10)))
    assert all(reply == replies[0] for reply in replies)
    assert not replies[0].existed
    assert (await library.verify_ledger()).revision == 1


async def test_uploads_of_one_kernel_at_once_make_one_row(library: CentralLibrary) -> None:
    await add_blueprint(library)
    ids = await asyncio.gather(*(add_kernel(library) for _ in range(6)))
    assert len(set(ids)) == 1
    assert (await library.verify_ledger()).revision == 2
