"""A kernel is downloaded again where that may help, and then no more often than it was allowed to be."""

import pytest

from esper.artifact.bundle import Artifact
from esper.artifact.folder import write_folder
from esper.errors import Corrupt, DeadlineExceeded, NotFound, Unavailable, Untrusted
from esper.kasmina.cache import KernelCache, folder_of
from esper.kasmina.loader import KernelLoader
from esper.runtime.loads import load_over
from esper.runtime.rank_attach import not_at_hand
from tests.artifact.samples import MAP, ROOTS, built, flipped, promoted

NAME = promoted().artifact_id


def damaged() -> Artifact:
    whole = promoted()
    name = sorted(whole.files)[0]
    return Artifact(whole.manifest, {**whole.files, name: flipped(whole.files[name])})


class Library:
    """Answers downloads with what it was given, one after the other; the last one for ever."""

    def __init__(self, folder, *answers):
        self.answers = list(answers)
        self.asked = 0
        self.loader = KernelLoader(KernelCache(folder, ROOTS, not_at_hand, report=lambda *_: None))
        self.counts = self.loader.cache.counts

    async def download(self, artifact_id):
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def load(self):
        return await load_over(self.loader, self.download, (0.0, 0.0, 0.0))(NAME, MAP)


async def test_what_is_had_at_once_counts_as_no_retry(tmp_path):
    library = Library(tmp_path, promoted())
    assert (await library.load()).artifact_id == NAME
    assert (await library.load()).artifact_id == NAME
    assert (library.asked, library.counts.retried) == (1, 0)


@pytest.mark.parametrize("passing", [Unavailable("away"), DeadlineExceeded("slow"), Corrupt("cut short")], ids=repr)
async def test_what_fails_in_passing_is_tried_again(tmp_path, passing):
    library = Library(tmp_path, passing, passing, promoted())
    assert (await library.load()).artifact_id == NAME
    assert (library.asked, library.counts.retried) == (3, 1)


async def test_bytes_damaged_on_the_way_are_downloaded_again(tmp_path):
    library = Library(tmp_path, damaged(), promoted())
    assert (await library.load()).artifact_id == NAME
    assert (library.asked, library.counts.retried) == (2, 1)


async def test_a_damaged_copy_on_disk_is_put_aside_and_replaced(tmp_path):
    write_folder(damaged(), folder_of(tmp_path, NAME))
    library = Library(tmp_path, promoted())
    assert (await library.load()).artifact_id == NAME
    assert (library.asked, library.counts.retried, library.counts.quarantined) == (1, 1, 1)


@pytest.mark.parametrize("lasting", [Unavailable("away"), Corrupt("cut short")], ids=repr)
async def test_it_gives_up_after_the_last_pause_with_the_last_failure(tmp_path, lasting):
    library = Library(tmp_path, lasting)
    with pytest.raises(type(lasting), match=str(lasting)):
        await library.load()
    assert (library.asked, library.counts.retried) == (4, 0)


@pytest.mark.parametrize("answer", [NotFound("nobody knows it"), built()], ids=["unknown", "not promoted"])
async def test_what_no_retry_will_fix_is_asked_for_once(tmp_path, answer):
    library = Library(tmp_path, answer)
    with pytest.raises((NotFound, Untrusted)):
        await library.load()
    assert library.asked == 1
