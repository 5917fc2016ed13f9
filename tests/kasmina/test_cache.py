"""The cache: ready kernels bounded, bytes on disk verified at every read, what is wrong put aside and fetched anew."""

import statistics
import threading
import time
from pathlib import Path

import pytest

from esper.artifact.body import MODULE
from esper.artifact.bundle import Artifact
from esper.artifact.folder import read_folder, write_folder
from esper.artifact.keys import TrustRoots
from esper.errors import Corrupt, Exhausted, NotFound, Unavailable, Untrusted
from esper.kasmina import cache as cache_module
from esper.kasmina.cache import DISK, LIBRARY, CacheLimits, KernelCache, folder_of
from esper.kasmina.loader import parse
from tests.artifact.samples import ROOTS, STRANGER, built, flipped, promoted

TITLES = ("conv3", "low_rank", "normalisation", "wide_mlp")


class Shelf:
    """A library that can be empty, wrong or away."""

    def __init__(self) -> None:
        self.artifacts = {promoted(title).artifact_id: promoted(title) for title in TITLES}
        self.asked: list[str] = []
        self.away = False

    def __call__(self, artifact_id: str) -> Artifact:
        self.asked.append(artifact_id)
        if self.away:
            raise Unavailable("the library is away")
        if artifact_id not in self.artifacts:
            raise NotFound(f"kernels/{artifact_id}: no such kernel")
        return self.artifacts[artifact_id]


class Setup:
    def __init__(self, folder: Path, limits: CacheLimits | None = None) -> None:
        self.folder = folder
        self.shelf = Shelf()
        self.reports: list[tuple[str, str]] = []
        self.cache = KernelCache(
            folder, ROOTS, self.shelf, limits or CacheLimits(), lambda name, reason: self.reports.append((name, reason))
        )


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(tmp_path / "kernels")


NAME = promoted().artifact_id
KERNELS = [parse(promoted(title), ROOTS) for title in TITLES]


# memory


def test_what_is_kept_is_ready(setup):
    assert setup.cache.ready(NAME) is None
    setup.cache.keep(KERNELS[0], 100)
    assert setup.cache.ready(NAME) is KERNELS[0]
    assert (setup.cache.counts.memory_hits, setup.cache.counts.memory_misses) == (1, 1)
    assert setup.cache.counts.hit_rate == 0.5


def test_the_one_used_longest_ago_makes_room(tmp_path):
    cache = Setup(tmp_path, CacheLimits(count=2)).cache
    cache.keep(KERNELS[0], 1)
    cache.keep(KERNELS[1], 1)
    assert cache.ready(KERNELS[0].artifact_id)
    cache.keep(KERNELS[2], 1)
    assert [kernel.artifact_id in cache for kernel in KERNELS[:3]] == [True, False, True]


def test_bytes_are_bounded_as_well(tmp_path):
    cache = Setup(tmp_path, CacheLimits(size_bytes=100)).cache
    cache.keep(KERNELS[0], 60)
    cache.keep(KERNELS[1], 40)
    assert len(cache) == 2
    cache.keep(KERNELS[2], 41)  # the first one's place is enough
    assert [kernel.artifact_id in cache for kernel in KERNELS[:3]] == [False, True, True]
    assert cache.size_bytes == 81
    cache.keep(KERNELS[3], 101)  # larger than the whole cache: everything else stays
    assert cache.size_bytes == 81
    assert KERNELS[3].artifact_id not in cache


def test_keeping_one_again_counts_its_bytes_once(setup):
    for size_bytes in (10, 30):
        setup.cache.keep(KERNELS[0], size_bytes)
    assert setup.cache.size_bytes == 30
    setup.cache.evict(NAME)
    setup.cache.evict(NAME)
    assert (len(setup.cache), setup.cache.size_bytes) == (0, 0)


def test_a_hit_is_cheap(setup):
    """The target is 10 us; here only that nothing of a load is paid for."""
    setup.cache.obtain(NAME)
    setup.cache.keep(KERNELS[0], 1)
    hits, loads = [], []
    for _ in range(50):
        began = time.perf_counter()
        setup.cache.ready(NAME)
        hits.append(time.perf_counter() - began)
        began = time.perf_counter()
        setup.cache.obtain(NAME)
        loads.append(time.perf_counter() - began)
    assert statistics.median(hits) < statistics.median(loads) / 10


