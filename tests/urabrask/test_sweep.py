"""No false rejection: every library blueprint passes, at every kind of interface it fits."""

import pytest
import torch

from esper.artifact.bundle import to_bytes
from esper.blueprint.interface import DTYPES, Interface, Kind
from esper.blueprint.matching import match
from esper.karn.templates import TEMPLATES
from esper.tezzeret.compile import build
from esper.urabrask import codec
from esper.urabrask.codec import EvaluationOrder

KINDS = (
    (Kind.MAP2D, False),
    (Kind.TOKENS, False),
    (Kind.TOKENS, True),
    (Kind.VECTOR, False),
    (Kind.MAP1D, False),
    (Kind.MAP1D, True),
)


def fitting(title: str, channels: int, dtypes: tuple[torch.dtype, ...]) -> list[Interface]:
    made = [Interface(kind, channels, dtype, causal) for kind, causal in KINDS for dtype in dtypes]
    return [interface for interface in made if match(TEMPLATES[title].graph, interface)[0]]


def rejected(lab, title: str, interfaces: list[Interface], runs: int) -> list[str]:
    found = []
    for interface in interfaces:
        artifact = to_bytes(build(TEMPLATES[title].graph, interface, "cpu", "fast"))
        order = codec.write_order(EvaluationOrder(artifact, runs=runs))
        findings = codec.read_findings(lab.call("esper.urabrask.job:evaluate_job", order))
        # latency is a matter of the machine's mood as well; everything else is not
        found += [f"{title} at {interface}: {c.name}: {c.detail}" for c in findings.checks if not c.passed]
    return found


# One of each family, so that a fault of a family is found at once; the slow test has them all.
ONE_OF_A_FAMILY = {one.family: title for title, one in reversed(TEMPLATES.items())}


@pytest.mark.parametrize("title", ONE_OF_A_FAMILY.values())
def test_a_library_blueprint_of_each_family_passes(lab, title):
    assert rejected(lab, title, fitting(title, 8, (torch.float32,)), runs=10) == []


@pytest.mark.slow
@pytest.mark.parametrize("channels", [3, 16, 64])
@pytest.mark.parametrize("title", TEMPLATES)
def test_library_blueprints_pass_in_every_type_and_width(lab, title, channels):
    assert rejected(lab, title, fitting(title, channels, DTYPES), runs=10) == []
