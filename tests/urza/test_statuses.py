"""Where blueprints and kernels may stand: the tables are closed, and every other move is refused by name."""

from pathlib import Path

import pytest

from esper.api.urza.v1 import library_pb2 as pb
from esper.errors import PreconditionFailed
from esper.urza.statuses import BLUEPRINT, KERNEL, StatusMachine

MACHINES = [BLUEPRINT, KERNEL]
PAIRS = [(machine, a, b) for machine in MACHINES for a in machine.enum.values() for b in machine.enum.values()]


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.thing)
def test_every_status_but_unspecified_has_its_moves(machine: StatusMachine) -> None:
    assert set(machine.moves) == set(machine.enum.values()) - {0}
    assert all(targets <= set(machine.moves) for targets in machine.moves.values())


@pytest.mark.parametrize(("machine", "current", "to"), PAIRS)
def test_a_move_is_made_or_refused_with_what_is_allowed(machine: StatusMachine, current: int, to: int) -> None:
    allowed = machine.moves.get(current, frozenset())
    if to in allowed:
        assert machine.move(current, to) == to
        return
    with pytest.raises(PreconditionFailed) as caught:
        machine.move(current, to)
    words = str(caught.value)
    assert f"is {machine.name(current)} and cannot become {machine.name(to)}" in words
    assert all(machine.name(status) in words for status in allowed)


def test_a_number_no_enum_has_is_refused() -> None:
    with pytest.raises(PreconditionFailed, match="cannot become 99"):
        KERNEL.move(pb.KERNEL_STATUS_VALIDATED, 99)


def test_a_kernel_in_doubt_reaches_validated_only_through_a_new_evaluation() -> None:
    out = KERNEL.moves[pb.KERNEL_STATUS_QUARANTINED]
    assert pb.KERNEL_STATUS_VALIDATED not in out
    reach_validated = {status for status, to in KERNEL.moves.items() if pb.KERNEL_STATUS_VALIDATED in to}
    assert reach_validated == {pb.KERNEL_STATUS_PENDING_BENCHMARKING, pb.KERNEL_STATUS_VALIDATED}


def test_every_kernel_can_be_quarantined() -> None:
    others = set(KERNEL.moves) - {pb.KERNEL_STATUS_QUARANTINED}
    assert all(pb.KERNEL_STATUS_QUARANTINED in KERNEL.moves[status] for status in others)


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.thing)
def test_the_documentation_lists_the_same_moves(machine: StatusMachine) -> None:
    text = (Path(__file__).parents[2] / "docs" / "library.md").read_text()
    block = text.partition(f"\n    {machine.thing}\n")[2].partition("\n\n")[0]
    listed = {
        start.strip(): {name.strip() for name in targets.split("|")}
        for start, _, targets in (line.partition(" > ") for line in block.splitlines())
    }
    assert listed == {
        machine.name(start): {machine.name(status) for status in targets} for start, targets in machine.moves.items()
    }


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.thing)
def test_no_status_is_a_dead_end(machine: StatusMachine) -> None:
    assert all(targets for targets in machine.moves.values())
