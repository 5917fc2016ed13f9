"""How a run begins on several ranks: what the first one has reaches the others, and nothing else does."""

from pathlib import Path

import pytest

from esper.api.tolaria.v1 import trainer_pb2
from esper.errors import Conflict, PreconditionFailed, Untrusted
from esper.kasmina.cache import KernelCache
from esper.kasmina.loader import KernelLoader
from esper.runtime.rank_attach import LoaderKernels, NoLibrary, Tie, join, lead, not_at_hand, roots_of, share_spool
from esper.tolaria.checkpoint import CheckpointStore
from esper.tolaria.snapshot import load
from esper.tolaria.tensor_files import files_of
from tests import builders
from tests.artifact.samples import MAP, ROOTS, promoted
from tests.runtime.threads import on_each, thread_ranks
from tests.tolaria.checkpoints import filled, same, tensors_in, write
from tests.tolaria.quiet import QuietLine, session_of

WELCOME = trainer_pb2.Welcome(forge_keys=list(ROOTS.forge), evaluation_keys=list(ROOTS.evaluation))


def tie(folder: Path, **changes: object) -> Tie:
    """What the first rank has of its own."""
    loader = KernelLoader(KernelCache(folder / "kernels", roots_of(WELCOME), not_at_hand))
    made = {"line": QuietLine(), "loader": loader, "library": NoLibrary(), "welcome": WELCOME, "directory": folder}
    return Tie(**(made | changes))  # type: ignore[arg-type]


def begin(make) -> list:
    """`lead` on one rank and `join` on another: their ties, or the errors they raise."""
    return on_each(thread_ranks(2), lambda ranks: lead(ranks, make) if ranks.first else join(ranks))


def test_the_others_get_a_folder_of_their_own(tmp_path):
    first, other = begin(lambda: tie(tmp_path))
    assert first.directory == tmp_path and other.directory != tmp_path and other.directory.is_dir()
    assert first.checkpoint is None and other.checkpoint is None
    assert isinstance(first.line.outer, QuietLine) and other.line.outer is None


def test_a_run_that_goes_on_goes_on_from_the_first_ranks_checkpoint_and_journal(tmp_path):
    (tmp_path / "journal.jsonl").write_text("{}\n")
    (tmp_path / "tensors").write_bytes(b"tensors")
    manifest = trainer_pb2.CheckpointManifest(run_id="run", step=40, journal_position=3)
    _, other = begin(lambda: tie(tmp_path, checkpoint=(manifest, tmp_path / "tensors")))
    assert other.checkpoint[0] == manifest and other.checkpoint[1].read_bytes() == b"tensors"
    assert (other.directory / "journal.jsonl").read_text() == "{}\n"


def test_large_tensors_of_the_checkpoint_reach_the_others(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints")
    folder = write(store, 40, filled(1.5))
    _, other = begin(lambda: tie(tmp_path, checkpoint=store.latest()))
    *large, tensors = files_of(*other.checkpoint)
    assert same(load(tensors, large).tensors, tensors_in(folder))
    assert len(large) == 1


def test_what_the_first_rank_is_refused_for_the_others_hear(tmp_path):
    def refused() -> Tie:
        raise Conflict("attached already")

    errors = begin(refused)
    assert [type(error) for error in errors] == [Conflict, Conflict]
    assert [str(error) for error in errors] == ["attached already"] * 2


def test_a_kernel_comes_as_a_signed_artifact_and_is_loaded(tmp_path):
    artifact = promoted()
    first, other = begin(lambda: tie(tmp_path))
    first.loader.cache.take(artifact)
    data = LoaderKernels(first.loader).pack(artifact.artifact_id)
    kernel = LoaderKernels(other.loader).load(artifact.artifact_id, MAP, data)
    assert kernel.artifact_id == artifact.artifact_id and kernel.interface == MAP


def test_a_rank_runs_nothing_that_the_runtimes_keys_do_not_vouch_for(tmp_path):
    artifact = promoted()
    first, other = begin(lambda: tie(tmp_path, welcome=trainer_pb2.Welcome()))
    first.loader.cache.take(artifact)
    data = LoaderKernels(first.loader).pack(artifact.artifact_id)
    with pytest.raises(Untrusted):
        LoaderKernels(other.loader).load(artifact.artifact_id, MAP, data)


def test_the_spool_is_full_for_all_or_for_none(tmp_path):
    sessions = [session_of(tmp_path / name) for name in "ab"]
    sessions[0].run.spool.sizes = {Path("state-1"): 1000}
    pairs = list(zip(thread_ranks(2), sessions, strict=True))
    assert on_each(pairs, lambda pair: share_spool(pair[0], pair[1].run)) == [None, None]
    assert sessions[1].run.spool.sizes == {Path("state-1"): 1000}
    for session in sessions:
        session.arrivals.journal.close()


async def test_a_kernel_is_not_loaded_by_hand_on_one_rank():
    handle = builders.handle()
    handle.kernels = NoLibrary()
    assert not await handle["2"].load_kernel(0, builders.ARTIFACT)
    assert "the run has several ranks" in handle.executor.table[builders.first_seed(handle.executor)].reason
    with pytest.raises(PreconditionFailed, match="esper seed germinate"):
        await NoLibrary().kernel(builders.ARTIFACT, handle["2"].site)