def test_many_threads_keep_the_books_straight(tmp_path):
    cache = Setup(tmp_path, CacheLimits(count=3, size_bytes=30)).cache

    def churn(seed: int) -> None:
        for i in range(2000):
            kernel = KERNELS[(i * seed) % 4]
            cache.keep(kernel, 10)
            cache.ready(kernel.artifact_id)
            if i % 7 == 0:
                cache.evict(kernel.artifact_id)

    threads = [threading.Thread(target=churn, args=(seed,)) for seed in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cache.size_bytes == 10 * len(cache) <= 30
    assert cache.counts.memory_hits + cache.counts.memory_misses == 6000


# disk and library


def test_what_the_library_sends_is_verified_and_kept_on_disk(setup):
    first = setup.cache.obtain(NAME)
    assert first.source == LIBRARY
    assert first.body.blueprint_id == KERNELS[0].blueprint_id
    assert read_folder(folder_of(setup.folder, NAME)) == promoted()
    second = setup.cache.obtain(NAME)
    assert second.source == DISK
    assert second.artifact == first.artifact
    assert setup.shelf.asked == [NAME]
    assert (setup.cache.counts.fetched, setup.cache.counts.disk_hits) == (1, 1)
    assert second.fetch_ms >= 0
    assert second.verify_ms > 0


def test_another_process_finds_what_is_on_disk_and_needs_no_library(setup):
    setup.cache.obtain(NAME)
    other = Setup(setup.folder)
    other.shelf.away = True
    assert other.cache.obtain(NAME).source == DISK
    with pytest.raises(Unavailable, match="the library is away"):
        other.cache.obtain(promoted("low_rank").artifact_id)


@pytest.mark.parametrize("name", ["graph.json", "weights.safetensors", MODULE, "body.json", "attestations.json"])
def test_a_flipped_bit_on_disk_costs_a_fetch_and_is_reported(setup, name):
    setup.cache.obtain(NAME)
    file = folder_of(setup.folder, NAME) / name
    file.write_bytes(flipped(file.read_bytes(), 90))
    assert setup.cache.obtain(NAME).source == LIBRARY
    assert setup.shelf.asked == [NAME, NAME]
    ((reported, reason),) = setup.reports
    assert reported == NAME
    assert "was put aside as" in reason
    (aside,) = (setup.folder / "quarantine").iterdir()
    assert aside.name.startswith(NAME)
    assert (aside / "graph.json").exists()
    assert setup.cache.counts.quarantined == 1
    assert setup.cache.obtain(NAME).source == DISK  # the fresh copy


def test_a_missing_or_extra_file_on_disk_likewise(setup):
    setup.cache.obtain(NAME)
    (folder_of(setup.folder, NAME) / MODULE).unlink()
    assert setup.cache.obtain(NAME).source == LIBRARY
    (folder_of(setup.folder, NAME) / "more").write_bytes(b"x")
    assert setup.cache.obtain(NAME).source == LIBRARY
    assert len(setup.reports) == 2


def test_a_folder_of_another_kernel_under_this_name_is_not_believed(setup):
    other = promoted("low_rank").artifact_id
    setup.cache.obtain(other)
    folder_of(setup.folder, NAME).parent.mkdir(parents=True, exist_ok=True)
    folder_of(setup.folder, other).rename(folder_of(setup.folder, NAME))
    assert setup.cache.obtain(NAME).artifact == promoted()
    assert len(setup.reports) == 1


def test_a_kernel_whose_signer_is_no_longer_trusted_is_not_served_from_disk(setup):
    setup.cache.obtain(NAME)
    roots = TrustRoots(ROOTS.forge, (STRANGER.public_key,))
    cache = KernelCache(
        setup.folder, roots, setup.shelf, report=lambda name, reason: setup.reports.append((name, reason))
    )
    with pytest.raises(Untrusted, match='no "promoted" attestation'):
        cache.obtain(NAME)
    assert not folder_of(setup.folder, NAME).exists()


def test_what_the_library_sends_is_not_believed_either(setup):
    wrong = promoted("low_rank")
    setup.shelf.artifacts[NAME] = wrong
    with pytest.raises(Corrupt, match=f"kernel {NAME} was asked for; the library sent '{wrong.artifact_id}'"):
        setup.cache.obtain(NAME)
    setup.shelf.artifacts[NAME] = built()  # never promoted
    with pytest.raises(Untrusted, match='no "promoted" attestation'):
        setup.cache.obtain(NAME)
    good = promoted()
    setup.shelf.artifacts[NAME] = Artifact(good.manifest, {**good.files, MODULE: b"x"})
    with pytest.raises(Corrupt, match=r"'module\.pt' has 1 bytes"):
        setup.cache.obtain(NAME)
    assert not setup.folder.exists()


def test_a_disk_that_is_full_costs_no_load(setup, monkeypatch):
    def full(artifact: Artifact, path: Path) -> bool:
        raise Exhausted("no space left on device")

    monkeypatch.setattr(cache_module, "write_folder", full)
    assert setup.cache.obtain(NAME).source == LIBRARY
    assert setup.reports == [(NAME, "it could not be kept on disk: no space left on device")]


def test_two_that_write_the_same_kernel_leave_one(setup, monkeypatch):
    genuine = write_folder

    def raced(artifact: Artifact, path: Path) -> bool:
        assert genuine(artifact, path)  # another process was faster
        return genuine(artifact, path)

    monkeypatch.setattr(cache_module, "write_folder", raced)
    setup.cache.obtain(NAME)
    assert setup.reports == []
    assert setup.cache.obtain(NAME).source == DISK


def test_what_nobody_has_is_not_found(setup):
    with pytest.raises(NotFound, match="no such kernel"):
        setup.cache.obtain("f" * 64)
