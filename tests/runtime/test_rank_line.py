"""What arrives on the first rank's line arrives on all: ranks are threads here, and meet at barriers."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from esper.api.kasmina.v1 import nursery_pb2
from esper.api.tolaria.v1 import trainer_pb2
from esper.errors import DeadlineExceeded, KernelFault, Unavailable
from esper.kasmina.lifecycle import SeedId
from esper.runtime.rank_line import RankLine
from esper.tolaria.line import Loaded
from tests import builders
from tests.runtime.threads import on_each, thread_ranks
from tests.tolaria.quiet import QuietLine

SEED, ARTIFACT = SeedId("2", 0), builders.ARTIFACT


@dataclass
class Kernels:
    """Implements RankKernels; `broken`: why this rank cannot load."""

    broken: str = ""
    packed: list[str] = field(default_factory=list)

    def pack(self, artifact_id: str) -> bytes:
        if self.broken:
            raise Unavailable(self.broken)
        self.packed.append(artifact_id)
        return b"kernel " + artifact_id.encode()

    def load(self, artifact_id, interface, data):
        assert data == b"kernel " + artifact_id.encode()
        if self.broken:
            raise KernelFault(self.broken)
        return builders.kernel(interface)


class Scene:
    """Two ranks and their lines."""

    def __init__(self, broken: tuple[str, str] = ("", "")) -> None:
        self.outer = QuietLine()
        self.ranks = thread_ranks(2)
        self.lines = [
            RankLine(ranks, self.outer if ranks.first else None, Kernels(why))  # type: ignore[arg-type]
            for ranks, why in zip(self.ranks, broken, strict=True)
        ]

    def both(self, act: Callable[[RankLine], object]) -> list[object]:
        """What `act` gives on each rank, or the error it raises there."""
        return on_each(self.lines, act)


def reply(sequence: int) -> trainer_pb2.DecisionReply:
    return trainer_pb2.DecisionReply(sequence=sequence, controller_state=b"state")


def test_every_rank_gets_the_same_in_the_same_order():
    scene = Scene()
    sent = [
        trainer_pb2.SequencedCommand(sequence=7),
        nursery_pb2.JobResult(job_id="run/trial/1", flops=3.0),
        reply(2),
    ]
    scene.outer.inbox += sent
    first, second = scene.both(lambda line: line.collect())
    assert first == second == sent
    assert scene.both(lambda line: line.collect()) == [[], []]


def test_the_first_rank_alone_posts():
    scene = Scene()
    for line in scene.lines:
        line.post(lambda: trainer_pb2.AttachRequest(note=trainer_pb2.Note(text="once")))
    assert [note.text for note in scene.outer.said("note")] == ["once"]


def loaded(scene: Scene) -> list[Loaded]:
    interface = builders.interface()
    for line in scene.lines:
        line.load_kernel(SEED, ARTIFACT, interface)
    assert scene.outer.loads == [(SEED, ARTIFACT)]
    scene.outer.inbox.append(Loaded(SEED, ARTIFACT, builders.kernel(interface)))
    return [only for (only,) in scene.both(lambda line: line.collect())]


def test_a_kernel_is_loaded_on_every_rank():
    for item in loaded(Scene()):
        assert item.kernel is not None and item.kernel.artifact_id == ARTIFACT and not item.failure


@pytest.mark.parametrize(
    ("broken", "words"),
    [(("", "no memory"), "rank 1 cannot load it: no memory"), (("gone from disk", ""), "gone from disk")],
    ids=["on another rank", "not to be handed on"],
)
def test_a_kernel_that_one_rank_cannot_load_is_refused_on_all(broken, words):
    for item in loaded(Scene(broken)):
        assert item.kernel is None and item.failure == words


def test_a_kernel_that_failed_on_the_first_rank_is_not_handed_on():
    scene = Scene()
    scene.outer.inbox.append(Loaded(SEED, ARTIFACT, None, "not promoted"))
    for (item,) in scene.both(lambda line: line.collect()):
        assert item.kernel is None and item.failure == "not promoted"
    assert scene.lines[0].kernels.packed == []


class Arriving(QuietLine):
    """Something arrives at the third look."""

    def wait(self, done, limit_s=600.0):
        for look in range(5):
            if done():
                return
            if look == 2:
                self.inbox.append(reply(4))
        raise DeadlineExceeded("nothing came")


def wait_for(sequence: int) -> Callable[[RankLine], list[object]]:
    def act(line: RankLine) -> list[object]:
        seen: list[object] = []

        def done() -> bool:
            seen.extend(line.collect())
            return any(item.sequence >= sequence for item in seen)

        line.wait(done)
        return seen

    return act


def test_all_wait_for_what_the_first_rank_waits_for_and_share_only_what_came():
    scene = Scene()
    scene.lines[0].outer = Arriving()
    assert scene.both(wait_for(4)) == [[reply(4)], [reply(4)]]
    assert [ranks.shared for ranks in scene.ranks] == [2, 2]  # the first look, and the one that found something


def test_what_is_there_already_is_not_waited_for():
    scene = Scene()
    scene.outer.inbox.append(reply(4))
    assert scene.both(wait_for(3)) == [[reply(4)], [reply(4)]]


def test_a_wait_that_ends_in_an_error_ends_so_on_all():
    scene = Scene()
    scene.lines[0].outer = Arriving()
    errors = scene.both(wait_for(5))
    assert [type(error) for error in errors] == [DeadlineExceeded, DeadlineExceeded]
    assert [str(error) for error in errors] == ["nothing came"] * 2
    assert scene.both(lambda line: line.collect()) == [[], []]  # and no rank is a word behind


class Lost(QuietLine):
    def collect(self):
        raise Unavailable("the line is lost")


def test_a_line_that_is_lost_is_lost_for_all():
    scene = Scene()
    scene.lines[0].outer = Lost()
    for act in (lambda line: line.collect(), wait_for(1)):
        assert [str(error) for error in scene.both(act)] == ["the line is lost"] * 2


class LostLater(Arriving):
    looks = 0

    def collect(self):
        self.looks += 1
        if self.looks > 2:
            raise Unavailable("the line is lost")
        return []


def test_a_line_that_is_lost_while_all_wait():
    scene = Scene()
    scene.lines[0].outer = LostLater()
    assert [str(error) for error in scene.both(wait_for(1))] == ["the line is lost"] * 2
